"""The measures of the step verifier, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tts_vision.eval import step_judge
from tts_vision.eval.step_judge import Answers, Truth
from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.step_data import Trees


@pytest.fixture
def truth() -> Truth:
    """Two prompts, two paths each, one step that was continued and one that was not."""
    return Truth(
        right=np.array([[True, False], [True, True]]),
        clear=np.array([[[False, True], [True, True]], [[False, True], [False, True]]]),
        continued=np.array([[[0.5, math.nan], [0.0, math.nan]], [[1, math.nan], [1, math.nan]]]),
    )


@pytest.fixture
def answers() -> Answers:
    return Answers(
        clarity=np.array([[[0.1, 0.9], [0.9, 0.9]], [[0.2, 0.9], [0.6, 0.9]]]),
        potential=np.array([[[0.8, 0.1], [0.3, 0.2]], [[0.9, 0.9], [0.4, 0.9]]]),
        final=np.array([[0.9, 0.1], [0.5, 0.6]]),
    )


def test_answers_are_compared_step_by_step(truth: Truth, answers: Answers) -> None:
    row, last = step_judge.by_step(truth, answers, (1, 2))
    assert (row.step, row.clear, row.clarity, row.clarity_auc) == (1, 0.25, 0.75, 1.0)
    # right images have 0.8, 0.9, 0.4; the wrong one 0.3
    assert (row.potential, row.potential_auc) == (0.75, 1.0)
    assert row.correlation.value == pytest.approx(
        1.0
    )  # of the first prompt alone: the second has one outcome
    assert row.bound.value == pytest.approx(1.0)
    assert last.correlation.value == pytest.approx(-1.0) and math.isnan(last.bound.value)
    found = step_judge.table([row, last], 3)
    assert "| 1 of 3 | 25 | 75 | 1.00 | 75 | 1.00 | 1.00 | 1.00 |" in found
    assert "| 2 of 3 | 100 | 100 | - | 75 | 0.67 | -1.00 | - |" in found


def test_without_continuations_there_is_no_column_of_them(truth: Truth, answers: Answers) -> None:
    alone = Truth(truth.right, truth.clear, np.full(truth.clear.shape, math.nan))
    assert "continuations" not in step_judge.table(step_judge.by_step(alone, answers, (1, 2)), 3)
    assert "continuations" in step_judge.table(step_judge.by_step(truth, answers, (1, 2)), 3)


def test_finished_images_are_ranked_within_their_prompt(truth: Truth, answers: Answers) -> None:
    found = step_judge.finished(truth.right, {"a": answers.final, "b": 1 - answers.final})
    assert "| `a` | 75.0 | 100.0 | 1.000 | 1.00 |" in found
    assert "| `b` | 75.0 | 50.0 | 0.000 | -1.00 |" in found


def test_calibration_counts_how_often_answers_are_true() -> None:
    said, true = np.array([[0.1, 0.1], [0.9, 0.9]]), np.array([[False, True], [True, True]])
    found = step_judge.calibration({"clarity": (said, true)})
    # bins of 0.1 with one of two true, of 0.9 with all: (0.4 + 0.1) / 2
    assert "| clarity | 25.0 | 50 (2) | - | - | - | 100 (2) |" in found


def test_the_checker_judges_paths_previews_and_continuations() -> None:
    rng = np.random.default_rng(0)
    specs = [world.parse_spec("a red circle"), world.parse_spec("two blue stars")]
    drawn = [world.render(world.sample_scene(rng, spec)) for spec in specs]
    right, wrong = np.stack(drawn), np.stack(drawn[::-1])
    trees = Trees(
        step=np.array([[[1]], [[1]]], np.uint8),
        previews=np.stack([right[0], wrong[1]])[:, None, None],
        known=np.zeros((2, 1, 1, 64), bool),
        finished=right[:, None],
        continued=np.stack([right, wrong], 1)[:, None, None],
        num_steps=2,
    )
    truth = step_judge.truth_of(specs, trees)
    assert truth.right.tolist() == [[True], [True]] and truth.clear.tolist() == [[[True]], [[False]]]
    assert truth.continued.tolist() == [[[0.5]], [[0.5]]]


def test_the_command_measures_both_tracks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "table.md"
    step_judge.main(["--prompts", "2", "--images", "2", "--output", str(path)])
    text = path.read_text()
    assert text.count("| 11 of 12 |") == 4 and text.count("Completed previews:") == 2
    assert text.count("`playground_judge`") == 2
    assert "Track easy, 2 prompts x 2 images" in text and "Track hard" in capsys.readouterr().out
