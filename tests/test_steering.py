"""A person's say in a search: pinned particles are kept, banned ones dropped, and a stop keeps the best."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toy_search import events, toy_context
from tts_vision import Result, load_result, replay, search
from tts_vision.algorithms.beam_search import beam_search
from tts_vision.algorithms.variations import variations
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError, StopSearch
from tts_vision.files import STOPPED
from tts_vision.folders import is_finished
from tts_vision.journal import Journal
from tts_vision.ledger import Budget, Ledger
from tts_vision.steering import STEERING, Decisions, Steering
from tts_vision.testing.contracts import Killed, results
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Event, answers
from tts_vision.types import Prompt, State

Observer = Callable[[SearchContext, Event], None]


def halving(ctx: SearchContext) -> State:
    """Drops the worse half at each step."""
    state = ctx.init(8)
    for _ in range(3):
        state = ctx.advance(state, 1)
        order = ctx.score(state).argsort(descending=True, stable=True).tolist()
        state = ctx.select(state, order[: max(1, len(order) // 2)])
    state = ctx.finish(state)
    ctx.score(state)
    return state


def keeps_the_lowest(ctx: SearchContext) -> State:
    """Drops whatever ranks first: no pin can keep it in."""
    state = ctx.advance(ctx.init(4), 2)
    state = ctx.select(state, [int(ctx.score(state).argmin())])
    state = ctx.finish(state)
    ctx.score(state)
    return state


def steered(
    steering: Steering | None, journal: Journal | None = None, observer: Observer | None = None, **limits: Any
) -> SearchContext:
    context = SearchContext(
        GaussianMixtureSampler(num_steps=5),
        TargetReward(),
        Prompt("x"),
        seed=3,
        journal=journal,
        ledger=Ledger(),
        observer=observer,
        steering=steering,
    )
    context.ledger.budget = Budget(**limits).resolve(context.cost())
    return context


def test_decisions_rank_pinned_particles_first_and_banned_ones_last() -> None:
    scores = torch.tensor([1.0, 3.0, math.nan, 2.0, -1.0], dtype=torch.float64)
    values = Decisions(frozenset({2, 4}), frozenset({1})).applied(scores, [0, 1, 2, 3, 4]).tolist()
    assert values[0] == 1 and values[3] == 2 and values[1] == -math.inf
    assert values[2] == values[4] == math.nextafter(2.0, math.inf)
    assert scores[1] == 3, "the given scores stay as they are"
    assert Decisions(frozenset({9})).applied(scores, [0, 1, 2, 3, 4]) is scores
    best = Decisions(frozenset({1})).applied(scores, [0, 1, 2, 3, 4]).tolist()
    assert best[1] == 3, "one that is first already keeps its score"
    nobody = torch.full((2,), math.nan, dtype=torch.float64)
    assert Decisions(frozenset({0})).applied(nobody, [0, 1]).tolist()[0] == 0


def test_pin_ban_and_release_replace_each_other() -> None:
    steering = Steering()
    steering.pin(1)
    steering.ban(1)
    assert steering.decisions == Decisions(banned=frozenset({1}))
    steering.pin(1)
    steering.ban(2)
    assert steering.decisions == Decisions(frozenset({1}), frozenset({2}))
    steering.release(1)
    steering.release(2)
    assert steering.decisions == Decisions()


def test_a_search_that_nobody_steers_is_recorded_as_without_steering() -> None:
    ctxs = steered(Steering()), steered(None)
    for ctx in ctxs:
        halving(ctx)
    one, two = ([e.model_dump(exclude={"spent"}) for e in ctx.events] for ctx in ctxs)
    assert one == two and not events(ctxs[0], STEERING)


def test_a_banned_particle_is_dropped_and_is_never_the_best() -> None:
    free = steered(None)
    halving(free)
    assert free.best is not None
    best = free.best.uid
    steering = Steering()
    steering.ban(best)
    ctx = steered(steering)
    halving(ctx)
    assert best not in ctx.candidates and ctx.best is not None and ctx.best.uid != best


def test_a_banned_sample_stays_in_the_population_and_is_not_the_best() -> None:
    late = Steering()

    def ban_the_best(context: SearchContext, event: Event) -> None:
        if event.what == "score" and context.best is not None and not late.decisions.banned:
            late.ban(context.best.uid)

    ctx = steered(late, observer=ban_the_best)
    state = ctx.init(8)
    assert ctx.score(ctx.finish(state)).min() == -math.inf
    (best,) = late.decisions.banned
    assert best in ctx.candidates, "it stays in the population, with the verifier's own score"
    others = {uid: c.score.value for uid, c in ctx.candidates.items() if uid != best}
    assert ctx.best is not None and ctx.best.uid == max(others, key=lambda uid: others[uid])
    assert ctx.candidates[best].score.value > ctx.best.score.value
    assert ctx.current_scores(ctx.finish(state))[best] == -math.inf
    late.release(best)
    ctx.score(ctx.finish(state))
    assert ctx.best.uid == best


def test_a_pinned_particle_goes_on_though_it_ranks_last() -> None:
    free = steered(None)
    halving(free)
    worst = max(set(range(8)) - free.candidates.keys())
    steering = Steering()
    steering.pin(worst)
    ctx = steered(steering)
    halving(ctx)
    ctx.finish_pinned()
    plain = steered(None)
    plain.score(plain.finish(plain.init(8)))
    assert results(ctx)[worst] == results(plain)[worst], "from its own noise to its own sample"
    assert not events(ctx, "warning"), "the algorithm itself kept it"


def test_a_pinned_particle_that_the_algorithm_drops_is_finished_at_the_end() -> None:
    free = steered(None)
    keeps_the_lowest(free)
    kept = next(iter(free.candidates))
    pinned = (kept + 1) % 4
    steering = Steering()
    steering.pin(pinned)
    ctx = steered(steering, nfe=14)  # pays for the algorithm alone: 4 x 2 steps, 1 x 3 steps
    state = keeps_the_lowest(ctx)
    assert pinned not in ctx.candidates
    before = ctx.ledger.spent.nfe
    ctx.finish_pinned()
    assert ctx.ledger.spent.nfe == before + 3, "only the steps that were left"
    plain = steered(None)
    plain.score(plain.finish(plain.init(4)))
    assert ctx.candidates[pinned].score == plain.candidates[pinned].score
    assert set(state.uids) | {pinned} == set(ctx.candidates)
    (told,) = events(ctx, "warning")
    assert (
        f"left pinned particles {pinned} behind" in told.value and "3 nfe on top of the budget" in told.value
    )
    assert ctx.ledger.budget.nfe == 14
    ctx.finish_pinned()
    assert ctx.ledger.spent.nfe == before + 3, "once"


def decide(steering: Steering) -> Observer:
    """A person who decides by what is shown, in the same way in each session."""

    def person(context: SearchContext, event: Event) -> None:
        if event.what == "score" and event.step == 1:
            steering.ban(event.uids[0])
            steering.pin(event.uids[-1])
        if event.what == "score" and event.step == 2:
            steering.release(event.uids[-1])
            steering.pin(event.uids[1])

    return person


def conducted(ctx: SearchContext, algorithm: Callable[[SearchContext], State]) -> None:
    algorithm(ctx)
    ctx.finish_pinned()
    ctx.done()


@pytest.mark.parametrize(
    "algorithm", [halving, keeps_the_lowest, lambda ctx: beam_search(ctx, width=2, branch=2)]
)
def test_a_steered_search_survives_a_kill_anywhere(
    tmp_path: Path, algorithm: Callable[[SearchContext], State]
) -> None:
    def session(path: Path, die_after: int | None = None) -> SearchContext:
        steering, seen = Steering(), []
        person = decide(steering)

        def observe(context: SearchContext, event: Event) -> None:
            person(context, event)
            seen.append(event)
            if len(seen) == die_after:
                raise Killed

        ctx = steered(steering, Journal(path), observe)
        try:
            conducted(ctx, algorithm)
        except Killed:
            ctx.interrupted("killed")
        return ctx

    whole = session(tmp_path / "whole")
    assert [*answers(whole.events, STEERING)], "the decisions made a difference"
    for count in range(1, len(whole.events)):
        path = tmp_path / f"killed-{count}"
        session(path, die_after=count)
        again = session(path)
        assert results(again) == results(whole), f"killed after event {count}"
        assert again.ledger.spent == whole.ledger.spent
        assert again.best is not None and whole.best is not None and again.best.uid == whole.best.uid


def test_recorded_decisions_need_no_person_to_be_repeated(tmp_path: Path) -> None:
    steering = Steering()
    person, seen = decide(steering), []

    def observe(context: SearchContext, event: Event) -> None:
        person(context, event)
        seen.append(event)
        if event.what == "advance" and event.step == 3:
            raise Killed

    ctx = steered(steering, Journal(tmp_path), observe)
    try:
        halving(ctx)
    except Killed:
        ctx.interrupted("killed")
    assert [*answers(ctx.events, STEERING)]
    alone = steered(None, Journal(tmp_path))
    conducted(alone, halving)
    second = Steering()
    whole = steered(second, observer=decide(second))
    conducted(whole, halving)
    assert results(alone) == results(whole)


def test_decisions_after_an_operation_without_record_go_into_new_scorings_alone(tmp_path: Path) -> None:
    def twice(ctx: SearchContext) -> None:
        state = ctx.advance(ctx.init(3), 1)
        ctx.score(state)
        state = ctx.advance(state, 0)  # leaves no event
        state = ctx.advance(state, 1)
        ctx.score(state)

    first = steered(None, Journal(tmp_path))
    twice(first)
    first.interrupted("killed")
    steering = Steering()
    steering.ban(1)
    again = steered(steering, Journal(tmp_path))
    twice(again)
    assert [event.op for event in answers(again.events, STEERING)] == [first.op], "after all that is recorded"


# Stopping


def stopping(after: int) -> Observer:
    seen: list[Event] = []

    def observe(context: SearchContext, event: Event) -> None:
        seen.append(event)
        if len(seen) == after:
            raise StopSearch("here")

    return observe


def searched(folder: Path, *, resume: bool = False, progress: Observer | None = None) -> Result:
    return search(
        GaussianMixtureSampler(num_steps=5),
        "x",
        algorithm="fk_steering",
        algorithm_params={"n": 4},
        verifier=TargetReward(),
        budget="6x",
        output=folder,
        resume=resume,
        progress=progress,
    )


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "result.json").read_text())
    del report["timing"]
    return report


def test_a_stopped_search_is_whole_and_goes_on_to_the_same_result(tmp_path: Path) -> None:
    seen: list[Event] = []
    whole = searched(tmp_path / "whole", progress=lambda context, event: seen.append(event))
    assert not whole.stopped and not (tmp_path / "whole" / STOPPED).exists()
    for after in range(2, len(seen), 4):
        folder = tmp_path / f"stopped-{after}"
        stopped = searched(folder, progress=stopping(after))
        assert stopped.stopped and not is_finished(folder)
        assert stopped.winner is None or "stopped" in repr(stopped)
        assert load_result(folder).stopped and report_of(folder)["stopped"] is True
        names = {c.path.name for c in stopped.population if c.path is not None}
        assert names == {path.name for path in (folder / "population").iterdir()}
        if stopped.winner is not None:
            best = next(folder.glob("best.*"))
            assert stopped.is_preview or best.read_bytes() == stopped.best.path.read_bytes()  # type: ignore
        again = searched(folder, resume=True)
        assert not again.stopped and is_finished(folder) and not (folder / STOPPED).exists()
        assert report_of(folder) == report_of(tmp_path / "whole"), f"stopped after {after} events"
        assert not (folder / "state").exists()


def test_a_search_stopped_twice_goes_on(tmp_path: Path) -> None:
    searched(tmp_path / "whole")
    searched(tmp_path / "twice", progress=stopping(6))
    first = report_of(tmp_path / "twice")["population"]
    searched(tmp_path / "twice", resume=True, progress=stopping(14))
    assert load_result(tmp_path / "twice").stopped
    assert len(report_of(tmp_path / "twice")["population"]) >= len(first)
    searched(tmp_path / "twice", resume=True)
    assert report_of(tmp_path / "twice") == report_of(tmp_path / "whole")


def test_a_stop_before_anything_is_scored_has_no_best(tmp_path: Path) -> None:
    result = searched(tmp_path / "early", progress=stopping(1))
    assert result.stopped and result.winner is None and report_of(tmp_path / "early")["best"] is None


def test_no_algorithm_and_no_verifier_takes_a_stop_for_a_failure() -> None:
    def verifier(images: Any, prompts: Any) -> list[float]:
        raise StopSearch("the person went away")

    result = search(GaussianMixtureSampler(), "x", verifier=verifier, budget="2x")
    assert result.stopped and not result.population


# More like this


def test_variations_begin_with_the_very_sample(tmp_path: Path) -> None:
    first = search(
        GaussianMixtureSampler(num_steps=5),
        "x",
        algorithm="evosearch",
        verifier=TargetReward(),
        budget="12x",
        seed=4,
    )
    bred = [c for c in first.population if len(first.lineage(c.uid)) > 1]
    chosen = bred[0]
    lineage = json.dumps([link.model_dump(exclude_none=True) for link in first.lineage(chosen.uid)])
    around = search(
        GaussianMixtureSampler(num_steps=5),
        "x",
        algorithm="variations",
        algorithm_params={"lineage": lineage, "n": 4, "strength": 0.5},
        verifier=TargetReward(),
        budget="8x",
        seed=4,
        output=tmp_path / "around",
    )
    by_uid = {candidate.uid: candidate for candidate in around.population}
    assert by_uid[chosen.uid].score == chosen.score
    assert by_uid[chosen.uid].load().tobytes() == chosen.load().tobytes()  # type: ignore[union-attr]
    assert len(by_uid) == 5 and around.lineage()[: len(first.lineage(chosen.uid))]
    assert replay(tmp_path / "around", GaussianMixtureSampler(num_steps=5)).max_difference == 0


def test_weak_variations_stay_closer_than_strong_ones() -> None:
    def spread(strength: float) -> float:
        ctx = toy_context(GaussianMixtureSampler(num_steps=20))
        lineage = json.dumps([{"uid": 0, "step": 0, "origin": "init", "seed": 1}])
        state = variations(ctx, lineage=lineage, n=32, strength=strength)
        first = toy_context(GaussianMixtureSampler(num_steps=20))
        original = first.finish(first.init(1)).latents
        return float((state.latents - original).norm(dim=1).mean())

    assert spread(0.15) < spread(0.5) < spread(1.0)


SEED_0 = {"uid": 0, "step": 0, "origin": "init"}
CHILD = {"uid": 5, "step": 1, "parent": 0}


@pytest.mark.parametrize(
    ("lineage", "told"),
    [
        ([], "does not begin with a seed"),
        ([{"uid": 1, "step": 0, "origin": "select", "parent": 0}], "does not begin with a seed"),
        ([{"uid": -1, "step": 0, "origin": "init"}], "does not begin with a seed"),
        ([SEED_0, {**CHILD, "origin": "select", "parent": 3}], "a link is missing"),
        ({"uid": 0}, "ancestors of a particle"),
        ("text", "ancestors of a particle"),
        ([SEED_0, {**CHILD, "origin": "unheard_of"}], "must be registered but 'unheard_of' is not"),
        ([SEED_0, {**CHILD, "origin": "select", "sampler": "b"}], "by its own generator"),
        (
            [SEED_0, {**CHILD, "origin": "blend", "move": {"name": "blend", "gamma": 1}}],
            "cannot be made with",
        ),
    ],
)
def test_lineages_that_cannot_be_made_again_are_refused(lineage: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        variations(toy_context(), lineage=json.dumps(lineage))


def test_variations_that_change_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="strength must be positive but got 0"):
        variations(toy_context(), lineage=json.dumps([SEED_0]), strength=0)


def test_a_sampler_that_can_neither_renoise_nor_mutate_has_no_variations() -> None:
    sampler = GaussianMixtureSampler(num_steps=5, eta=0)
    sampler.capabilities = frozenset({"preview"})
    with pytest.raises(CapabilityError, match="can renoise or mutate"):
        variations(toy_context(sampler), lineage='[{"uid": 0, "step": 0, "origin": "init"}]')
