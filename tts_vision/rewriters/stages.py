"""Stages of a prompt by fixed rules: its static scene, its motion, its ending."""

from __future__ import annotations

import re

from tts_vision.registry import register

_THEN = re.compile(
    r"(?:\s*[,;.])?\s+(?:and\s+)?(?:then|finally|afterwards|eventually|at last|in the end)\b,?\s*|[;.]\s+",
    re.IGNORECASE,
)
_NOUNS = (
    "building|ceiling|clothing|duckling|earring|evening|king|lightning|morning|nothing|painting|ring|"
    "sibling|something|spring|sting|string|swing|thing|wedding|wing"
)
_MOTION = re.compile(
    rf"\s+(?:(?:is|are|was|were)\s+)?\b(?!(?:{_NOUNS})\b)\w+ing\b.*?(?=\s+and\s+(?!\w+ing\b)\w+\s|[,;.]|$)",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"(?:an?|the|it|they|he|she|one|two|three|four|both|all)\b", re.IGNORECASE)


@register("rewriter", "stages")
def stages(text: str, n: int) -> list[str]:
    """The scene without its motion, the motion, and the ending: "a ball" of "a ball rolling left".

    A prompt that tells several things one after the other ("..., then ...") ends with the last of them, and
    moves by those before; any other moves and ends by the whole prompt.
    """
    clauses = [clause.strip(" ,.;") for clause in _THEN.split(text) if clause.strip(" ,.;")] or [text]
    motion = ending = text
    if len(clauses) > 1 and _SUBJECT.match(clauses[-1]):
        motion, ending = ", then ".join(clauses[:-1]), clauses[-1]
    return [_MOTION.sub("", clauses[0]).strip() or clauses[0], motion, ending][:n]
