"""Measures the playground's step verifier: ``python -m tts_vision.eval.step_judge``.

Draws paths of `playground-masked` for evaluation prompts, asks `playground_parm` its three questions about
previews of steps and about the finished images, and compares the answers with the exact checker. Previews are
plain and completed (``sampler.preview=complete``). With ``--continuations`` each is continued as often with
other noise: how well the share of right continuations ranks paths bounds any verifier. Writes
``eval/results/step_judge.md``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from tts_vision.config import ModelOptions
from tts_vision.errors import ConfigError
from tts_vision.eval.judge import auc, calibration_error, reliability
from tts_vision.eval.playground import Track, evaluation_prompts
from tts_vision.intervals import Figure, mean_of
from tts_vision.pipelines.bundled import load_playground_masked
from tts_vision.pipelines.playground import judge_data, world
from tts_vision.pipelines.playground.checker import detect
from tts_vision.pipelines.playground.step_data import Trees, draw_trees, objects
from tts_vision.pipelines.playground.train_parm import correlations
from tts_vision.types import Prompt
from tts_vision.verifiers.playground_judge import PlaygroundJudge
from tts_vision.verifiers.playground_parm import PlaygroundPARM

RESULT = Path(__file__).with_name("results") / "step_judge.md"
EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_BATCH = 16  # prompts whose paths are drawn together


@dataclass(frozen=True)
class Truth:
    """The exact checker's word on P prompts, M paths of each, at B steps.

    Attributes:
        right: Whether a path ends right, bool ``(P, M)``.
        clear: Whether its preview has the objects of its image, bool ``(P, M, B)``.
        continued: Share of its continuations from there that end right, ``(P, M, B)``; NaN without any.
    """

    right: np.ndarray
    clear: np.ndarray
    continued: np.ndarray


@dataclass(frozen=True)
class Answers:
    """P(yes) of the questions of a step verifier.

    Attributes:
        clarity: About previews, ``(P, M, B)``.
        potential: Likewise.
        final: About images, ``(P, M)``.
    """

    clarity: np.ndarray
    potential: np.ndarray
    final: np.ndarray


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
            with both outcomes.
        bound: The same of the share of right continuations; its own noise makes it lower.
    """

    step: int
    clear: float
    clarity: float
    clarity_auc: float
    potential: float
    potential_auc: float
    correlation: Figure
    bound: Figure


def truth_of(specs: Sequence[world.Spec], trees: Trees) -> Truth:
    """The exact checker's word on paths."""

    def ends_right(image: np.ndarray, spec: world.Spec) -> bool:
        return all(judge_data.demands(detect(image), spec).values())

    P, M, B, K = trees.continued.shape[:4]
    right, clear = np.zeros((P, M), bool), np.zeros((P, M, B), bool)
    continued = np.full((P, M, B), math.nan)
    for p, spec in enumerate(specs):
        for m in range(M):
            right[p, m] = ends_right(trees.finished[p, m], spec)
            own = objects(detect(trees.finished[p, m]))
            for b in range(B):
                clear[p, m, b] = objects(detect(trees.previews[p, m, b])) == own
                if K:
                    ends = [ends_right(image, spec) for image in trees.continued[p, m, b]]
                    continued[p, m, b] = np.mean(ends)
    return Truth(right, clear, continued)


def answers_of(verifier: PlaygroundPARM, prompts: Sequence[Prompt], trees: Trees) -> Answers:
    """The answers of a step verifier about paths."""
    P, M, B = trees.step.shape
    previews = [Image.fromarray(image) for image in trees.previews.reshape(-1, *trees.previews.shape[3:])]
    images = [Image.fromarray(image) for image in trees.finished.reshape(-1, *trees.finished.shape[2:])]
    asked = [prompt for prompt in prompts for _ in range(M * B)]
    clarity, potential = verifier.clarity(previews, asked), verifier.potential(previews, asked)
    final = verifier.score(images, [prompt for prompt in prompts for _ in range(M)])
    return Answers(
        np.array([score.value for score in clarity]).reshape(P, M, B),
        np.array([score.value for score in potential]).reshape(P, M, B),
        np.array([score.value for score in final]).reshape(P, M),
    )


def by_step(truth: Truth, answers: Answers, steps: Sequence[int]) -> list[StepRow]:
    """The rows of steps before the last, whose preview is the image."""
    rows, right = [], truth.right
    for b, step in enumerate(steps):
        clear, c, p = truth.clear[..., b], answers.clarity[..., b], answers.potential[..., b]
        continued = truth.continued[..., b]
        rows.append(
            StepRow(
                step=step,
                clear=float(clear.mean()),
                clarity=float(((c > 0.5) == clear).mean()),
                clarity_auc=auc(c[clear], c[~clear]),
                potential=float(((p > 0.5) == right).mean()),
                potential_auc=auc(p[right], p[~right]),
                correlation=mean_of(correlations(p, right)),
                bound=mean_of([] if np.isnan(continued).any() else correlations(continued, right)),
            )
        )
    return rows


