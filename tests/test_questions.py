"""Questions of a verifier: charged and recorded like scores, and repeated from the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from toy_judges import StepJudge

from toy_search import events, toy_context
from tts_vision.context import SearchContext
from tts_vision.errors import BudgetSpent, CapabilityError, ConfigError
from tts_vision.journal import Journal
from tts_vision.rehearsal import rehearse
from tts_vision.sampler import Sampler
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Cost, Media, Prompt, Score, State
from tts_vision.verifier import Question, as_verifier


def test_an_answer_is_recorded_and_charged_and_makes_no_candidate() -> None:
    judge = StepJudge()
    ctx = toy_context(verifier=judge)
    state = ctx.advance(ctx.init(3), 2)
    answers = ctx.judge(state, "clarity")
    assert [a.satisfied for a in answers] == [a.value > 0.5 for a in answers]
    (event,) = events(ctx, "judge")
    assert (event.value, event.uids, event.step, event.preview) == ("clarity", (0, 1, 2), 2, True)
    assert list(event.scores) == answers
    assert ctx.ledger.spent == Cost(nfe=6, decodes=3, verifier_calls=3)
    assert not ctx.candidates and ctx.best_preview is None


def test_a_resumed_search_takes_the_answers_from_its_record(tmp_path: Path) -> None:
    def search(judge: StepJudge) -> tuple[SearchContext, list[Score]]:
        ctx = toy_context(verifier=judge, journal=Journal(tmp_path))
        return ctx, ctx.judge(ctx.advance(ctx.init(3), 2), "potential")

    first, given = search(StepJudge())
    first.interrupted("killed")
    silent = StepJudge()
    again, taken = search(silent)
    assert taken == given and not silent.asked and again.ledger.spent == first.ledger.spent


def test_a_sample_is_decoded_once_for_all_questions_and_its_score() -> None:
    ctx = toy_context(verifier=StepJudge())
    state = ctx.finish(ctx.init(4))
    ctx.judge(state, "clarity")
    ctx.judge(state.select([1, 3]), "potential")
    ctx.score(state)
    assert ctx.ledger.spent.decodes == 4 and ctx.ledger.spent.verifier_calls == 4 + 2 + 4


def test_what_cannot_be_paid_for_is_not_asked() -> None:
    judge = StepJudge()
    ctx = toy_context(verifier=judge, verifier_calls=5)
    state = ctx.advance(ctx.init(3), 1)
    ctx.judge(state, "clarity")
    with pytest.raises(BudgetSpent):
        ctx.judge(state, "potential")
    assert judge.asked == [("clarity", 3)] and ctx.ledger.spent.verifier_calls == 3


class Twice(StepJudge):
    """Calls itself twice for each answer."""

    def calls_to_answer(self, question: str, n: int) -> dict[str, int]:
        return {self.name: 2 * n}


def judged(ctx: SearchContext, *, n: int = 2) -> State:
    state = ctx.advance(ctx.init(n), 1)
    asked = state
    if ctx.judge(state, "clarity", expected=False)[0].satisfied:
        asked = ctx.advance(state, 1)
        ctx.judge(asked, "potential")
    done = ctx.finish(asked)
    ctx.score(done)
    return done


@pytest.mark.parametrize("clear", [99.0, -99.0])
def test_a_rehearsal_asks_nobody_and_expects_verdicts(clear: float) -> None:
    judge = Twice(clear=clear)
    ctx = toy_context(verifier=judge)
    price = rehearse(ctx, judged, {"n": 3})
    assert price == Cost(nfe=15, decodes=6, verifier_calls=9) and not judge.asked
    judged(ctx, n=3)
    assert (ctx.ledger.spent == price) == (clear > 0)


def test_the_price_of_a_question() -> None:
    class Dear(GaussianMixtureSampler):
        def preview_cost(self, condition: Any, step: int) -> Cost:
            return Cost(nfe=step)

    ctx = toy_context(Dear(num_steps=5), Twice())
    assert ctx.judge_cost(3, "clarity") == Cost(nfe=3, decodes=1, verifier_calls=2)
    assert ctx.judge_cost(5, "clarity") == Cost(decodes=1, verifier_calls=2)


class Failing(StepJudge):
    def clarity(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        if len(media) > 1 or self.failed:
            raise RuntimeError("down")
        self.failed = True
        return [Score(value=1.0)]

    failed = False


def test_a_failed_answer_is_no_verdict() -> None:
    ctx = toy_context(verifier=Failing())
    first, second = ctx.judge(ctx.finish(ctx.init(2)), "clarity")
    assert first.satisfied and math.isnan(second.value) and second.satisfied is None
    assert second.reason == "step_judge raised RuntimeError: down"


def test_a_question_that_nobody_answers_is_refused() -> None:
    ctx = toy_context(verifier=StepJudge())
    state = ctx.finish(ctx.init(1))
    with pytest.raises(CapabilityError, match="asked for 'taste' and answers clarity, potential"):
        ctx.judge(state, "taste")
    with pytest.raises(CapabilityError, match="asked for 'clarity' and answers none"):
        Question(TargetReward(), "clarity")

    class Blind(GaussianMixtureSampler):
        def __init__(self) -> None:
            super().__init__()
            self.capabilities -= {"preview"}

    sampler: Sampler = Blind()
    ctx = toy_context(sampler, StepJudge())
    with pytest.raises(CapabilityError, match="Judging at step 1 of 10 needs a sampler with 'preview'"):
        ctx.judge(ctx.advance(ctx.init(1), 1), "clarity")
    with pytest.raises(ConfigError, match="'judge' is an operation"):
        ctx.ask("judge", lambda: 1)


def test_an_object_with_methods_of_these_names_answers_too() -> None:
    class Mine:
        name, accepts = "mine", frozenset({"image"})
        questions = ("clarity",)

        def score(self, media: Any, prompts: Any) -> list[float]:
            return [0.0] * len(media)

        def clarity(self, media: Any, prompts: Any) -> list[float]:
            return [0.6] * len(media)

    verifier = as_verifier(Mine())
    assert verifier.questions == {"clarity"}
    ctx = toy_context(verifier=verifier)
    (answer,) = ctx.judge(ctx.finish(ctx.init(1)), "clarity")
    assert answer.value == 0.6 and answer.satisfied
    with pytest.raises(CapabilityError, match="answers clarity"):
        verifier.answer("potential", [], [])


def test_answers_may_be_about_particles() -> None:
    ctx = toy_context()
    state = ctx.init(2)
    assert ctx.ask("remark", lambda: "fine", about=state.select([1])) == "fine"
    assert events(ctx, "remark")[0].uids == (1,)
