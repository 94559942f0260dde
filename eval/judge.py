"""Measures the playground's verifiers: ``python -m tts_vision.eval.judge``.

On painted images: the area under the curve of right images against images with one thing wrong. On samples of
the bundled flow: rank correlation with the exact checker within a prompt, accuracy of the best of n, and
calibration. All prompts are evaluation prompts; the judge has seen none of them in its training.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from PIL import Image

from tts_vision.eval.playground import Track, evaluation_prompts
from tts_vision.intervals import mean_of
from tts_vision.pipelines.playground import checker, judge_data, world
from tts_vision.registry import lookup
from tts_vision.types import Prompt
from tts_vision.verifier import Verifier

VERIFIERS = ("playground_judge", "playground_clip")
BINS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)


@dataclass(frozen=True)
class Pairs:
    """For each prompt a right image and one with one thing wrong.

    Attributes:
        texts: The prompts, n of them.
        ways: The thing that is wrong in the second image, of `judge_data.WAYS`.
        right: uint8 of shape ``(n, 64, 64, 3)``.
        wrong: uint8 of shape ``(n, 64, 64, 3)``.
    """

    texts: list[str]
    ways: list[str]
    right: np.ndarray
    wrong: np.ndarray


@dataclass(frozen=True)
class Samples:
    """n samples of each of p prompts.

    Attributes:
        prompts: The prompts.
        images: uint8 of shape ``(p, n, 64, 64, 3)``.
        right: Whether each is right by the exact checker, shape ``(p, n)``.
        fraction: Share of its demands that are met, shape ``(p, n)``.
    """

    prompts: list[Prompt]
    images: np.ndarray
    right: np.ndarray
    fraction: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """How well a verifier ranks samples.

    Attributes:
        plain: Accuracy of a sample, averaged; then of the best by the verifier, for each prompt ``(p,)``.
        best: Whether the best of the n by the verifier is right, ``(p,)``.
        spearman: Rank correlation with the share of met demands within a prompt, averaged over the prompts
            that have several shares; NaN if none has.
        auc: Area under the curve of right against wrong samples within a prompt, averaged likewise.
    """

    plain: np.ndarray
    best: np.ndarray
    spearman: float
    auc: float


# ---------------------------------------------------------------------------------------------- measures


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """Probability that a right one scores higher than a wrong one, ties counted half: area under the curve.

    Args:
        right: Scores, shape ``(a,)``.
        wrong: Scores, shape ``(b,)``.

    Returns:
        0 to 1; NaN if one of the two is empty.
    """
    from scipy.stats import rankdata

    if not len(right) or not len(wrong):
        return math.nan
    ranks = rankdata(np.concatenate([right, wrong]))[: len(right)]
    return float((ranks.sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


def ranking(scores: np.ndarray, samples: Samples) -> Ranking:
    """How well scores rank samples.

    Args:
        scores: Shape ``(p, n)``.
        samples: The samples.
    """
    from scipy.stats import spearmanr

    rows = range(len(scores))
    # A constant score ranks nothing.
    correlations = [
        float(spearmanr(scores[i], samples.fraction[i]).statistic) if np.ptp(scores[i]) else 0.0
        for i in rows
        if np.ptp(samples.fraction[i])
    ]
    areas = [auc(scores[i][samples.right[i]], scores[i][~samples.right[i]]) for i in rows]
    areas = [area for area in areas if not math.isnan(area)]
    return Ranking(
        plain=samples.right.mean(1),
        best=samples.right[np.arange(len(scores)), scores.argmax(1)].astype(float),
        spearman=float(np.mean(correlations)) if correlations else math.nan,
        auc=float(np.mean(areas)) if areas else math.nan,
    )


def reliability(
    probabilities: np.ndarray, right: np.ndarray, edges: Sequence[float] = BINS
) -> list[tuple[float, float, int, float, float]]:
    """Predicted and true frequency by bin of the prediction.

    Args:
        probabilities: Shape ``(n,)``, in [0, 1].
        right: Verdicts, shape ``(n,)``.
        edges: Rising edges of the bins; the last bin holds its upper edge too.

    Returns:
        Lower edge, upper edge, number, mean prediction and share of right ones, for each bin with any.
    """
    bins = np.clip(np.searchsorted(edges, probabilities, side="right") - 1, 0, len(edges) - 2)
    rows = []
    for k in range(len(edges) - 1):
        inside = bins == k
        if inside.any():
            means = float(probabilities[inside].mean()), float(right[inside].mean())
            rows.append((edges[k], edges[k + 1], int(inside.sum()), *means))
    return rows


def calibration_error(rows: Sequence[tuple[float, float, int, float, float]]) -> float:
    """Expected calibration error (Naeini et al. 2015): the bins' differences, weighted by their sizes."""
    total = sum(row[2] for row in rows)
    return sum(row[2] * abs(row[3] - row[4]) for row in rows) / total


