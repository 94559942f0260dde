from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from toy_judges import JudgedContract, StepJudge

from toy_search import events, run, toy_context
from tts_vision.algorithms.parm import parm
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError
from tts_vision.sampler import Sampler
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Media, Prompt, Score, State
from tts_vision.verifier import Verifier


class TestContract(JudgedContract):
    @pytest.fixture
    def kills(self) -> int:
        return 10

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return parm

    @pytest.fixture
    def verifier(self) -> Verifier:
        return StepJudge()

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"n": 5}

    @pytest.fixture
    def make_sampler(self) -> Callable[[], Sampler]:
        return partial(GaussianMixtureSampler, num_steps=4)


def calls(ctx: SearchContext, question: str) -> list[int]:
    return [len(event.uids) for event in events(ctx, "judge") if event.value == question]


# What is asked


def test_paths_run_as_one_batch_and_are_asked_until_they_are_clear() -> None:
    ctx = toy_context(verifier=StepJudge())
    parm(ctx, n=6, refill=False)
    assert [len(event.uids) for event in events(ctx, "init")] == [6]
    clear: set[int] = set()
    judged: list[int] = []
    for event in events(ctx, "judge"):
        if event.value == "clarity":
            assert not clear & set(event.uids), "asked again after it was clear"
            clear |= {uid for uid, score in zip(event.uids, event.scores) if score.satisfied}
        else:
            judged += event.uids
    assert sorted(judged) == sorted(clear) and len(set(judged)) == len(judged), "potential is asked once"


def test_a_preview_is_decoded_once_for_both_questions() -> None:
    ctx = toy_context(verifier=StepJudge(clear=-99))
    parm(ctx, n=4, reference_mode=True)
    assert calls(ctx, "clarity") == [4] and calls(ctx, "potential") == [4]
    # a preview of each path, and the finished ones with potential
    assert ctx.ledger.spent.decodes == 4 + len(ctx.candidates)


def test_answers_are_charged_and_recorded() -> None:
    judge = StepJudge()
    ctx = toy_context(verifier=judge)
    parm(ctx, n=5)
    asked = sum(n for _, n in judge.asked)
    assert ctx.ledger.calls == {"step_judge": asked + len(ctx.candidates)}
    recorded = [(event.value, len(event.uids)) for event in events(ctx, "judge")]
    assert recorded == judge.asked


# What stopping saves


def searched(**params: Any) -> SearchContext:
    ctx = toy_context(GaussianMixtureSampler(num_steps=8), StepJudge(), seed=5)
    parm(ctx, **params)
    return ctx


@pytest.mark.parametrize("seed", range(6))
def test_stopping_finds_the_winner_that_running_all_paths_finds(seed: int) -> None:
    found = []
    for mode in ({"refill": False}, {"reference_mode": True}):
        ctx = toy_context(GaussianMixtureSampler(num_steps=8), StepJudge(), seed=seed)
        parm(ctx, n=6, **mode)
        assert ctx.best is not None
        found.append((ctx, ctx.best.uid, ctx.best.score.value))
    (short, *winner), (whole, *same) = found
    assert winner == same
    # the verifier is asked the same; stopped paths take no more steps
    assert short.ledger.calls == whole.ledger.calls
    assert whole.ledger.spent.nfe == 6 * 8
    stopped = {
        uid: event.step
        for event in events(short, "judge")
        if event.value == "potential"
        for uid, score in zip(event.uids, event.scores)
        if not score.satisfied and uid not in short.candidates
    }
    saved = sum(8 - step for step in stopped.values())
    assert whole.ledger.spent.nfe - short.ledger.spent.nfe == saved


def test_some_paths_are_stopped() -> None:
    assert searched(n=6, refill=False).ledger.spent.nfe < 6 * 8


def test_what_stopping_saves_pays_for_fresh_paths() -> None:
    plain, ctx = searched(n=6, refill=False), searched(n=6)
    begun = [len(event.uids) for event in events(ctx, "init")]
    assert begun[0] == 6 and sum(begun) > 6
    assert plain.ledger.spent.nfe < ctx.ledger.spent.nfe <= 6 * 8
    # less than one more path could be paid for, or all places are taken
    assert 6 * 8 - ctx.ledger.spent.nfe < 8 + 8 or len(ctx.candidates) == 6


