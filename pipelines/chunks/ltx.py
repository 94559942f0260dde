"""LTX long video, window by window: each begins at the end of the one before, and fades into it."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.chunks.model import Chunk
from tts_vision.pipelines.chunks.pipeline import Made, PipelineChunks, Stepping, latent_frames


@dataclass(frozen=True)
class _Encoded:
    """A condition: arguments of the call, and its encoded texts by window prompt."""

    call: dict[str, Any]
    texts: dict[Any, Any] = field(default_factory=dict)


class LTXLongChunks(PipelineChunks):
    """`LTXI2VLongMultiPromptPipeline`: finished windows pass through its loop without a denoising step.

    The latents of a chunk are those of its window, with the frames that it repeats; the pipeline's own code
    cuts, matches and fades the windows when a clip goes on and when it is decoded. A prompt with ``|`` has a
    part for each window, as in the pipeline's call.
    """

    batches = False
    approximates = "windows fade into each other, and the last frames decode otherwise where more follow"
    refused: ClassVar[Mapping[str, str]] = {
        "seed": "the search seeds each particle",
        "prompt_segments": "prompts of windows are conditions of the search, or parts of a prompt with '|'",
        "guidance_latents": "a clip is not driven chunk by chunk behind another one",
        "negative_index_latents": "they follow from cond_image",
    }

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        self._module = sys.modules[type(pipe).__call__.__module__]
        super().__init__(pipe, call)
        levels, self._skipped = self._levels()
        self.steps = len(levels)
        if not levels:
            raise ConfigError(
                f"A window of {self.name} must take a denoising step but its loop, which skips the last of "
                f"its timesteps, takes none with num_inference_steps {self.value('num_inference_steps')} and "
                f"sigmas {self.value('sigmas')}; add steps."
            )
        draws = [step for step, (_, after) in enumerate(levels) if after > 1e-8]
        self.last_draw = max(draws, default=-1) if self._draws else -1

    @property
    def divisor(self) -> int:
        return 32

    @property
    def stride(self) -> int:
        return int(self.pipe.vae_temporal_compression_ratio)

    @property
    def _overlap(self) -> int:
        return max(0, int(self.value("temporal_overlap")) // self.stride)

    def partition(self) -> tuple[int, ...]:
        total = latent_frames(self.name, "num_frames", self.value("num_frames"), self.stride)
        tile = max(1, int(self.value("temporal_tile_size")) // self.stride)
        split = self._module.split_into_temporal_windows
        self._lengths = [stop - start for start, stop in split(total, tile, self._overlap, self.stride)]
        has_image = self.call.get("cond_image") is not None and float(self.value("cond_strength")) > 0
        still = int(has_image and float(self.value("negative_index_strength") or 0) > 0)
        repeats = self._overlap if float(self.value("temporal_overlap_cond_strength") or 0) > 0 else 0
        return tuple(
            length + still + (min(repeats, length) if number else 0)
            for number, length in enumerate(self._lengths)
        )

    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        scale = int(self.pipe.vae_spatial_compression_ratio)
        height, width = int(self.value("height")) // scale, int(self.value("width")) // scale
        return self.pipe.transformer.config.in_channels, frames, height, width

    def encoded(self, call: dict[str, Any]) -> Any:
        return _Encoded(call)

    def denoise(self, encoded: Any, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        encode = self.pipe.encode_prompt

        def encode_once(prompt: Any, negative_prompt: Any = None, **kwargs: Any) -> Any:
            key = str(prompt)
            if key not in encoded.texts:
                encoded.texts[key] = encode(prompt, negative_prompt, **kwargs)
            return encoded.texts[key]

        start, stop = self._skipped + chunk.start, self._skipped + chunk.stop
        scheduler = _Replayed(self.pipe.scheduler, chunk.number, start, stop)
        pack, unpack = self.pipe._pack_latents, self.pipe._unpack_latents
        packed, estimates = 0, list[Tensor]()

        def packing(latents: Tensor, *args: Any) -> Tensor:
            """The second latents that a window packs are those that it begins with."""
            nonlocal packed
            packed += scheduler.window == chunk.number
            begins = packed == 2 and chunk.start > 0
            return pack(chunk.latents.to(self.device) if begins else latents, *args)

        def unpacking(latents: Tensor, *args: Any) -> Tensor:
            if scheduler.window < chunk.number:
                return windows[scheduler.window].to(self.device)
            if chunk.stop < self.steps and scheduler.estimate is not None:
                estimates.append(unpack(scheduler.estimate, *args))
            raise Made(unpack(latents, *args))

        def drawing(shape: Any, *args: Any, **kwargs: Any) -> Tensor:
            finished = scheduler.window < chunk.number
            return torch.zeros(shape, device=self.device) if finished else chunk.latents.to(self.device)

        windows = self._windows(chunk.history)
        replaced = [
            (self.pipe, "scheduler", scheduler),
            (self.pipe, "_pack_latents", packing),
            (self.pipe, "_unpack_latents", unpacking),
            (self.pipe, "encode_prompt", encode_once),
            (self._module, "randn_tensor", drawing),
        ]
        call = {**encoded.call, "seed": None, "generator": chunk.generators[0]}
        made = self.made(replaced, call)
        return made, estimates[0] if estimates else None

    def _windows(self, latents: Tensor) -> list[Tensor]:
        """The latents of the finished windows."""
        sizes: list[int] = []
        while sum(sizes) < latents.shape[2]:
            sizes.append(self.frames[len(sizes)])
        return list(latents.split(sizes, 2)) if sizes else []

    def plain(self, condition: Condition, generator: torch.Generator) -> Tensor:
        call = {**self._calls.of(condition), "generator": generator, "seed": None}
        frames = self.pipe(**call, output_type="np", return_dict=False)[0]
        return torch.as_tensor(frames).permute(0, 1, 4, 2, 3)

    def _levels(self) -> tuple[list[tuple[float, float]], int]:
        """The noise level of each denoising step and that after it; and how many earlier ones are skipped."""
        scheduler, sigmas = copy.deepcopy(self.pipe.scheduler), self.value("sigmas")
        if sigmas is None:
            scheduler.set_timesteps(num_inference_steps=self.value("num_inference_steps"))
        else:
            scheduler.set_timesteps(sigmas=torch.as_tensor(sigmas, dtype=torch.float32))
        highest = float(self.value("skip_steps_sigma_threshold") or 0) or float("inf")
        levels = scheduler.sigmas.tolist()
        pairs = list(itertools.pairwise(levels))[: len(scheduler.timesteps) - 1]
        taken = [(now, after) for now, after in pairs if now <= highest]
        return taken, len(pairs) - len(taken)

    @property
    def _draws(self) -> bool:
        """Whether steps of the scheduler draw."""
        config = self.pipe.scheduler.config
        ancestral = float(config.get("eta", 0) or 0) > 0 and float(config.get("s_noise", 0) or 0) > 0
        return ancestral or bool(config.get("stochastic_sampling", False))

    def forwards(self, condition: Condition, chunk: int, start: int, stop: int) -> float:
        return (stop - start) * (1 + self.guides)

    def pixel_frames(self, chunks: int) -> int:
        fades, length = max(self._overlap - 1, 1), self._lengths[0]
        for added in self._lengths[1:chunks]:
            length += added - 1 - (fades if fades > 1 else 0)
        return (length - 1) * self.stride + 1

    def pixels(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        return self.drawn_pixels(latents, [torch.Generator() for _ in latents], frames)

    def drawn_pixels(
        self, latents: Tensor, generators: Sequence[torch.Generator], frames: Sequence[int] | None = None
    ) -> Tensor:
        """`pixels` where the autoencoder is given noise, drawn where denoising left the generators."""
        rows = [self._decoded(row, generator) for row, generator in zip(latents.split(1), generators)]
        clips = torch.cat(rows)
        return clips if frames is None else clips[:, list(frames)]

    def _decoded(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """The clip of a row's windows: the pipeline's loop joins and decodes them."""
        windows, nothing = self._windows(latents), torch.zeros(1, 1, 1, device=self.device)
        scheduler, randn = _Replayed(self.pipe.scheduler, len(windows)), self._module.randn_tensor

        def unpacking(*args: Any) -> Tensor:
            self.pipe._interrupt = scheduler.window == len(windows) - 1  # the loop ends here
            return windows[scheduler.window].to(self.device)

        def drawing(shape: Any, *args: Any, **kwargs: Any) -> Tensor:
            """Noise of the autoencoder, and none of the windows."""
            decodes = self.pipe._interrupt
            return randn(shape, *args, **kwargs) if decodes else torch.zeros(shape, device=self.device)

        replaced = [
            (self.pipe, "scheduler", scheduler),
            (self.pipe, "_unpack_latents", unpacking),
            (self.pipe, "encode_prompt", lambda *args, **kwargs: (nothing, nothing[0]) * 2),
            (self._module, "randn_tensor", drawing),
        ]
        call = {**self.call, "prompt": "", "seed": None, "generator": generator}
        pixels = self.called(replaced, {**call, "output_type": "np"})
        return torch.as_tensor(pixels).permute(0, 1, 4, 2, 3)


class _Replayed(Stepping):
    """A scheduler that has no steps in the first windows of a loop, and some of them in the next one.

    Args:
        inner: The pipeline's scheduler, of first order.
        count: How many windows are given.
        start: The first timestep of the next window that is taken.
        stop: The timestep that its loop ends before.
    """

    def __init__(self, inner: Any, count: int, start: int = 0, stop: int = 0) -> None:
        super().__init__(inner, start)
        self._count, self._stop = count, stop
        self.window = -1

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        self.window += 1
        self._inner.set_timesteps(*args, **kwargs)

    @property
    def sigmas(self) -> Tensor:
        return self._inner.sigmas[:1] if self.window < self._count else self._inner.sigmas[self._start :]

    @property
    def timesteps(self) -> Tensor:
        return self._inner.timesteps[self._start : self._stop + 1]  # the loop leaves out the last one
