"""Measures the playground's step verifier: ``python -m tts_vision.eval.step_judge``.

Draws images of `playground-masked` for evaluation prompts, asks `playground_parm` its three questions about
the preview of every step and about the finished images, and compares the answers with the exact checker.
Writes ``eval/results/step_judge.md``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tts_vision.eval.judge import auc, reliability
from tts_vision.pipelines.bundled import load_playground_masked
from tts_vision.pipelines.masked_sampler import MaskedSampler
from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.hard import load_hard_prompts
from tts_vision.pipelines.playground.train_parm import Steps, draw_steps
from tts_vision.types import Prompt, Score
from tts_vision.verifiers.playground_judge import PlaygroundJudge
from tts_vision.verifiers.playground_parm import PlaygroundPARM

RESULT = Path(__file__).with_name("results") / "step_judge.md"


@dataclass(frozen=True)
class StepRow:
    """How right the answers about the previews of one step are.

    Attributes:
        step: Steps done.
        clear: Share of previews that are clear.
        clarity: Share of right verdicts on that.
        clarity_auc: Area under the curve of clear against unclear previews.
        potential: Share of right verdicts on whether the image will be right.
        potential_auc: Area under the curve of previews of right images against those of wrong ones.
        correlation: Rank correlation of the potential with the outcome within a prompt, averaged over prompts
            with both outcomes; NaN if there are none.
    """

    step: int
    clear: float
    clarity: float
    clarity_auc: float
    potential: float
    potential_auc: float
    correlation: float


def _grid(steps: Steps, values: Sequence[float] | np.ndarray, each: int) -> np.ndarray:
    """Values as ``(prompts, steps, images)``."""
    return np.asarray(values, float).reshape(-1, int(steps.step.max()), each)


def within(values: np.ndarray, right: np.ndarray) -> float:
    """Rank correlation of values with outcomes within a prompt, averaged over prompts with both outcomes.

    Args:
        values: ``(prompts, images)``.
        right: Likewise.
    """
    from scipy.stats import spearmanr

    found = [
        float(spearmanr(v, r).statistic) if np.ptp(v) else 0.0 for v, r in zip(values, right) if np.ptp(r)
    ]
    return float(np.mean(found)) if found else math.nan


def by_step(steps: Steps, clarity: Sequence[Score], potential: Sequence[Score], each: int) -> list[StepRow]:
    """The rows of all steps but the last, whose preview is the image."""
    asked, hoped = ([score.value for score in scores] for scores in (clarity, potential))
    clear, right = _grid(steps, steps.clear, each) > 0.5, _grid(steps, steps.potential, each) > 0.5
    says_clear, says_right = _grid(steps, asked, each), _grid(steps, hoped, each)
    rows = []
    for k in range(clear.shape[1] - 1):
        is_clear, is_right, c, p = clear[:, k], right[:, k], says_clear[:, k], says_right[:, k]
        rows.append(
            StepRow(
                step=k + 1,
                clear=float(is_clear.mean()),
                clarity=float(((c > 0.5) == is_clear).mean()),
                clarity_auc=auc(c[is_clear], c[~is_clear]),
                potential=float(((p > 0.5) == is_right).mean()),
                potential_auc=auc(p[is_right], p[~is_right]),
                correlation=within(p, is_right.astype(float)),
            )
        )
    return rows


def table(rows: Sequence[StepRow], num_steps: int) -> str:
    """The rows as Markdown."""
    lines = [
        "| steps done | clear previews, % | clarity right, % | its AUC | potential right, % | its AUC "
        "| rank correlation of the potential within a prompt |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        lines.append(
            f"| {r.step} of {num_steps} | {100 * r.clear:.0f} | {100 * r.clarity:.0f} | {r.clarity_auc:.2f} "
            f"| {100 * r.potential:.0f} | {r.potential_auc:.2f} | {r.correlation:.2f} |"
        )
    return "\n".join(lines)


def finished(steps: Steps, prompts: Sequence[Prompt], each: int) -> str:
    """The final question beside that of `playground_judge`, on finished images, as Markdown."""
    last = steps.step == steps.step.max()
    images = [Image.fromarray(image) for image in steps.examples.images[last]]
    asked = [prompt for prompt in prompts for _ in range(each)]
    right = steps.potential[last].reshape(-1, each) > 0.5
    lines = [
        f"| verifier | plain, % | best of {each}, % | AUC within a prompt | rank correlation |",
        "|---|--:|--:|--:|--:|",
    ]
    for verifier in (PlaygroundPARM(), PlaygroundJudge()):
        values = np.array([score.value for score in verifier.score(images, asked)]).reshape(right.shape)
        areas = [auc(v[r], v[~r]) for v, r in zip(values, right)]
        best = right[np.arange(len(right)), values.argmax(1)].mean()
        lines.append(
            f"| `{verifier.name}` | {100 * right.mean():.1f} | {100 * best:.1f} | {np.nanmean(areas):.3f} "
            f"| {within(values, right.astype(float)):.2f} |"
        )
    return "\n".join(lines)


def calibration(potential: Sequence[Score], steps: Steps) -> str:
    """Predicted and true frequency of right images, by bin of the potential, as Markdown."""
    half = (steps.step >= steps.step.max() // 2) & (steps.step < steps.step.max())
    values = np.array([score.value for score in potential])[half]
    lines = ["| potential | previews | mean | right, % |", "|---|--:|--:|--:|"]
    for low, high, n, mean, share in reliability(values, steps.potential[half] > 0.5):
        lines.append(f"| {low:.2f} to {high:.2f} | {n} | {mean:.2f} | {100 * share:.0f} |")
    return "\n".join(lines)


def measure(records: Sequence[dict], each: int, seed: int) -> str:
    """All tables for some prompts, as Markdown.

    Args:
        records: Evaluation prompts in GenEval's schema.
        each: Images of each.
        seed: Of their noise.
    """
    prompts = [Prompt(record["prompt"]) for record in records]
    sampler = MaskedSampler(load_playground_masked())
    specs = [world.parse_spec(prompt.text) for prompt in prompts]
    steps = draw_steps(sampler, specs, seed, each, captions=False)
    images = [Image.fromarray(image) for image in steps.examples.images]
    asked = [prompt for prompt in prompts for _ in range(sampler.num_steps * each)]
    verifier = PlaygroundPARM()
    clarity, potential = verifier.clarity(images, asked), verifier.potential(images, asked)
    rows = by_step(steps, clarity, potential, each)
    return "\n\n".join(
        [
            table(rows, sampler.num_steps),
            "Finished images:",
            finished(steps, prompts, each),
            "Calibration of the potential in the second half of the steps:",
            calibration(potential, steps),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints and writes the tables of both tracks.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=60, help="of each track")
    parser.add_argument("--images", type=int, default=16, help="of each prompt")
    parser.add_argument("--seed", type=int, default=900)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    parts = []
    tracks = {"easy": world.load_prompts(), "hard": load_hard_prompts()}
    for track, records in tracks.items():
        distinct = list({record["prompt"]: record for record in records}.values())
        every = max(1, len(distinct) // options.prompts)
        found = measure(distinct[::every][: options.prompts], options.images, options.seed)
        parts.append(f"Track {track}, {options.prompts} prompts x {options.images} images:\n\n{found}\n")
        print(parts[-1])
    options.output.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
