"""Temporal backtracking: where clips fail, what is kept of them, and what it costs."""

from __future__ import annotations

import math
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_chunks import ToyClips
from toy_judge_of_clips import Bright

from toy_search import events, run, toy_context
from tts_vision.algorithms._backtracking import failing_unit
from tts_vision.algorithms._tree import Node
from tts_vision.algorithms.tree_of_frames import tree_of_frames
from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.pipelines.chunk_sampler import ChunkSampler
from tts_vision.rehearsal import StandInSampler
from tts_vision.testing.contracts import kill_everywhere
from tts_vision.trace import lineage
from tts_vision.types import FAILS_AT, Score

CHUNKS = (1, 3, 2, 2)  # frames of each
KEPT = 1 - 0.4 * 0.7 * 0.8 * 0.85  # of the frame before and of the prompt, after four steps of the toy
ONE = {"candidates": [1], "prune": "none"}  # plain temporal backtracking search


class Half(Bright):
    """Demands that the noise behind each chunk is brighter than on average: half of all chunks fail."""

    def __init__(self) -> None:
        super().__init__(fails=0.0)
        self.drift = KEPT * float(ToyClips().encode(Condition("x"))[:4].mean()) * 255 / 6

    def _score(self, clip: torch.Tensor, sample: Any) -> Score:
        ends = [end for end in accumulate(CHUNKS) if end <= len(clip)]
        lights = [0.0, *(float(clip[end - 1]) - 127.5 for end in ends)]
        held = [after - KEPT * before > self.drift for before, after in pairwise(lights)]
        good = held.index(False) if False in held else len(ends)
        parts = {FAILS_AT: sum(CHUNKS[:good]) / sample.fps} if good < len(ends) else {}
        return Score(value=good / len(ends) if parts else 1.0, parts=parts, satisfied=not parts)


def clips() -> ChunkSampler:
    return ChunkSampler(ToyClips(CHUNKS))


def searched(
    verifier: Bright, n: int = 6, sampler: Any = None, seed: int = 3, **settings: Any
) -> SearchContext:
    ctx = toy_context(sampler or clips(), verifier, seed=seed)
    tree_of_frames(ctx, n=n, backtrack=True, **{**ONE, **settings})
    return ctx


def restarts(ctx: SearchContext) -> list[tuple[int, int]]:
    """The sample that was begun again, and the unit, of each restart."""
    return [(int(e.value["restarted"]), int(e.value["unit"])) for e in events(ctx, "note")]


@pytest.mark.parametrize(
    ("seconds", "unit"), [(0, 0), (0.124, 0), (0.125, 1), (0.49, 1), (0.5, 2), (0.75, 3), (0.99, 3), (9, 3)]
)
def test_the_chunk_that_is_shown_at_a_time(seconds: float, unit: int) -> None:
    assert clips().unit_at(seconds) == unit


@pytest.mark.parametrize(
    ("scores", "parts", "unit"),
    [
        ([0.9, 0.8, 0.3, 0.2], {}, 2),
        ([0.9, 0.8, 0.3, 0.2], {FAILS_AT: 0.13}, 1),
        ([0.9, 0.8, 0.3, 0.2], {FAILS_AT: math.nan}, 2),
        ([0.1, 0.2, 0.3, 0.4], {}, 3),  # never drops
        ([0.9, math.nan, 0.3, 0.2], {}, 3),
        ([math.nan] * 4, {}, 3),
        ([0.9, 0.2, 0.9, 0.2], {}, 1),  # the first of equal drops
    ],
)
def test_the_unit_in_which_a_clip_fails(scores: list[float], parts: dict[str, float], unit: int) -> None:
    ctx = toy_context(clips(), Bright())
    row, node = ctx.finish(ctx.init(1)), None
    ctx.score(row)
    ctx.candidates[row.uids[0]].score = Score(value=scores[-1], parts=parts)
    for at, score in enumerate(scores):
        node = Node(row, at, node, score)
    assert node is not None and failing_unit(ctx, node) == unit


def test_without_units_of_time_drops_tell() -> None:
    real = clips()
    assert StandInSampler(real).unit_at(0.2) is None and real.unit_at(0.2) == 1


@pytest.mark.parametrize(
    ("seed", "expected"), [(13, [(0, 1), (8, 2), (10, 3)]), (36, [(1, 2), (1, 1), (1, 0)])]
)
def test_clips_are_begun_again_where_they_fail(seed: int, expected: list[tuple[int, int]]) -> None:
    ctx = searched(Half(), 12, seed=seed)
    assert restarts(ctx) == expected
    frames = {uid: candidate.load().frames for uid, candidate in ctx.candidates.items()}  # type: ignore[union-attr]
    fails = {uid: c.score.parts.get(FAILS_AT) for uid, c in ctx.candidates.items()}
    starts = [sum(CHUNKS[:unit]) for unit in range(len(CHUNKS))]
    tried: dict[int, int] = {}
    for event in events(ctx, "note"):
        uid, unit = int(event.value["restarted"]), int(event.value["unit"])
        seconds = fails[uid]
        assert seconds is not None, "a clip that does not fail is not begun again"
        at = max(s for s in range(len(CHUNKS)) if starts[s] <= seconds * 8)
        assert unit == max(0, at - tried.get(uid, 0)), "one unit further back each time"
        tried[uid] = tried.get(uid, 0) + 1
        # the clips made of it share its frames up to there, and no more
        later = next(e for e in events(ctx, "score") if not e.preview and e.op > event.op)
        for child in later.uids:
            same = frames[child] == frames[uid]
            assert bool(same[: starts[unit]].all()) and not bool(same[starts[unit]].all())
            parents = [ancestor.uid for ancestor in lineage(ctx.events, child)]
            assert bool(set(parents[:-1])) == (unit > 0)


