"""A video model that denoises chunk after chunk, each behind the frames before it, as a sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.moves import PREVIEW, Blend, Move, carried, register_move
from tts_vision.rng import row_noise
from tts_vision.sampler import Sampler
from tts_vision.types import Cost, Media, State, Video

CHUNK_NOISE = "chunk_noise"  # carried: the noise that the latest chunk began with


@register_move
@dataclass(frozen=True)
class RedoChunk(Move):
    """Begins the latest chunk again from partly new noise: ``sqrt(1 - beta^2) z + beta e``.

    The frames before the chunk stay. Children are at the first step of the chunk, with its noise behind the
    history, so they pay for the chunk once more.

    Attributes:
        beta: From 0, the same noise, to 1, all of it new.
        chunk_steps: Denoising steps of a chunk.
    """

    beta: float
    chunk_steps: int
    name: ClassVar[str] = "redo_chunk"

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta must be in [0, 1] but got {self.beta}; 0.2 keeps 96 % of the variance.")

    def target(self, step: int) -> int:
        if step < 1:
            raise ConfigError(
                f"Beginning a chunk again needs one step of it but got step {step}; advance first."
            )
        return (step - 1) // self.chunk_steps * self.chunk_steps

    def noise_like(self, state: State) -> Tensor:
        return carried(state, CHUNK_NOISE, "beginning a chunk again")

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        began = carried(state, CHUNK_NOISE, "beginning a chunk again")
        begins = math.sqrt(1 - self.beta**2) * began + self.beta * noise
        history = state.latents[:, : -noise.shape[1]]
        latents = torch.cat([history, begins], 1)
        return replace(state, latents=latents, step=self.target(state.step), carry={})


class ChunkSampler(Sampler):
    """Each chunk begins with fresh noise behind the frames so far, and is denoised without further noise.

    The frames of a chunk go towards the direction of its prompt, from where the frames before ended. A prompt
    for each chunk is given by `recondition` between chunks.

    Args:
        chunks: How many.
        chunk_steps: Denoising steps of each.
        frames: Frames of each.
        width: Numbers in a frame.
    """

    name = "chunks"
    modality = "video"
    preview_shows_step = True
    capabilities = frozenset({"noise", "preview", "stochastic", "moves"})

    def __init__(self, chunks: int = 3, chunk_steps: int = 4, frames: int = 2, width: int = 8) -> None:
        self.chunk_steps, self.frames, self.width = chunk_steps, frames, width
        self.num_steps = chunks * chunk_steps
        self.last_noisy_step = self.num_steps - chunk_steps  # the last chunk begins there

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        like = torch.empty(len(uids), self.frames, self.width)
        return State.initial(row_noise(seed, "init", uids, 0, like), uids, condition, seed)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            self.meter.charge(self.price(state, 1))
            with self.meter.phase("denoise"):
                state = self._denoise(self._begun(state))
        return state

    def recondition(self, state: State) -> State:
        """Takes up new prompts between chunks.

        Raises:
            CapabilityError: If a chunk is half done.
        """
        if state.step % self.chunk_steps:
            raise CapabilityError(
                f"A new condition must come between chunks of {self.chunk_steps} steps but the state is at "
                f"step {state.step}; advance it to the end of the chunk first."
            )
        return super().recondition(state)

    def move(self, step: int, strength: float) -> Move | None:
        if not step:
            return Blend(strength)
        return RedoChunk(strength, self.chunk_steps) if step < self.num_steps else None

    def preview(self, state: State) -> list[Media]:
        return self._clips(carried(state, PREVIEW, "a preview"))

    def decode(self, state: State) -> list[Media]:
        return self._clips(state.latents)

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        return Cost(nfe=steps)

    def _begun(self, state: State) -> State:
        """The state with the noise of its chunk: drawn where a chunk begins, unless a move gave it."""
        chunk, done = divmod(state.step, self.chunk_steps)
        if done:
            return state
        latents = state.latents
        if latents.shape[1] == chunk * self.frames:
            like = latents.new_empty(len(state), self.frames, self.width)
            fresh = row_noise(state.seed, "step", state.uids, state.step, like)
            latents = torch.cat([latents, fresh], 1)
        return replace(state, latents=latents, carry={CHUNK_NOISE: latents[:, -self.frames :]})

    def _denoise(self, state: State) -> State:
        history, now = state.latents[:, : -self.frames], state.latents[:, -self.frames :]
        goal = torch.stack([direction_of(condition, self.width) for condition in state.conditions])[:, None]
        if history.shape[1]:
            goal = goal + history[:, -1:]
        finished = 0.6 * goal + 0.4 * now
        now = now + (finished - now) / (self.chunk_steps - state.step % self.chunk_steps)
        carry = {
            CHUNK_NOISE: carried(state, CHUNK_NOISE),
            PREVIEW: torch.cat([history, finished], 1),
        }
        return replace(state, latents=torch.cat([history, now], 1), step=state.step + 1, carry=carry)

    def _clips(self, frames: Tensor) -> list[Media]:
        with self.meter.phase("decode"):
            pixels = (frames.clamp(-3, 3) * 42 + 128).to(torch.uint8)
            return [Video(clip[:, :, None, None].expand(-1, -1, 4, 3).contiguous()) for clip in pixels]


def direction_of(condition: Condition, width: int) -> Tensor:
    """The unit direction ``(width,)`` that a prompt leads to."""
    generator = torch.Generator().manual_seed(int(condition.digest, 16) % 2**63)
    return torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
