"""Rankings: what is not scored is never chosen while anything is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tts_vision.ranking import argmax, top_k, tournament

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("scores", "k", "best"),
    [
        ([1.0, 3.0, 2.0], 2, [1, 2]),
        ([1.0, 3.0, 3.0], 2, [1, 2]),
        ([NAN, 1.0, NAN, 2.0], 2, [3, 1]),
        ([NAN, -INF, 1.0], 2, [2, 1]),
        ([NAN, 1.0, NAN], 3, [1, 0, 2]),
        ([NAN, NAN], 1, [0]),
        ([1.0], 5, [0]),
        ([1.0], 0, []),
    ],
)
def test_top_k(scores: list[float], k: int, best: list[int]) -> None:
    assert top_k(scores, k) == best
    assert top_k(torch.tensor(scores), k) == best


def test_argmax() -> None:
    assert argmax([0.0, NAN, 5.0]) == 2
    assert argmax(torch.tensor([NAN, NAN])) == 0


def test_the_best_wins_when_all_take_part() -> None:
    assert tournament([1.0, 9.0, 2.0], 5, np.random.default_rng(0), fraction=1.0) == [1] * 5


def test_win_rates_of_the_released_fraction() -> None:
    wins = Counter(tournament(list(range(20)), 4000, np.random.default_rng(0)))
    # 18 of 20 take part: the best is among them with probability 0.9, else the second with 18/19
    assert wins[19] / 4000 == pytest.approx(0.9, abs=0.02)
    assert wins[18] / 4000 == pytest.approx(0.1 * 18 / 19, abs=0.02)


def test_small_tournaments_are_less_greedy() -> None:
    rng = np.random.default_rng(0)
    winners = {size: np.mean(tournament(list(range(20)), 500, rng, size=size)) for size in (1, 2, 5, 20)}
    assert winners[1] < winners[2] < winners[5] < winners[20] == 19


def test_at_least_two_take_part() -> None:
    wins = Counter(tournament([0.0, 1.0], 50, np.random.default_rng(0), fraction=0.1))
    assert wins == {1: 50}
    assert tournament([0.5], 2, np.random.default_rng(0)) == [0, 0]


def test_unscored_never_win_against_scored() -> None:
    winners = tournament([NAN, 1.0, NAN, 0.0], 200, np.random.default_rng(0), size=3)
    assert set(winners) == {1, 3}