def test_the_best_sample_is_begun_again() -> None:
    ctx = searched(Bright(fails=300.0))
    for event in events(ctx, "note"):
        known = [
            (value, uid)
            for e in events(ctx, "score")
            if e.op < event.op and not e.preview
            for uid, value in zip(e.uids, e.values)
        ]
        assert event.value["restarted"] == max(known)[1], "all fail, in the first frame"


@pytest.mark.parametrize("n", [1, 2, 5, 9])
@pytest.mark.parametrize("verifier", [Bright(), Bright(fails=300.0), Bright(fails=120.0)])
def test_it_takes_no_more_steps_than_a_tree_of_as_many_nodes(n: int, verifier: Bright) -> None:
    for settings in ({}, {"candidates": [3, 1], "prune": "top_k", "branch": [2, 1]}):
        ctx, plain = searched(verifier, n, **settings), toy_context(clips(), Bright())
        tree_of_frames(plain, n=n, **{**ONE, **settings})  # type: ignore[arg-type]
        assert ctx.ledger.spent.nfe <= plain.ledger.spent.nfe
        roots = events(ctx, "init")[0]
        assert len(roots.uids) == (n - n // 2) * settings.get("candidates", [1])[0]  # type: ignore[index]


def test_a_sample_that_meets_all_demands_ends_the_search() -> None:
    ctx = searched(Bright(fails=0.0), n=8)
    assert not restarts(ctx) and ctx.concluded and len(ctx.candidates) == 4
    limited = toy_context(clips(), Bright(fails=0.0), times=8)
    run(tree_of_frames, limited, backtrack=True, **ONE)
    assert not events(limited, "top_up") and limited.ledger.spent.nfe < 8 * 16, "the rest is saved"
    assert not searched(Bright(fails=300.0)).concluded


def test_units_are_made_again_until_they_reach_the_threshold() -> None:
    ctx = searched(Half(), 5, seed=5, prune="threshold", threshold=1.0)
    made = [
        (event.step, *event.uids, *(value == 1 for value in event.values)) for event in events(ctx, "score")
    ]
    assert made == [
        *((1, 0, False), (1, 1, True)),
        (2, 1, True),
        *((3, 1, False), (3, 2, False), (3, 3, False), (3, 4, False)),
        # four attempts failed, so the unit before is made again: three more times, then the one before that
        *((2, 5, False), (2, 6, False), (2, 7, False)),
        *((1, 8, False), (1, 9, True)),
        *((2, 9, True), (3, 9, True), (4, 9, True)),
    ]
    plain = toy_context(clips(), Half(), seed=7)
    tree_of_frames(plain, n=5, **ONE)  # type: ignore[arg-type]
    assert ctx.ledger.spent.nfe <= plain.ledger.spent.nfe and ctx.concluded


def test_the_last_steps_finish_the_best_node() -> None:
    ctx = searched(Bright(), 2, prune="threshold", threshold=1e9)
    assert [event.step for event in events(ctx, "score")] == [1, 1, 1, 1, 1, 2, 3, 4]
    first = [(event.values[0], event.uids[0]) for event in events(ctx, "score")[:5]]
    assert ctx.best is not None and ctx.best.uid == max(first)[1]
    assert len(ctx.candidates) == 1 and ctx.ledger.spent.nfe == 8 * 4


@pytest.mark.parametrize(
    ("settings", "times"),
    [({}, 1.5), ({"prune": "threshold", "threshold": 1.0}, 2.0)],
    ids=["finished", "early"],
)
def test_backtracking_finds_what_independent_samples_do_not(settings: dict[str, Any], times: float) -> None:
    """Each chunk fails half of the time: whole clips seldom hold, chunks often do."""
    found, cost = [], []
    for seed in range(30):
        ctx = searched(Half(), 6, seed=seed, **settings)
        plain = toy_context(clips(), Half(), seed=seed)
        tree_of_frames(plain, n=6, **ONE)  # type: ignore[arg-type]
        assert ctx.best is not None and plain.best is not None
        found.append((bool(ctx.best.score.satisfied), bool(plain.best.score.satisfied)))
        cost.append((ctx.ledger.spent.nfe, plain.ledger.spent.nfe))
    ours, theirs = (sum(column) for column in zip(*found))
    assert ours >= times * theirs > 0, (ours, theirs)
    assert sum(a for a, _ in cost) < sum(b for _, b in cost)


@pytest.mark.parametrize("fails", [None, 120.0])
def test_survives_kills(fails: float | None, tmp_path: Path) -> None:
    for number, settings in enumerate(({"order": "best"}, {"prune": "threshold", "threshold": 125.0})):
        algorithm = partial(tree_of_frames, n=4, backtrack=True, **settings)
        (tmp_path / str(number)).mkdir()
        kill_everywhere(algorithm, clips, Bright(fails=fails), tmp_path / str(number), most=20)
