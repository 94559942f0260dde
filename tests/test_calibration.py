"""Pairs of previews and what came of them, read from a trace; rank correlation by step."""

from __future__ import annotations

import math

import pytest

from toy_search import events as recorded
from toy_search import toy_context
from tts_vision.calibration import RAW, PreviewTrust, preview_pairs, preview_trust, spearman
from tts_vision.context import SearchContext
from tts_vision.trace import Event, Init, Mutate, Renoise, Scored, Select
from tts_vision.types import Media, Prompt, Score, State

NAN = float("nan")


def scored(
    op: int, step: int, values: dict[int, float], *, preview: bool = True, raw: bool = False
) -> Scored:
    parts = tuple({RAW: value} if raw else {} for value in values.values())
    shown = tuple(0.0 if raw else value for value in values.values())
    return Scored(op=op, uids=tuple(values), step=step, preview=preview, values=shown, parts=parts)


def test_a_preview_is_paired_with_the_mean_of_what_came_of_it() -> None:
    trace: list[Event] = [
        Init(op=0, uids=(0, 1), seeds=(0, 1)),
        scored(1, 2, {0: 0.3, 1: 0.5}),
        Select(op=2, uids=(0, 2), parents=(0, 0), step=2),
        scored(3, 4, {0: 0.6, 2: 0.8}),
        scored(4, 5, {0: 1.0, 2: 3.0}, preview=False),
    ]
    # particle 1 was dropped; particle 2 forked off 0 at step 2
    assert preview_pairs(trace) == {2: [(0.3, 2.0)], 4: [(0.6, 1.0), (0.8, 3.0)]}


def test_what_an_ancestor_became_after_a_branch_is_no_preview_of_the_branch() -> None:
    trace: list[Event] = [
        Init(op=0, uids=(0,), seeds=(0,)),
        scored(1, 1, {0: 0.1}),
        scored(2, 3, {0: 0.9}),
        Renoise(op=3, uids=(1,), parents=(0,), step=2, from_step=3),
        Mutate(op=4, uids=(2,), parents=(0,), step=0, mutation={}),
        scored(5, 5, {1: 1.0, 2: 2.0}, preview=False),
    ]
    assert preview_pairs(trace) == {1: [(0.1, 1.0)]}


def test_what_is_unscored_makes_no_pair() -> None:
    trace: list[Event] = [
        Init(op=0, uids=(0, 1, 2), seeds=(0, 1, 2)),
        scored(1, 2, {0: NAN, 1: 0.5, 2: 0.7}),
        scored(2, 5, {0: 1.0, 1: NAN, 2: 2.0}, preview=False),
    ]
    assert preview_pairs(trace) == {2: [(0.7, 2.0)]}


def test_what_the_verifier_said_counts_and_not_what_was_made_of_it() -> None:
    trace: list[Event] = [
        Init(op=0, uids=(0, 1), seeds=(0, 1)),
        scored(1, 2, {0: 0.5, 1: 0.7}, raw=True),
        scored(2, 5, {0: 1.0, 1: 2.0}, preview=False),
    ]
    assert preview_pairs(trace) == {2: [(0.5, 1.0), (0.7, 2.0)]}
    assert preview_pairs(trace, {0: 8.0}) == {2: [(0.5, 8.0), (0.7, 2.0)]}


def test_trust_is_spearmans_rank_correlation() -> None:
    trace: list[Event] = [
        Init(op=0, uids=(0, 1, 2, 3), seeds=(0, 1, 2, 3)),
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


class Halver:
    """A verifier that forecasts half of what it sees, and keeps what it was told to learn from."""

    name = "halver"

    def __init__(self) -> None:
        from tts_vision.testing.toys import TargetReward

        self.accepts, self._reward = TargetReward.accepts, TargetReward()
        self.learnt: list[dict[int, int]] = []

    def score(self, media: list[Media], prompts: list[Prompt]) -> list[Score]:
        return self._reward.score(media, prompts)

    def fit(self, pairs: dict[int, list[tuple[float, float]]]) -> None:
        self.learnt.append({step: len(found) for step, found in pairs.items()})

    def expected(self, score: Score, step: int) -> Score:
        return Score(value=score.value / 2, parts={RAW: score.value})


def rounds(ctx: SearchContext) -> State:
    """Three rounds: previews half-way, then the samples."""
    for _ in range(3):
        half = ctx.advance(ctx.init(4), 3)
        ctx.score(half)
        done = ctx.finish(half)
        ctx.score(done)
    return done


def test_a_search_teaches_its_verifier_and_says_how_far_to_trust_previews() -> None:
    verifier = Halver()
    ctx = toy_context(verifier=verifier)
    rounds(ctx)
    assert verifier.learnt == [{}, {3: 4}, {3: 8}]
    previews = [event for event in recorded(ctx, "score") if event.preview]
    for event in previews:
        assert event.values == tuple(parts[RAW] / 2 for parts in event.parts)
    assert previews[0].trust is None
    assert all(-1 <= event.trust <= 1 for event in previews[1:])
    assert previews[2].trust == pytest.approx(spearman(preview_pairs(recorded_until(ctx, previews[2].op))[3]))
    assert all(event.trust is None for event in recorded(ctx, "score") if not event.preview)
    # finished samples keep their own score
    assert all(not candidate.score.parts for candidate in ctx.candidates.values())
    assert not any(math.isnan(c.score.value) for c in ctx.candidates.values())


def recorded_until(ctx: SearchContext, op: int) -> list[Event]:
    return [event for event in ctx._journal.events if event.op < op]
