"""The sampler of visual autoregressive models: a decision step is one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tts_vision.condition import Condition, distinct
from tts_vision.config import SamplerOptions, plain
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.media import finite_rows
from tts_vision.moves import TOKEN_NOISE, TOKEN_PROBABILITY, Move
from tts_vision.pipelines.decoding import NOT_FINITE
from tts_vision.pipelines.tokens.model import TokenPipeline
from tts_vision.pipelines.var.bsq import resized
from tts_vision.pipelines.var.cache import CacheRow, KVCache, rows_of
from tts_vision.pipelines.var.model import ScalePipeline, images_of, plain_samples, uniform_like
from tts_vision.registry import register
from tts_vision.rng import row_uniform
from tts_vision.sampler import Sampler, shared_rows
from tts_vision.tokens import groups
from tts_vision.types import Cost, Decoded, Invalid, Prompt, Rows, State

CACHE = "cache"


@register("sampler", "var", paper="Tian et al. 2024; Han et al. 2024", notes={"drives": "Infinity and VAR"})
class ScaleSampler(Sampler):
    """Drives a model that predicts the tokens of one scale after the other.

    The state's latents are the tokens of all scales done. Particles whose tokens and conditions agree, such
    as fresh forks or all of them before the first scale, share one forward pass; each then draws with noise
    of its own. Scales that an image gives are there from the start: steps are the scales after them, and the
    first one pays for their keys and values too.

    Args:
        pipe: The model.
        options: Settings of its call, and the size of previews.

    Raises:
        ConfigError: If a setting is none of the model's.
    """

    shares_forwards = True
    preview_shows_step = True
    capabilities = frozenset({"stochastic", "preview", "renoise", "moves"})

    def __init__(self, pipe: ScalePipeline, *, options: SamplerOptions | None = None) -> None:
        options = options or SamplerOptions()
        self.name = pipe.name
        self._settings = dict(options.pipeline_kwargs)
        self._model = pipe.configured(self._settings)
        options.refuse_rollout(pipe.name)
        self._preview_size, self._preview = options.preview_size, options.preview
        self._given = self._model.given.scales
        self.num_steps = len(self._model.schedule) - self._given
        self.last_noisy_step = self.num_steps - 1
        self._encoded: dict[Condition, Any] = {}
        self._begun: dict[Condition, Tensor] = {}
        self._words: dict[Condition, int] = {}

    @staticmethod
    def accepts(pipe: Any) -> bool:
        """Whether `pipe` is a visual autoregressive model."""
        return isinstance(pipe, ScalePipeline) and not isinstance(pipe, TokenPipeline)

    def condition_of(self, prompt: Prompt) -> Condition:
        known = {name: prompt.metadata[name] for name in self._model.overrides if name in prompt.metadata}
        return Condition(prompt.text, overrides=known)

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        self._check(condition)
        self._encode(condition)
        carry = {CACHE: Rows([None] * len(uids))}
        return State.initial(self._start([condition] * len(uids)), uids, condition, seed, carry)

    def recondition(self, state: State) -> State:
        """Takes up new conditions before the first scale, and none later.

        Raises:
            ConfigError: If the model cannot take one of them.
            CapabilityError: If scales are done.
        """
        if state.step:
            raise CapabilityError(
                "A new condition must come before the first scale, because the scales done and their cached "
                f"keys follow the old text, but the state is at scale {state.step}; go back to step 0 or "
                "start with fresh particles."
            )
        for condition in distinct(state.conditions):
            self._check(condition)
            self._encode(condition)
        start = replace(state, latents=self._start(state.conditions), carry=_uncached(state))
        return super().recondition(start)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            state = state.in_groups(lambda condition: condition, self._next_scale)
        return state

    def move(self, step: int, strength: float) -> Move | None:
        return self._model.redraw(strength**2) if 1 <= step < self.num_steps else None

    def drawn(self, probability: Tensor, uniform: Tensor, step: int) -> Tensor:
        """The tokens of a step that uniform numbers decide; see `ConfiguredModel.drawn`."""
        return self._model.drawn(probability, uniform, self._given + step)

    def renoise(self, state: State, to_step: int) -> State:
        """The state with only its first `to_step` scales, so that new ones are drawn."""
        tokens = self._model.schedule.starts[self._given + to_step]
        # at the first step a cache is paid for again, so it is made again
        places = Rows(place and place.first(tokens) for place in self._places(state))
        carry = {CACHE: places} if to_step else _uncached(state)
        return replace(state, latents=state.latents[:, :tokens], step=to_step, carry=carry)

    def preview(self, state: State) -> list[Decoded]:
        if not state.step:
            raise CapabilityError(
                "A preview needs at least one scale but the state has none yet; advance it first."
            )
        if self._preview == "decode":
            return self._decoded(state, self._preview_size)
        found: dict[int, Decoded] = {}
        for condition in distinct(state.conditions):
            rows = [i for i, own in enumerate(state.conditions) if own == condition]
            found |= zip(rows, self._previewed(state.select(rows)))
        return [found[i] for i in range(len(state))]

    def preview_cost(self, condition: Condition, step: int) -> Cost:
        if self._preview == "decode" or step >= self.num_steps:
            return Cost()
        return self.cost(condition, step, 1 if self._preview == "expected" else self.num_steps - step)

    def _previewed(self, state: State) -> list[Decoded]:
        """Previews of rows that have one condition, by passes over scales to come."""
        condition = state.conditions[0]
        encoded = self._encode(condition)
        self.meter.charge(self.preview_cost(condition, state.step) * len(state))
        with self.meter.phase("denoise"):
            features = self._ahead(state, encoded)
        return self._pixels(features, self._preview_size)

    def _ahead(self, state: State, encoded: Any) -> Tensor:
        """Features with the next scale's expectation, or with the likeliest tokens of all further ones."""
        cache, tokens = self._cache(state, encoded), state.latents
        if self._preview == "expected":
            scale = self._given + state.step
            probability = self._model.probability(encoded, tokens, scale, cache)
            return self._model.with_expected(self._model.features(tokens), probability, scale)
        for scale in range(self._given + state.step, len(self._model.schedule)):
            probability = self._model.probability(encoded, tokens, scale, cache)
            tokens = torch.cat((tokens, self._model.likeliest(probability, tokens)), 1)
        return self._model.features(tokens)

    def decode(self, state: State) -> list[Decoded]:
        return self._decoded(state, None)

    def plain(self, condition: Condition, uids: Sequence[int], *, seed: int) -> list[Decoded]:
        tokens = plain_samples(self._model, condition, seed, max(uids) + 1, "tokens")
        assert isinstance(tokens, Tensor)
        pixels = self._model.pixels(self._model.features(tokens[list(uids)]))
        return list(images_of(pixels))

    def facts(self, condition: Condition) -> dict[str, Any]:
        model = self._model
        settings = {
            name: _plain(value)
            for name in ("guidance_scale", "negative_prompt", "tau", "top_k", "top_p")
            if (value := getattr(model, name, None)) is not None
        }
        return {**settings, "device": model.device.type, "pipeline_kwargs": plain(self._settings)}

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        first = self._given + step if step else 0
        return sum((self._cost(condition, k) for k in range(first, self._given + step + steps)), Cost())

    def _cost(self, condition: Condition, scale: int) -> Cost:
        """The cost of one scale for one row."""
        if condition not in self._words:
            self._words[condition] = self._model.words(condition)
        n = self._model.branches
        macs = n * self._model.macs(scale, self._words[condition])
        return Cost(nfe=n, tokens=n * self._model.schedule.lengths[scale], macs=macs)

    def _next_scale(self, state: State) -> State:
        """The state one scale later, whose rows have one condition."""
        model, condition = self._model, state.conditions[0]
        scale = self._given + state.step
        first, of_row = shared_rows(state)
        computed = state if len(first) == len(state) else state.select(first)
        encoded = self._encode(condition)
        self.meter.charge(self.cost(condition, state.step, 1) * len(first))
        with self.meter.phase("denoise"):
            cache = self._cache(computed, encoded)
            probability = model.probability(encoded, computed.latents, scale, cache)[of_row]
            like = uniform_like(probability, state.latents)
            uniform = row_uniform(state.seed, "step", state.uids, scale, like)
            tokens = model.drawn(probability, uniform, scale)
        carry: dict[str, Tensor | Rows] = {
            CACHE: rows_of(cache).select(of_row),
            TOKEN_NOISE: uniform,
            TOKEN_PROBABILITY: probability,
        }
        latents = torch.cat((state.latents, tokens), 1)
        return replace(state, latents=latents, step=state.step + 1, carry=carry, shared={})

    def _start(self, conditions: Sequence[Condition]) -> Tensor:
        """The tokens ``(B, T, ...)`` of particles at step 0."""
        for condition in distinct(conditions):
            if condition not in self._begun:
                with self.meter.phase("encode"):
                    self._begun[condition] = self._model.begun(condition)
        return torch.cat([self._begun[condition] for condition in conditions])

    def _places(self, state: State) -> Sequence[CacheRow | None]:
        places = state.carry.get(CACHE)
        return places if isinstance(places, Rows) else Rows([None] * len(state))

    def _cache(self, state: State, encoded: Any) -> KVCache:
        """Keys and values of all scales of `state`, ready to be added to.

        They are made again where a state was read from disk; that was paid for in the session before. Those
        of given scales are made for the first step, whose price includes them.
        """
        places = [place for place in self._places(state) if place is not None]
        if len(places) == len(state):
            return KVCache(places)
        rows = self._model.cache(len(state)).rows
        for scale in range(self._given + state.step):
            tokens = state.latents[:, : self._model.schedule.starts[scale]]
            first, of_row = groups(tokens)  # in batches as before, which round as before
            cache = KVCache([rows[i] for i in first])
            self._model.probability(encoded, tokens[first], scale, cache)
            rows = [cache.rows[i] for i in of_row]
        return KVCache(rows)

    def _check(self, condition: Condition) -> None:
        """Refuses a condition that says more than the model can take."""
        if condition.negative_text is not None:
            raise ConfigError(
                f"A condition of {self.name} must have no negative text but got "
                f"{condition.negative_text!r}; set negative_prompt in pipeline_kwargs if the model has one."
            )
        unused = [name for name in condition.images if name not in self._model.given.images]
        if unused or condition.embeddings:
            known = ", ".join(self._model.given.images)
            rule = f"no images but {known} and no embeddings" if known else "no images or embeddings"
            remedy = "leave them out." if known else "leave them out, or set gt_leak to continue an image."
            raise ConfigError(
                f"A condition of {self.name} must have {rule} but got "
                f"{', '.join([*unused, *condition.embeddings])}; {remedy}"
            )
        unknown = sorted(condition.overrides.keys() - self._model.overrides)
        if unknown:
            known = ", ".join(sorted(self._model.overrides)) or "none"
            raise ConfigError(
                f"Overrides of a condition of {self.name} must be among {known} but got "
                f"{', '.join(unknown)}; set them in pipeline_kwargs, for all particles."
            )

    def _encode(self, condition: Condition) -> Any:
        """The condition as the transformer takes it, computed once."""
        if condition not in self._encoded:
            with self.meter.phase("encode"):
                self._encoded[condition] = self._model.encode(condition)
        return self._encoded[condition]

    def _decoded(self, state: State, size: int | None) -> list[Decoded]:
        return self._pixels(self._model.features(state.latents), size)

    def _pixels(self, features: Tensor, size: int | None) -> list[Decoded]:
        with self.meter.phase("decode"):
            height, width = features.shape[-2:]
            if size is not None and size < self._model.stride * max(height, width):
                ratio = size / (self._model.stride * max(height, width))
                features = resized(features, (max(1, round(ratio * height)), max(1, round(ratio * width))))
            pixels = self._model.pixels(features)
            return [
                image if finite else Invalid(f"pixels {NOT_FINITE}", image)
                for image, finite in zip(images_of(pixels), finite_rows(pixels))
            ]


def _uncached(state: State) -> dict[str, Tensor | Rows]:
    """What a state at step 0 carries: no keys and values."""
    return {CACHE: Rows([None] * len(state))}


def _plain(value: Any) -> Any:
    """A setting; one number where it is the same at all scales."""
    if isinstance(value, tuple):
        return value[0] if len(set(value)) == 1 else list(value)
    return value
