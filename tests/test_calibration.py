"""Pairs of previews and finished samples, read from a trace; rank correlation by step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from toy_search import events as recorded
from toy_search import toy_context
from tts_vision.calibration import RAW, History, PreviewTrust, preview_pairs, preview_trust, spearman
from tts_vision.context import SearchContext
from tts_vision.testing.toys import TargetReward
from tts_vision.trace import Answer, Birth, Event
from tts_vision.types import Media, Prompt, Score, State
from tts_vision.verifier import ALONE, Asked

NAN = float("nan")


def born(n: int) -> Birth:
    return Birth(op=0, uids=tuple(range(n)), move={"name": "init"}, seeds=tuple(range(n)))


def scored(
    op: int, step: int, values: dict[int, float], *, preview: bool = True, raw: bool = False
) -> Answer:
    scores = tuple(
        Score(value=0.0, parts={RAW: value}) if raw else Score(value=value) for value in values.values()
    )
    return Answer(op=op, what="score", uids=tuple(values), step=step, preview=preview, scores=scores)


def test_a_preview_is_paired_with_the_mean_of_what_came_of_it() -> None:
    trace: list[Event] = [
        born(2),
        scored(1, 2, {0: 0.3, 1: 0.5}),
        Birth(op=2, uids=(0, 2), parents=(0, 0), step=2, from_step=2, move={"name": "select"}),
        scored(3, 4, {0: 0.6, 2: 0.8}),
        scored(4, 5, {0: 1.0, 2: 3.0}, preview=False),
    ]
    # particle 1 was dropped; particle 2 forked off 0 at step 2
    assert preview_pairs(trace) == {2: [(0.3, 2.0)], 4: [(0.6, 1.0), (0.8, 3.0)]}


def test_what_an_ancestor_became_after_a_branch_is_no_preview_of_the_branch() -> None:
    trace: list[Event] = [
        born(1),
        scored(1, 1, {0: 0.1}),
        scored(2, 3, {0: 0.9}),
        Birth(op=3, uids=(1,), parents=(0,), step=2, from_step=3, move={"name": "renoise", "to_step": 2}),
        Birth(op=4, uids=(2,), parents=(0,), step=0, from_step=0, move={"name": "blend", "beta": 0.2}),
        scored(5, 5, {1: 1.0, 2: 2.0}, preview=False),
    ]
    assert preview_pairs(trace) == {1: [(0.1, 1.0)]}


def test_what_is_unscored_makes_no_pair() -> None:
    trace: list[Event] = [
        born(3),
        scored(1, 2, {0: NAN, 1: 0.5, 2: 0.7}),
        scored(2, 5, {0: 1.0, 1: NAN, 2: 2.0}, preview=False),
    ]
    assert preview_pairs(trace) == {2: [(0.7, 2.0)]}


def test_what_the_verifier_said_counts_and_not_what_was_made_of_it() -> None:
    trace: list[Event] = [
        born(2),
        scored(1, 2, {0: 0.5, 1: 0.7}, raw=True),
        scored(2, 5, {0: 1.0, 1: 2.0}, preview=False),
    ]
    assert preview_pairs(trace) == {2: [(0.5, 1.0), (0.7, 2.0)]}
    assert preview_pairs(trace, {0: 8.0}) == {2: [(0.5, 8.0), (0.7, 2.0)]}


def test_trust_is_spearmans_rank_correlation() -> None:
    trace: list[Event] = [
        born(4),
        scored(1, 2, {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}),
        scored(2, 4, {0: 5.0, 1: 6.0, 2: 7.0, 3: 8.0}),
        scored(3, 5, {0: 10.0, 1: 30.0, 2: 20.0, 3: 40.0}, preview=False),
    ]
    # 1 - 6 (1 + 1) / (4 (16 - 1))
    expected = [PreviewTrust(2, 4, pytest.approx(0.8)), PreviewTrust(4, 4, pytest.approx(0.8))]  # type: ignore[arg-type]
    assert preview_trust(trace) == expected
    assert preview_trust([]) == []


@pytest.mark.parametrize(
    "pairs", [[], [(1.0, 1.0), (2.0, 2.0)], [(1.0, 1.0)] * 4, [(1.0, 0.0), (2.0, 0.0), (3.0, 0.0)]]
)
def test_correlation_is_undefined_for_too_few_or_equal_values(pairs: list[tuple[float, float]]) -> None:
    assert spearman(pairs) is None


def test_a_history_grows_with_events() -> None:
    history = History()
    for event in (born(2), scored(1, 2, {0: 0.3, 1: 0.5}), scored(2, 5, {0: 1.0}, preview=False)):
        history.add(event)
    assert (history.steps, history.pairs(2), history.pairs(3), history.changes) == ([2], [(0.3, 1.0)], [], 2)
    history.add(scored(3, 5, {1: 2.0}, preview=False))
    assert history.pairs(2) == [(0.3, 1.0), (0.5, 2.0)] and history.changes == 3
    assert history.pairs(2, {0: 8.0}) == [(0.3, 8.0), (0.5, 2.0)]


class Halver(TargetReward):
    """A verifier that halves the scores of previews, and notes the pairs that it could learn from."""

    name = "halver"
    learns = True

    def __init__(self) -> None:
        super().__init__()
        self.learnt: list[int] = []

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        scores = super().score(media, prompts)
        if asked.step is None:
            return scores
        self.learnt.append(len(asked.history.pairs(asked.step)))
        return [Score(value=score.value / 2, parts={RAW: score.value}) for score in scores]


def rounds(ctx: SearchContext) -> State:
    """Three rounds: previews half-way, then the samples."""
    for _ in range(3):
        half = ctx.advance(ctx.init(4), 3)
        ctx.score(half)
        done = ctx.finish(half)
        ctx.score(done)
    return done


def test_a_search_teaches_its_verifier_and_reports_the_trust_in_previews() -> None:
    verifier = Halver()
    ctx = toy_context(verifier=verifier)
    rounds(ctx)
    assert verifier.learnt == [0, 4, 8]
    previews = [event for event in recorded(ctx, "score") if event.preview]
    for event in previews:
        assert event.values == tuple(score.parts[RAW] / 2 for score in event.scores)
    (trust,) = preview_trust(ctx.events)
    assert (trust.step, trust.n) == (3, 12)
    assert trust.spearman == pytest.approx(spearman(preview_pairs(ctx.events)[3]))
    # finished samples keep their own score
    assert all(not candidate.score.parts for candidate in ctx.candidates.values())
    assert not any(math.isnan(c.score.value) for c in ctx.candidates.values())
