"""AnyFlow-FAR, chunk by chunk: a causal transformer reads the clean frames before by its cache of keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.chunks.model import Chunk
from tts_vision.pipelines.chunks.pipeline import (
    PipelineChunks,
    after_steps,
    latent_frames,
    wan_pixels,
    with_wan_texts,
)

_HISTORY = "the search gives the finished chunks of a clip by it"


class AnyFlowChunks(PipelineChunks):
    """`AnyFlowFARPipeline`: its public ``video_latents`` continue a clip.

    The cache follows from the clean frames and the prompt alone, so a fork needs none: a chunk encodes all
    frames before it once. The noise of all chunks is one draw.
    """

    refused: ClassVar[Mapping[str, str]] = {
        "video_latents": _HISTORY,
        "video": "clips that start from a clip are not driven chunk by chunk",
    }

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        if not call.get("use_kv_cache", True):
            raise ConfigError(
                "use_kv_cache of AnyFlow-FAR must be true but got False, with which its loop fails; leave "
                "it out."
            )
        super().__init__(pipe, call)

    @property
    def divisor(self) -> int:
        # frames that are long past are read in larger patches
        return int(
            self.pipe.vae_scale_factor_spatial * max(self.pipe.transformer.config.compressed_patch_size)
        )

    def partition(self) -> tuple[int, ...]:
        frames = latent_frames(self.name, "num_frames", self.value("num_frames"), self.stride)
        chunks = self.value("chunk_partition") or self.pipe.transformer.config.chunk_partition
        if not all(isinstance(chunk, int) and chunk > 0 for chunk in chunks) or sum(chunks) != frames:
            raise ConfigError(
                f"chunk_partition of {self.name} must be positive numbers that add up to {frames}, the "
                f"latent frames of {self.value('num_frames')} frames, but got {list(chunks)}, which add up "
                f"to {sum(chunks)}; change it, or num_frames."
            )
        return tuple(chunks)

    def encoded(self, call: dict[str, Any]) -> dict[str, Any]:
        return with_wan_texts(self, call)

    def noise(self, chunk: int, generators: Sequence[torch.Generator]) -> Tensor:
        start, stop = sum(self.frames[:chunk]), sum(self.frames[: chunk + 1])
        rows = []
        for generator in generators:
            before = generator.get_state()
            rows.append(torch.randn(self.latent_shape(sum(self.frames)), generator=generator)[:, start:stop])
            generator.set_state(before)  # the next chunk is a part of the same draw
        return torch.stack(rows)

    def denoise(self, encoded: Any, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        history, given = chunk.history, self.rows(encoded, chunk)
        later = torch.zeros(len(history), *self.latent_shape(sum(self.frames) - history.shape[2]))
        later[:, :, : chunk.latents.shape[2]] = chunk.latents
        given["latents"] = torch.cat([torch.zeros_like(history), later], 2)
        given["chunk_partition"] = list(self.frames)
        if chunk.number:
            given["video_latents"] = history.transpose(1, 2).to(self.device)
        encode = self.pipe.encode_kv_cache

        def encode_last(cache: Any, flag: dict[str, Any], *args: Any, chunk_idx: int, **kwargs: Any) -> Any:
            """Encodes the frames before the chunk once: the cache of the last of them replaces the others."""
            if chunk_idx == chunk.number - 1:
                return encode(cache, flag, *args, chunk_idx=chunk_idx, **kwargs)
            flag["num_cached_chunks"] += 1
            return cache

        end = after_steps(self._steps)
        replaced = [(self.pipe, "encode_kv_cache", encode_last)]
        made = self.made(replaced, {**given, "callback_on_step_end": end})
        return made.transpose(1, 2), None

    @property
    def _steps(self) -> int:
        """Denoising steps of a chunk."""
        custom = self.value("sigmas") or self.value("timesteps")
        return len(custom) if custom else int(self.value("num_inference_steps"))

    def forwards(self, condition: Condition, chunk: int, start: int, stop: int) -> float:
        return (self._steps + (chunk > 0)) * (1 + self.guides)

    def pixel_frames(self, chunks: int) -> int:
        return (sum(self.frames[:chunks]) - 1) * self.stride + 1

    def pixels(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        clips = wan_pixels(self.pipe, latents)
        return clips if frames is None else clips[:, list(frames)]
