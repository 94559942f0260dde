"""Diagrams are what the script draws, and tables are those of the benchmarks' result files."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from pages import DOCS, ROOT

RESULTS = ROOT / "eval" / "results"
DRAW = DOCS / "images" / "draw.py"


def test_diagrams_are_up_to_date() -> None:
    drawings = runpy.run_path(str(DRAW))["DRAWINGS"]
    assert {path.stem for path in DRAW.parent.glob("*.svg")} == set(drawings)
    for name, draw in drawings.items():
        assert DRAW.with_name(f"{name}.svg").read_text() == draw().svg(), (
            f"run python {DRAW.relative_to(ROOT)}"
        )


def rows(path: Path) -> list[str]:
    """The rows of the tables of a page, the words of their heads apart."""
    return [line.strip() for line in path.read_text().splitlines() if line.startswith("|")]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.md")), ids=lambda path: path.stem)
def test_the_results_page_has_the_tables_of_the_benchmarks(path: Path) -> None:
    page = set(rows(DOCS / "results.md"))
    measured = [row.replace("ms per image", "ms per image") for row in rows(path)]
    assert [row for row in measured if row not in page] == []


def test_the_front_page_is_short_and_its_numbers_are_those_of_the_results_page() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 160
    page = set(rows(DOCS / "results.md"))
    assert [row for row in rows(readme) if "[" in row and row not in page] == []
