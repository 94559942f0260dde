"""The contracts catch what they are for: each breach makes the named check fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.errors import StorageError
from tts_vision.ledger import Ledger
from tts_vision.ranking import top_k
from tts_vision.testing.contracts import AlgorithmContract, SamplerContract, VerifierContract, kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, draw_position
from tts_vision.types import Cost, Media, Prompt, Score, State
from tts_vision.verifier import ALONE, Asked

PROMPT, CONDITION, TOLERANCE = Prompt("x"), Condition("x"), 1e-5


class HistoryOnItself(GaussianMixtureSampler):
    """Keeps solver history outside the state, as stateful schedulers do."""

    before: Tensor | None = None

    def _step(self, state: State) -> State:
        if state.step == 0:
            self.before = None
        if self.before is not None and len(self.before) == len(state):
            state = replace(state, carry={"history": self.before})
        after = super()._step(state)
        history = after.carry["history"]
        assert isinstance(history, Tensor)
        self.before = history
        return after


class SharedGenerator(GaussianMixtureSampler):
    """Draws the noise of a whole batch from one generator."""

    def _step(self, state: State) -> State:
        after = super()._step(state)
        noise = torch.randn(after.latents.shape, generator=torch.Generator().manual_seed(state.step))
        return replace(after, latents=after.latents + 0.1 * noise)


class InPlace(GaussianMixtureSampler):
    """Changes the state that it was given."""

    def _step(self, state: State) -> State:
        after = super()._step(state)
        state.latents.add_(1.0)
        return after


class Uncharged(GaussianMixtureSampler):
    """Says that it costs more than it charges."""

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        return Cost(nfe=2 * steps)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            self.meter.charge(Cost(nfe=len(state)))
            state = self._step(state)
        return state


class LateNoise(GaussianMixtureSampler):
    """Claims noise where there is none."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.last_noisy_step = self.num_steps - 1


CONTRACT = SamplerContract()


@pytest.mark.parametrize(
    ("sampler", "check"),
    [
        (
            HistoryOnItself(num_steps=6, order=2),
            lambda s, m: CONTRACT.test_reindexing_commutes_with_steps(s, m, CONDITION, TOLERANCE),
        ),
        (
            SharedGenerator(num_steps=6),
            lambda s, m: CONTRACT.test_rows_are_independent(s, m, CONDITION, TOLERANCE),
        ),
        (InPlace(num_steps=6), lambda s, m: CONTRACT.test_leaves_its_input_alone(s, m, CONDITION)),
        (Uncharged(num_steps=6), lambda s, m: CONTRACT.test_charges_what_it_says(s, m, CONDITION)),
        (
            LateNoise(num_steps=6),
            lambda s, m: CONTRACT.test_forks_differ_while_noise_is_left(s, m, CONDITION),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_samplers(
    sampler: GaussianMixtureSampler, check: Callable[[GaussianMixtureSampler, Ledger], None]
) -> None:
    ledger = Ledger()
    sampler.bind(ledger)
    with pytest.raises(AssertionError):
        check(sampler, ledger)


class RelativeToTheBatch(TargetReward):
    """Scores samples against each other."""

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        values = [score.value for score in super().score(media, prompts)]
        return [Score(value=value - np.mean(values)) for value in values]


def test_broken_verifier() -> None:
    media = [draw_position(np.array([x, 0.0])) for x in (0.0, 1.0, 3.0)]
    with pytest.raises(AssertionError):
        VerifierContract().test_samples_are_independent(RelativeToTheBatch(), media, PROMPT)


def wasteful(ctx: SearchContext) -> State:
    return best_of_n(ctx, n=1)


def test_an_algorithm_that_leaves_its_budget() -> None:
    def search(**limits: float) -> tuple[SearchContext, State]:
        ctx = SearchContext(GaussianMixtureSampler(num_steps=6), TargetReward(), PROMPT, seed=0)
        ctx.ledger.budget = type(ctx.ledger.budget)(**limits).resolve(ctx.cost())  # type: ignore[arg-type]
        return ctx, wasteful(ctx)

    AlgorithmContract().test_fits_every_budget(search, 1)
    with pytest.raises(AssertionError):
        AlgorithmContract().test_fits_every_budget(search, 4)


def costlier_by_scores(ctx: SearchContext, *, n: int = 4) -> State:
    """Makes more samples where scores differ, as those of a rehearsal never do."""
    state = ctx.finish(ctx.init(n))
    scores = ctx.score(state)
    return state if scores.max() == scores.min() else best_of_n(ctx, n=n)


def test_an_algorithm_that_costs_more_than_its_rehearsal() -> None:
    def sampler() -> GaussianMixtureSampler:
        return GaussianMixtureSampler(num_steps=6)

    AlgorithmContract().test_costs_no_more_than_rehearsed(best_of_n, sampler, TargetReward(), {"n": 4})
    with pytest.raises(AssertionError):
        AlgorithmContract().test_costs_no_more_than_rehearsed(
            costlier_by_scores, sampler, TargetReward(), {"n": 4}
        )


def keep_half(ctx: SearchContext, *, n: int = 8) -> State:
    """The search that the front page shows."""
    state = ctx.advance(ctx.init(n), ctx.num_steps // 2)
    state = ctx.select(state, top_k(ctx.score(state), n // 2))
    state = ctx.finish(state)
    ctx.score(state)
    return state


class TestKeepHalf(AlgorithmContract):
    """Five lines keep the whole contract."""

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return keep_half

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"n": 4}


def test_an_algorithm_with_randomness_of_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def algorithm(ctx: SearchContext) -> State:
        state = ctx.advance(ctx.init(6), 2)
        state = ctx.finish(ctx.select(state, rng.permutation(6)[:3].tolist()))
        ctx.score(state)
        return state

    with pytest.raises((AssertionError, StorageError)):
        kill_everywhere(algorithm, lambda: GaussianMixtureSampler(num_steps=6), TargetReward(), tmp_path)
