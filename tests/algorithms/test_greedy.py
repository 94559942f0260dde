"""Greedy search: a beam of one, repeated while the budget lasts."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest
import torch
from toy_tokens import TokenAlgorithmContract, TokenSampler

from toy_search import events, run, toy_context
from tts_vision.algorithms.beam_search import beam_search
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.greedy import greedy
from tts_vision.errors import ConfigError
from tts_vision.testing.contracts import AlgorithmContract
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import State


class TestContract(AlgorithmContract):
    @pytest.fixture
    def kills(self) -> int:
        return 10

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return greedy

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"runs": 2, "branch": 2}


class TestContractOnTokens(TokenAlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return greedy

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"runs": 2, "branch": 2}


def test_is_a_beam_of_one() -> None:
    first, second = toy_context(TokenSampler()), toy_context(TokenSampler())
    a, b = run(greedy, first, branch=3), run(beam_search, second, width=1, branch=3)
    assert a.uids == b.uids and torch.equal(a.latents, b.latents)
    assert first.ledger.spent == second.ledger.spent


def test_one_forward_a_scale_whatever_the_branches() -> None:
    ctx = toy_context(TokenSampler())
    run(greedy, ctx, branch=8)
    assert ctx.ledger.spent.compute == ctx.cost().compute
    assert ctx.ledger.spent.decodes == ctx.ledger.spent.verifier_calls == 8 * 6


def test_repeats_while_the_budget_lasts() -> None:
    ctx = toy_context(TokenSampler(), times=5)
    run(greedy, ctx)
    # a run costs what a plain sample costs
    assert len(events(ctx, "init")) == 5
    assert ctx.ledger.spent.compute == pytest.approx(5 * ctx.cost().compute)


def test_gets_more_out_of_each_forward_than_plain_samples() -> None:
    def best(algorithm: Callable[..., State], seed: int) -> float:
        ctx = toy_context(TokenSampler(), TargetReward((2.0, 2.0)), seed=seed, times=2)
        run(algorithm, ctx)
        assert ctx.best is not None
        return ctx.best.score.value

    assert mean(best(greedy, seed) for seed in range(20)) > mean(best(best_of_n, seed) for seed in range(20))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"runs": 0}, "runs must be at least 1"),
        ({"branch": 0}, "branch must be at least 1"),
        ({"scales": [9]}, "between 0 and 5 but got"),
        ({"runs": 12}, "must fit its budget of .* macs but runs=12 costs"),
    ],
)
def test_rejects(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(greedy, toy_context(TokenSampler(), times=8), **parameters)


def test_tells_siblings_apart_on_diffusion_models() -> None:
    def best(algorithm: Callable[..., State], seed: int) -> float:
        ctx = toy_context(GaussianMixtureSampler(num_steps=10), seed=seed, times=16)
        run(algorithm, ctx)
        assert ctx.best is not None
        return ctx.best.score.value

    # at the same nfe; with x0 estimates from before the branch's own noise it ended below best of n
    chosen, plain = (mean(best(a, seed) for seed in range(10)) for a in (greedy, best_of_n))
    assert chosen > -0.05 > plain + 0.1
