"""Every registered plugin is on its page."""

from __future__ import annotations

from typing import Any

import pytest

from pages import DOCS, ROOT
from tts_vision.registry import PACKAGES, entries


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("algorithm", ROOT / "README.md"),
        ("algorithm", DOCS / "algorithms" / "index.md"),
        ("verifier", DOCS / "verifiers.md"),
        ("features", DOCS / "verifiers.md"),
        ("evaluator", DOCS / "benchmarks" / "index.md"),
        ("rewriter", DOCS / "algorithms" / "prompt-search.md"),
        ("corrector", DOCS / "algorithms" / "reflection.md"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_page_lists_them_all(kind: Any, page: Any) -> None:
    text = page.read_text()
    own = [entry.name for entry in entries(kind) if entry.target.__module__.startswith(PACKAGES[kind])]
    assert own
    assert [name for name in own if f"`{name}" not in text] == []
