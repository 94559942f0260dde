"""Means and their bootstrap intervals, against an independent bootstrap and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tts_vision.intervals import LEAST_FOR_INTERVAL, Figure, counts, interval, mean_of


def test_the_mean_is_over_all_values_that_are_numbers() -> None:
    assert mean_of([[1.0, 0.0, 1.0], [0.0], [math.nan]]).value == 0.5
    assert mean_of([0.25, math.nan, 0.75]).value == 0.5
    assert math.isnan(mean_of([[], [math.nan]]).value) and math.isnan(mean_of([]).value)


def test_the_interval_is_that_of_resampling_prompts_one_by_one() -> None:
    rng = np.random.default_rng(5)
    groups = [rng.normal(size=size).tolist() for size in rng.integers(1, 4, size=30)]
    found = mean_of(groups)
    means = []
    for _ in range(20000):
        drawn = [value for i in rng.integers(30, size=30) for value in groups[i]]
        means.append(sum(drawn) / len(drawn))
    width = found.high - found.low
    low, high = np.percentile(means, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.06 * width)
    assert found.high == pytest.approx(high, abs=0.06 * width)
    assert found == mean_of(groups), "the same each time"


def test_samples_of_a_prompt_stay_together() -> None:
    """Ten equal samples of a prompt say no more than one."""
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    once, tenfold = mean_of(values), mean_of([value] * 10 for value in values)
    assert tenfold == once
    assert mean_of([value for value in values for _ in range(10)]).high < once.high


def test_few_prompts_have_no_interval_and_one_is_resampled_by_its_values() -> None:
    few = mean_of(range(LEAST_FOR_INTERVAL - 1))
    assert math.isnan(few.low) and math.isnan(few.high) and few.value == 1.5
    assert mean_of(range(LEAST_FOR_INTERVAL)).low < 2 < mean_of(range(LEAST_FOR_INTERVAL)).high
    assert mean_of([0.0, 1.0], least=2) == Figure(0.5, 0.0, 1.0)
    assert mean_of([[0.0, 1.0, 0.0, 1.0, 0.5]]) == mean_of([0.0, 1.0, 0.0, 1.0, 0.5])


def test_every_draw_is_of_as_many_as_there_are() -> None:
    drawn = counts(7, 4000, np.random.default_rng(0))
    assert (drawn.sum(1) == 7).all()
    # by the binomial law of how often one is drawn
    assert drawn[:, 0].mean() == pytest.approx(1, abs=0.06)
    assert drawn[:, 0].var() == pytest.approx(6 / 7, abs=0.08)


def test_the_ends_leave_out_what_is_no_number() -> None:
    low, high = interval([*range(101), math.nan])
    assert (low, high) == (2.5, 97.5)
    assert all(map(math.isnan, interval([math.nan])))


def test_figures_are_written_with_their_interval_if_they_have_one() -> None:
    assert Figure(0.5, 0.25, 0.75).percent == "50.0 [25.0, 75.0]"
    assert Figure(0.5).percent == "50.0" and Figure(math.nan).percent == "-"
    assert Figure(0.5, 0.25, 0.75).written() == "0.500 [0.250, 0.750]"
    assert Figure(-0.125, -0.25, 0.0).written(100, "+.1f") == "-12.5 [-25.0, +0.0]"
