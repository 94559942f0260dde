"""Quoted text in prompts: what an image is to show, letter by letter."""

from __future__ import annotations

import re

# straight, typographic, German, French and CJK marks; an apostrophe within or at the end of a word is none,
# nor is an inch mark behind a number
QUOTED = re.compile(
    r"(?<!\w)[\"“„”](?P<double>[^\"“„”]*)[\"“”]"
    r"|«\s*(?P<angled>[^«»]+?)\s*»"
    r"|「(?P<corner>[^「」]+)」|『(?P<white>[^『』]+)』"
    r"|(?<!\w)['‘‚](?P<single>[^\"“„”]+?)['’](?!\w)"
)


def quoted_texts(prompt: str) -> list[str]:
    """The texts that a prompt puts in quotes, in order, each once; without the comma that ends a phrase."""
    found = (match[match.lastgroup or 0].strip().rstrip(",;").rstrip() for match in QUOTED.finditer(prompt))
    return list(dict.fromkeys(text for text in found if text))
