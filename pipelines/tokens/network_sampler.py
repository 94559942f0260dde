"""The part that samplers of image tokens share: conditions, encoding them once, and pixels of codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.media import finite_rows
from tts_vision.pipelines.decoding import NOT_FINITE
from tts_vision.pipelines.var.model import images_of
from tts_vision.sampler import Sampler
from tts_vision.types import Decoded, Invalid, Prompt

_KEPT = 64  # encoded conditions, which for a prompt's keys and values take some megabytes each


class Network(Protocol):
    """The part of a network that does not depend on how its tokens are drawn; see `TokenNetwork`."""

    @property
    def overrides(self) -> frozenset[str]:
        """The overrides of a condition that it takes."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Its settings, for the metadata of files."""

    def encode(self, condition: Condition) -> Any:
        """The condition as the network takes it."""

    def words(self, condition: Condition) -> int:
        """Tokens of the prompt that every token of the image attends to."""

    def pixels(self, codes: Tensor) -> Tensor:
        """RGB pixels ``(B, 3, H, W)`` in [-1, 1] of codes ``(B, S)``."""


class NetworkSampler(Sampler):
    """A sampler of image tokens by a network that takes a text alone.

    Attributes:
        images: The images of a condition that the sampler reads.

    Args:
        name: Shown in reports.
        network: Predicts the tokens and decodes them.
    """

    images: frozenset[str] = frozenset()

    def __init__(self, name: str, network: Network) -> None:
        self.name = name
        self._drawn_by = network
        self._encoded: dict[Condition, Any] = {}
        self._words: dict[Condition, int] = {}

    def condition_of(self, prompt: Prompt) -> Condition:
        known = {name: prompt.metadata[name] for name in self._drawn_by.overrides if name in prompt.metadata}
        return Condition(prompt.text, overrides=known)

    def facts(self, condition: Condition) -> dict[str, Any]:
        return dict(self._drawn_by.facts)

    def words(self, condition: Condition) -> int:
        """Tokens of the prompt, counted once."""
        if condition not in self._words:
            self._words[condition] = self._drawn_by.words(condition)
        return self._words[condition]

    def encode(self, condition: Condition) -> Any:
        """The condition as the network takes it, computed once.

        Raises:
            ConfigError: If it says more than the network can take.
        """
        if condition not in self._encoded:
            self._check(condition)
            if len(self._encoded) == _KEPT:
                del self._encoded[next(iter(self._encoded))]
            with self.meter.phase("encode"):
                self._encoded[condition] = self._drawn_by.encode(condition)
        return self._encoded[condition]

    def decoded(self, codes: Tensor) -> list[Decoded]:
        """The images of codes ``(B, S)``."""
        with self.meter.phase("decode"):
            pixels = self._drawn_by.pixels(codes)
            return [
                image if finite else Invalid(f"pixels {NOT_FINITE}", image)
                for image, finite in zip(images_of(pixels), finite_rows(pixels))
            ]

    def _check(self, condition: Condition) -> None:
        """Refuses a condition that says more than the network can take."""
        if condition.negative_text is not None:
            raise ConfigError(
                f"A condition of {self.name} must have no negative text but got "
                f"{condition.negative_text!r}; set negative_prompt in pipeline_kwargs if the model has one."
            )
        unused = [*(name for name in condition.images if name not in self.images), *condition.embeddings]
        if unused:
            raise ConfigError(
                f"A condition of {self.name} must have no images or embeddings but got {', '.join(unused)}; "
                "leave them out."
            )
        unknown = sorted(condition.overrides.keys() - self._drawn_by.overrides)
        if unknown:
            known = ", ".join(sorted(self._drawn_by.overrides)) or "none"
            raise ConfigError(
                f"Overrides of a condition of {self.name} must be among {known} but got "
                f"{', '.join(unknown)}; set them in pipeline_kwargs, for all particles."
            )
