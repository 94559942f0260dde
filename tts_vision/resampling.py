"""Weights of particles and resampling schemes: pure functions on NumPy arrays.

A scheme maps normalised weights ``(N,)`` to ``n`` sorted ancestor indices whose expected counts are
``n * weights``; they differ in the variance of the counts. Sources: Douc & Cappé 2005, "Comparison of
resampling schemes for particle filtering"; Gerber, Chopin & Whiteley 2019 for SSP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ancestors: TypeAlias = NDArray[np.int64]
Scheme: TypeAlias = Callable[[Floats, int, np.random.Generator], Ancestors]


_ALIKE = 1e-4  # rewards whose spread is a smaller share of them are alike


def log_mean_exp(log_weights: Any) -> float:
    """``log(mean(exp(log_weights)))`` of the entries that are numbers; 0 when there are none."""
    values = np.asarray(log_weights, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values) or np.isinf(top := values.max()):
        return 0.0 if not len(values) else float(top)
    return float(top + np.log(np.mean(np.exp(values - top))))


def fill_unscored(log_weights: Any) -> Floats:
    """The log-weights with each NaN replaced by the log of the mean weight of the others.

    A particle that could not be scored is then expected to leave one child: neither favoured nor lost.
    """
    values = np.asarray(log_weights, dtype=np.float64)
    return np.where(np.isnan(values), log_mean_exp(values), values)


def normalise(log_weights: Any) -> Floats:
    """Weights that sum to 1 from log-weights ``(N,)``; NaN counts as the mean weight of the others.

    Uniform when no weight is positive.
    """
    values = fill_unscored(log_weights)
    top = values.max()
    below = np.subtract(values, top, out=np.zeros_like(values), where=values != top)  # inf - inf is 0 here
    weights = np.exp(below)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def ess(weights: Any) -> float:
    """Effective sample size of normalised weights, from 1 (one particle has all) to N (uniform)."""
    values = np.asarray(weights, dtype=np.float64)
    return float(values.sum() ** 2 / np.square(values).sum())


def strength_for(rewards: Any, target: float) -> float | None:
    """The factor at which weights ``exp(factor * reward)`` have the effective sample size `target`.

    Args:
        rewards: ``(N,)``; NaN where unscored.
        target: Effective sample size, above 1 and below N.

    Returns:
        The factor; None where fewer than two rewards differ by more than rounding, so that none is defined.
    """
    values = np.asarray(rewards, dtype=np.float64)
    known = values[np.isfinite(values)]
    if len(known) < 2 or known.std() <= _ALIKE * np.abs(known).max() or target >= len(values):
        return None
    low, high = -12.0, 12.0  # of the logarithm of the factor times the spread
    for _ in range(60):
        middle = (low + high) / 2
        enough = ess(normalise(np.exp(middle) / known.std() * values)) > target
        low, high = (middle, high) if enough else (low, middle)
    return float(np.exp(low) / known.std())


def multinomial(weights: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """Independent draws, made in order from the spacings of exponential variables."""
    points = np.cumsum(-np.log(np.maximum(rng.random(n + 1), np.finfo(np.float64).tiny)))
    return _inverse_cdf(weights, points[:-1] / points[-1])


def stratified(weights: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """One uniform draw in each of n equal strata."""
    return _inverse_cdf(weights, (rng.random(n) + np.arange(n)) / n)


def systematic(weights: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """One uniform draw, shared by n equal strata: every count is ``n * weight`` rounded down or up."""
    return _inverse_cdf(weights, (rng.random() + np.arange(n)) / n)


def residual(weights: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """``floor(n * weight)`` copies of each, the rest multinomial from the remainders."""
    copies, remainder = _split(weights, n)
    ancestors = np.repeat(np.arange(len(weights)), copies)
    left = n - len(ancestors)
    if left:
        ancestors = np.concatenate([ancestors, multinomial(remainder / remainder.sum(), left, rng)])
    return np.sort(ancestors)


def ssp(weights: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """Srinivasan sampling process: as systematic, but consistent for any order of the particles."""
    copies, remainder = _split(weights, n)
    a = 0
    for b in range(1, len(weights)):
        # of two fractional counts one is rounded, the other keeps what is left over
        both = remainder[a] + remainder[b]
        if both < 1:
            keeper = a if rng.random() * both < remainder[a] else b
            remainder[keeper] = both
        else:
            up = a if rng.random() * (2 - both) < 1 - remainder[b] else b
            keeper = b if up == a else a
            copies[up] += 1
            remainder[keeper] = both - 1
        a = keeper
    copies[a] += n - copies.sum()
    return np.repeat(np.arange(len(weights)), copies)


SCHEMES: dict[str, Scheme] = {
    scheme.__name__: scheme for scheme in (systematic, stratified, residual, ssp, multinomial)
}


def _inverse_cdf(weights: Floats, points: Floats) -> Ancestors:
    """Where sorted `points` in [0, 1) fall in the cumulated weights; never on a weight of zero."""
    cumulated = np.cumsum(weights)
    last = np.flatnonzero(weights)[-1]
    return np.minimum(np.searchsorted(cumulated / cumulated[-1], points, side="right"), last)


def _split(weights: Floats, n: int) -> tuple[Ancestors, Floats]:
    """Whole and fractional part of ``n * weights``; products that are whole up to rounding stay whole."""
    expected = n * np.asarray(weights, dtype=np.float64)
    whole = np.floor(expected + 1e-9)
    return whole.astype(np.int64), np.maximum(expected - whole, 0.0)
