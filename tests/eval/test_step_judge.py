"""The measures of the step verifier, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tts_vision.eval import step_judge
from tts_vision.pipelines.playground import judge_data
from tts_vision.pipelines.playground.train_parm import Steps
from tts_vision.types import Score


def scores(*values: float) -> list[Score]:
    return [Score(value=value) for value in values]


@pytest.fixture(scope="module")
def steps() -> Steps:
    """Two prompts, two steps, two images each: prompt by prompt, step by step."""
    return Steps(
        judge_data.paint(0, 8),
        np.array([1, 1, 2, 2, 1, 1, 2, 2], np.uint8),
        np.array([0, 1, 1, 1, 0, 0, 1, 1], np.int8),
        np.array([1, 0, 1, 0, 1, 1, 1, 1], np.int8),
    )


def test_answers_are_compared_step_by_step(steps: Steps) -> None:
    clarity = scores(0.1, 0.9, 1, 1, 0.2, 0.6, 1, 1)
    potential = scores(0.8, 0.3, 1, 0, 0.9, 0.4, 1, 1)
    (row,) = step_judge.by_step(steps, clarity, potential, 2)
    assert (row.step, row.clear, row.clarity, row.clarity_auc) == (1, 0.25, 0.75, 1.0)
    # right images have 0.8, 0.9, 0.4; the wrong one 0.3
    assert (row.potential, row.potential_auc) == (0.75, 1.0)
    assert row.correlation == pytest.approx(1.0)  # of the first prompt alone: the second has one outcome
    assert "| 1 of 2 | 25 | 75 | 1.00 | 75 | 1.00 | 1.00 |" in step_judge.table([row], 2)


def test_the_correlation_within_a_prompt_knows_ties_and_nothing() -> None:
    right = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert step_judge.within(np.array([[0.9, 0.1], [0.9, 0.1]]), right) == pytest.approx(0.0)
    assert step_judge.within(np.array([[0.5, 0.5], [0.1, 0.9]]), right) == pytest.approx(0.5)
    assert math.isnan(step_judge.within(np.array([[0.5, 0.1]]), np.array([[1.0, 1.0]])))


def test_calibration_counts_the_second_half_of_the_previews(steps: Steps) -> None:
    found = step_judge.calibration(scores(0.97, 0.01, 1, 1, 0.99, 0.02, 1, 1), steps)
    assert found.splitlines()[2:] == ["| 0.00 to 0.05 | 2 | 0.01 | 50 |", "| 0.95 to 1.00 | 2 | 0.98 | 100 |"]
