"""Wordings of a prompt by a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import re
from typing import ClassVar

from tts_vision.chat import LONGEST_ANSWER, ChatEndpoint, json_values, without_reasoning
from tts_vision.errors import ConfigError
from tts_vision.registry import register
from tts_vision.rewriting import Rewriter

_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.):])\s+")


@register("rewriter", "chat")
class ChatRewriter(Rewriter):
    """Wordings by a language model behind an OpenAI-compatible endpoint.

    Args:
        base_url: Where it is, such as ``http://localhost:8000/v1``.
        model: Its name there.
        key_variable: Environment variable with the key of `base_url`; sent there if it is set.
        temperature: Of the endpoint's sampling; none leaves it to the server.
        timeout: Seconds until an attempt is given up.
        retries: Further attempts after a failure that may pass.
        max_tokens: Longest answer, in tokens; none leaves it to the server.
    """

    name = "chat"
    calls = 1
    question: ClassVar[str] = (
        'An image generator is to draw: "{prompt}". Write {n} other prompts that ask for exactly the same '
        "content in other words, with more concrete visual detail where that helps. Add, drop or change no "
        "object, number, colour or position. Write one prompt per line and nothing else."
    )

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        temperature: float | None = 0.7,
        timeout: float = 60.0,
        retries: int = 4,
        max_tokens: int | None = LONGEST_ANSWER,
    ) -> None:
        self._endpoint = ChatEndpoint(
            base_url,
            model,
            owner=f"rewriter {self.name!r}",
            key_variable=key_variable,
            temperature=temperature,
            timeout=timeout,
            retries=retries,
            max_tokens=max_tokens,
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
