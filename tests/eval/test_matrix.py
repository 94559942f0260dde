"""The matrix of algorithms and models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tts_vision.eval import matrix
from tts_vision.eval.matrix import Pair, page
from tts_vision.registry import entries

PAGE = Path(__file__).parents[2] / "docs" / "algorithms" / "matrix.md"


def test_pairs_are_tried_and_refusals_have_their_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "matrix.md"
    command = ["--algorithms", "best_of_n", "draft", "variations", "zero_order"]
    command += ["--models", "playground", "playground-discrete-flow", "--budgets", "2x"]
    matrix.main([*command, "--output", str(path), "--pairs", str(tmp_path / "pairs.json")])
    text = path.read_text()
    assert "| | `playground` | `playground-discrete-flow` |" in text
    assert "| `best_of_n` | runs | runs |" in text and "| `variations` | runs | no (2) |" in text
    assert "| `draft` | no (1) | no (1) |" in text and "\n1. it has no size" in text
    assert "\n2. Refining an image needs a sampler with 'adopt'" in text
    assert "| `zero_order` | runs | no (3) |" in text
    assert "\n3. Algorithm 'zero_order' needs a sampler with noise but 'playground-discrete-flow'" in text
    assert capsys.readouterr().err.count(": runs") == 4


def test_a_search_takes_the_verifier_and_the_budget_that_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "matrix.md"
    command = ["--algorithms", "raise_search", "--models", "playground", "--budgets", "2x", "12x"]
    matrix.main([*command, "--output", str(path), "--pairs", str(tmp_path / "pairs.json")])
    assert "| `raise_search` | runs |" in path.read_text()


def test_a_budget_that_is_too_little_is_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "matrix.md"
    command = ["--algorithms", "parm_pp", "--models", "playground-masked", "--budgets", "1x"]
    pairs = tmp_path / "pairs.json"
    known = [
        {"algorithm": name, "model": "playground-masked", "reason": "old"} for name in ("das", "parm_pp")
    ]
    pairs.write_text(json.dumps(known))
    matrix.main([*command, "--output", str(path), "--pairs", str(pairs)])
    assert "| `das` | no (1) |" in path.read_text() and "\n1. old" in path.read_text()
    assert [each["reason"][:15] for each in json.loads(pairs.read_text())] == ["old", "A budget of 1x "]
    assert "A budget of 1x is too little for its smallest size" in path.read_text()


def test_a_reason_is_one_line_and_numbered_once() -> None:
    pairs = [
        Pair("a", "m", "first\nline | <x>"),
        Pair("a", "n", "first line | <x>"),
        Pair("b", "m"),
    ]
    text = page(pairs, ["6x"])
    assert "| `a` | no (1) | no (1) |\n| `b` | runs |  |" in text
    assert text.endswith("1. first line \\| &lt;x>\n")


def test_the_page_has_all_algorithms() -> None:
    text = PAGE.read_text()
    own = [entry.name for entry in entries("algorithm") if entry.target.__module__.startswith("tts_vision.")]
    assert [name for name in own if f"| `{name}` |" not in text] == []
