"""The sampler of visual autoregressive models: a decision step is one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tts_vision.config import SamplerOptions
from tts_vision.errors import CapabilityError
from tts_vision.pipelines.segment import NoMeter
from tts_vision.pipelines.var.bsq import resized
from tts_vision.pipelines.var.cache import CacheRow, KVCache, gather, rows_of
from tts_vision.pipelines.var.plan import ScalePipeline, pictures
from tts_vision.registry import register
from tts_vision.rng import row_uniform
from tts_vision.tokens import draw, groups
from tts_vision.types import Cost, Media, Meter, Modality, Prompt, Rows, State


@register("sampler", "var", paper="Tian et al. 2024; Han et al. 2024", notes={"drives": "Infinity and VAR"})
class ScaleSampler:
    """Drives a model that predicts the tokens of one scale after the other.

    The state's latents are the tokens of all scales done. Particles whose tokens agree, such as fresh forks
    or all of them before the first scale, share one forward pass; each then draws with noise of its own.

    Args:
        pipe: The model.
        options: Settings of its call, and the size of previews.

    Raises:
        ConfigError: If a setting is none of the model's.
    """

    name: str
    modality: Modality = "image"
    capabilities = frozenset({"stochastic", "preview", "renoise", "tokens"})

    def __init__(self, pipe: ScalePipeline, *, options: SamplerOptions | None = None) -> None:
        options = options or SamplerOptions()
        self.name = pipe.name
        self._plan = pipe.plan(options.pipeline_kwargs)
        self._preview_size = options.preview_size
        self.num_steps = len(self._plan.schedule)
        self.last_noisy_step = self.num_steps - 1
        self._meter: Meter = NoMeter()
        self._known: tuple[Prompt, Any] | None = None
        self._words: dict[str, int] = {}

    @staticmethod
    def accepts(pipe: Any) -> bool:
        """Whether `pipe` is a visual autoregressive model."""
        return isinstance(pipe, ScalePipeline)

    def bind(self, meter: Meter) -> None:
        self._meter = meter

    def init(self, prompt: Prompt, uids: Sequence[int], *, seed: int) -> State:
        self._condition(prompt)
        tokens = self._plan.empty(len(uids))
        return State(tokens, 0, tuple(uids), prompt, seed, carry={"cache": Rows([None] * len(uids))})

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            state = self._next_scale(state)
        return state

    def renoise(self, state: State, to_step: int) -> State:
        """The state with only its first `to_step` scales, so that new ones are drawn."""
        tokens = self._plan.schedule.starts[to_step]
        places = Rows(
            None if place is None else replace(place, length=min(place.length, tokens))
            for place in self._places(state)
        )
        return replace(state, latents=state.latents[:, :tokens], step=to_step, carry={"cache": places})

    def preview(self, state: State) -> list[Media]:
        if not state.step:
            raise CapabilityError(
                "A preview needs at least one scale but the state has none yet; advance it first."
            )
        return self._decoded(state, self._preview_size)

    def decode(self, state: State) -> list[Media]:
        return self._decoded(state, None)

    def cost(self, state: State, steps: int) -> Cost:
        return sum((self._cost(state.prompt, k) for k in range(state.step, state.step + steps)), Cost())

    def _cost(self, prompt: Prompt, scale: int) -> Cost:
        """What one row pays for one scale."""
        if prompt.text not in self._words:
            self._words[prompt.text] = self._plan.words(prompt)
        n = self._plan.branches
        macs = n * self._plan.macs(scale, self._words[prompt.text])
        return Cost(nfe=n, tokens=n * self._plan.schedule.lengths[scale], macs=macs)

    def _next_scale(self, state: State) -> State:
        plan, scale = self._plan, state.step
        first, of_row = groups(state.latents)
        distinct = state if len(first) == len(state) else state.select(first)
        condition = self._condition(state.prompt)
        self._meter.charge(self._cost(state.prompt, scale) * len(first))
        with self._meter.phase("denoise"):
            cache = self._cache(distinct, condition)
            probability = plan.probability(condition, distinct.latents, scale, cache)[of_row]
            like = probability if probability.ndim == state.latents.ndim else probability[..., 0]
            uniform = row_uniform(state.seed, "step", state.uids, scale, like)
            tokens = draw(probability, uniform)
        places = rows_of(cache)
        carry: dict[str, Tensor | Rows] = {
            "cache": places.select(of_row),
            "token_noise": uniform,
            "token_probability": probability,
        }
        return replace(
            state, latents=torch.cat((state.latents, tokens), 1), step=scale + 1, carry=carry, shared={}
        )

    def _places(self, state: State) -> Sequence[CacheRow | None]:
        places = state.carry.get("cache")
        return places if isinstance(places, Rows) else Rows([None] * len(state))

    def _cache(self, state: State, condition: Any) -> KVCache:
        """Keys and values of all scales of `state`, ready to be added to.

        They are made again where a state was read from disk; that was paid for in the session before.
        """
        places = [place for place in self._places(state) if place is not None]
        if len(places) == len(state):
            return gather(places)
        cache = self._plan.cache(len(state))
        starts = self._plan.schedule.starts
        for scale in range(state.step):
            self._plan.probability(condition, state.latents[:, : starts[scale]], scale, cache)
        return cache

    def _condition(self, prompt: Prompt) -> Any:
        """What the prompt contributes, computed once."""
        if self._known is None or self._known[0] != prompt:
            with self._meter.phase("encode"):
                self._known = (prompt, self._plan.condition(prompt))
        return self._known[1]

    def _decoded(self, state: State, size: int | None) -> list[Media]:
        with self._meter.phase("decode"):
            features = self._plan.features(state.latents)
            height, width = features.shape[-2:]
            if size is not None and size < self._plan.stride * max(height, width):
                ratio = size / (self._plan.stride * max(height, width))
                features = resized(features, (max(1, round(ratio * height)), max(1, round(ratio * width))))
            return [*pictures(self._plan.pixels(features))]
