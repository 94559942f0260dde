"""The contracts catch what they are for: each breach makes the named check fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.context import SearchContext
from tts_vision.errors import StorageError
from tts_vision.ledger import Ledger
from tts_vision.testing.contracts import AlgorithmContract, SamplerContract, VerifierContract, kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, picture
from tts_vision.types import Cost, Media, Prompt, Score, State

PROMPT, TOLERANCE = Prompt("x"), 1e-5


class HistoryOnItself(GaussianMixtureSampler):
    """Keeps solver history outside the state, as stateful schedulers do."""

    before: Tensor | None = None

    def _step(self, state: State) -> State:
        if state.step == 0:
            self.before = None
        if self.before is not None and len(self.before) == len(state):
            state = State(
                state.latents, state.step, state.uids, state.prompt, state.seed, {"history": self.before}
            )
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
        return State(
            after.latents + 0.1 * noise, after.step, after.uids, after.prompt, after.seed, after.carry
        )


class InPlace(GaussianMixtureSampler):
    """Changes the state that it was given."""

    def _step(self, state: State) -> State:
        after = super()._step(state)
        state.latents.add_(1.0)
        return after


class Uncharged(GaussianMixtureSampler):
    """Says that it costs more than it charges."""

    def cost(self, state: State, steps: int) -> Cost:
        return Cost(nfe=2 * steps)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            self._meter.charge(Cost(nfe=len(state)))
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
            lambda s, m: CONTRACT.test_reindexing_commutes_with_steps(s, m, PROMPT, TOLERANCE),
        ),
        (
            SharedGenerator(num_steps=6),
            lambda s, m: CONTRACT.test_rows_are_independent(s, m, PROMPT, TOLERANCE),
        ),
        (InPlace(num_steps=6), lambda s, m: CONTRACT.test_leaves_its_input_alone(s, m, PROMPT)),
        (Uncharged(num_steps=6), lambda s, m: CONTRACT.test_charges_what_it_says(s, m, PROMPT)),
        (LateNoise(num_steps=6), lambda s, m: CONTRACT.test_forks_differ_while_noise_is_left(s, m, PROMPT)),
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

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        values = [score.value for score in super().score(media, prompts)]
        return [Score(value=value - np.mean(values)) for value in values]


def test_broken_verifier() -> None:
    media = [picture(np.array([x, 0.0])) for x in (0.0, 1.0, 3.0)]
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


def test_an_algorithm_with_randomness_of_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def algorithm(ctx: SearchContext) -> State:
        state = ctx.advance(ctx.init(6), 2)
        state = ctx.finish(ctx.select(state, rng.permutation(6)[:3].tolist()))
        ctx.score(state)
        return state

    with pytest.raises((AssertionError, StorageError)):
        kill_everywhere(algorithm, lambda: GaussianMixtureSampler(num_steps=6), TargetReward(), tmp_path)
