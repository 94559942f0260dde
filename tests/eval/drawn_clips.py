"""A model of clips that draws them, ``drawn_clips.py@model``: each chunk is right or wrong by its noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.config import ModelOptions
from tts_vision.pipelines.chunks.model import FAMILY, Chunk
from tts_vision.pipelines.playground import motion, world
from tts_vision.pipelines.playground.world import Scene, Thing

MODEL = f"{__file__}@model"
_OTHER = {"left": "right", "right": "left", "up": "down", "down": "up", "grow": "shrink", "shrink": "grow"}
_LONGEST = 120  # bytes of a prompt


class DrawnClips:
    """The objects of the prompt move as asked in a chunk whose noise is positive, else the other way.

    Latents of a chunk are its noise, and the bytes of the prompt that it was made for.
    """

    name, family, fps, frames, steps, last_draw = "drawn clips", FAMILY, motion.FPS, (1,) * 4, 1, -1
    batches, backwards, approximates = True, False, ""
    facts: Mapping[str, Any] = {}

    def configured(self, call: Mapping[str, Any]) -> DrawnClips:
        return self

    def condition_of(self, text: str, metadata: Mapping[str, Any]) -> Condition:
        return Condition(text)

    def encode(self, condition: Condition) -> Tensor:
        return torch.tensor(list(condition.text.encode().ljust(_LONGEST))).float()

    def noise(self, chunk: int, generators: Sequence[torch.Generator]) -> Tensor:
        drawn = torch.stack([torch.randn(1, generator=generator) for generator in generators])
        return torch.cat([drawn, drawn.new_zeros(len(drawn), _LONGEST)], 1)[..., None, None, None]

    def denoise(self, encoded: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        made = chunk.latents.clone()
        made[:, 1:] = encoded[:, None, None, None]
        return made, None

    def forwards(self, condition: Condition, chunk: int, start: int, stop: int) -> float:
        return stop - start

    def pixel_frames(self, chunks: int) -> int:
        return motion.CHUNK * chunks

    def pixels(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        drawn = np.stack([_drawn(row[:, :, 0, 0]) for row in latents])
        made = torch.from_numpy(drawn).permute(0, 1, 4, 2, 3).float() / 255
        return made if frames is None else made[:, list(frames)]

    def plain(self, condition: Condition, generator: torch.Generator) -> Tensor:
        noise = [self.noise(chunk, [generator]) for chunk in range(4)]
        latents = torch.cat(noise, 2)
        latents[:, 1:] = self.encode(condition)[:, None, None, None]
        return self.pixels(latents)


def _drawn(latents: Tensor) -> np.ndarray:
    """``(T, 64, 64, 3)`` of the chunks ``(1 + bytes, chunks)`` of a clip."""
    places = [np.array([22.0, 22.0, 2.2]), np.array([44.0, 44.0, 2.2])]
    scenes = []
    for chunk in range(latents.shape[1]):
        text = bytes(latents[1:, chunk].round().to(torch.uint8).tolist()).decode().strip()
        actors = motion.parse_spec(text).actors
        for frame in range(motion.CHUNK):
            for actor, place in zip(actors, places):
                way = actor.motion or "still"
                way = way if latents[0, chunk] > 0 else _OTHER.get(way, "left")
                move = (*motion.DIRECTIONS.get(way, (0, 0)), {"grow": 0.02, "shrink": -0.02}.get(way, 0))
                place += np.array(move) * (chunk + frame > 0)
            things = [Thing(a.shape, a.colour, p[0], p[1], np.exp(p[2])) for a, p in zip(actors, places)]
            scenes.append(Scene(tuple(things), world.GREYS[0]))
    return world.render_batch(scenes)


def model(name: str, *, options: ModelOptions) -> DrawnClips:
    """The model."""
    return DrawnClips()
