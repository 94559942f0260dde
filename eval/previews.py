"""How previews rank their outcome: `python -m tts_vision.eval.previews`.

Draws samples of a bundled model and previews each on the way: of the flow (`--model playground`) by the x0
estimate and by rollouts of 1, 2 and 4 steps, of the visual autoregressive model (`--model playground-var`) by
the sum of the scales done at full size and smaller, with the next scale's expectation, and completed with the
likeliest tokens, of the models of tokens by the guess of the step, and completed. Compares the ranks of the
previews with those of the finished samples, by a verifier, and with those of plain previews. Writes
``eval/results/previews-MODEL.md``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_vision.calibration import spearman
from tts_vision.config import RunConfig, SamplerOptions
from tts_vision.eval.playground import evaluation_prompts
from tts_vision.media import all_valid
from tts_vision.resolve import Live, find_sampler, find_verifier, load_model, load_verifier
from tts_vision.sampler import Sampler
from tts_vision.types import Prompt, State
from tts_vision.verifier import Verifier

FULL = 64
MODES = {
    "playground": ("decode", "rollout:1", "rollout:2", "rollout:4"),
    "playground-var": ("decode", "expected", "complete"),
    "playground-masked": ("decode", "complete"),
    "playground-discrete-flow": ("decode",),
}
STEPS = {
    "playground": (1, 2, 3, 4, 6, 8, 10, 12),
    "playground-var": (1, 2, 3, 4, 5),
    "playground-masked": (2, 4, 6, 8, 10),
    "playground-discrete-flow": (4, 8, 12),
}


@dataclass(frozen=True)
class Row:
    """Mean rank correlations over prompts of previews after one step.

    Attributes:
        step: Steps done.
        mode: As in `SamplerOptions.preview`.
        size: Side of the previews in pixels.
        with_plain: With the scores of plain previews at full size.
        with_final: With the scores of the finished samples.
    """

    step: int
    mode: str
    size: int
    with_plain: float
    with_final: float


def samplers_of(model: str, sizes: Sequence[int]) -> dict[tuple[str, int], Sampler]:
    """A sampler of one model for each kind of preview, by mode and side; plain ones at full size first."""
    config = RunConfig(prompt="-", model=model, verifier="playground_clip")
    live = Live(pipe=load_model(config))

    def sampler(mode: str, size: int) -> Sampler:
        options = SamplerOptions(preview=mode, preview_size=None if size == FULL else size)
        return find_sampler(config.model_copy(update={"sampler_options": options}), live, stochastic=False)

    kinds = [(mode, FULL) for mode in MODES[model]] + [("decode", size) for size in sizes]
    return {kind: sampler(*kind) for kind in kinds}


def measure(
    samplers: dict[tuple[str, int], Sampler],
    prompts: Sequence[Prompt],
    samples: int,
    steps: Sequence[int],
    verifier: Verifier,
) -> list[Row]:
    """Rank correlations by step and kind of preview.

    Args:
        samplers: From `samplers_of`.
        prompts: What is drawn.
        samples: Samples of each prompt.
        steps: Where they are previewed, increasing.
        verifier: What ranks.
    """
    whole = samplers["decode", FULL]
    pairs: dict[tuple[int, str, int], list[tuple[float, float]]] = {}
    for prompt in prompts:

        def scored(sampler: Sampler, state: State, prompt: Prompt = prompt) -> list[float]:
            decode = sampler.preview if state.step < sampler.num_steps else sampler.decode
            shown = all_valid(decode(state), sampler.name)
            return [score.value for score in verifier.score(shown, [prompt] * samples)]

        state = whole.init(whole.condition_of(prompt), range(samples), seed=0)
        scores: dict[tuple[int, str, int], list[float]] = {}
        for step in steps:
            state = whole.advance(state, step - state.step)
            for (mode, size), sampler in samplers.items():
                scores[step, mode, size] = scored(sampler, state)
        final = scored(whole, whole.advance(state, whole.num_steps - state.step))
        for (step, mode, size), values in scores.items():
            plain = spearman(list(zip(values, scores[step, "decode", FULL])))
            end = spearman(list(zip(values, final)))
            both = (math.nan if plain is None else plain, math.nan if end is None else end)
            pairs.setdefault((step, mode, size), []).append(both)
    return [
        Row(*kind, *map(float, np.nanmean(np.array(pairs[kind]), axis=0)))
        for kind in sorted(pairs, key=lambda kind: kind[0])
    ]


def table(rows: Sequence[Row], num_steps: int) -> str:
    """The rows as Markdown."""
    lines = [
        "| steps done | preview | side | rank correlation with `decode` at 64 | with the finished sample |",
        "|---|---|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.step} of {num_steps} | {row.mode} | {row.size} | {row.with_plain:.2f} "
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
    parser.add_argument("--model", choices=[*MODES], default="playground-var")
    parser.add_argument("--track", choices=["easy", "hard"], default="easy")
    parser.add_argument("--prompts", type=int, default=30, help="distinct prompts, up to 123")
    parser.add_argument("--samples", type=int, default=32, help="of each prompt")
    parser.add_argument(
        "--sizes", type=int, nargs="+", help="of smaller previews; 16 and 32 of playground-var"
    )
    parser.add_argument("--verifier", default="playground_clip")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    verifier = load_verifier(find_verifier(options.verifier))
    sizes = options.sizes or ([16, 32] if options.model == "playground-var" else [])
    samplers = samplers_of(options.model, sizes)
    prompts = evaluation_prompts(options.prompts, options.track)
    rows = measure(samplers, prompts, options.samples, STEPS[options.model], verifier)
    text = table(rows, samplers["decode", FULL].num_steps)
    print(text)
    output: Path = options.output or Path(f"eval/results/previews-{options.model}.md")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)


if __name__ == "__main__":
    main()