# ------------------------------------------------------------------------------------------------- images


def one_thing_wrong(prompts: Sequence[Prompt], seed: int = 0) -> Pairs:
    """Paints a right and a wrong image for each prompt and each thing of it that can be wrong.

    A wrong image that happens to satisfy the prompt too is painted again, up to 20 times, and then left out.

    Args:
        prompts: Prompts of the playground.
        seed: Seed of the scenes.
    """
    rng = np.random.default_rng(seed)
    texts, ways, right, wrong = [], [], [], []
    for prompt in prompts:
        spec = world.parse_spec(prompt.text)
        record = world.metadata(spec)
        for way in judge_data.ways_of(spec):
            for _ in range(20):
                scene = world.sample_scene(rng, judge_data.altered(spec, rng, way))
                if not checker.judge(judge_data.found_in(scene), record).correct:
                    texts.append(prompt.text)
                    ways.append(way)
                    right.append(world.sample_scene(rng, spec))
                    wrong.append(scene)
                    break
    return Pairs(texts, ways, world.render_batch(right), world.render_batch(wrong))


def draw_samples(prompts: Sequence[Prompt], n: int, seed: int = 0, mixed: bool = False) -> Samples:
    """Draws samples of the bundled flow at its own settings and judges them by the exact checker.

    Args:
        prompts: Prompts of the playground.
        n: Samples a prompt.
        seed: Sample k of prompt i has the seed ``seed + 1000 * i + k``.
        mixed: Compute in bfloat16 where that is safe; faster on many processors, not bit-equal.
    """
    from tts_vision.pipelines.playground import DEFAULTS, load_pipeline
    from tts_vision.pipelines.playground.measure import draw
    from tts_vision.pipelines.playground.quiet import quietly

    with quietly():
        pipe = load_pipeline()
    texts = [prompt.text for prompt in prompts for _ in range(n)]
    seeds = [seed + 1000 * i + k for i in range(len(prompts)) for k in range(n)]
    steps, guidance = int(DEFAULTS["num_inference_steps"]), DEFAULTS["guidance_scale"]
    return judged(prompts, draw(pipe, texts, seeds, steps, guidance, mixed=mixed))


