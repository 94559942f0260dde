"""A video generator that makes clips chunk by chunk, with a call of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.chunks.model import FAMILY, Chunk

WIDTH = 8


class ToyClips:
    """The frames of a chunk go towards the direction of its prompt, from where those before ended.

    Args:
        frames: Latent frames of each chunk, each of which decodes to a frame.
        steps: Denoising steps of a chunk.
        draws: Scale of noise that each step adds, by the generator of the row.
        call: Settings.
    """

    name, fps, batches, approximates = "toy clips", 8.0, True, ""
    backwards = False
    family = FAMILY

    def __init__(
        self,
        frames: tuple[int, ...] = (2, 2, 2),
        steps: int = 4,
        draws: float = 0.0,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        self.frames, self.steps, self.noisiness = frames, steps, draws
        self.facts = dict(call or {})
        self.last_draw = steps - 1 if draws else -1
        self.forwarded = 0
        self.decoded: list[int] = []

    def configured(self, call: Mapping[str, Any]) -> ToyClips:
        if set(call) - {"guidance_scale"}:
            raise ConfigError(f"toy clips take guidance_scale alone but got {sorted(call)}; leave it out.")
        return ToyClips(self.frames, self.steps, self.noisiness, call)

    def condition_of(self, text: str, metadata: Mapping[str, Any]) -> Condition:
        return Condition(text)

    def encode(self, condition: Condition) -> Tensor:
        generator = torch.Generator().manual_seed(int(condition.digest, 16) % 2**63)
        return torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0)

    def noise(self, chunk: int, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randn(WIDTH, self.frames[chunk], 1, 1, generator=g) for g in generators])

    def denoise(self, encoded: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        now = chunk.latents
        for step in range(chunk.start, chunk.stop):
            now, estimate = self._step(encoded, chunk.history, now, step, chunk.generators)
        return now, estimate

    def _step(
        self, goal: Tensor, history: Tensor, now: Tensor, step: int, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        self.forwarded += len(now)
        goal = goal[:, None, None, None]
        estimate = 0.6 * (history[:, :, -1:] + goal if history.shape[2] else goal) + 0.4 * now
        now = now + (estimate - now) / (self.steps - step)
        if self.noisiness:
            noise = torch.stack([torch.randn(now.shape[1:], generator=g) for g in generators])
            now = now + self.noisiness * noise
        return now, estimate

    def forwards(self, condition: Condition, chunk: int, start: int, stop: int) -> float:
        return stop - start

    def pixel_frames(self, chunks: int) -> int:
        return sum(self.frames[:chunks])

    def pixels(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        wanted = range(latents.shape[2]) if frames is None else frames
        self.decoded.append(len(wanted))
        chosen = latents[:, :, list(wanted), 0, 0].permute(0, 2, 1)
        return (chosen.clamp(-3, 3) / 6 + 0.5)[:, :, None, None, :].expand(-1, -1, 3, 4, -1)

    def plain(self, condition: Condition, generator: torch.Generator) -> Tensor:
        clip = torch.zeros(1, WIDTH, 0, 1, 1)
        for frames in self.frames:
            now = torch.randn(WIDTH, frames, 1, 1, generator=generator)[None]
            for step in range(self.steps):
                now, _ = self._step(self.encode(condition), clip, now, step, [generator])
            clip = torch.cat([clip, now], 2)
        return self.pixels(clip)
