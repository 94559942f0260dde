"""Comparing algorithms: what is run, what is kept, what is reported."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from toy_plugins import MODEL, VERIFIER
from tts_vision import compare
from tts_vision.comparisons import Cell, read_prompts, slug
from tts_vision.errors import ConfigError, UnknownNameError
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import Prompt

FILE = MODEL.rpartition("@")[0]


def run(output: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "algorithms": ["best_of_n", "fk_steering:lam=5"],
        "verifiers": [VERIFIER],
        "evaluator": f"{FILE}@first_coordinate",
        "budget": "4x",
        "seeds": (0, 1),
        "output": output,
    }
    return compare(MODEL, ["a", Prompt("b", {"tag": "x"})], **(arguments | changes))


def test_every_cell_is_run_once_and_reported(tmp_path: Path) -> None:
    done: list[Cell] = []
    comparison = run(tmp_path, progress=lambda count, total, cell: done.append(cell))
    assert len(comparison.cells) == len(done) == 3 * 2 * 2
    rows = {row.algorithm: row for row in comparison.rows()}
    assert list(rows) == ["plain", "best_of_n", "fk_steering:lam=5"]
    assert rows["plain"].nfe == 6
    assert rows["plain"].gain == 0
    assert rows["best_of_n"].nfe == 24
    assert rows["best_of_n"].gain > 0
    assert rows["best_of_n"].score_low <= rows["best_of_n"].score <= rows["best_of_n"].score_high
    table = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert len(table) == 12
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"][0]["algorithm"] == "plain"
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    console = Console(width=200, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(comparison.table())
    assert "fk_steering:lam=5" in console.export_text()


@pytest.mark.parametrize("kind", ["ensemble({0}, {1})", "cascade({1}, {0})", "calibrated({0}):least=2"])
def test_composed_verifiers_guide_and_are_judged(kind: str, tmp_path: Path) -> None:
    guide = kind.format(VERIFIER, f"{FILE}@first_coordinate")
    comparison = run(tmp_path, verifiers=[guide])
    assert {cell.verifier for cell in comparison.cells} == {guide}
    # each search by itself gives the same, so no search learns from another
    alone = run(tmp_path / "alone", verifiers=[guide], algorithms=["fk_steering:lam=5"], seeds=(1,))
    last = [cell for cell in comparison.cells if cell.algorithm != "best_of_n" and cell.seed == 1]
    assert [(c.score, c.evaluation) for c in alone.cells] == [(c.score, c.evaluation) for c in last]


def test_finished_cells_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path, seeds=(0,))
    traces = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("trace.jsonl")}
    monkeypatch.setattr(GaussianMixtureSampler, "advance", None)  # nothing may be computed
    second = run(tmp_path, seeds=(0,))
    assert first.cells == second.cells
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("trace.jsonl")} == traces
    monkeypatch.undo()
    third = run(tmp_path, seeds=(0, 1))
    assert [cell for cell in third.cells if cell.seed == 0] == first.cells


def test_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    def stop(count: int, total: int, cell: Cell) -> None:
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=stop)
    assert not (tmp_path / "comparison.json").exists()
    comparison = run(tmp_path)
    assert len(comparison.cells) == 12


def test_the_evaluator_guides_nothing(tmp_path: Path) -> None:
    judged = run(tmp_path / "a")
    free = run(tmp_path / "b", evaluator=None)
    assert [cell.score for cell in judged.cells] == [cell.score for cell in free.cells]
    assert [cell.verifier_calls for cell in judged.cells] == [cell.verifier_calls for cell in free.cells]


def test_unscored_searches_are_counted(tmp_path: Path) -> None:
    comparison = run(tmp_path, verifiers=[f"{FILE}@nan"], algorithms=["best_of_n"], seeds=(0,))
    assert [row.unscored for row in comparison.rows()] == [2, 2]
    comparison.table()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"algorithms": ["best_of_n", "fk_stering"]}, UnknownNameError, "did you mean 'fk_steering'"),
        ({"algorithms": ["best_of_n:m=1"]}, ConfigError, "got 'm'"),
        ({"algorithms": []}, ConfigError, "needs prompts, algorithms and seeds but got 2, 0 and 2"),
        ({"verifiers": ["none"]}, UnknownNameError, "got 'none'"),
        ({"evaluator": "none"}, UnknownNameError, "got 'none'"),
        ({"verifiers": None}, ConfigError, "needs a verifier"),
        ({"budget": "much"}, ConfigError, "A budget must be"),
    ],
)
def test_mistakes_are_told_before_the_first_search(
    changes: dict[str, Any], error: type[ConfigError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match=r"must be new, empty or that of one before .* mine.txt"):
        run(tmp_path)


def test_prompts_are_read_from_lines_and_json(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text('two red circles\n\n{"prompt": "a dog", "tag": "single_object"}\n')
    assert read_prompts(path) == [Prompt("two red circles"), Prompt("a dog", {"tag": "single_object"})]
    path.write_text('{"promt": "a dog"}\n')
    with pytest.raises(ConfigError, match="line 1"):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_prompts(path)


def test_file_names_are_short_and_distinct() -> None:
    assert slug("Two red circles!") == "two-red-circles"
    assert slug("…") == "x"
    long = "word " * 30
    assert len(slug(long)) < 50
    assert slug(long + "a") != slug(long + "b")