def judged(prompts: Sequence[Prompt], images: np.ndarray) -> Samples:
    """Images with the exact checker's verdicts.

    Args:
        prompts: p prompts.
        images: uint8 of shape ``(p * n, 64, 64, 3)``, those of a prompt together.
    """
    p, n = len(prompts), len(images) // len(prompts)
    records = [world.parse_prompt(prompt.text) for prompt in prompts]
    verdicts = [checker.evaluate(image, records[i // n]) for i, image in enumerate(images)]
    return Samples(
        list(prompts),
        images.reshape(p, n, *images.shape[1:]),
        np.array([verdict.correct for verdict in verdicts]).reshape(p, n),
        np.array([verdict.fraction for verdict in verdicts]).reshape(p, n),
    )


def scored(verifier: Verifier, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Scores of images, each for its text: shape ``(n,)``."""
    media = [Image.fromarray(image) for image in images]
    return np.array([score.value for score in verifier.score(media, [Prompt(text) for text in texts])])


# ------------------------------------------------------------------------------------------------- report


def pair_areas(verifier: Verifier, pairs: Pairs) -> dict[str, float]:
    """Area under the curve on painted pairs, by the thing that is wrong, and over all of them."""
    right, wrong = scored(verifier, pairs.right, pairs.texts), scored(verifier, pairs.wrong, pairs.texts)
    ways = np.array(pairs.ways)
    rows = {way: auc(right[ways == way], wrong[ways == way]) for way in judge_data.WAYS}
    return {**rows, "all": auc(right, wrong)}


def _percent(values: np.ndarray) -> str:
    return mean_of(values).percent


def pair_table(areas: Mapping[str, Mapping[str, float]], pairs: Pairs) -> str:
    """Areas under the curve by verifier and thing that is wrong, as a Markdown table."""
    ways = [*judge_data.WAYS, "all"]
    counts = {**{way: pairs.ways.count(way) for way in judge_data.WAYS}, "all": len(pairs.ways)}
    lines = ["| one thing wrong | " + " | ".join(f"{way} ({counts[way]})" for way in ways) + " |"]
    lines.append("|---|" + "--:|" * len(ways))
    for name, row in areas.items():
        lines.append(f"| `{name}` | " + " | ".join(f"{row[way]:.3f}" for way in ways) + " |")
    return "\n".join(lines)


def ranking_table(rankings: Mapping[str, Ranking], n: int) -> str:
    """Best of n and rank correlations by verifier, as a Markdown table."""
    lines = [f"| verifier | best of {n} right, % | Spearman | area under the curve |", "|---|--:|--:|--:|"]
    for name, row in rankings.items():
        lines.append(f"| `{name}` | {_percent(row.best)} | {row.spearman:.2f} | {row.auc:.3f} |")
    return "\n".join(lines)


def reliability_table(rows: Sequence[tuple[float, float, int, float, float]]) -> str:
    """`reliability` as a Markdown table."""
    lines = ["| P(right) given | samples | mean given, % | right, % |", "|---|--:|--:|--:|"]
    for low, high, number, given, true in rows:
        lines.append(f"| {low:g} to {high:g} | {number} | {100 * given:.1f} | {100 * true:.1f} |")
    return "\n".join(lines)


def report(track: Track, prompts: Sequence[Prompt], n: int, seed: int = 0, mixed: bool = False) -> str:
    """Measures the verifiers on a track.

    Args:
        track: Its name, for the headings.
        prompts: Its prompts.
        n: Samples a prompt.
        seed: Seed of scenes and samples.
        mixed: As in `draw_samples`.

    Returns:
        Tables with headings, as Markdown.
    """
    pairs, samples = one_thing_wrong(prompts, seed), draw_samples(prompts, n, seed, mixed)
    texts = [prompt.text for prompt in prompts for _ in range(n)]
    images = samples.images.reshape(-1, *samples.images.shape[2:])
    verifiers = {name: lookup("verifier", name).target() for name in VERIFIERS}
    areas = {name: pair_areas(verifier, pairs) for name, verifier in verifiers.items()}
    scores = {name: scored(verifier, images, texts) for name, verifier in verifiers.items()}
    shape = samples.right.shape
    rankings = {name: ranking(value.reshape(shape), samples) for name, value in scores.items()}
    rankings["playground_oracle"] = ranking(samples.fraction, samples)
    rows = reliability(scores["playground_judge"], samples.right.reshape(-1))
    plain = _percent(samples.right.mean(1))
    parts = [
        f"Track {track}: {len(pairs.texts)} painted pairs of {len(prompts)} prompts, area under the curve.",
        pair_table(areas, pairs),
        f"Track {track}: {len(prompts)} prompts, {n} samples each; a plain sample is right for {plain} %.",
        ranking_table(rankings, n),
        f"Track {track}: calibration of `playground_judge`; expected error {calibration_error(rows):.3f}.",
        reliability_table(rows),
    ]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the measurement from a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tracks", nargs="+", choices=get_args(Track), default=list(get_args(Track)))
    parser.add_argument("--prompts", type=int, default=150, help="of each track; the easy one has 123")
    parser.add_argument("--samples", type=int, default=16, help="of each prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixed", action="store_true", help="draw in bfloat16: faster, not bit-equal")
    options = parser.parse_args(arguments)
    for track in options.tracks:
        prompts = evaluation_prompts(options.prompts, track)
        print(report(track, prompts, options.samples, options.seed, options.mixed), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
