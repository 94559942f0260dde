"""Wordings of a prompt by a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import re
from typing import ClassVar

from tts_vision.chat import EndpointUser, json_values, without_reasoning
from tts_vision.errors import ConfigError
from tts_vision.registry import register
from tts_vision.rewriting import Rewriter

_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.):])\s+")


@register("rewriter", "chat")
class ChatRewriter(EndpointUser, Rewriter):
    """Wordings by a language model behind an OpenAI-compatible endpoint."""

    name = "chat"
    calls = 1

    @property
    def owner(self) -> str:
        return f"rewriter {self.name!r}"

    question: ClassVar[str] = (
        'An image generator is to draw: "{prompt}". Write {n} other prompts that ask for exactly the same '
        "content in other words, with more concrete visual detail where that helps. Add, drop or change no "
        "object, number, colour or position. Write one prompt per line and nothing else."
    )

    def rewrite(self, text: str, n: int) -> list[str]:
        question = self.question.replace("{prompt}", text).replace("{n}", str(n))
        (reply,) = self._endpoint.ask([[]], [question])
        wordings = lines(reply.text)[:n]
        if not wordings:
            raise ConfigError(
                f"A rewriter must give wordings but {self._endpoint.model!r} gave none: "
                f"{reply.reason or 'the answer is empty'}; check the endpoint, or give rewrites yourself."
            )
        return wordings


def lines(answer: str) -> list[str]:
    """The wordings in an answer: its lines without bullets, numbers, quotes and reasoning, or a JSON list."""
    for value in json_values(answer):
        if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
            return [entry.strip() for entry in value if entry.strip()]
    visible = without_reasoning(answer)
    found = (_BULLET.sub("", line).strip().strip("\"'“”") for line in visible.splitlines())
    return [line for line in found if line]
