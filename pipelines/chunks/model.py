"""The interface between the sampler of chunks and the video generators that it drives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tts_vision.condition import Condition

FAMILY = "chunks"


@dataclass(frozen=True)
class Chunk:
    """A part of the denoising of one chunk, for rows of one condition.

    Attributes:
        number: Of the chunk, from 0 on.
        start: Denoising steps of the chunk that are done, below `ChunkModel.steps`.
        stop: Denoising steps that are done afterwards, at most `ChunkModel.steps`.
        history: ``(B, C, T, h, w)``, the latents of all finished chunks, on the CPU; ``T`` may be 0.
        latents: ``(B, C, t, h, w)``, the noise that the chunk begins with, or what `denoise` left of it, on
            the CPU.
        generators: One for each row, on the CPU, for noise that denoising itself draws.
    """

    number: int
    start: int
    stop: int
    history: Tensor
    latents: Tensor
    generators: list[torch.Generator]


class ChunkModel(Protocol):
    """A video generator with the settings of one search, which denoises one chunk of latent frames at a time.

    Of a chunk it gets the finished latents before it, the noise, and the generators of the rows. It keeps
    nothing from one call to the next that a result depends on, so that chunks of other rows can come between.
    Latents are ``(B, C, T, h, w)`` float32, whatever layout it works in.
    """

    @property
    def name(self) -> str:
        """Shown in reports."""

    @property
    def fps(self) -> float:
        """Frames per second of its clips."""

    @property
    def frames(self) -> tuple[int, ...]:
        """Latent frames that each chunk adds to a clip; as many as there are chunks."""

    @property
    def steps(self) -> int:
        """Denoising steps of a chunk that `denoise` can stop after; 1 if a chunk can only be made whole."""

    @property
    def last_draw(self) -> int:
        """The last denoising step of a chunk that draws noise, -1 if none does; that of its begin apart."""

    @property
    def batches(self) -> bool:
        """Whether rows of one condition may share a call."""

    @property
    def approximates(self) -> str:
        """Why the first chunks decode to other frames than those of the whole clip; empty if they do not."""

    @property
    def backwards(self) -> bool:
        """Whether its first chunk is the end of the clip."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Its settings, for the metadata of files: values that JSON can hold."""

    def condition_of(self, text: str, metadata: Mapping[str, Any]) -> Condition:
        """The condition for a user's prompt."""

    def encode(self, condition: Condition) -> Any:
        """The condition as `denoise` takes it, computed once for all chunks and particles.

        Raises:
            ConfigError: If the generator cannot take it.
        """

    def noise(self, chunk: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Standard normal noise ``(B, C, t, h, w)`` that a chunk begins with, on the CPU.

        Drawn as the generator's own call draws it, so that one generator that is used for all chunks in turn,
        for their noise and within `denoise`, makes the clip of that call.
        """

    def denoise(self, encoded: Any, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """The latents after steps ``start`` to ``stop`` of a chunk, and the x0 estimate of the last of them.

        After the last step the latents are the ``frames[number]`` finished frames that are added to the
        history; the estimate may be None there, and where there is none.
        """

    def forwards(self, condition: Condition, chunk: int, start: int, stop: int) -> float:
        """Transformer forwards of one row in these steps; classifier-free guidance counts two."""

    def pixel_frames(self, chunks: int) -> int:
        """How many frames the first `chunks` chunks decode to."""

    def pixels(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """Decoded frames ``(B, F, 3, H, W)`` in [0, 1].

        Args:
            latents: ``(B, C, T, h, w)`` of the first chunks, of which the last may be an estimate.
            frames: Numbers of the frames that are wanted, in order; all by default. A generator that decodes
                frames or chunks by themselves decodes no others.
        """

    def plain(self, condition: Condition, generator: torch.Generator) -> Tensor:
        """The clip ``(1, F, 3, H, W)`` in [0, 1] by the generator's own call, without any search."""


@runtime_checkable
class NoisyDecoder(Protocol):
    """A `ChunkModel` whose call goes on drawing when it decodes."""

    def drawn_pixels(
        self, latents: Tensor, generators: Sequence[torch.Generator], frames: Sequence[int] | None = None
    ) -> Tensor:
        """`ChunkModel.pixels` with one generator for each row, as denoising left it."""


@runtime_checkable
class ChunkPipeline(Protocol):
    """A video generator before it has the settings of a search."""

    @property
    def family(self) -> str:
        """`FAMILY`."""

    def configured(self, call: Mapping[str, Any]) -> ChunkModel:
        """The generator with the settings of a call.

        Raises:
            ConfigError: If a setting is unknown or cannot be.
        """