def table(rows: Sequence[StepRow], num_steps: int) -> str:
    """The rows as Markdown."""
    bounded = any(not math.isnan(row.bound.value) for row in rows)
    heads = [
        "steps done",
        "clear previews, %",
        "clarity right, %",
        "its AUC",
        "potential right, %",
        "its AUC",
    ]
    heads += ["rank correlation of the potential within a prompt"]
    heads += ["that of the share of right continuations"] if bounded else []
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for r in rows:
        cells = [f"{r.step} of {num_steps}", f"{100 * r.clear:.0f}", f"{100 * r.clarity:.0f}"]
        cells += [Figure(r.clarity_auc).written(form=".2f"), f"{100 * r.potential:.0f}"]
        cells += [Figure(r.potential_auc).written(form=".2f")]
        cells += [r.correlation.written(form=".2f")] + ([r.bound.written(form=".2f")] if bounded else [])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def finished(right: np.ndarray, values: dict[str, np.ndarray]) -> str:
    """How verifiers rank the finished images of a prompt, as Markdown.

    Args:
        right: ``(P, M)``.
        values: Likewise, of each verifier by its name.
    """
    M = right.shape[1]
    lines = [
        f"| verifier | plain, % | best of {M}, % | AUC within a prompt | rank correlation |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, scores in values.items():
        best = mean_of(right[np.arange(len(right)), scores.argmax(1)].astype(float))
        area = mean_of([auc(v[r], v[~r]) for v, r in zip(scores, right)])
        plain = mean_of(right.astype(float))
        rank = mean_of(correlations(scores, right))
        lines.append(
            f"| `{name}` | {plain.percent} | {best.percent} | {area.written()} | {rank.written(form='.2f')} |"
        )
    return "\n".join(lines)


def calibration(answers: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """How often answers are true, by the probability that they gave, as Markdown.

    Args:
        answers: By name, P(yes) and the truth, of the same shape.
    """
    heads = [f"true if {low:g} to {high:g} was said, %" for low, high in pairwise(EDGES)]
    lines = ["| " + " | ".join(["answer", "calibration error, %", *heads]) + " |"]
    lines.append("|---|" + "--:|" * (len(heads) + 1))
    for name, (said, true) in answers.items():
        rows = reliability(said.ravel(), true.ravel(), EDGES)
        share = {low: f"{100 * right:.0f} ({number})" for low, _, number, _, right in rows}
        cells = [f"{100 * calibration_error(rows):.1f}", *(share.get(low, "-") for low in EDGES[:-1])]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


@dataclass
class Measured:
    """The truth and the answers about the previews of a kind, prompt by prompt."""

    truths: list[Truth] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)

    def joined(self) -> tuple[Truth, Answers]:
        """Those of all prompts."""
        truth = (np.concatenate([getattr(t, f.name) for t in self.truths]) for f in fields(Truth))
        said = (np.concatenate([getattr(a, f.name) for a in self.answers]) for f in fields(Answers))
        return Truth(*truth), Answers(*said)


def measure(
    prompts: Sequence[Prompt],
    each: int,
    continuations: int,
    seed: int,
    device: str,
    steps: Sequence[int] | None = None,
) -> str:
    """All tables for some prompts, as Markdown.

    Args:
        prompts: Evaluation prompts.
        each: Paths of each.
        continuations: Continuations of each preview.
        seed: Of their noise.
        device: Where models run.
        steps: Steps done that are measured; all but the last by default.

    Raises:
        ConfigError: If a path does not have such a step.
    """
    pipe = load_playground_masked(options=ModelOptions(device=device))
    verifier, judge = PlaygroundPARM(device=device), PlaygroundJudge(device=device)
    T = int(pipe.defaults["num_inference_steps"])
    chosen = sorted(set(steps or range(1, T)))
    if not 1 <= chosen[0] <= chosen[-1] < T:
        raise ConfigError(
            f"--steps are from 1 to {T - 1}, before the last one, but got {chosen}; change them."
        )
    kinds, judged = {"plain": Measured(), "completed": Measured()}, []
    for first in range(0, len(prompts), _BATCH):
        some = prompts[first : first + _BATCH]
        specs = [world.parse_spec(prompt.text) for prompt in some]
        step = np.broadcast_to(np.array(chosen, np.uint8), (len(some), each, len(chosen)))
        for kind, found in kinds.items():
            trees = draw_trees(pipe, specs, step, continuations, seed + first, kind == "completed")
            found.truths.append(truth_of(specs, trees))
            found.answers.append(answers_of(verifier, some, trees))
        images = [Image.fromarray(image) for image in trees.finished.reshape(-1, *trees.finished.shape[2:])]
        scores = judge.score(images, [prompt for prompt in some for _ in range(each)])
        judged.append(np.array([score.value for score in scores]).reshape(len(some), each))
    parts, calibrated, half = [], {}, len(chosen) // 2
    for kind, found in kinds.items():
        truth, said = found.joined()
        outcome = np.broadcast_to(truth.right[..., None], truth.clear.shape)
        parts += [f"{kind.capitalize()} previews:", table(by_step(truth, said, chosen), T)]
        calibrated[f"clarity, {kind} previews"] = said.clarity, truth.clear
        calibrated[f"potential, {kind} previews"] = said.potential[..., half:], outcome[..., half:]
    calibrated["final question"] = said.final, truth.right
    compared = {verifier.name: said.final, judge.name: np.concatenate(judged)}
    parts += ["Finished images:", finished(truth.right, compared)]
    return "\n\n".join(
        [*parts, "Calibration, of the potential in the second half of the steps:", calibration(calibrated)]
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
    parser.add_argument("--continuations", type=int, default=0, help="of each preview")
    parser.add_argument("--steps", type=int, nargs="+", help="steps done that are measured (default: all)")
    parser.add_argument("--track", nargs="+", choices=get_args(Track), default=list(get_args(Track)))
    parser.add_argument("--seed", type=int, default=900)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    parts = []
    for track in options.track:
        prompts = evaluation_prompts(options.prompts, track)
        found = measure(
            prompts,
            options.images,
            options.continuations,
            options.seed,
            options.device,
            options.steps,
        )
        parts.append(f"Track {track}, {len(prompts)} prompts x {options.images} images:\n\n{found}\n")
        print(parts[-1])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
