"""Helios, chunk by chunk: each is denoised behind the last latent frames and the first one of the clip."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.chunks.model import Chunk
from tts_vision.pipelines.chunks.pipeline import (
    PipelineChunks,
    refuse_frames,
    wan_pixels,
    with_wan_texts,
)

_HISTORY = "the search gives the finished chunks of a clip by it"
_INPUT = "clips that start from an image or a clip are not driven chunk by chunk"


class HeliosChunks(PipelineChunks):
    """`HeliosPipeline`: public arguments continue a clip from its latents.

    Chunks decode by themselves, so a preview has the frames of the finished clip, apart from the cut at its
    end.
    """

    refused: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("video_latents", "image_latents", "fake_image_latents"), _HISTORY),
        **dict.fromkeys(("image", "video"), _INPUT),
        "is_skip_first_chunk": "a clip begins with its first chunk",
        "sigmas": "its scheduler takes no list of them",
    }

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        if not call.get("keep_first_frame", True):
            raise ConfigError(
                "keep_first_frame of Helios must be true but got False, with which its loop fails; leave it "
                "out."
            )
        super().__init__(pipe, call)
        if pipe.scheduler.config.get("scheduler_type") == "euler" and self.value("num_inference_steps"):
            self.steps = int(self.value("num_inference_steps"))

    @property
    def length(self) -> int:
        """Latent frames of a chunk."""
        return int(self.value("num_latent_frames_per_chunk"))

    @property
    def window(self) -> int:
        """Frames of a chunk."""
        return (self.length - 1) * self.stride + 1

    def partition(self) -> tuple[int, ...]:
        frames, window = self.value("num_frames"), self.window
        if not isinstance(frames, int) or frames < 1 or frames % window:
            rule = f"a multiple of {window}, the frames of a chunk, because its loop makes whole chunks"
            lower = max(1, (frames if isinstance(frames, int) else 0) // window) * window
            refuse_frames(self.name, frames, rule, [lower, lower + window])
        return (self.length,) * (frames // window)

    def encoded(self, call: dict[str, Any]) -> dict[str, Any]:
        return with_wan_texts(self, call)

    def denoise(self, encoded: Any, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        call = {**self.rows(encoded, chunk), **self._continued(chunk), "num_frames": self.window}
        noise = chunk.latents.to(self.device)
        replaced = [(self.pipe, "prepare_latents", lambda *args, **kwargs: noise)]
        return self.part(call, chunk, replaced, self.steps_of(chunk.number))

    def _continued(self, chunk: Chunk) -> dict[str, Any]:
        """The arguments that give a call the finished chunks of a clip."""
        if not chunk.number:
            return {}
        seen = sum(self.value("history_sizes"))  # so many latent frames the network sees
        return {
            "video_latents": chunk.history[:, :, -seen:].to(self.device),
            "image_latents": chunk.history[:, :, :1].to(self.device),
            "add_noise_to_video_latents": False,
            "add_noise_to_image_latents": False,
        }

    def steps_of(self, chunk: int) -> int:
        """Denoising steps of a chunk."""
        return int(self.value("num_inference_steps"))

    def forwards(self, condition: Condition, chunk: int, start: int, stop: int) -> float:
        done = self.steps_of(chunk) if self.steps == 1 else stop - start
        return done * (1 + self.guides)

    def pixel_frames(self, chunks: int) -> int:
        return (chunks * self.window - 1) // self.stride * self.stride + 1

    def pixels(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        chunks = latents.shape[2] // self.length
        wanted = range(self.pixel_frames(chunks)) if frames is None else frames
        clips = [
            wan_pixels(self.pipe, latents[:, :, chunk * self.length : (chunk + 1) * self.length])[
                :, [frame - chunk * self.window for frame in wanted if frame // self.window == chunk]
            ]
            for chunk in sorted({frame // self.window for frame in wanted})
        ]
        return torch.cat(clips, 1)


class HeliosPyramidChunks(HeliosChunks):
    """`HeliosPyramidPipeline`: each chunk is denoised at several sizes, with noise added between them.

    That noise comes from one generator for a whole batch, so rows are computed one by one.
    """

    batches = False

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        super().__init__(pipe, call)
        self.last_draw = 0 if len(self._stages) > 1 else -1

    @property
    def divisor(self) -> int:
        return 16 * 2 ** (len(self._stages) - 1)

    @property
    def _stages(self) -> list[int]:
        """Denoising steps of each size, from the smallest on."""
        return list(self.value("pyramid_num_inference_steps_list"))

    def steps_of(self, chunk: int) -> int:
        more = {"is_amplify_first_chunk": True} if not chunk and self.value("is_amplify_first_chunk") else {}
        scheduler, total = copy.deepcopy(self.pipe.scheduler), 0
        for stage, steps in enumerate(self._stages):
            scheduler.set_timesteps(steps, stage, mu=1.0, **more)
            total += len(scheduler.timesteps)
        return total

    @property
    def facts(self) -> dict[str, Any]:
        return {**super().facts, "steps": sum(self._stages)}

    def _continued(self, chunk: Chunk) -> dict[str, Any]:
        return {**super()._continued(chunk), "is_amplify_first_chunk": False} if chunk.number else {}
