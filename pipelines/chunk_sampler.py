"""The sampler of video generators that make a clip chunk by chunk, each behind the frames before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tts_vision.condition import Condition, distinct
from tts_vision.config import SamplerOptions
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.media import finite_rows
from tts_vision.moves import PREVIEW, Blend, Move, carried, register_move
from tts_vision.pipelines.chunks.loading import adapted, is_chunked
from tts_vision.pipelines.chunks.model import Chunk, ChunkModel, NoisyDecoder
from tts_vision.pipelines.decoding import NOT_FINITE
from tts_vision.pipelines.few_frames import spaced
from tts_vision.pipelines.pipeline_samples import media_of
from tts_vision.pipelines.row_state import (
    ORIGIN,
    generator_of,
    generator_rows,
    numbers,
    origins_of,
    streams_of,
)
from tts_vision.registry import register
from tts_vision.rng import row_generator, row_seed
from tts_vision.sampler import Sampler
from tts_vision.types import Cost, Decoded, Invalid, Prompt, Rows, State

CHUNK_NOISE = "chunk_noise"  # the noise that the latest chunk began with
_KEPT = 64  # encoded conditions


@register_move
@dataclass(frozen=True)
class RedoChunk(Move):
    """Begins the latest chunk again from partly new noise: ``sqrt(1 - beta^2) z + beta e``.

    The frames before the chunk stay. Children are at the first step of the chunk, so they pay for it once
    more. Noise that denoising itself draws is new.

    Attributes:
        beta: From 0, the same noise, to 1, all of it new.
        chunk_steps: Decision steps of a chunk.
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
        return _chunk_sampler(sampler, self).begun(state, self.target(state.step), begins)


