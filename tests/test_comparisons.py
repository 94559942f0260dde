"""Comparing algorithms: what is run, what is kept, what is reported."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from toy_plugins import MODEL, VERIFIER
from tts_vision import compare
from tts_vision.comparisons import Cell, read_prompts
from tts_vision.errors import ConfigError, SearchWarning, UnknownNameError
from tts_vision.runs.task import slug
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import Prompt

FILE = MODEL.rpartition("@")[0]


def run(output: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "prompts": ["a", Prompt("b", {"tag": "x"})],
        "algorithms": ["best_of_n", "fk_steering:lam=5"],
        "verifiers": [VERIFIER],
        "evaluator": f"{FILE}@first_coordinate",
        "budget": "4x",
        "seeds": (0, 1),
        "output": output,
    }
    return compare(MODEL, **(arguments | changes))


@pytest.mark.draws
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
    assert math.isnan(rows["best_of_n"].score_low) and math.isnan(rows["best_of_n"].score_high)
    table = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert len(table) == 12
    first = json.loads((tmp_path / "comparison.json").read_text())["rows"][0]
    assert first["algorithm"] == "plain" and first["score_low"] is None
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    console = Console(width=200, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(comparison.table())
    text = console.export_text()
    assert "fk_steering:lam=5" in text
    assert f"{rows['plain'].score:.4f} [n/a]" in text
    assert "n/a: a 95 % interval needs at least 5 prompts" in text


@pytest.mark.parametrize(("prompts", "seeds"), [(5, 1), (1, 5)])
def test_an_interval_needs_five_prompts_or_five_seeds_of_one(
    prompts: int, seeds: int, tmp_path: Path
) -> None:
    for short in (1, 0):
        many = [f"prompt {i}" for i in range(prompts - (short if prompts > 1 else 0))]
        arguments = {"seeds": range(seeds - (short if seeds > 1 else 0)), "evaluator": None}
        comparison = run(tmp_path, prompts=many, algorithms=["best_of_n"], **arguments)
        row = comparison.rows()[1]
        assert math.isnan(row.score_low) == bool(short)
    assert row.score_low <= row.score <= row.score_high
    console = Console(width=200, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(comparison.table())
    assert "n/a" not in console.export_text()


def test_a_prompt_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    tagged = Prompt("b", {"tag": "x"})
    with pytest.warns(SearchWarning, match=r"'a', 'b' were given more than once and count once; use several"):
        comparison = run(tmp_path, prompts=["a", tagged, "a", Prompt("b"), Prompt("b", {"tag": "x"}), "a"])
    assert [row.searches for row in comparison.rows()] == [6, 6, 6], "a, and b with and without a tag"
    with pytest.warns(SearchWarning, match="'a' was given more than once and counts once"):
        run(tmp_path, prompts=["a", "a"])


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(Path("~/mine"), algorithms=["best_of_n"]).folder == tmp_path / "mine"


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


A, B = Prompt("two red circles"), Prompt("a dog, on grass", {"tag": "single"})


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("p", "two red circles\r\n\r\n  a dog, on grass \r\n", [A, Prompt("a dog, on grass")]),
        ("p", 'two red circles\n{"prompt": "a dog, on grass", "tag": "single"}\n', [A, B]),
        ("p.txt", "[red] circle, blue\n[x]", [Prompt("[red] circle, blue"), Prompt("[x]")]),
        ("p.json", '["two red circles", {"prompt": "a dog, on grass", "tag": "single"}]', [A, B]),
        ("p", '\n [\n{"id": "1", "prompt": "x"}\n]\n', [Prompt("x", {"id": "1"})]),
        ("p.csv", 'tag,prompt\n,two red circles\nsingle,"a dog, on grass"\n', [A, B]),
        ("p.csv", '"Prompt"\ntwo red circles\n"a dog,\non grass"\n', [A, Prompt("a dog,\non grass")]),
        ("p.tsv", "Prompt\ttag\ntwo red circles\t\na dog, on grass\tsingle\n", [A, B]),
        ("p", 'prompt,tag\ntwo red circles,\n"a dog, on grass",single\n', [A, B]),
        ("p", "a prompt, and more\nx", [Prompt("a prompt, and more"), Prompt("x")]),
    ],
)
def test_prompts_are_read_in_every_form(
    name: str, text: str, prompts: list[Prompt], mark: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(mark + text.encode())
    found = read_prompts(path)
    assert [p.text for p in found] == [p.text for p in prompts]
    assert [{**p.metadata} for p in found if p.text != "x"] == [
        {**p.metadata} for p in prompts if p.text != "x"
    ]


def test_prompts_in_utf_16_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("zwei rote Kreise, ü\n", encoding="utf-16")
    assert read_prompts(tmp_path / "p.txt") == [Prompt("zwei rote Kreise, ü")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p", '{"promt": "a dog"}\n', "line 1 of .* is .*promt.*; correct it"),
        ("p", 'a\n{"prompt": \n', "line 2 of .* is not"),
        ("p", "\n", "is empty"),
        ("p.json", "[]", "is empty"),
        ("p.json", '["a", 3]', "item 2 of .* is 3"),
        ("p.json", '["a", {"prompt": ["x"]}]', "item 2 of"),
        ("p.json", '["a", " "]', "item 2 of"),
        ("p.json", '["a"', "must be JSON but"),
        ("p.csv", "text,tag\na,b\n", "must have a column 'prompt' but .* has text, tag; name it"),
        ("p.csv", "", "must have a column 'prompt' but .* has none"),
        ("p.csv", 'prompt\n"' + "x" * 200_000 + '"\n', "must be CSV but line"),
        ("p.csv", "prompt,tag\n,b\n", "is empty"),
    ],
)
def test_files_that_hold_no_prompts_are_told(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)


def test_files_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"\x80abc")
    for name in ("p", "none", "."):
        with pytest.raises(ConfigError, match="must be a readable text file in UTF-8 but"):
            read_prompts(tmp_path / name)


def test_file_names_are_short_and_distinct() -> None:
    assert slug("Two red circles!") == "two-red-circles"
    assert slug("…") == "x"
    long = "word " * 30
    assert len(slug(long)) < 50
    assert slug(long + "a") != slug(long + "b")
