"""Zero-order search: neighbours at exact cosine, a pivot that is kept, and a gain over random search."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import pytest
import torch

from toy_search import Scripted, events, run, toy_context
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.zero_order import zero_order
from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.moves import from_description
from tts_vision.testing.contracts import AlgorithmContract
from tts_vision.testing.toys import GaussianMixture, GaussianMixtureSampler, TargetReward
from tts_vision.types import State


class TestContract(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return zero_order

    @pytest.fixture
    def sizes(self) -> dict[str, int]:
        return {"n": 7, "starts": 2, "neighbours": 3}


def test_keeps_the_pivot_until_a_neighbour_is_better() -> None:
    # pivot 0.5, then three rounds of two: worse, better (second), worse
    ctx = toy_context(verifier=Scripted([0.5, 0.1, 0.2, 0.3, 0.9, 0.4, 0.5]))
    run(zero_order, ctx, n=7, starts=1, neighbours=2)
    assert [event.parents for event in events(ctx, "move")] == [(0, 0), (0, 0), (4, 4)]
    assert ctx.best is not None and ctx.best.uid == 4


def test_first_pivot_is_the_best_start() -> None:
    ctx = toy_context(verifier=Scripted([0.1, 0.8, 0.3, 0.2]))
    run(zero_order, ctx, n=4, starts=3, neighbours=1)
    assert [event.parents for event in events(ctx, "move")] == [(1,)]


def test_unscored_pivot_is_left_and_unscored_neighbours_are_not_taken() -> None:
    nan = float("nan")
    ctx = toy_context(verifier=Scripted([nan, 0.1, nan, nan, nan, 0.3]))
    run(zero_order, ctx, n=6, starts=1, neighbours=1)
    assert [event.parents for event in events(ctx, "move")] == [(0,), (1,), (1,), (1,), (1,)]


def test_neighbours_have_exact_cosine_and_norm() -> None:
    sampler = GaussianMixtureSampler(num_steps=3)
    ctx = toy_context(sampler)
    run(zero_order, ctx, n=4, starts=1, neighbours=3, tau=0.8)
    event = events(ctx, "move")[0]
    pivot = sampler.init(Condition("x"), (0,), seed=3)
    around = sampler.apply(from_description(event.move), pivot.select([0, 0, 0], uids=event.uids))
    cosine = torch.cosine_similarity(around.latents.double(), pivot.latents.double())
    assert torch.allclose(cosine, torch.full((3,), 0.8, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(around.latents.norm(dim=1), pivot.latents.norm().expand(3))


def test_beats_random_search_on_a_smooth_reward() -> None:
    # in ten dimensions fresh noise is almost never near the target
    data, target = GaussianMixture.of((1.0, [0.0] * 10, 1.0)), TargetReward([0.8] * 10)

    def best(algorithm: Callable[[SearchContext], State], seed: int) -> float:
        sampler = GaussianMixtureSampler(data, num_steps=5, eta=0.0)
        ctx = toy_context(sampler, target, seed=seed, times=40)
        run(algorithm, ctx)
        assert ctx.best is not None
        return ctx.best.score.value

    assert mean(best(zero_order, seed) for seed in range(15)) > 0.8 * mean(
        best(best_of_n, seed) for seed in range(15)
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"neighbours": 0}, "neighbours must be at least 1"),
        ({"starts": 0}, "starts must be at least 1"),
        ({"tau": 1.0}, r"tau must be in \[0, 1\) but got 1.0"),
    ],
)
def test_rejects(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(zero_order, toy_context(), **parameters)  # type: ignore[arg-type]
