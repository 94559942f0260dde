"""Beam search: which branch goes on, what sharing saves, and budgets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toy_tokens import TokenAlgorithmContract, TokenSampler

from toy_search import events, run, toy_context
from tts_vision.algorithms.beam_search import beam_search, chosen_scales
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.rehearsal import rehearse
from tts_vision.testing.contracts import AlgorithmContract, kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Cost, State


class TestContract(AlgorithmContract):
    @pytest.fixture
    def kills(self) -> int:
        return 10

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return beam_search

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"width": 2, "branch": 2}


class TestContractOnTokens(TokenAlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return beam_search

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"width": 2, "branch": 2}


def test_the_best_branches_go_on() -> None:
    ctx = toy_context(TokenSampler(), seed=1)
    state = run(beam_search, ctx, width=2, branch=3)
    scored, selected = events(ctx, "score"), events(ctx, "select")
    assert [(event.step, len(event.uids)) for event in scored] == [(step, 6) for step in range(1, 7)]
    kept = [event for event in selected if len(event.uids) == 2]
    for verdicts, choice in zip(scored, kept):
        best = sorted(verdicts.values, reverse=True)[:2]
        values = dict(zip(verdicts.uids, verdicts.values))
        assert [values[uid] for uid in choice.parents] == best
    # each beam has three branches, next to each other
    branched = [event for event in selected if len(event.uids) == 6]
    assert all(event.parents[:3] == (event.parents[0],) * 3 for event in branched)
    assert len(branched) == 5 and len(state) == 6


def test_branches_share_all_but_the_chosen_scale() -> None:
    ctx = toy_context(TokenSampler(), seed=1)
    state = run(beam_search, ctx, width=2, branch=3, scales=[3])
    assert [(event.step, len(event.uids)) for event in events(ctx, "score")] == [(4, 6), (6, 2)]
    assert [len(event.uids) for event in events(ctx, "advance")] == [2, 6, 2]
    assert len(state) == 2


def expected_cost(ctx: SearchContext, width: int, branch: int, scales: list[int]) -> Cost:
    """By hand: forwards, of which branches of one beam share one of a token model, and scores."""
    rows = [width * branch if step in scales else width for step in range(ctx.num_steps)]
    shares = ctx.sampler.shares_forwards
    forwards = [width if step in scales and shares else n for step, n in enumerate(rows)]
    if shares:
        forwards[0] = 1  # all start from nothing
    scored = sum(rows[step] for step in scales if step < ctx.num_steps - 1) + rows[-1]
    each = [ctx.cost(1, step=step, scored=False) * n for step, n in enumerate(forwards)]
    return sum(each, ctx.score_cost * scored)


@pytest.mark.parametrize("scales", [[0, 1, 2, 3, 4, 5], [0, 5], [2, 4], [1]])
def test_cost(scales: list[int]) -> None:
    ctx = toy_context(TokenSampler(pull=0.1), seed=1)
    price = rehearse(ctx, beam_search, {"width": 2, "branch": 3, "scales": scales})
    assert price == expected_cost(ctx, 2, 3, scales)
    run(beam_search, ctx, width=2, branch=3, scales=scales)
    spent = ctx.ledger.spent
    assert (spent.decodes, spent.verifier_calls) == (price.decodes, price.verifier_calls)
    # beams may happen to agree, while their tokens are few
    assert 0 <= price.compute - spent.compute <= 2 * ctx.cost(3, scored=False).compute
    plain = toy_context(GaussianMixtureSampler(num_steps=7), seed=1)
    run(beam_search, plain, width=2, branch=3, scales=scales)
    assert plain.ledger.spent == expected_cost(plain, 2, 3, scales)


def test_sharing_pays_for_more_beams() -> None:
    def width(sampler: Any) -> int:
        ctx = toy_context(sampler, times=8)
        run(beam_search, ctx)
        return len(next(event for event in events(ctx, "select")).uids)

    assert width(TokenSampler()) > 2 * width(GaussianMixtureSampler(num_steps=6))


def test_chosen_scales() -> None:
    assert chosen_scales(toy_context(TokenSampler()), None) == [0, 1, 2, 3, 4, 5]
    # the last step of a diffusion model adds no noise
    assert chosen_scales(toy_context(GaussianMixtureSampler(num_steps=5)), None) == [0, 1, 2, 3]
    many = chosen_scales(toy_context(GaussianMixtureSampler(num_steps=50)), None)
    assert len(many) == 9 and many[0] == 0 and many == sorted(set(many))


def test_resumes(tmp_path: Path) -> None:
    kill_everywhere(
        partial(beam_search, width=2, branch=2, scales=[1, 4]),
        TokenSampler,
        TargetReward(),
        tmp_path,
        most=10,
    )


def test_independent_samples_where_one_beam_is_too_much() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), times=2.5)
    state = run(beam_search, ctx)
    assert [len(event.uids) for event in events(ctx, "init")] == [2]
    assert len(events(ctx, "top_up")) == 1 and not events(ctx, "select")
    assert state.uids == tuple(ctx.candidates) == (0, 1)
    two = toy_context(GaussianMixtureSampler(num_steps=6), times=2.5)
    run(beam_search, two, branch=2)
    assert events(two, "select"), "one beam with two branches is not"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"branch": 0}, "branch must be at least 1"),
        ({"scales": []}, r"scales must increase and lie between 0 and 5 but got \[\]"),
        ({"scales": [3, 1]}, "scales must increase"),
        ({"scales": [2, 6]}, r"between 0 and 5 but got \[2, 6\]"),
        ({"scales": [-1]}, "scales must increase"),
        ({"width": 90}, "must fit its budget of .* macs but width=90 costs"),
    ],
)
def test_rejects(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(beam_search, toy_context(TokenSampler(), times=8), **parameters)


def test_rejects_branches_that_could_not_differ() -> None:
    with pytest.raises(ConfigError, match="no step from 5 on adds noise"):
        run(beam_search, toy_context(GaussianMixtureSampler(num_steps=6)), scales=[1, 5])
