"""ReflectionFlow, RAISE and fusion, which share a loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from toy_judges import REASON, Demanding, JudgedContract, Obedient, Reasoning

from toy_search import events, run, toy_context
from tts_vision.algorithms.fusion import best_parts, fusion
from tts_vision.algorithms.raise_search import raise_search
from tts_vision.algorithms.reflection_flow import reflection_flow
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import AlgorithmContract
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Score, State
from tts_vision.verifier import Verifier


class ReflectionContract(AlgorithmContract):
    @pytest.fixture
    def kills(self) -> int:
        return 6

    @pytest.fixture
    def params(self) -> dict[str, Any]:
        return {"n": 1}

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"rounds": 3, "n": 3}

    @pytest.fixture
    def make_sampler(self) -> Callable[[], Sampler]:
        return partial(GaussianMixtureSampler, num_steps=4)

    @pytest.mark.parametrize("times", [2, 7.5, 16])
    def test_fits_every_budget(
        self, search: Callable[..., tuple[SearchContext, State]], times: float
    ) -> None:
        super().test_fits_every_budget(search, times)


class TestReflectionFlow(ReflectionContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return reflection_flow


class TestFusion(ReflectionContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return fusion


class Never(Demanding):
    """Demands that no sample meets."""

    def __init__(self) -> None:
        super().__init__(reach=-1.0)


class TestRaise(JudgedContract, ReflectionContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return raise_search

    @pytest.fixture
    def verifier(self) -> Verifier:
        return Never()


def corrections(ctx: SearchContext) -> list[tuple[int, str, tuple[int, ...]]]:
    return [(e.value["rejected"], e.value["corrector"], e.uids) for e in events(ctx, "correction")]


# ReflectionFlow


def test_each_round_corrects_the_best_branches_from_their_own_state() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), TargetReward())
    reflection_flow(ctx, n=4, rounds=1, branches=2)
    plain = {uid: ctx.candidates[uid].score.value for uid in range(4)}
    best = sorted(plain, key=lambda uid: -plain[uid])[:2]
    assert [rejected for rejected, _, _ in corrections(ctx)] == best
    back = events(ctx, "renoise")
    assert [event.parents for event in back] == [(best[0],), (best[1],)]
    # the noise of each correction is its own: no two children agree
    children = [uid for _, _, uids in corrections(ctx) for uid in uids]
    assert len({ctx.candidates[uid].score.value for uid in children}) == 2


def test_plain_samples_may_win_and_answers_keep_their_order() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), TargetReward(), seed=0)
    reflection_flow(ctx, n=6, rounds=2, branches=3, corrector="resample")
    assert ctx.best is not None
    assert ctx.best.score.value == max(c.score.value for c in ctx.candidates.values())
    said = [(event.uids[0], event.op) for event in events(ctx, "reflection")]
    corrected = [(uid, 0) for uid, _, _ in corrections(ctx)]
    assert [uid for uid, _ in said] == [uid for uid, _ in corrected]


def test_better_children_take_the_place_of_their_parents() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), TargetReward())
    reflection_flow(ctx, n=2, rounds=6, branches=2, patience=99)
    parent_of = {uid: rejected for rejected, _, uids in corrections(ctx) for uid in uids}
    values = {uid: candidate.score.value for uid, candidate in ctx.candidates.items()}
    for rejected, _, _ in corrections(ctx):
        if rejected in parent_of:
            assert values[rejected] > values[parent_of[rejected]]


def test_children_only_follows_the_last_round() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), TargetReward())
    reflection_flow(ctx, n=4, rounds=3, branches=2, children_only=True)
    rounds = [corrections(ctx)[i : i + 2] for i in (0, 2, 4)]
    for before, after in pairwise(rounds):
        assert {rejected for rejected, _, _ in after} == {uid for _, _, uids in before for uid in uids}


def test_an_attempt_that_holds_ends_the_search() -> None:
    ctx = toy_context(Obedient(num_steps=4), Reasoning(enough=-0.1), times=40, seed=0)
    run(reflection_flow, ctx, corrector="prompt")
    said = [event.value["holds"] for event in events(ctx, "reflection")]
    assert any(said[-2:]) and not any(said[:-2]) and ctx.concluded
    assert ctx.ledger.spent.nfe < 40 * 4
    early = toy_context(Obedient(num_steps=4), TargetReward())
    reflection_flow(early, n=3, holds=-99.0)
    assert len(early.candidates) == 3


def test_refined_prompts_go_along_and_are_dropped_with_their_samples() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=4), Reasoning(enough=99))
    reflection_flow(ctx, n=2, rounds=2, branches=1, corrector="prompt", refine_by="phrasings", patience=9)
    texts = [t["text"] for e in events(ctx, "init") for t in e.defined.values()]
    assert texts and all(text.endswith(f", {REASON}") and text.count(REASON) == 1 for text in texts)
    assert texts[0] == f"a photo of x, {REASON}"


# RAISE


def test_all_actions_compete_for_the_best_sample() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=4), Never())
    raise_search(ctx, n=2, rounds=2, children=2)
    for begin in (0, 3):
        three = corrections(ctx)[begin : begin + 3]
        assert [name for _, name, _ in three] == ["prompt", "resample", "edit"]
        assert len({rejected for rejected, _, _ in three}) == 1
        assert all(len(uids) == 2 for _, _, uids in three)
    assert events(ctx, "reflection")[0].value["reason"] == "failed: across, up"


def test_it_stops_when_all_demands_are_met() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=4), Demanding(reach=0.6), times=200)
    run(raise_search, ctx)
    assert ctx.best is not None and ctx.concluded and ctx.ledger.spent.nfe < 200 * 4
    holds = [event.value["holds"] for event in events(ctx, "reflection")]
    assert holds[-1] and not any(holds[:-1])


def test_a_verifier_must_check_demands() -> None:
    with pytest.raises(
        ConfigError, match="needs a verifier that checks demands but 'target_reward' gives scores"
    ):
        raise_search(toy_context())
    with pytest.raises(ConfigError, match="at least one action"):
        raise_search(toy_context(verifier=Never()), actions=[])
    with pytest.raises(CapabilityError, match="remask"):
        raise_search(toy_context(verifier=Never()), actions=["remask"])


# Fusion


def test_the_best_parts_of_others_are_named() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=4), Never())
    fusion(ctx, n=5, rounds=1, top=3)
    ((rejected, _, _),) = corrections(ctx)
    plain = sorted(range(5), key=lambda uid: -ctx.candidates[uid].score.value)
    assert rejected == plain[0]
    scores = [ctx.candidates[uid].score for uid in plain[:3]]
    assert events(ctx, "reflection")[0].value["reason"] == best_parts(scores)


def test_parts_are_compared_with_those_of_the_best() -> None:
    first = Score(value=0.6, parts={"a red circle": 0.9, "a blue star": 0.3}, reason="failed: a blue star")
    other = Score(value=0.5, parts={"a red circle": 0.1, "a blue star": 0.9})
    assert best_parts([first, other]) == "failed: a blue star; with a blue star"
    assert best_parts([first]) == "failed: a blue star" and best_parts([other]) == ""
