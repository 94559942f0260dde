"""The interface between samplers of image tokens and the networks that predict these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.config import did_you_mean
from tts_vision.errors import ConfigError


class ImageTokenizer(Protocol):
    """Images as codes, and back: the autoencoder of a token model."""

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of tokens; their product is ``S``."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes ``(B, S)``, int64, of pixels ``(B, 3, H, W)`` in [-1, 1]; row by row of the grid."""

    def decode(self, codes: Tensor) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in [-1, 1] of codes ``(B, S)``."""

    def codebook(self) -> Tensor:
        """The vector of each code, ``(V, d)`` float32."""


class TokenNetwork(Protocol):
    """A network with the settings of one search: predicts all codes of an image from some of them.

    It knows nothing of decoding steps, temperatures or noise: these are the sampler's. Codes are ids from 0
    to ``V - 1``; the mask sentinel, of a token that is not known, is ``V``.
    """

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of tokens; their product is ``S``."""

    @property
    def vocabulary(self) -> int:
        """``V``, how many codes there are, and the id of the mask sentinel."""

    @property
    def branches(self) -> int:
        """Passes of each row: 2 with classifier-free guidance, else 1."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def overrides(self) -> frozenset[str]:
        """The overrides of a condition that it takes."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Its settings, for the metadata of files: values that JSON can hold."""

    def encode(self, condition: Condition) -> Any:
        """The condition as `logits` takes it, computed once for all steps and particles.

        Raises:
            ConfigError: If the network cannot take it, for example because the prompt is too long.
        """

    def words(self, condition: Condition) -> int:
        """Tokens of the prompt that every token of the image attends to."""

    def logits(self, encoded: Any, codes: Tensor) -> Tensor:
        """Guided logits ``(B, S, V)`` of every token, float32, on its own device.

        Args:
            encoded: From `encode`; the condition of all rows.
            codes: ``(B, S)`` int64 on any device, with the mask sentinel where a token is not known.
        """

    def pixels(self, codes: Tensor) -> Tensor:
        """RGB pixels ``(B, 3, H, W)`` in [-1, 1] of codes ``(B, S)`` without masks."""

    def image_codes(self, pixels: Tensor) -> Tensor:
        """Codes ``(B, S)``, int64 on the CPU, of pixels ``(B, 3, H, W)`` in [-1, 1]."""

    def codebook(self) -> Tensor:
        """The vector of each code, ``(V, d)`` float32."""

    def macs(self, words: int) -> int:
        """Multiply-accumulates of one row's pass, one branch, beside a prompt of so many tokens."""


@runtime_checkable
class TokenPipeline(Protocol):
    """A generator of image tokens, before it has the settings of a search."""

    @property
    def name(self) -> str:
        """Shown in reports."""

    @property
    def family(self) -> str:
        """Which sampler drives it: ``masked``, ``discrete_flow``."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of `configured`, with their defaults, such as ``guidance_scale``."""

    @property
    def sampling(self) -> Mapping[str, Any]:
        """Defaults of its sampler's settings, such as ``num_inference_steps``, where they are its own."""

    def configured(self, call: Mapping[str, Any]) -> TokenNetwork:
        """The network with those settings of a call that are its own.

        Raises:
            ConfigError: If a setting is unknown or cannot be.
        """


def split_settings(
    pipe: TokenPipeline, own: Mapping[str, Any], call: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a call that are the sampler's, with defaults for those left open; and the network's.

    Args:
        pipe: The generator.
        own: The sampler's settings with their defaults.
        call: What the user set.

    Raises:
        ConfigError: If one is neither's.
    """
    known = {**own, **pipe.settings}
    for key in call:
        if key not in known:
            raise ConfigError(
                f"A setting of {pipe.name} must be one of {', '.join(known)} but got {key!r}; "
                f"{did_you_mean(key, known)}"
            )
    sampling = {**own, **pipe.sampling, **{key: value for key, value in call.items() if key in own}}
    return sampling, {**pipe.settings, **{key: value for key, value in call.items() if key not in own}}