@register(
    "sampler",
    "chunks",
    paper="Video-T1 (Liu et al. 2025, arXiv:2503.18942)",
    notes={"drives": "autoregressive video models: chunk after chunk of latent frames"},
)
class ChunkSampler(Sampler):
    """Drives a generator that denoises one chunk of latent frames after the other.

    A decision step is a chunk, or with ``inner_steps`` a denoising step of one; `units` has the step at
    which each chunk begins. The state's latents ``(B, C, T, h, w)`` are the finished frames and, behind them,
    those of the chunk that is being denoised; at step 0 they are the noise of the first chunk. They stay on
    the CPU, and the generator takes those that it needs to its device.

    A chunk begins with fresh noise. That of a particle that was never forked continues the stream of its
    seed, so it is the sample of the generator's own call; that of a fork is drawn by its uid. With
    ``branch_noise="shared_root"`` all descendants of a particle begin each chunk with the noise that this
    particle has there, as in Video-T1, and differ by what denoising draws, or not at all.

    A preview is the clip of the finished chunks, with the estimate of the one that is being denoised.

    Args:
        pipe: The generator.
        options: Settings of its call, and how it is stepped.

    Raises:
        ConfigError: If a setting is unknown or cannot be.
        PipelineError: If the generator cannot be driven.
    """

    modality = "video"
    preview_shows_step = True
    own_options: ClassVar[frozenset[str]] = frozenset({"inner_steps", "branch_noise", "preview_frames"})

    def __init__(self, pipe: Any, *, options: SamplerOptions | None = None) -> None:
        options = options or SamplerOptions()
        self._settings = {**getattr(pipe, "tts_vision_defaults", {}), **options.pipeline_kwargs}
        self._model: ChunkModel = adapted(pipe, self._settings)
        self.name = self._model.name
        self._refuse_others(options)
        self.branch_noise = options.branch_noise
        self._preview_frames = options.preview_frames
        chunks = len(self._model.frames)
        self.inner_steps = self._model.steps if options.inner_steps else 1
        self.num_steps = chunks * self.inner_steps
        self.units = tuple(range(0, self.num_steps, self.inner_steps))
        self._offsets = [sum(self._model.frames[:chunk]) for chunk in range(chunks + 1)]
        if self._draws:
            self.last_noisy_step = self.units[-1] + (self._model.last_draw if options.inner_steps else 0)
        elif self.branch_noise == "fresh" and chunks > 1:
            self.last_noisy_step = self.units[-1]
        noisy = {"stochastic"} if self.last_noisy_step >= 0 else set()
        renoise = {"renoise"} if self.inner_steps == 1 else set()
        self.capabilities = frozenset({"noise", "preview", "moves", *noisy, *renoise})
        self._encoded: dict[Condition, Any] = {}
        self._frame_bytes = 0

    @staticmethod
    def accepts(pipe: Any) -> bool:
        """Whether `pipe` makes its clips chunk by chunk, in a way that is known."""
        return is_chunked(pipe)

    def condition_of(self, prompt: Prompt) -> Condition:
        return self._model.condition_of(prompt.text, prompt.metadata)

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        self._encode(condition)
        generators = [generator_of(row_seed(seed, uid)) for uid in uids]
        noise = self._model.noise(0, generators)
        self._frame_bytes = noise[0, :, 0].nbytes
        carry: dict[str, Tensor | Rows] = {ORIGIN: numbers(uids), **generator_rows(generators, uids)}
        return State.initial(noise, uids, condition, seed, carry)

    def recondition(self, state: State) -> State:
        """Takes up new conditions between chunks; the frames before stay.

        Raises:
            CapabilityError: If a chunk is half done.
        """
        if state.step % self.inner_steps:
            raise CapabilityError(
                f"A new condition must come between chunks of {self.inner_steps} steps but the state is at "
                f"step {state.step}; advance it to the end of the chunk first."
            )
        for condition in distinct(state.conditions):
            self._encode(condition)
        return super().recondition(state)

    def advance(self, state: State, steps: int = 1) -> State:
        return state.in_groups(lambda condition: condition, lambda part: self._advanced(part, steps))

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        nfe = 0.0
        while steps:
            chunk, start, stop = self._part(step, steps)
            nfe += self._model.forwards(condition, chunk, *self._inner(start, stop))
            step, steps = step + stop - start, steps - (stop - start)
        return Cost(nfe=nfe)

    def move(self, step: int, strength: float) -> Move | None:
        if not step:
            return Blend(strength)
        return RedoChunk(strength, self.inner_steps) if step < self.num_steps else None

    def unit_at(self, seconds: float) -> int | None:
        """The chunk of the frame that is shown at a time of the finished clip."""
        frame = seconds * self._model.fps + 1e-6
        if self._model.backwards:
            frame = self._model.pixel_frames(len(self.units)) - 1 - frame
        chunks = range(len(self.units))
        return next((chunk for chunk in chunks if frame < self._model.pixel_frames(chunk + 1)), chunks[-1])

    def renoise(self, state: State, to_step: int) -> State:
        """The clip without the chunks from `to_step` on, of which the first begins with fresh noise."""
        if to_step % self.inner_steps:
            raise CapabilityError(
                f"A clip goes back to the beginning of a chunk, a multiple of {self.inner_steps}, but got "
                f"{to_step}; change it."
            )
        generators = [row_generator(state.seed, "renoise", uid, to_step, "cpu") for uid in state.uids]
        return self.begun(state, to_step, self._model.noise(to_step // self.inner_steps, generators))

    def begun(self, state: State, to_step: int, noise: Tensor) -> State:
        """The clip without the chunks from `to_step` on, and the noise that the first of them begins with.

        Args:
            state: Particles, with uids of their own.
            to_step: The first step of a chunk.
            noise: ``(B, C, t, h, w)``.
        """
        history = state.latents[:, :, : self._offsets[to_step // self.inner_steps]]
        latents = torch.cat([history, noise.to(history)], 2) if to_step else noise
        return replace(state, latents=latents, step=to_step, carry={ORIGIN: numbers(origins_of(state))})

    def preview(self, state: State) -> list[Decoded]:
        chunk, done = divmod(state.step, self.inner_steps)
        finished = state.latents[:, :, : self._offsets[chunk]]
        estimate = state.carry.get(PREVIEW) if done else None
        if isinstance(estimate, Tensor):
            seen = torch.cat([finished, estimate], 2)
            return self._decoded(state, seen, chunk + 1, self._preview_frames)
        if not chunk:
            raise CapabilityError(
                f"A preview of {self.name} needs a finished chunk or an estimate of the first one but the "
                f"state is at step {state.step}; advance it."
            )
        return self._decoded(state, finished, chunk, self._preview_frames)

    def decode(self, state: State) -> list[Decoded]:
        return self._decoded(state, state.latents, len(self._model.frames), None)

    def plain(self, condition: Condition, uids: Sequence[int], *, seed: int) -> list[Decoded]:
        if not self._is_plain:
            raise CapabilityError(
                f"The call of {self.name} draws the noise of all chunks in turn but branch_noise is "
                "'shared_root'; build it with 'fresh'."
            )
        clips = [self._model.plain(condition, generator_of(row_seed(seed, uid))) for uid in uids]
        return [clip for pixels in clips for clip in media_of(pixels, self._model.fps)]

    def facts(self, condition: Condition) -> dict[str, Any]:
        own: dict[str, Any] = {
            "branch_noise": self.branch_noise,
            "chunks": len(self._model.frames),
            "previews": self._model.approximates or "exact: the frames of the finished clip",
            "plain": self._is_plain,
        }
        if self._frame_bytes:
            own["latent_megabytes"] = round(self._frame_bytes * self._offsets[-1] / 1e6, 3)
        return {**self._model.facts, **own}

    @property
    def _draws(self) -> bool:
        """Whether denoising itself draws noise."""
        return self._model.last_draw >= 0

    @property
    def _is_plain(self) -> bool:
        """Whether an unforked particle is the sample of the generator's own call."""
        return self.branch_noise == "fresh" or not self._draws

    def _refuse_others(self, options: SamplerOptions) -> None:
        """Refuses options that are of no effect here."""
        options.refuse_rollout(self.name)
        if options.preview != "decode":
            raise ConfigError(
                f"preview of {self.name} must be 'decode', the finished chunks, but got "
                f"{options.preview!r}; leave it out."
            )
        if options.preview_size is not None:
            raise ConfigError(
                f"preview_size needs a model that decodes at any size but got {options.preview_size} for "
                f"{self.name}; limit the frames of a preview by preview_frames instead."
            )
        if options.inner_steps and self._model.steps == 1:
            raise ConfigError(
                f"inner_steps needs a model that can stop within a chunk but {self.name} makes each in one "
                "go; leave it out."
            )

    def _part(self, step: int, steps: int) -> tuple[int, int, int]:
        """The chunk of a step, and the first and the last of its decision steps that are within `steps`."""
        chunk, start = divmod(step, self.inner_steps)
        return chunk, start, min(start + steps, self.inner_steps)

    def _inner(self, start: int, stop: int) -> tuple[int, int]:
        """Decision steps of a chunk as denoising steps of the generator."""
        return (start, stop) if self.inner_steps > 1 else (0, self._model.steps)

    def _advanced(self, state: State, steps: int) -> State:
        """`advance` for rows of one condition."""
        if len(state) > 1 and not self._model.batches:
            return State.cat([self._advanced(state.select([i]), steps) for i in range(len(state))])
        while steps:
            chunk, start, stop = self._part(state.step, steps)
            state, steps = self._denoised(state, chunk, start, stop), steps - (stop - start)
        return state

    def _denoised(self, state: State, chunk: int, start: int, stop: int) -> State:
        """The state after some decision steps of one chunk."""
        condition, step = state.conditions[0], state.step + stop - start
        encoded = self._encode(condition)
        self.meter.charge(self.cost(condition, state.step, stop - start) * len(state))
        with self.meter.phase("denoise"):
            generators = self._generators(state)
            history = state.latents[:, :, : self._offsets[chunk]]
            latents = state.latents[:, :, self._offsets[chunk] :]
            if not latents.shape[2]:
                latents = self._fresh(state, chunk, generators)
            began = carried(state, CHUNK_NOISE) if start else latents
            first, last = self._inner(start, stop)
            given = Chunk(chunk, first, last, history, latents, generators)
            after, estimate = self._model.denoise(encoded, given)
        carry: dict[str, Tensor | Rows] = {
            ORIGIN: numbers(origins_of(state)),
            CHUNK_NOISE: began,
            **generator_rows(generators, state.uids),
        }
        if stop < self.inner_steps and estimate is not None:
            carry[PREVIEW] = estimate.cpu()
        # finished frames need no place on the device
        return replace(state, latents=torch.cat([history, after.to(history)], 2), step=step, carry=carry)

    def _generators(self, state: State) -> list[torch.Generator]:
        """The generator of each row, where the last chunk left it; a fresh one of a fork."""
        streams = streams_of(state, True) or []
        generators = [generator_of(0) for _ in state.uids]
        for generator, stream, origin in zip(generators, streams, origins_of(state)):
            if stream is None:
                generator.manual_seed(row_seed(state.seed, origin))
            else:
                generator.set_state(stream.clone())  # a view crashes torch
        return generators

    def _fresh(self, state: State, chunk: int, generators: list[torch.Generator]) -> Tensor:
        """The noise that a chunk begins with where no move gave it."""
        if self.branch_noise == "fresh":
            return self._model.noise(chunk, generators)
        roots = [generator_of(row_seed(state.seed, origin)) for origin in origins_of(state)]
        for earlier in range(chunk):  # the stream of a root goes on from chunk to chunk
            self._model.noise(earlier, roots)
        return self._model.noise(chunk, roots)

    def _encode(self, condition: Condition) -> Any:
        """The condition as the generator takes it, computed once."""
        if condition not in self._encoded:
            if len(self._encoded) == _KEPT:
                del self._encoded[next(iter(self._encoded))]
            with self.meter.phase("encode"):
                self._encoded[condition] = self._model.encode(condition)
        return self._encoded[condition]

    def _decoded(self, state: State, latents: Tensor, chunks: int, count: int | None) -> list[Decoded]:
        """The clips of the first chunks: all frames, or so many of them, evenly spaced, with the last one."""
        total, fps = self._model.pixel_frames(chunks), self._model.fps
        few = count is not None and count < total
        frames = list(spaced(total, count)) if few and count else None
        fps = fps * count / total if few and count else fps
        with self.meter.phase("decode"):
            if isinstance(self._model, NoisyDecoder):
                pixels = self._model.drawn_pixels(latents, self._generators(state), frames)
            else:
                pixels = self._model.pixels(latents, frames)
        clips = media_of(pixels, fps)
        return [
            clip if finite else Invalid(f"pixels {NOT_FINITE}", clip)
            for clip, finite in zip(clips, finite_rows(pixels))
        ]


def _chunk_sampler(sampler: Sampler, move: Move) -> ChunkSampler:
    """The sampler, if it can make a move.

    Raises:
        CapabilityError: If it is no sampler of chunks.
    """
    if isinstance(sampler, ChunkSampler):
        return sampler
    raise CapabilityError(
        f"Move {move.name!r} begins a chunk of a video model again but {sampler.name!r} has none; use "
        "ctx.mutation(step, strength), the sampler's own move."
    )
