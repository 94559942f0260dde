from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toy_judges import REASON, JudgedContract, Obedient, Reasoning, StepJudge

from toy_search import events, run, toy_context
from tts_vision.algorithms.parm_pp import parm_pp
from tts_vision.context import SearchContext
from tts_vision.correcting import CannotCorrect, Rejected
from tts_vision.errors import ConfigError, SearchWarning
from tts_vision.journal import Journal
from tts_vision.registry import lookup
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import State
from tts_vision.verifier import Verifier


class TestContract(JudgedContract):
    @pytest.fixture
    def kills(self) -> int:
        return 6

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return parm_pp

    @pytest.fixture
    def verifier(self) -> Verifier:
        return Reasoning(enough=99)  # nothing is ever good enough

    @pytest.fixture
    def params(self) -> dict[str, Any]:
        return {"max_reflections": 1, "corrector": "resample"}

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"n": 2, "max_reflections": 1}

    @pytest.fixture
    def make_sampler(self) -> Callable[[], Sampler]:
        return partial(GaussianMixtureSampler, num_steps=4)

    @pytest.mark.parametrize("times", [2, 5, 9])
    def test_fits_every_budget(
        self, search: Callable[..., tuple[SearchContext, State]], times: float
    ) -> None:
        super().test_fits_every_budget(search, times)


def reflections(ctx: SearchContext) -> list[dict[str, Any]]:
    return [{"uid": event.uids[0], **event.value} for event in events(ctx, "reflection")]


def test_the_rejected_winner_is_corrected_by_its_reason() -> None:
    ctx = toy_context(Obedient(num_steps=4), Reasoning(enough=-0.5), seed=2)
    state = parm_pp(ctx, n=2, max_reflections=5, corrector="prompt")
    said = reflections(ctx)
    assert not said[0]["holds"] and said[0]["reason"] == REASON
    first = ctx.candidates[said[0]["uid"]]
    correction = events(ctx, "correction")[0]
    assert correction.value == {"corrector": "prompt", "rejected": first.uid}
    # the reason is in the prompt of the new paths, and their previews are judged from the start
    births = [event for event in events(ctx, "init") if event.uids == correction.uids]
    (described,) = births[0].defined.values()
    assert described["text"] == f"x, {REASON}"
    assert any(e.value == "clarity" and set(e.uids) <= set(correction.uids) for e in events(ctx, "judge"))
    assert said[-1]["holds"] and ctx.concluded
    assert ctx.best is not None and ctx.best.uid == said[-1]["uid"] == state.uids[0]
    assert ctx.best.score.value > first.score.value


def test_a_winner_that_holds_ends_the_search_and_saves_the_rest() -> None:
    ctx = toy_context(Obedient(num_steps=4), Reasoning(enough=-99), times=16)
    run(parm_pp, ctx)
    assert [r["holds"] for r in reflections(ctx)] == [True]
    assert ctx.ledger.spent.nfe <= 16 * 4 / 2 and not events(ctx, "top_up")


def test_reasons_do_not_add_up_and_a_failed_attempt_is_dropped() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=4), Reasoning(enough=99), seed=1)
    parm_pp(ctx, n=2, max_reflections=9, corrector="prompt")
    texts = {text["text"] for event in events(ctx, "init") for text in event.defined.values()}
    assert texts == {f"x, {REASON}"}, "each correction starts from the user's prompt"
    rejected = [event.value["rejected"] for event in events(ctx, "correction")]
    best = dict.fromkeys(rejected)
    # an image is corrected again only if its correction was better, else it is dropped for fresh paths
    assert len(best) == len(rejected)
    fresh = [event for event in events(ctx, "init") if not event.conditions]
    assert len(fresh) > 1


def test_patience_corrects_an_image_again() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=4), Reasoning(enough=99), seed=1)
    parm_pp(ctx, n=2, max_reflections=9, corrector="prompt", patience=99)
    rejected = [event.value["rejected"] for event in events(ctx, "correction")]
    assert len(set(rejected)) < len(rejected)
    values = [ctx.candidates[uid].score.value for uid in rejected]
    assert values == sorted(values), "what is corrected only gets better"


