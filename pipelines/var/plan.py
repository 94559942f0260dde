"""What the sampler of visual autoregressive models asks of one of them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tts_vision.pipelines.var.cache import KVCache
from tts_vision.pipelines.var.schedules import Schedule
from tts_vision.types import Prompt


class Plan(Protocol):
    """A model with the settings of one search: how to predict each scale, and what its tokens look like.

    Attributes:
        schedule: The scales.
        branches: Passes of each row: 2 with classifier-free guidance, else 1.
        device: Where it computes.
        stride: Pixels, on a side, of a cell of the features.
    """

    schedule: Schedule
    branches: int
    device: torch.device
    stride: int

    def empty(self, n: int) -> Tensor:
        """The token prefixes of `n` particles before the first scale."""

    def condition(self, prompt: Prompt) -> Any:
        """What the prompt contributes to all scales, computed once.

        Raises:
            ConfigError: If the prompt is none that the model can draw.
        """

    def words(self, prompt: Prompt) -> int:
        """Tokens of the prompt that every token of the picture attends to."""

    def cache(self, rows: int) -> KVCache:
        """An empty cache."""

    def probability(self, condition: Any, tokens: Tensor, scale: int, cache: KVCache) -> Tensor:
        """The probabilities of the tokens of one scale, as `tts_vision.tokens.draw` takes them, on the CPU.

        Args:
            condition: Of the prompt.
            tokens: ``(B, T, ...)`` prefix of all scales before.
            scale: Which scale.
            cache: Keys and values of the scales before; gets those of this one.
        """

    def features(self, tokens: Tensor) -> Tensor:
        """The sum ``(B, C, H, W)``, at full size, of the scales that a prefix holds."""

    def pixels(self, features: Tensor) -> Tensor:
        """RGB pixels ``(B, 3, H, W)`` in [-1, 1] of features of any size."""

    def macs(self, scale: int, words: int) -> int:
        """Multiply-accumulates of one row's pass over one scale, one branch."""


@runtime_checkable
class ScalePipeline(Protocol):
    """A visual autoregressive model that a `Plan` can be made of."""

    name: str

    def plan(self, call: dict[str, Any]) -> Plan:
        """The model with the settings of a call.

        Raises:
            ConfigError: If a setting is unknown or cannot be.
        """
