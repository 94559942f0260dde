"""Plugins as text: a name, its members and its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tts_vision.errors import ConfigError

_PARAMS = re.compile(r":(?=\w+=)")
_NEXT_PARAM = re.compile(r",(?=\s*\w+=)")


@dataclass(frozen=True)
class Spec:
    """A plugin, its members and its parameters, as text.

    ``name``, ``name:key=value,key=value``, ``module:attr`` or ``file.py@name``; the last two take parameters
    as well. A plugin made of others names them in parentheses: ``ensemble(hpsv2.1, clip_score):how=zscore``;
    in there, a value that is a list stands in brackets, ``weights=[2,1]``.
    """

    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    members: tuple[Spec, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Reads what `str` writes.

        Raises:
            ConfigError: If there is no name, or parentheses do not match.
        """
        head, inside, tail = _parenthesised(text.strip())
        name, *rest = _PARAMS.split(head + tail, maxsplit=1)
        if not name:
            raise ConfigError(
                "A plugin is written 'name', 'name:key=value,key=value' or 'name(member, member):key=value' "
                f"but got {text!r}; name it first."
            )
        pairs = [pair.partition("=") for pair in (_NEXT_PARAM.split(rest[0]) if rest else [])]
        members = () if inside is None else tuple(cls.parse(part) for part in _members(inside))
        return cls(name, {key.strip(): value.strip() for key, _, value in pairs}, members)

    def __str__(self) -> str:
        members = f"({', '.join(map(str, self.members))})" if self.members else ""
        params = ",".join(f"{key}={value}" for key, value in self.params.items())
        return f"{self.name}{members}:{params}" if params else f"{self.name}{members}"


def _parenthesised(text: str) -> tuple[str, str | None, str]:
    """The text before, inside and after the parentheses behind a name; inside is None without any."""
    start = text.find("(")
    first_param = _PARAMS.search(text)
    if start < 0 or (first_param is not None and first_param.start() < start):
        return text, None, ""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            tail = text[at + 1 :].lstrip()
            if tail and not _PARAMS.match(tail):
                return text, None, ""  # parentheses in the name of a file
            return text[:start].rstrip(), text[start + 1 : at], tail
    raise ConfigError(f"Parentheses of a plugin must match but got {text!r}; close them.")


def _members(text: str) -> list[str]:
    """The parts between the outer commas; ``key=value`` after a comma still belongs to the part before it."""
    parts, depth = [""], 0
    for at, char in enumerate(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(char, 0)
        if char == "," and not depth and not _NEXT_PARAM.match(text, at):
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]
