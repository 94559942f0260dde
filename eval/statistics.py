"""The figures of a benchmark: means with intervals, costs, quality against compute and seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tts_vision.eval.evaluator import Evaluator, Judged
from tts_vision.eval.judging import Trail
from tts_vision.intervals import LEAST_FOR_INTERVAL, Figure, counts, interval
from tts_vision.runs.task import Record

DRAWS = 1000
POINTS = 40
"""Points of a curve."""


@dataclass(frozen=True)
class Curve:
    """Quality against the spending of a search, averaged over searches.

    Attributes:
        spent: Compute, or seconds, at which the search would have been stopped.
        quality: Mean of the metric over the best samples by then; a search without a sample counts as 0.
        rejected: Share of the best samples by then that the judge calls wrong; empty where it gives degrees.
        area: Mean of the quality over the spending, from nothing to the mean end of the longest arm; a
            search that ends before keeps its quality.
    """

    spent: list[float]
    quality: list[float]
    rejected: list[float]
    area: float


@dataclass(frozen=True)
class Arm:
    """The figures of one arm.

    Attributes:
        name: Plain, or the algorithm.
        samples: Winners judged.
        prompts: Prompts that they belong to.
        figures: By label.
        rejected: Share of the winners that the judge calls wrong: the verifier's favourites among them are
            false positives. NaN where the judge gives degrees.
        holdout: Mean score of the winners by the held-out verifier; NaN without one.
        nfe: Mean network evaluations of a search.
        macs: Mean multiply-accumulates, where they are counted.
        verifier_calls: Mean samples scored.
        seconds: Mean wall-clock seconds of a search, verifier included.
        phases: The same by phase: encode, denoise, decode, verify, ask.
        topped_up: Mean share of the compute that went to independent samples.
        by_compute: Quality against compute.
        by_seconds: Quality against seconds.
    """

    name: str
    samples: int
    prompts: int
    figures: Mapping[str, Figure]
    rejected: float = math.nan
    holdout: float = math.nan
    nfe: float = math.nan
    macs: float = math.nan
    verifier_calls: float = math.nan
    seconds: float = math.nan
    phases: Mapping[str, float] = field(default_factory=dict)
    topped_up: float = math.nan
    by_compute: Curve | None = None
    by_seconds: Curve | None = None

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Arm:
        """Reads an arm of an ``evaluation.json``, where null stands for NaN.

        Raises:
            KeyError, TypeError: If it is something else.
        """
        known = _numbers({**values, "by_compute": None, "by_seconds": None})
        curves = {name: values[name] for name in ("by_compute", "by_seconds")}
        return cls(
            **{
                **known,
                "figures": {label: Figure(**each) for label, each in known["figures"].items()},
                **{
                    name: None if curve is None else Curve(**_numbers(curve))
                    for name, curve in curves.items()
                },
            }
        )


def figures_of(evaluator: Evaluator, judged: Sequence[Judged]) -> dict[str, Figure]:
    """The figures of an evaluator with intervals from resampling prompts.

    They are resampled within their tags, as a benchmark fixes the number of prompts of each; where a tag has
    a single prompt, over all of them. A tag of few prompts has no interval.
    """
    if not judged:
        return {}
    values = evaluator.summarise(judged, np.ones(len(judged)))
    items: dict[str, list[int]] = {}
    groups: dict[tuple[str, ...], list[str]] = {}
    for i, each in enumerate(judged):
        item = each.sample.item
        if item.id not in items:
            groups.setdefault(item.tags, []).append(item.id)
        items.setdefault(item.id, []).append(i)
    if not evaluator.resamples or len(items) < LEAST_FOR_INTERVAL:
        return {label: Figure(value) for label, value in values.items()}
    few = {t for tags, ids in groups.items() if len(ids) < LEAST_FOR_INTERVAL for t in tags}
    if any(len(ids) < 2 for ids in groups.values()):
        groups = {(): list(items)}
    generator = np.random.default_rng(0)
    often = np.zeros((DRAWS, len(judged)))
    for ids in groups.values():
        for name, drawn in zip(ids, counts(len(ids), DRAWS, generator).T):
            often[:, items[name]] = drawn[:, None]
    drawn_values = [evaluator.summarise(judged, weights) for weights in often]
    return {
        label: Figure(value)
        if label in few
        else Figure(value, *interval(drawn[label] for drawn in drawn_values))
        for label, value in values.items()
    }


def arm_of(
    name: str,
    records: Sequence[Record],
    judged: Sequence[Judged],
    trail: Trail,
    evaluator: Evaluator,
    ends: tuple[float, float],
) -> Arm:
    """The figures and costs of an arm; its curves go as far as `ends`, in compute and in seconds."""
    known = [each.verdict.correct for each in judged if each.verdict.correct is not None]
    phases = dict.fromkeys(phase for record in records for phase in record.seconds)
    return Arm(
        name=name,
        samples=len(judged),
        prompts=len({each.sample.item.id for each in judged}),
        figures=figures_of(evaluator, judged),
        rejected=1 - sum(known) / len(known) if known else math.nan,
        holdout=mean([record.holdout for record in records]),
        nfe=mean([record.nfe for record in records]),
        macs=mean([record.macs for record in records]),
        verifier_calls=mean([float(record.verifier_calls) for record in records]),
        seconds=mean([record.elapsed for record in records]),
        phases={phase: mean([r.seconds.get(phase, 0.0) for r in records]) for phase in phases},
        topped_up=mean([record.topped_up for record in records]),
        by_compute=curve_of(records, trail, evaluator.metric, 0, ends[0]),
        by_seconds=curve_of(records, trail, evaluator.metric, 1, ends[1]),
    )


def longest(arms: Iterable[Sequence[Record]]) -> tuple[float, float]:
    """The largest mean compute and the largest mean seconds of a search, over arms."""
    means = [(mean([r.compute for r in arm]), mean([r.elapsed for r in arm])) for arm in arms if arm]
    return max((m[0] for m in means), default=0.0), max((m[1] for m in means), default=0.0)


def curve_of(records: Sequence[Record], trail: Trail, metric: str, axis: int, end: float) -> Curve | None:
    """Quality against compute (axis 0) or seconds (axis 1); None where nothing was judged along the way."""
    steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    areas: list[float] = []
    for record in records:
        every = [(p[axis], p[2]) for p in trail.get(record.name, [])]
        points = [(at, verdict) for at, verdict in every if metric in verdict.values]
        if record.name not in trail or (every and not points):
            continue  # not judged; a search without a sample, in contrast, counts as 0
        at = np.array([spent for spent, _ in points])
        quality = np.array([0.0, *(float(verdict.values[metric]) for _, verdict in points)])
        wrong = np.array([math.nan, *(_wrong(verdict.correct) for _, verdict in points)])
        steps.append((at, quality, wrong))
        edges = np.array([0.0, *at, math.inf]).clip(max=end)
        areas.append(float(quality @ np.diff(edges)) / end if end else math.nan)
    if not steps:
        return None
    spent = np.linspace(0.0, end, POINTS + 1)[1:]
    index = [np.searchsorted(at, spent * (1 + 1e-9), side="right") for at, _, _ in steps]
    quality = np.mean([q[i] for (_, q, _), i in zip(steps, index)], axis=0)
    wrongs = np.array([w[i] for (_, _, w), i in zip(steps, index)])
    counted = ~np.isnan(wrongs)
    has = counted.any(0)
    rejected = np.where(has, np.where(counted, wrongs, 0).sum(0) / np.maximum(counted.sum(0), 1), np.nan)
    return Curve(
        spent=spent.tolist(),
        quality=quality.tolist(),
        rejected=rejected.tolist() if has.any() else [],
        area=float(np.mean(areas)),
    )


def _wrong(correct: bool | None) -> float:
    return math.nan if correct is None else float(not correct)


def mean(values: Sequence[float]) -> float:
    """The mean of the values that are numbers; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _numbers(value: Any) -> Any:
    """The value as `json_value` had it."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.nan if value is None else value