def test_a_score_decides_where_the_verifier_gives_no_verdict() -> None:
    low = toy_context(verifier=StepJudge())
    parm_pp(low, n=2, max_reflections=2, holds=-99)
    assert [r["holds"] for r in reflections(low)] == [True]
    high = toy_context(verifier=StepJudge())
    parm_pp(high, n=2, max_reflections=2, corrector="prompt", holds=99)
    assert not any(r["holds"] for r in reflections(high))
    assert not events(high, "init")[1].conditions, "without a reason the prompt stays as it is"


def test_no_reflection_is_parm() -> None:
    ctx = toy_context(verifier=Reasoning())
    parm_pp(ctx, n=4, max_reflections=0)
    assert not events(ctx, "correction") and len(events(ctx, "reflection")) == 1


def unable(ctx: SearchContext, rejected: Rejected, n: int) -> State:
    """A corrector that can correct nothing."""
    raise CannotCorrect("no part of it is wrong")


def broken(ctx: SearchContext, rejected: Rejected, n: int) -> State:
    """A corrector that fails until it is repaired."""
    if WORKS:
        return ctx.init(n)
    raise RuntimeError("the editor is down")


WORKS: list[bool] = []


def test_fresh_samples_take_the_place_of_what_cannot_be_corrected() -> None:
    ctx = toy_context(verifier=Reasoning(enough=99))
    with pytest.warns(SearchWarning, match="'unable' cannot correct .*no part of it is wrong.*fresh sam"):
        parm_pp(ctx, n=2, max_reflections=1, corrector=f"{__file__}@unable")
    (correction,) = events(ctx, "correction")
    assert correction.value["corrector"] == "unable" and set(correction.uids) & set(ctx.candidates)


@pytest.mark.filterwarnings("ignore::tts_vision.errors.SearchWarning")
def test_that_is_repeated_on_resume(tmp_path: Path) -> None:
    algorithm = partial(parm_pp, n=2, max_reflections=1, corrector=f"{__file__}@unable")
    kill_everywhere(
        algorithm, lambda: GaussianMixtureSampler(num_steps=3), Reasoning(enough=99), tmp_path, most=6
    )


def test_a_corrector_that_fails_stops_the_search_which_goes_on_when_it_is_repaired(tmp_path: Path) -> None:
    algorithm = partial(parm_pp, n=2, max_reflections=1, corrector=f"{__file__}@broken")
    first = toy_context(verifier=Reasoning(enough=99), journal=Journal(tmp_path))
    with pytest.raises(RuntimeError, match="the editor is down"):
        algorithm(first)
    first.interrupted("RuntimeError")
    working = lookup("corrector", f"{__file__}@broken").target.__globals__["WORKS"]
    working.append(True)
    again = toy_context(verifier=Reasoning(enough=99), journal=Journal(tmp_path))
    algorithm(again)
    working.clear()
    assert len(again.candidates) > len(first.candidates) and len(events(again, "correction")) == 1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"corrector": "unheard"},
            "Corrector must be one of .*remask.* but got 'unheard'",
        ),
        ({"corrector": "edit(x)"}, "has no members"),
        ({"corrector": "edit:strength=2"}, "strength must be above 0 and at most 1 but got 2"),
        ({"corrector": "edit:size=64x64"}, "size is that of the image for an editor but none is named"),
        ({"corrector": "prompt:template=x"}, "template must contain"),
        ({"critic": "nobody"}, "critic must be 'verifier' or 'chat:"),
        ({"critic": "chat:model=m"}, "needs base_url"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"max_reflections": -1}, "max_reflections must be at least 0"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_spent(params: dict[str, Any], message: str) -> None:
    ctx = toy_context(verifier=Reasoning())
    with pytest.raises(ConfigError, match=message):
        parm_pp(ctx, n=2, **params)
    assert not ctx.events
