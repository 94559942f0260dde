"""The interface between the sampler of visual autoregressive models and each of these models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.config import did_you_mean
from tts_vision.errors import ConfigError
from tts_vision.moves import Move, TokenNoise
from tts_vision.pipelines.var.cache import CacheShape, KVCache
from tts_vision.pipelines.var.given import Given
from tts_vision.pipelines.var.schedules import Schedule
from tts_vision.rng import row_uniform
from tts_vision.tokens import draw, likeliest


class ConfiguredModel(Protocol):
    """A model with the settings of one search: predicts the tokens of each scale and decodes them."""

    @property
    def schedule(self) -> Schedule:
        """The scales."""

    @property
    def branches(self) -> int:
        """Passes of each row: 2 with classifier-free guidance, else 1."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def stride(self) -> int:
        """Pixels, on a side, of a cell of the features."""

    @property
    def given(self) -> Given:
        """The scales that an image gives; drawing begins after them."""

    def begun(self, condition: Condition) -> Tensor:
        """The tokens ``(1, T, ...)`` of a particle before the first scale that is drawn: those given.

        Raises:
            ConfigError: If an image is missing.
        """

    @property
    def overrides(self) -> frozenset[str]:
        """The overrides of a condition that it takes."""

    def encode(self, condition: Condition) -> Any:
        """The condition as the transformer takes it at all scales, computed once.

        Raises:
            ConfigError: If the model cannot draw it.
        """

    def words(self, condition: Condition) -> int:
        """Tokens of the prompt that every token of the image attends to."""

    def cache(self, rows: int) -> KVCache:
        """An empty cache."""

    def probability(self, encoded: Any, tokens: Tensor, scale: int, cache: KVCache) -> Tensor:
        """The probabilities of the tokens of one scale, as `tts_vision.tokens.draw` takes them, on the CPU.

        Args:
            encoded: From `encode`.
            tokens: ``(B, T, ...)`` prefix of all scales before.
            scale: Which scale.
            cache: Keys and values of the scales before; gets those of this one.
        """

    def drawn(self, probability: Tensor, uniform: Tensor, scale: int) -> Tensor:
        """The tokens ``(B, L, ...)`` of one scale that uniform numbers decide.

        Args:
            probability: As from `probability`.
            uniform: Shaped as `probability` where tokens have as many axes, else without its last axis.
            scale: Which scale.
        """

    def likeliest(self, probability: Tensor, tokens: Tensor) -> Tensor:
        """The likeliest tokens ``(B, L, ...)`` of one scale, of the kind of the `tokens` before it."""

    def redraw(self, share: float) -> Move:
        """The move that draws a share of the last scale's tokens again."""

    def features(self, tokens: Tensor) -> Tensor:
        """The sum ``(B, C, H, W)``, at full size, of the scales that a prefix holds."""

    def with_expected(self, features: Tensor, probability: Tensor, scale: int) -> Tensor:
        """Features with the expectation of one more scale, whose tokens have these probabilities."""

    def pixels(self, features: Tensor) -> Tensor:
        """RGB pixels ``(B, 3, H, W)`` in [-1, 1] of features of any size."""

    def macs(self, scale: int, words: int) -> int:
        """Multiply-accumulates of one row's pass over one scale, one branch."""


class PlainTokens:
    """Bits or ids, drawn as they are: the part of a model that most have in common."""

    def drawn(self, probability: Tensor, uniform: Tensor, scale: int) -> Tensor:
        return draw(probability, uniform)

    def likeliest(self, probability: Tensor, tokens: Tensor) -> Tensor:
        return likeliest(probability, tokens)

    def redraw(self, share: float) -> Move:
        return TokenNoise(share)


@runtime_checkable
class ScalePipeline(Protocol):
    """A visual autoregressive model, before it has the settings of a search."""

    @property
    def name(self) -> str:
        """Shown in reports."""

    def configured(self, call: dict[str, Any]) -> ConfiguredModel:
        """The model with the settings of a call.

        Raises:
            ConfigError: If a setting is unknown or cannot be.
        """


class Architecture(Protocol):
    """The sizes of a transformer that decide the size of its cache."""

    @property
    def depth(self) -> int:
        """Blocks."""

    @property
    def heads(self) -> int:
        """Attention heads."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""


def empty_cache(
    architecture: Architecture, schedule: Schedule, branches: int, rows: int, weight: Tensor
) -> KVCache:
    """An empty cache in the precision and place of `weight`; the last scale has no room."""
    shape = CacheShape(
        architecture.depth,
        branches,
        architecture.heads,
        schedule.starts[-2],
        architecture.head_dim,
        device=weight.device,
        dtype=weight.dtype,
    )
    return KVCache.empty(shape, rows)


def settings_of(
    name: str, known: Mapping[str, Any], defaults: Mapping[str, Any], call: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a call, with defaults for those that it leaves open.

    Raises:
        ConfigError: If it has one that is not known.
    """
    for key in call:
        if key not in known:
            raise ConfigError(
                f"A setting of {name} must be one of {', '.join(known)} but got {key!r}; "
                f"{did_you_mean(key, known)}"
            )
    return {**known, **defaults, **call}


def per_scale(name: str, value: float | Sequence[float], scales: int) -> tuple[float, ...]:
    """One number for each scale.

    Raises:
        ConfigError: If there are some, but not as many as scales.
    """
    values = [value] * scales if isinstance(value, (int, float)) else list(value)
    if len(values) != scales:
        raise ConfigError(
            f"{name} must be one number or one for each of {scales} scales but got {len(values)}; give one."
        )
    return tuple(map(float, values))


def images_of(pixels: Tensor) -> list[Image.Image]:
    """Pixels ``(B, 3, H, W)`` in [-1, 1] as images, rounded to 8 bits."""
    bytes_ = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(image) for image in bytes_.permute(0, 2, 3, 1).cpu().numpy()]


OutputType: TypeAlias = Literal["pil", "tokens"]


@torch.no_grad()
def plain_samples(
    model: ConfiguredModel, condition: Condition, seed: int, n: int, output_type: OutputType
) -> list[Image.Image] | Tensor:
    """The plain samples of a seed, drawn scale by scale, as images or as the tokens of all scales.

    Raises:
        ConfigError: If another type of output is asked for.
    """
    if output_type not in ("pil", "tokens"):
        raise ConfigError(f"output_type must be 'pil' or 'tokens' but got {output_type!r}; change it.")
    encoded, cache = model.encode(condition), model.cache(n)
    begun = model.begun(condition)
    tokens = begun.expand(n, *begun.shape[1:])
    starts = model.schedule.starts
    for scale in range(len(model.schedule)):
        probability = model.probability(encoded, tokens[:, : starts[scale]], scale, cache)
        if scale < model.given.scales:
            continue  # computed for its keys and values alone
        uniform = row_uniform(seed, "step", range(n), scale, uniform_like(probability, tokens))
        tokens = torch.cat((tokens, model.drawn(probability, uniform, scale)), 1)
    return tokens if output_type == "tokens" else images_of(model.pixels(model.features(tokens)))


def uniform_like(probability: Tensor, tokens: Tensor) -> Tensor:
    """The tensor, ``(B, L, ...)``, that the uniform numbers of a scale are shaped as."""
    return probability if probability.ndim == tokens.ndim else probability[..., 0]
