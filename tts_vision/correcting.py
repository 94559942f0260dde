"""Correctors: begin new samples from a rejected one and the reason why it was rejected."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import Image

from tts_vision.config import Spec
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.media import still
from tts_vision.parameters import validate
from tts_vision.registry import lookup
from tts_vision.types import Region, State

Begun: TypeAlias = tuple[SearchContext, State]
"""Particles that are to be finished, and the context of their generator."""


class CannotCorrect(Exception):
    """A sample that a corrector cannot correct; the message is the reason. Fresh samples take its place."""


@dataclass(frozen=True)
class Rejected:
    """A finished sample that was found wanting.

    Attributes:
        context: Of the generator that made it.
        state: The particle, one row.
        prompt: The prompt to start from: that of the user, or a refined one.
        reason: Why it was rejected; empty if nobody said so.
        regions: The parts of the image that the reason is about; empty if nobody said so.
    """

    context: SearchContext
    state: State
    prompt: str
    reason: str = ""
    regions: tuple[Region, ...] = ()

    @property
    def uid(self) -> int:
        """The particle."""
        return self.state.uids[0]

    @property
    def image(self) -> Image.Image:
        """The image that was judged; the middle frame of a clip.

        Raises:
            ConfigError: If it was not kept, because a search without an output folder was resumed.
        """
        return still(self.context.candidates[self.uid].load())


@contextmanager
def drawable(text: str) -> Iterator[None]:
    """Says of a sample that it cannot be corrected where the generator refuses a prompt, such as a long one.

    Raises:
        CannotCorrect: If it does.
    """
    try:
        yield
    except ConfigError as error:
        raise CannotCorrect(f"the generator refuses the prompt {text!r}: {error}") from error


class Corrector(ABC):
    """Begins new samples from a rejected one.

    Attributes:
        name: Shown in reports, and how calls of its own are charged.
    """

    name: str

    def check(self, ctx: SearchContext) -> None:  # noqa: B027
        """Called once before anything is spent.

        Args:
            ctx: Of the search's own generator.

        Raises:
            TTSVisionError: If it cannot correct samples of this search.
        """

    @abstractmethod
    def correct(self, ctx: SearchContext, rejected: Rejected, n: int) -> Begun:
        """`n` particles that may become better samples.

        Whatever does not follow from the seed is asked through `SearchContext.ask`.

        Args:
            ctx: Of the search's own generator.
            rejected: The sample, the reason, the prompt.
            n: How many.

        Returns:
            The context of their generator, and the particles at the step that they start from.

        Raises:
            CannotCorrect: If this sample cannot be corrected.
        """


class FunctionCorrector(Corrector):
    """A plain function ``f(ctx, rejected, n)`` as a corrector.

    It returns particles of the search's own generator, or those of another one together with its context.
    """

    def __init__(self, function: Callable[[SearchContext, Rejected, int], State | Begun]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", "corrector")

    def correct(self, ctx: SearchContext, rejected: Rejected, n: int) -> Begun:
        begun = self.function(ctx, rejected, n)
        return (ctx, begun) if isinstance(begun, State) else begun


def default_corrector(ctx: SearchContext) -> str:
    """The corrector that takes most from the rejected sample: ``remask``, ``edit`` or ``prompt``."""
    if ctx.sampler.grid is not None and ctx.sampler.remasking([0], 1) is not None:
        return "remask"
    return "edit" if "renoise" in ctx.capabilities else "prompt"


def load_corrector(text: str | None, ctx: SearchContext) -> Corrector:
    """The corrector that a spec such as ``edit:strength=0.5`` names, checked for a search.

    Args:
        text: The spec; by default that of `default_corrector`.
        ctx: Of the search's own generator.

    Raises:
        TTSVisionError: If there is none, a parameter is not one of its own, or it cannot be used here.
    """
    spec = Spec.parse(default_corrector(ctx) if text is None else text)
    if spec.members:
        raise ConfigError(f"A corrector has no members but got {text!r}; write '{spec.name}:key=value'.")
    target: Any = lookup("corrector", spec.name).target
    if inspect.isclass(target) and issubclass(target, Corrector):
        made: Corrector = target(**validate(target, spec.params, f"corrector {spec.name!r}"))
    else:
        made = FunctionCorrector(target)
    made.check(ctx)
    return made
