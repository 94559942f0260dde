"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXAMPLE = re.compile(
    r"^\[(?:\.\./)?examples/(\w+)\.py\]\(((?:\.\./)?examples/\w+\.py)\)\n\n```python\n", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: Path of the page, from the root of the repository.
        language: As the fence says.
        code: Its text.
        line: Line of its first line in the page.
        example: Name of the file of `docs/examples` that it shows, if it shows one.
    """

    page: str
    language: str
    code: str
    line: int
    example: str | None


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text()
    shown = {match.end(): match[1] for match in _EXAMPLE.finditer(text)}
    return [
        Block(
            str(page.relative_to(ROOT)),
            match[1],
            match[2],
            text.count("\n", 0, match.start(2)) + 1,
            shown.get(match.start(2)),
        )
        for match in _BLOCK.finditer(text)
    ]


def commands(page: Path) -> list[list[str]]:
    """The arguments of each ``tts-vision`` command in the shell blocks of a page."""
    found = []
    for block in blocks(page):
        if block.language == "bash":
            for line in block.code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["tts-vision"]:
                    found.append(words[1:])
    return found
