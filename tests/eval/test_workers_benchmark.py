"""The benchmark of workers: the simulation against closed forms."""

from __future__ import annotations

import pytest

from tts_vision.eval.workers import simulate


def test_equal_searches_that_divide_evenly_waste_the_start_alone() -> None:
    busy, waiting = simulate([2.0], workers=4, searches=40, start=0.0)
    assert (busy, waiting) == (pytest.approx(1.0), pytest.approx(0.0))
    busy, waiting = simulate([2.0], workers=4, searches=40, start=5.0)
    assert (busy, waiting) == (pytest.approx(20 / 25), pytest.approx(0.0))


def test_a_remainder_leaves_workers_waiting() -> None:
    busy, waiting = simulate([1.0], workers=4, searches=5, start=0.0)
    assert (busy, waiting) == (pytest.approx(5 / 8), pytest.approx(3 / 8))


def test_stragglers_cost() -> None:
    even, _ = simulate([1.0], workers=8, searches=64, start=0.0)
    uneven, _ = simulate([0.5, 0.5, 0.5, 2.5], workers=8, searches=64, start=0.0)
    assert uneven < even