def test_without_refilling_the_rest_of_the_budget_is_saved() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=8), StepJudge(), seed=5, times=6)
    run(parm, ctx, refill=False)
    assert ctx.concluded and not events(ctx, "top_up")
    assert ctx.ledger.spent.nfe == searched(n=6, refill=False).ledger.spent.nfe


@pytest.mark.parametrize("limits", [{"verifier_calls": 60}, {"times": 5, "verifier_calls": 40}])
def test_questions_count_against_the_budget(limits: dict[str, Any]) -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), StepJudge(), **limits)
    run(parm, ctx)
    assert ctx.best is not None and ctx.ledger.spent.verifier_calls <= limits["verifier_calls"]


# Verifiers that say the same to everything


def test_if_nothing_is_ever_clear_the_final_question_decides() -> None:
    ctx = toy_context(verifier=StepJudge(clear=99))
    state = parm(ctx, n=4)
    assert calls(ctx, "clarity") == [4] * 5 and not calls(ctx, "potential")
    assert len(ctx.candidates) == 4 and len(state) == 4 and ctx.best is not None


def test_if_nothing_is_ever_clear_the_released_code_takes_the_first_one() -> None:
    ctx = toy_context(verifier=StepJudge(clear=99))
    parm(ctx, n=4, reference_mode=True)
    assert list(ctx.candidates) == [0]


@pytest.mark.parametrize("mode", [{}, {"refill": False}, {"reference_mode": True}])
def test_if_all_are_rejected_the_one_with_most_potential_is_finished(mode: dict[str, Any]) -> None:
    ctx = toy_context(verifier=StepJudge(promising=99))
    state = parm(ctx, n=4, **mode)
    answers = {
        uid: score.value
        for event in events(ctx, "judge")
        if event.value == "potential"
        for uid, score in zip(event.uids, event.scores)
    }
    assert list(ctx.candidates) == [max(answers, key=lambda uid: answers[uid])] == list(state.uids)
    assert state.step == ctx.num_steps
    assert ctx.ledger.spent.nfe <= 4 * 5


class Silent(StepJudge):
    """Fails at the first questions about clarity, and at some about potential."""

    failures = 0

    def clarity(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        self.failures += 1
        if self.failures <= 4:  # all three together, and each alone
            raise RuntimeError("the endpoint is down")
        return super().clarity(media, prompts)

    def potential(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        found = super().potential(media, prompts)
        return [Score.unscored("no answer") if score.value > 0.4 else score for score in found]


def test_a_failed_answer_is_none_and_is_asked_for_again() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=8), Silent(), seed=5)
    parm(ctx, n=3, refill=False)
    first = events(ctx, "judge")[0]
    assert all(score.satisfied is None and "down" in (score.reason or "") for score in first.scores)
    unanswered = [
        (event.step, uid)
        for event in events(ctx, "judge")
        if event.value == "potential"
        for uid, score in zip(event.uids, event.scores)
        if score.satisfied is None
    ]
    assert unanswered
    for step, uid in unanswered:
        later = [e for e in events(ctx, "judge") if e.value == "clarity" and e.step > step and uid in e.uids]
        assert later or step == 8
    assert ctx.best is not None


class Unscored(StepJudge):
    def score(self, *arguments: Any) -> list[Score]:
        return [Score.unscored("no answer") for _ in arguments[0]]

    def clarity(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(value=1)] * len(media)

    potential = clarity


def test_lives_with_samples_that_cannot_be_scored() -> None:
    ctx = toy_context(verifier=Unscored())
    state = parm(ctx, n=3)
    assert ctx.best is None and state.step == ctx.num_steps


# What it needs


def test_a_verifier_without_these_questions_is_refused() -> None:
    import tts_vision

    with pytest.raises(
        CapabilityError, match=r"'parm' needs a verifier that answers clarity and potential but"
    ):
        tts_vision.search(
            GaussianMixtureSampler(), "x", algorithm="parm", verifier=TargetReward(), budget="4x"
        )
    with pytest.raises(CapabilityError, match="'target_reward' was asked for 'clarity' and answers none"):
        parm(toy_context(), n=2)
