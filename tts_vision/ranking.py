"""Ranking of scored particles: pure functions. NaN means unscored and ranks behind everything scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor

Scores: TypeAlias = Tensor | Sequence[float]


def top_k(scores: Scores, k: int) -> list[int]:
    """The indices of the `k` highest scores, best first; the earlier one of equals first.

    An unscored particle comes only after all scored ones.
    """
    values = np.asarray(scores, dtype=np.float64)
    unscored = np.isnan(values)
    return [int(i) for i in np.lexsort((-values, unscored))[:k]]


def argmax(scores: Scores) -> int:
    """The index of the highest score; 0 when nothing is scored."""
    return top_k(scores, 1)[0]


def tournament(
    scores: Scores,
    n: int,
    rng: np.random.Generator,
    *,
    fraction: float = 0.9,
    size: int | None = None,
) -> list[int]:
    """The winners of `n` independent tournaments.

    Args:
        scores: ``(B,)``, NaN where unscored.
        n: Winners to choose.
        rng: Draws who takes part, without replacement within a tournament.
        fraction: Share of all particles that take part, rounded down, but at least 2.
        size: Number that take part, instead of `fraction`.
    """
    values = np.asarray(scores, dtype=np.float64)
    count = max(int(fraction * len(values) + 1e-9), 2) if size is None else size
    count = min(max(count, 1), len(values))
    winners = []
    for _ in range(n):
        drawn = np.sort(rng.permutation(len(values))[:count])
        winners.append(int(drawn[argmax(values[drawn].tolist())]))
    return winners
