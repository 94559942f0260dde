"""EvoSearch: schedules and costs of the paper, what is bred from what, and the released behaviour."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import mean
from typing import Any

import pytest
import torch
from toy_tokens import TokenAlgorithmContract, TokenSampler

from toy_search import events, run, toy_context
from tts_vision.algorithms._evolution import SCHEDULES
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.condition import Asset, Condition
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.moves import AddNoise
from tts_vision.replays import recreate
from tts_vision.rng import row_noise
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import AlgorithmContract, kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import ancestry, lineage
from tts_vision.types import State

SMALL = {"evolution_schedule": [0, 3], "population_schedule": [3, 2, 3], "elites": 1}


class TestContract(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return evosearch

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return SMALL

    def test_strict_reference_survives_a_kill_anywhere(
        self, make_sampler: Callable[[], Sampler], tmp_path: Any
    ) -> None:
        def algorithm(ctx: SearchContext) -> State:
            return run(evosearch, ctx, strict_reference=True, **SMALL)  # type: ignore[arg-type]

        kill_everywhere(algorithm, make_sampler, TargetReward(), tmp_path, most=10)


class TestContractOfADeterministicSampler(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return evosearch

    @pytest.fixture
    def make_sampler(self) -> Callable[[], GaussianMixtureSampler]:
        return lambda: GaussianMixtureSampler(num_steps=6, order=2, eta=0.0)

    def test_only_initial_noise_evolves(self) -> None:
        ctx = toy_context(GaussianMixtureSampler(num_steps=6, eta=0.0), times=8)
        run(evosearch, ctx)
        assert {event.step for event in events(ctx, "move")} == {0}


class TestContractOnTokens(TokenAlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return evosearch

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {**SMALL, "evolution_schedule": [2, 4]}


def read_nothing(name: str) -> Asset:
    raise AssertionError(f"no condition has an asset but {name!r} is asked for")


def test_tokens_are_drawn_again_where_there_is_no_noise() -> None:
    ctx = toy_context(TokenSampler(), times=8)
    run(evosearch, ctx, beta_noise=0.5, beta_step=0.5)
    # of the schedule's 0, 20, 30, 40 in 50 steps
    assert [(event.step, event.move) for event in events(ctx, "move")] == [
        (step, {"name": "token_noise", "share": 0.25}) for step in (2, 4, 5)
    ]
    born = ancestry(ctx.events)
    for uid, candidate in ctx.candidates.items():
        again = recreate(ctx, lineage(ctx.events, uid), 6, read_nothing)
        assert again.tobytes() == candidate.load().tobytes()  # type: ignore[union-attr]
    assert any(ancestor.origin == "token_noise" for ancestor in born.values())


@pytest.mark.parametrize("times", [3, 8, 16])
def test_population_on_tokens_follows_what_generations_cost(times: float) -> None:
    ctx = toy_context(TokenSampler(), times=times)
    run(evosearch, ctx)
    born = [(event.step, len(event.uids)) for event in events(ctx, "move")]
    whole = len(events(ctx, "init")[0].uids) * ctx.cost().compute
    children = sum(ctx.cost(step=step).compute * count for step, count in born)
    extra = events(ctx, "top_up")
    own = extra[0].spent.compute if extra else ctx.ledger.spent.compute
    assert own <= whole + children <= times * ctx.cost().compute * (1 + 1e-9)


def test_one_scale_is_nothing_to_evolve() -> None:
    ctx = toy_context(TokenSampler((4,)), times=4)
    run(evosearch, ctx)
    assert not events(ctx, "move") and len(ctx.candidates) >= 4


def test_rejects_noise_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"can be redone, here \[1, 2, 3, 4, 5\], but got \[0, 2\]"):
        run(evosearch, toy_context(TokenSampler(), times=8), evolution_schedule=[0, 2])


def nfe(name: str, **parameters: Any) -> float:
    ctx = toy_context(GaussianMixtureSampler(num_steps=50))
    run(evosearch, ctx, schedule=name, **parameters)
    return ctx.ledger.spent.nfe


@pytest.mark.parametrize(("name", "executed"), [("sd21", 5000), ("flux", 1465), ("wan", 1000)])
def test_strict_reference_costs_what_the_released_code_costs(name: str, executed: int) -> None:
    assert nfe(name, strict_reference=True) == executed


@pytest.mark.parametrize("name", SCHEDULES)
def test_elites_cost_nothing(name: str) -> None:
    plan = SCHEDULES[name]
    born = (0, *plan.evolution)
    assert nfe(name) == sum(size * (50 - step) for size, step in zip(plan.fresh, born))


def test_pools_are_cumulative() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=50))
    run(evosearch, ctx, strict_reference=True)
    assert [event.value["pool"] for event in events(ctx, "note")] == [42, 68, 94, 120]


def test_schedule_is_rescaled_to_the_steps() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=20))
    run(evosearch, ctx, n=4)
    assert [event.step for event in events(ctx, "move")] == [0, 8, 12, 16]
    assert [len(event.uids) for event in events(ctx, "move")] == [2, 2, 2, 2]
    assert [event.move["name"] for event in events(ctx, "move")] == ["blend"] + ["step_noise"] * 3


@pytest.mark.parametrize("times", [3, 4, 5.5, 10, 16, 40])
@pytest.mark.parametrize("strict_reference", [False, True])
def test_population_fills_the_budget_in_proportion(times: float, strict_reference: bool) -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=20), times=times)
    run(evosearch, ctx, strict_reference=strict_reference)
    # what does not pay for one more sample
    assert 20 * (times - 1) < ctx.ledger.spent.nfe <= 20 * times
    (size,) = (event.value for event in events(ctx, "size"))
    sizes = [len(events(ctx, "init")[0].uids), *(len(event.uids) for event in events(ctx, "move"))]
    if not strict_reference:
        assert sizes == SCHEDULES["sd21"].shared(size).fresh and len(sizes) > 1
    if times == 40 and not strict_reference:
        assert sizes == pytest.approx([40 / 89 * size for size in SCHEDULES["sd21"].fresh], abs=1.1)


def test_children_start_from_the_state_before_the_evolution_step() -> None:
    sampler = GaussianMixtureSampler(num_steps=6)
    ctx = toy_context(sampler, seed=5)
    run(evosearch, ctx, beta_step=0.0, evolution_schedule=[3], population_schedule=[2, 4], elites=1)
    child = events(ctx, "move")[0]
    assert child.step == 3
    parent = sampler.advance(sampler.init(Condition("x"), child.parents, seed=5), 3)
    # with beta 0 a child is its parent until its own noise sets in
    grown = sampler.advance(parent.select(range(3), uids=child.uids), 3)
    finals = {uid: candidate for uid, candidate in ctx.candidates.items() if uid in child.uids}
    expected = TargetReward().score(sampler.decode(grown), [ctx.prompt] * 3)
    assert [c.score.value for c in finals.values()] == pytest.approx([s.value for s in expected])


def test_parents_come_from_all_generations_and_the_best_wins() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=20), seed=1)
    run(evosearch, ctx, n=8, tournament=1.0)
    best_so_far = -1e9
    scored = iter(events(ctx, "score"))
    for event in events(ctx, "move"):
        best_so_far = max(best_so_far, *next(scored).values)
        assert {ctx.candidates[uid].score.value for uid in event.parents} == {best_so_far}


def test_strict_reference_feeds_states_back_one_step_early() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), seed=5)
    run(
        evosearch,
        ctx,
        strict_reference=True,
        evolution_schedule=[0, 3],
        population_schedule=[3, 3, 3],
        elites=1,
    )
    assert [event.from_step for event in events(ctx, "move")] == [1, 1, 4, 4]
    assert [event.step for event in events(ctx, "move")] == [0, 0, 3, 3]
    starts = [
        after.from_step
        for before, after in pairwise(ctx.events)
        if before.what == "add_step_noise" and after.what == "advance"
    ]
    assert starts == [0, 3]
    born = ancestry(ctx.events)
    elites = [a for a in born.values() if a.move == {"name": "add_step_noise", "scale": 0.0, "blend": 0.0}]
    assert len(elites) == 2, "elites are denoised again under new uids"


def test_beats_random_search_on_a_smooth_reward() -> None:
    def best(algorithm: Callable[[SearchContext], State], seed: int) -> float:
        ctx = toy_context(GaussianMixtureSampler(num_steps=10), seed=seed, times=16)
        run(algorithm, ctx)
        assert ctx.best is not None
        return ctx.best.score.value

    assert mean(best(evosearch, seed) for seed in range(15)) > 0.8 * mean(
        best(best_of_n, seed) for seed in range(15)
    )


def test_same_seed_same_search() -> None:
    first, second = (toy_context(GaussianMixtureSampler(num_steps=10), times=8) for _ in range(2))
    a, b = run(evosearch, first), run(evosearch, second)
    assert a.uids == b.uids and torch.equal(a.latents, b.latents)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"schedule": "sd3"}, "schedule must be one of sd21, flux, wan, hunyuan but got 'sd3'"),
        ({"evolution_schedule": [3, 1]}, r"must be increasing steps but got \[3, 1\]"),
        ({"evolution_schedule": [1, 1]}, "must be increasing steps"),
        ({"evolution_schedule": []}, "must be increasing steps"),
        ({"evolution_schedule": [0, 5]}, r"must lie between 0 and 4, the last of 5 steps, but got \[0, 5\]"),
        ({"evolution_schedule": [-1, 2]}, "must lie between 0 and 4"),
        (
            {"evolution_schedule": [1, 2], "population_schedule": [4, 4]},
            r"must have 3 sizes.* but got 2: \[4, 4\]",
        ),
        (
            {"evolution_schedule": [1], "population_schedule": [4, 2], "elites": 2},
            "must be larger than its 2 elites",
        ),
        (
            {"evolution_schedule": [1], "population_schedule": [0, 2], "elites": 1},
            "initial population must be",
        ),
        ({"evolution_schedule": [1], "population_schedule": [90, 9], "elites": 1}, "must fit its budget"),
        ({"elites": 0}, "elites must be at least 1"),
        ({"beta_step": 1.5}, "beta_step must be between 0 and 1 but got 1.5"),
        ({"tournament": -0.5}, "tournament must be between 0 and 1"),
    ],
)
def test_rejects(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(evosearch, toy_context(nfe=100), **parameters)


def test_the_papers_additive_move_at_the_right_step() -> None:
    sampler = GaussianMixtureSampler(num_steps=6)
    ctx = toy_context(sampler)
    run(evosearch, ctx, additive=True, evolution_schedule=[3], population_schedule=[2, 4], elites=1)
    child = events(ctx, "move")[0]
    assert (child.what, child.from_step, child.step) == ("add_noise", 3, 3)
    state = sampler.advance(sampler.init(Condition("x"), (0,), seed=3), 3)
    moved = sampler.apply(AddNoise(), state.select([0], uids=(9,)))
    std = float(state.carry["step_noise_std"][0])  # type: ignore[index]
    added = (moved.latents - state.latents) / std
    assert torch.allclose(added, row_noise(3, "mutate", (9,), 3, state.latents), atol=1e-5)
    with pytest.raises(ConfigError, match="two variants"):
        run(evosearch, toy_context(), additive=True, strict_reference=True)


def test_noise_and_steps_have_strengths_of_their_own() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6))
    run(evosearch, ctx, beta_noise=0.7, beta_step=0.1, **SMALL)
    assert [event.move for event in events(ctx, "move")] == [
        {"name": "blend", "beta": 0.7},
        {"name": "step_noise", "beta": 0.1},
    ]
