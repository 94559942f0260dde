"""A masked-token model keeps the contract of samplers, and searches breed and branch it unchanged."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked_sampler import IDS, MASK, TOKENS, UNMASKED, MaskedSampler, Remask, favourite_of

import tts_vision
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.moves import describe, from_description
from tts_vision.testing.contracts import SEED, SamplerContract, kill_everywhere
from tts_vision.types import Prompt, State
from tts_vision.verifier import FunctionVerifier

CONDITION = Condition("two red circles")


def smooth(images: Any, prompts: Any) -> list[float]:
    """Likes tokens that agree with their neighbours."""
    return [-float(np.abs(np.diff(np.asarray(i.convert("L")).ravel().astype(float))).mean()) for i in images]


class TestMaskedSampler(SamplerContract):
    @pytest.fixture
    def sampler(self) -> MaskedSampler:
        return MaskedSampler()


def test_tokens_are_unmasked_on_schedule_and_stay() -> None:
    sampler = MaskedSampler()
    state, before = sampler.init(CONDITION, range(4), seed=0), torch.full((4, TOKENS), MASK)
    for step in range(1, 7):
        state = sampler.advance(state)
        known = state.latents != MASK
        assert known.sum(1).tolist() == [round(TOKENS * step / 6)] * 4
        assert torch.equal(state.latents[before != MASK], before[before != MASK])
        assert torch.equal(state.carry[UNMASKED] > 0, known & (before == MASK))
        before = state.latents
    assert int(state.latents.max()) < IDS


def test_the_prompt_matters() -> None:
    sampler = MaskedSampler()
    for text in ("a", "d"):
        condition = Condition(text)
        end = sampler.advance(sampler.init(condition, range(64), seed=0), 6).latents
        assert int(end.flatten().bincount(minlength=IDS).argmax()) == favourite_of(condition)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_last_steps_tokens_is_masked_again(share: float) -> None:
    sampler = MaskedSampler()
    parents = sampler.advance(sampler.init(CONDITION, range(200), seed=0), 3)
    children = sampler.apply(Remask(share), parents)
    assert children.step == 2
    fresh = parents.carry[UNMASKED] > 0
    masked = children.latents == MASK
    assert torch.equal(children.latents[~masked], parents.latents[~masked])
    assert not (masked & (parents.latents != MASK) & ~fresh).any()
    assert float((masked & fresh).sum() / fresh.sum()) == pytest.approx(share, abs=0.05)
    again = sampler.advance(children)
    assert torch.equal((again.latents == MASK).sum(1), (parents.latents == MASK).sum(1))
    assert share or torch.equal(again.latents, parents.latents)
    with pytest.raises(CapabilityError, match="Masking tokens again needs a state that carries 'unmasked'"):
        sampler.apply(Remask(0.5), sampler.renoise(parents, 2))
    with pytest.raises(ConfigError, match="needs one step done but got 0"):
        sampler.apply(Remask(0.5), sampler.init(CONDITION, [0], seed=0))
    with pytest.raises(ConfigError, match=r"share must be in \[0, 1\] but got 2"):
        Remask(2.0)


def test_the_move_is_known_to_replays() -> None:
    assert from_description(describe(Remask(0.25))) == Remask(0.25)


def test_children_of_a_strong_move_follow_the_models_probabilities() -> None:
    """A step that is drawn afresh gives samples that are distributed as those of fresh particles."""
    sampler = MaskedSampler()
    plain = sampler.advance(sampler.init(CONDITION, range(2000), seed=0), 6).latents
    parents = sampler.advance(sampler.init(CONDITION, range(5000, 7000), seed=0), 3)
    children = sampler.apply(Remask(1.0), parents.select(range(2000), uids=range(9000, 11000)))
    bred = sampler.advance(children, 4).latents
    assert not torch.equal(sampler.advance(children).latents, parents.latents)
    shares = [tokens.flatten().bincount(minlength=IDS) / tokens.numel() for tokens in (plain, bred)]
    assert torch.allclose(shares[0], shares[1], atol=0.02)


def refilled_paths(ctx: SearchContext, *, n: int = 8, clear_at: int = 2, keep: float = 0.5) -> State:
    """Paths that are not promising once they are clear stop, and fresh ones take their places (PARM)."""
    done = []
    for _ in range(2):
        paths = ctx.advance(ctx.init(n), clear_at)
        order = ctx.score(paths).argsort(descending=True)[: max(1, int(keep * n))]
        done.append(ctx.finish(ctx.select(paths, order.tolist())))
        ctx.score(done[-1])
    return State.cat(done)


@pytest.mark.parametrize(
    "algorithm",
    [
        "best_of_n",
        "beam_search",
        "fk_steering",
        "greedy",
        "search_over_paths",
        "evosearch",
        "tts_var:clustering=false",
        refilled_paths,
    ],
)
def test_searches_run_unchanged(algorithm: Any) -> None:
    result = tts_vision.search(MaskedSampler(), "x", algorithm=algorithm, verifier=smooth, budget="16x")
    assert result.best.score.value == max(c.score.value for c in result.population)
    assert result.spent.nfe <= 16 * 6


def test_evolution_survives_a_kill_anywhere(tmp_path: Path) -> None:
    algorithm = partial(evosearch, evolution_schedule=[2, 4], population_schedule=[3, 3, 3], elites=1)
    kill_everywhere(algorithm, MaskedSampler, FunctionVerifier(smooth), tmp_path)


def test_children_are_recorded_with_their_move() -> None:
    ctx = SearchContext(MaskedSampler(), smooth, Prompt("x"), seed=SEED)
    evosearch(ctx, evolution_schedule=[2, 4], population_schedule=[3, 3, 3], elites=1)
    moves = [event.move for event in ctx.events if event.kind == "birth" and event.what == "remask"]
    assert moves == [{"name": "remask", "share": pytest.approx(0.04)}] * 2
