"""Rewriters: other wordings of a prompt, by a rule, a function or a language model."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from tts_vision.config import Spec
from tts_vision.errors import ConfigError
from tts_vision.parameters import validate
from tts_vision.registry import lookup


class Rewriter(ABC):
    """Gives other wordings of a prompt.

    Attributes:
        name: How its calls are charged.
        calls: Calls that one request takes; 0 for a rule.
    """

    name: str
    calls: int = 0

    @abstractmethod
    def rewrite(self, text: str, n: int) -> list[str]:
        """At most `n` other wordings of a prompt; fewer where it has no more.

        Raises:
            ConfigError: If none can be had.
        """


class FunctionRewriter(Rewriter):
    """A plain function ``f(text, n) -> list of texts`` as a rewriter."""

    def __init__(self, function: Callable[[str, int], list[str]]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", "rewriter")

    def rewrite(self, text: str, n: int) -> list[str]:
        return list(self.function(text, n))


def load_rewriter(text: str) -> Rewriter:
    """The rewriter that a spec such as ``phrasings`` or ``chat:base_url=URL,model=NAME`` names.

    Raises:
        ConfigError: If there is none, or a parameter is not one of its own.
    """
    spec = Spec.parse(text)
    if spec.members:
        raise ConfigError(f"A rewriter has no members but got {text!r}; write '{spec.name}:key=value'.")
    target: Any = lookup("rewriter", spec.name).target
    if inspect.isclass(target) and issubclass(target, Rewriter):
        return target(**validate(target, spec.params, f"rewriter {spec.name!r}"))
    return FunctionRewriter(target)
