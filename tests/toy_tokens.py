"""A visual autoregressive model whose every probability is known: tokens on a few scales, no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.moves import TOKEN_NOISE, TOKEN_PROBABILITY, Move, TokenNoise
from tts_vision.rng import row_uniform
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import SEED, AlgorithmContract, check_result, results
from tts_vision.testing.toys import draw_position, position_of
from tts_vision.tokens import draw
from tts_vision.types import Cost, Media, Modality, Prompt, State
from tts_vision.verifier import Verifier

ROUND = 2 * math.pi * torch.arange(5) / 5
VALUES = torch.stack([ROUND.cos(), ROUND.sin()], 1)  # the part of each of five ids in the position


class TokenSampler(Sampler):
    """Tokens add up to a position in the plane; each scale refines the coarser ones.

    A bit is set with probability ``sigmoid(bias + pull * position so far)`` of its coordinate, an id drawn by
    the softmax of the same. Particles whose tokens agree share one forward.

    Args:
        lengths: Tokens of each scale.
        bias: Of the first coordinate.
        pull: How far a scale goes on where the coarser ones went.
        ids: Whether a token is one of five ids, rather than two bits.
    """

    name = "toy_tokens"
    shares_forwards = True
    preview_shows_step = True
    capabilities = frozenset({"stochastic", "preview", "renoise", "moves"})

    def __init__(
        self,
        lengths: Sequence[int] = (1, 2, 4, 6, 9, 12),
        *,
        bias: float = 0.0,
        pull: float = 0.3,
        ids: bool = False,
    ) -> None:
        self.lengths, self.bias, self.pull, self.ids = tuple(lengths), bias, pull, ids
        self.starts = [sum(self.lengths[:k]) for k in range(len(self.lengths) + 1)]
        self.num_steps = len(self.lengths)
        self.last_noisy_step = self.num_steps - 1
        self.previewed = 0

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        shape = (len(uids), 0) if self.ids else (len(uids), 0, 2)
        return State.initial(torch.empty(shape, dtype=self._dtype), uids, condition, seed)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            self.meter.charge(self.price(state, 1))
            with self.meter.phase("denoise"):
                state = self._next_scale(state)
        return state

    def move(self, step: int, strength: float) -> Move | None:
        return TokenNoise(strength**2) if 1 <= step < self.num_steps else None

    def renoise(self, state: State, to_step: int) -> State:
        return replace(state, latents=state.latents[:, : self.starts[to_step]], step=to_step, carry={})

    def preview(self, state: State) -> list[Media]:
        self.previewed += len(state)
        return self.decode(state)

    def decode(self, state: State) -> list[Media]:
        with self.meter.phase("decode"):
            return [draw_position(row) for row in self.positions(state.latents).numpy()]

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        scales = range(step, step + steps)
        tokens = sum(self.lengths[k] for k in scales)
        macs = sum(self.lengths[k] * (10 + self.starts[k + 1]) for k in scales)
        return Cost(nfe=steps, tokens=tokens, macs=macs)

    def positions(self, tokens: Tensor) -> Tensor:
        """``(B, 2)`` of the tokens so far: every scale adds about as much as 0.7 of the one before."""
        total = torch.zeros(len(tokens), 2, dtype=torch.float64)
        for k in range(self.starts.index(tokens.shape[1])):
            part = tokens[:, self.starts[k] : self.starts[k + 1]]
            values = VALUES[part].double() if self.ids else part.double() * 2 - 1
            total += 0.7**k * values.sum(1) / math.sqrt(self.lengths[k])
        return total

    def probability(self, tokens: Tensor, scale: int) -> Tensor:
        """Of the bits or ids of a scale, given all before it."""
        drift = torch.tensor([self.bias, 0.0]) + self.pull * self.positions(tokens).float()
        chances = (drift @ VALUES.T).softmax(-1) if self.ids else drift.sigmoid()
        return chances[:, None].expand(-1, self.lengths[scale], -1).contiguous()

    def _next_scale(self, state: State) -> State:
        probability = self.probability(state.latents, state.step)
        like = probability[..., 0] if self.ids else probability
        uniform = row_uniform(state.seed, "step", state.uids, state.step, like)
        tokens = draw(probability, uniform).to(self._dtype)
        carry = {TOKEN_NOISE: uniform, TOKEN_PROBABILITY: probability}
        latents = torch.cat([state.latents, tokens], 1)
        return replace(state, latents=latents, step=state.step + 1, carry=carry)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.int64 if self.ids else torch.uint8


class PositionFeatures:
    """Embeds a sample as its position; counts how often it is asked."""

    name = "position_features"
    accepts: frozenset[Modality] = frozenset({"image"})

    def __init__(self) -> None:
        self.seen: list[int] = []

    def features(self, media: Sequence[Media]) -> Tensor:
        self.seen.append(len(media))
        return torch.from_numpy(np.stack([position_of(m) for m in media])).float()


def positions(*, scale: float = 1.0) -> PositionFeatures:
    """Makes an extractor, as plugins do; `scale` is there to be checked."""
    return PositionFeatures()


class ClipsOnly(PositionFeatures):
    """Embeds no images."""

    name = "clips_only"
    accepts: frozenset[Modality] = frozenset({"video"})


def broken() -> PositionFeatures:
    """Cannot be made."""
    raise RuntimeError("no weights")


def nothing() -> object:
    """Makes no extractor."""
    return object()


FEATURES = f"{__file__}@positions"


class TokenAlgorithmContract(AlgorithmContract):
    """The contract of a search on this model, whose scales differ in cost."""

    @pytest.fixture
    def kills(self) -> int:
        return 10

    @pytest.fixture
    def make_sampler(self) -> Callable[[], Sampler]:
        return TokenSampler

    @pytest.mark.parametrize("times", [1, 1.5, 2, 4, 7.5, 16])
    def test_fits_every_budget(self, search: Any, times: float) -> None:
        context, state = search(times=times)
        sample = context.cost().compute
        # less than one sample is left over
        assert times * sample - sample < context.ledger.spent.compute <= times * sample * (1 + 1e-9)
        check_result(context, state)

    @pytest.mark.parametrize("max_batch", [1, 3])
    def test_micro_batches_change_nothing(
        self,
        algorithm: Callable[..., State],
        make_sampler: Callable[[], Sampler],
        verifier: Verifier,
        sizes: dict[str, Any],
        max_batch: int,
    ) -> None:
        whole, parts = (
            SearchContext(make_sampler(), verifier, Prompt("x"), seed=SEED, max_batch=size)
            for size in (None, max_batch)
        )
        algorithm(whole, **sizes)
        algorithm(parts, **sizes)
        assert results(parts) == pytest.approx(results(whole))
        # copies in different micro-batches do not share their forward
        assert parts.ledger.spent.compute >= whole.ledger.spent.compute
        assert parts.ledger.spent.decodes == whole.ledger.spent.decodes
