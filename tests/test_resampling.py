"""Resampling: golden values of the reference implementations, unbiasedness, weights that cannot overflow."""

from __future__ import annotations

import numpy as np
import pytest

from tts_vision.resampling import SCHEMES, ess, fill_unscored, log_mean_exp, normalise

W = np.array([0.05, 0.15, 0.5, 0.3])
NAN, INF = float("nan"), float("inf")


def legacy(seed: int) -> np.random.Generator:
    """A generator that gives what `np.random.seed` and `np.random.rand` gave the reference code."""
    bits = np.random.MT19937()
    bits.state = np.random.RandomState(seed).get_state(legacy=False)
    return np.random.Generator(bits)


@pytest.mark.parametrize(
    ("scheme", "ancestors"),
    [("systematic", [1, 2, 2, 3]), ("stratified", [1, 2, 2, 3]), ("multinomial", [2, 2, 2, 3])],
)
def test_golden_values(scheme: str, ancestors: list[int]) -> None:
    assert SCHEMES[scheme](W, 4, legacy(0)).tolist() == ancestors


def test_ess() -> None:
    assert ess(W) == pytest.approx(2.73973, abs=5e-6)
    assert ess(np.full(7, 1 / 7)) == pytest.approx(7)
    assert ess([0, 1, 0]) == 1


@pytest.mark.parametrize("n", [1, 3, 4, 11])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_mean_offspring_is_in_proportion(scheme: str, n: int) -> None:
    rng = np.random.default_rng(0)
    counts = np.array([np.bincount(SCHEMES[scheme](W, n, rng), minlength=4) for _ in range(4000)])
    assert counts.sum(1).tolist() == [n] * 4000
    error = np.sqrt(n * W * (1 - W) / 4000)
    assert (np.abs(counts.mean(0) - n * W) < 4.5 * error).all()


@pytest.mark.parametrize("scheme", ["systematic", "ssp", "residual"])
def test_low_variance_schemes_round_the_expected_count(scheme: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        weights = rng.dirichlet(np.full(6, 0.5))
        counts = np.bincount(SCHEMES[scheme](weights, 10, rng), minlength=6)
        assert (counts >= np.floor(10 * weights)).all()
        if scheme != "residual":
            assert (counts <= np.ceil(10 * weights)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ancestors_are_sorted_and_never_dead(scheme: str) -> None:
    rng = np.random.default_rng(2)
    weights = np.array([0.0, 0.4, 0.0, 0.6, 0.0])
    for n in (1, 2, 5, 8):
        ancestors = SCHEMES[scheme](weights, n, rng)
        assert len(ancestors) == n and (np.diff(ancestors) >= 0).all()
        assert set(ancestors.tolist()) <= {1, 3}


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual", "ssp"])
@pytest.mark.parametrize("n", [1, 3, 7, 10])
def test_uniform_weights_keep_everyone(scheme: str, n: int) -> None:
    assert SCHEMES[scheme](np.full(n, 1 / n), n, np.random.default_rng(0)).tolist() == list(range(n))


def test_ssp_does_not_change_its_input() -> None:
    weights = W.copy()
    SCHEMES["ssp"](weights, 4, np.random.default_rng(0))
    assert (weights == W).all()


@pytest.mark.parametrize(
    ("log_weights", "weights"),
    [
        ([0.0, np.log(3)], [0.25, 0.75]),
        ([1e5, 1e5 + np.log(3)], [0.25, 0.75]),
        ([-1e5, -1e5 + np.log(3)], [0.25, 0.75]),
        ([0.0, -INF], [1, 0]),
        ([-INF, -INF], [0.5, 0.5]),
        ([INF, 0.0, INF], [0.5, 0, 0.5]),
        # an unscored particle weighs as much as the mean of the others
        ([0.0, np.log(3), NAN], [1 / 6, 3 / 6, 2 / 6]),
        ([NAN, NAN], [0.5, 0.5]),
        ([NAN, -INF], [0.5, 0.5]),
        ([5.0], [1]),
    ],
)
def test_normalise(log_weights: list[float], weights: list[float]) -> None:
    with np.errstate(all="raise"):
        assert normalise(log_weights) == pytest.approx(weights)


def test_log_mean_exp() -> None:
    assert log_mean_exp([0.0, np.log(3)]) == pytest.approx(np.log(2))
    assert log_mean_exp([1000.0, NAN]) == 1000
    assert log_mean_exp([NAN]) == 0
    assert fill_unscored([1.0, NAN]).tolist() == [1, 1]
