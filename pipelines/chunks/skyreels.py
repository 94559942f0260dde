"""SkyReels-V2 diffusion forcing, window by window: each repeats the last frames of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.chunks.model import Chunk
from tts_vision.pipelines.chunks.pipeline import (
    PipelineChunks,
    after_steps,
    latent_frames,
    swapped,
    wan_pixels,
    with_wan_texts,
)


class SkyReelsChunks(PipelineChunks):
    """`SkyReelsV2DiffusionForcingPipeline`: a window begins with the last latent frames of the clip.

    A chunk is a window of a long clip, of which the frames that overlap with the clip so far are not added.
    With ``addnoise_condition`` the pipeline draws from torch's global random numbers; they are seeded for
    each window by the seed of the particle.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        own = pipe.transformer.config.num_frame_per_block
        self._block = call.get("causal_block_size") or own
        self._step_counts: dict[int, int] = {}
        super().__init__(pipe, call)
        self._noisy = float(self.value("addnoise_condition") or 0) > 0 and len(self.frames) > 1
        self.last_draw = 0 if self._noisy else -1
        # its transformer adds the frame rate to the times of a single row
        self.batches = not self._noisy and not pipe.transformer.config.inject_sample_info

    def partition(self) -> tuple[int, ...]:
        total, base = (
            latent_frames(self.name, name, self.value(name), self.stride)
            for name in ("num_frames", "base_num_frames")
        )
        overlap = 0
        if total > base:
            overlap = latent_frames(self.name, "overlap_history", self.value("overlap_history"), self.stride)
            if overlap >= base:
                raise ConfigError(
                    f"overlap_history of {self.name} must be less than base_num_frames, "
                    f"{self.value('base_num_frames')}, but got {self.value('overlap_history')}; lower it."
                )
        self._overlap = overlap
        windows = [min(total, base)]
        while (done := sum(windows) - overlap * (len(windows) - 1)) < total:
            windows.append(min(total - done + overlap, base))
        for window in (*windows, overlap):
            if window % self._block:
                raise ConfigError(
                    f"Windows of {self.name} must be made of whole causal blocks of {self._block} latent "
                    f"frames, or some would stay noise, but have {windows} and an overlap of {overlap}; "
                    "change num_frames, base_num_frames, overlap_history or causal_block_size."
                )
        self._windows = windows
        return (windows[0], *(window - overlap for window in windows[1:]))

    def noise_shape(self, chunk: int) -> tuple[int, int, int, int]:
        return self.latent_shape(self._windows[chunk])

    def encoded(self, call: dict[str, Any]) -> dict[str, Any]:
        return with_wan_texts(self, call)

    def denoise(self, encoded: Any, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        window, overlap = self._windows[chunk.number], self._overlap if chunk.number else 0
        before = chunk.history[:, :, -overlap:].to(self.device) if overlap else None
        # the loop writes into its latents
        prepared = (chunk.latents.to(self.device).clone(), window, before, overlap)
        frames = (window - 1) * self.stride + 1
        call = {**self.rows(encoded, chunk), "num_frames": frames, "base_num_frames": frames}
        call |= {"overlap_history": None, "causal_block_size": self._block}
        call["callback_on_step_end"] = after_steps(self._steps(chunk.number))
        replaced = [(self.pipe, "prepare_latents", lambda *args, **kwargs: prepared)]
        noise = chunk.generators[0].initial_seed() + chunk.number
        with self._blocks(), _global_noise(noise, self.device) if self._noisy else nullcontext():
            made = self.made(replaced, call)
        return made[:, :, overlap:], None

    def plain(self, condition: Condition, generator: torch.Generator) -> Tensor:
        prepare, window, seed = self.pipe.prepare_latents, -1, generator.initial_seed()

        def prepare_seeded(*args: Any, **kwargs: Any) -> Any:
            nonlocal window
            window += 1
            torch.manual_seed((seed + window) % 2**63)
            return prepare(*args, **kwargs)

        if not self._noisy:
            with self._blocks():
                return super().plain(condition, generator)
        replaced = [(self.pipe, "prepare_latents", prepare_seeded)]
        with self._blocks(), _global_noise(seed, self.device), swapped(replaced):
            return super().plain(condition, generator)

    @contextmanager
    def _blocks(self) -> Iterator[None]:
        """The pipeline writes its block size into the configuration of the transformer, which is put back."""
        own = self.pipe.transformer.config.num_frame_per_block
        try:
            yield
        finally:
            self.pipe.transformer._set_ar_attention(own)

    def _steps(self, chunk: int) -> int:
        """Denoising steps of a window, of which blocks of frames may begin one after the other."""
        if chunk not in self._step_counts:
            scheduler = deepcopy(self.pipe.scheduler)
            scheduler.set_timesteps(self.value("num_inference_steps"))
            window, ready = self._windows[chunk], self._overlap if chunk else 0
            plan = self.pipe.generate_timestep_matrix(
                window, scheduler.timesteps, window, self.value("ar_step"), ready, self._block
            )
            self._step_counts[chunk] = len(plan[0])
        return self._step_counts[chunk]

    def forwards(self, condition: Condition, chunk: int, start: int, stop: int) -> float:
        return self._steps(chunk) * (1 + self.guides)

    def pixel_frames(self, chunks: int) -> int:
        return (sum(self.frames[:chunks]) - 1) * self.stride + 1

    def pixels(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        clips = wan_pixels(self.pipe, latents)
        return clips if frames is None else clips[:, list(frames)]


@contextmanager
def _global_noise(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global random numbers from a seed, and as they were afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        yield
