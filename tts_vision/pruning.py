"""Which of some nodes of a search tree go on: pure functions of their scores. NaN means unscored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from tts_vision.ranking import top_k

Rule: TypeAlias = Literal["top_k", "median", "threshold", "none"]


def from_median(scores: Sequence[float]) -> list[int]:
    """The indices of scores that are at least their median, in order; unscored ones only if all are.

    Ties keep more than half: ``[3, 3, 1, 0, -2]`` keeps 3, equal scores all, ``[2, 1]`` keeps 1.

    Source: rule ``pct`` of Video-T1's released code (Liu et al. 2025).
    """
    scored = [score for score in scores if not math.isnan(score)]
    return from_threshold(scores, float(np.median(scored))) if scored else list(range(len(scores)))


def from_threshold(scores: Sequence[float], threshold: float) -> list[int]:
    """The indices of scores that are at least `threshold`, in order; without any, the highest score alone."""
    return [i for i, score in enumerate(scores) if score >= threshold] or top_k(scores, 1)


def survivors(scores: Sequence[float], rule: Rule, *, k: int, threshold: float) -> list[int]:
    """The indices of the nodes that go on.

    Args:
        scores: Of the nodes, higher is better.
        rule: ``top_k`` keeps `k`, best first; ``median`` those from the median on; ``threshold`` those from
            `threshold` on, or the best; ``none`` all.
        k: See `rule`.
        threshold: See `rule`.
    """
    if rule == "top_k":
        return top_k(scores, k)
    if rule == "median":
        return from_median(scores)
    return from_threshold(scores, threshold) if rule == "threshold" else list(range(len(scores)))
