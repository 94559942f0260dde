"""How previews rank their outcome: `python -m tts_vision.eval.var_previews`.

Draws samples of the playground's visual autoregressive model and previews each after every scale: decoded at
full size and smaller, with the next scale's expectation, and completed with the likeliest tokens. Compares
the ranks of the previews with those of the finished samples, by a verifier, and of small ones with those at
full size. Takes about three minutes and writes ``eval/results/var_previews.md``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from tts_vision.calibration import spearman
from tts_vision.config import RunConfig, SamplerOptions
from tts_vision.eval.playground import evaluation_prompts
from tts_vision.media import all_valid
from tts_vision.pipelines.var_sampler import ScaleSampler
from tts_vision.resolve import find_verifier, load_model, load_verifier
from tts_vision.types import Prompt
from tts_vision.verifier import Verifier

FULL = 64
Mode: TypeAlias = Literal["decode", "expected", "complete"]


@dataclass(frozen=True)
class Row:
    """Mean rank correlations over prompts of previews after one scale.

    Attributes:
        scale: Scales done.
        mode: As in `SamplerOptions.preview`.
        size: Side of the previews in pixels.
        with_full: With the scores of previews at full size.
        with_final: With the scores of the finished samples.
    """

    scale: int
    mode: Mode
    size: int
    with_full: float
    with_final: float


def measure(prompts: Sequence[Prompt], samples: int, sizes: Sequence[int], verifier: Verifier) -> list[Row]:
    """Rank correlations by scale and size.

    Args:
        prompts: What is drawn.
        samples: Samples of each prompt.
        sizes: Sides of the small previews.
        verifier: What ranks.
    """
    pipe = load_model(RunConfig(prompt="-", model="playground-var", verifier=verifier.name))
    kinds: list[tuple[Mode, int]] = [("decode", size) for size in (*sizes, FULL)] + [
        ("expected", FULL),
        ("complete", FULL),
    ]
    samplers = {
        (mode, size): ScaleSampler(pipe, options=SamplerOptions(preview=mode, preview_size=size))
        for mode, size in kinds
    }
    whole = samplers["decode", FULL]
    pairs: dict[tuple[int, Mode, int], list[tuple[float, float]]] = {}
    for prompt in prompts:
        state = whole.init(whole.condition_of(prompt), range(samples), seed=0)
        scores: dict[tuple[int, Mode, int], list[float]] = {}
        for scale in range(1, whole.num_steps):
            state = whole.advance(state)
            for (mode, size), sampler in samplers.items():
                previews = all_valid(sampler.preview(state), sampler.name)
                scored = verifier.score(previews, [prompt] * samples)
                scores[scale, mode, size] = [score.value for score in scored]
        state = whole.advance(state)
        finished = all_valid(whole.decode(state), whole.name)
        final = [score.value for score in verifier.score(finished, [prompt] * samples)]
        for (scale, mode, size), values in scores.items():
            full = spearman(list(zip(values, scores[scale, "decode", FULL])))
            end = spearman(list(zip(values, final)))
            both = (math.nan if full is None else full, math.nan if end is None else end)
            pairs.setdefault((scale, mode, size), []).append(both)
    order = {kind: number for number, kind in enumerate(kinds)}
    return [
        Row(scale, mode, size, *map(float, np.nanmean(np.array(found), axis=0)))
        for (scale, mode, size), found in sorted(pairs.items(), key=lambda p: (p[0][0], order[p[0][1:]]))
    ]


def table(rows: Sequence[Row], num_scales: int) -> str:
    """The rows as Markdown."""
    lines = [
        "| scales done | preview | side | rank correlation with `decode` at 64 | with the finished sample |",
        "|---|---|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.scale} of {num_scales} | {row.mode} | {row.size} | {row.with_full:.2f} "
            f"| {row.with_final:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints and writes the table.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=30, help="distinct prompts, up to 123")
    parser.add_argument("--samples", type=int, default=32, help="of each prompt")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--verifier", default="playground_clip")
    parser.add_argument("--output", type=Path, default=Path("eval/results/var_previews.md"))
    options = parser.parse_args(arguments)
    verifier = load_verifier(find_verifier(options.verifier))
    rows = measure(evaluation_prompts(options.prompts), options.samples, options.sizes, verifier)
    text = table(rows, max(row.scale for row in rows) + 1)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)


if __name__ == "__main__":
    main()
