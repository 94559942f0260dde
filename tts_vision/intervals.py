"""Means with bootstrap intervals that resample prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEAST_FOR_INTERVAL = 5
"""Prompts that an interval needs; resampling fewer says more about the few than about prompts."""


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % bootstrap interval over prompts; the ends are NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def percent(self) -> str:
        """The number and its interval in percent; a dash for NaN."""
        return self.written(100, ".1f")

    def written(self, scale: float = 1.0, form: str = ".3f") -> str:
        """The number and its interval; a dash for NaN."""
        if math.isnan(self.value):
            return "-"
        value, low, high = (format(scale * each, form) for each in (self.value, self.low, self.high))
        return value if math.isnan(self.low) else f"{value} [{low}, {high}]"


def mean_of(groups: Iterable[float | Sequence[float]], *, least: int = LEAST_FOR_INTERVAL) -> Figure:
    """The mean of all values that are numbers, and its interval under resampling of the groups.

    Args:
        groups: The values of each prompt. Those of a single prompt are resampled one by one.
        least: Groups that an interval needs.
    """
    parts = [np.atleast_1d(np.asarray(group, dtype=np.float64)) for group in groups]
    parts = [known for part in parts if (known := part[~np.isnan(part)]).size]
    if not parts:
        return Figure(math.nan)
    mean = float(np.concatenate(parts).mean())
    if len(parts) == 1:
        parts = list(parts[0][:, None])
    if len(parts) < least:
        return Figure(mean)
    sums, sizes = (np.array([f(part) for part in parts], dtype=np.float64) for f in (np.sum, np.size))
    drawn = counts(len(parts), DRAWS, np.random.default_rng(0))
    return Figure(mean, *interval((drawn @ sums) / (drawn @ sizes)))


def counts(n: int, draws: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """How often each of `n` is drawn when `n` are drawn with replacement: ``(draws, n)``."""
    return generator.multinomial(n, np.full(n, 1 / n), size=draws)


def interval(draws: Iterable[float]) -> tuple[float, float]:
    """The central 95 % of the numbers among the draws; NaN without any."""
    values = np.fromiter(draws, dtype=np.float64)
    known = values[~np.isnan(values)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
