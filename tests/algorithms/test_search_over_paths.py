"""Search over paths: levels, forks, previews on the way and full scores at the end."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import pytest

from toy_search import events, run, toy_context
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.search_over_paths import levels, search_over_paths
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.testing.contracts import AlgorithmContract
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import State


class TestContract(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return search_over_paths

    @pytest.fixture
    def sizes(self) -> dict[str, int]:
        return {"n": 2, "forks": 2}


class TestContractOfADeterministicSampler(TestContract):
    @pytest.fixture
    def make_sampler(self) -> Callable[[], GaussianMixtureSampler]:
        return lambda: GaussianMixtureSampler(num_steps=6, order=2, eta=0.0)


def test_levels() -> None:
    assert levels(20, 0.4, 0.2, 0.5) == (8, [(4, 14), (10, 20)])
    assert levels(10, 0.5, 0.1, 0.2) == (5, [(4, 6), (5, 7), (6, 8), (7, 9), (8, 10)])
    assert levels(4, 0.4, 0.2, 0.5) == (2, [(1, 3), (2, 4)])
    # the last round only goes as far as there are steps
    assert levels(10, 0.5, 0.1, 0.9) == (5, [(4, 10)])


def test_cost_is_that_of_the_paper() -> None:
    n, forks = 3, 4
    ctx = toy_context(GaussianMixtureSampler(num_steps=20))
    run(search_over_paths, ctx, n=n, forks=forks)
    assert ctx.ledger.spent.nfe == n * 8 + 2 * n * forks * 10
    assert ctx.ledger.spent.verifier_calls == 2 * n * forks
    assert len(ctx.candidates) == n * forks


def test_keeps_the_best_previews() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=20))
    state = run(search_over_paths, ctx, n=2, forks=3)
    previews, finals = events(ctx, "score")
    best = sorted(previews.uids, key=lambda uid: -previews.values[previews.uids.index(uid)])[:2]
    assert events(ctx, "renoise")[1].parents == tuple(best * 3)
    assert previews.preview and not finals.preview
    assert ctx.best is not None and state.uids[0] == ctx.best.uid


def test_beats_random_search_on_a_smooth_reward() -> None:
    def best(algorithm: Callable[[SearchContext], State], seed: int) -> float:
        ctx = toy_context(GaussianMixtureSampler(num_steps=20), seed=seed, times=16)
        run(algorithm, ctx)
        assert ctx.best is not None
        return ctx.best.score.value

    assert mean(best(search_over_paths, seed) for seed in range(15)) > 0.7 * mean(
        best(best_of_n, seed) for seed in range(15)
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"forks": 0}, "forks must be at least 1"),
        ({"start": 1.5}, "start must be between 0 and 1 but got 1.5"),
        ({"back": 0.4, "forward": 0.4}, "forward must be more than back"),
        ({"n": 100}, "must fit its budget of 40 nfe"),
    ],
)
def test_rejects(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(search_over_paths, toy_context(nfe=40), **parameters)  # type: ignore[arg-type]
