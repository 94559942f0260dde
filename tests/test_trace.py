"""The trace: events survive JSON, an unfinished last line is none, lineage leads back to the seed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toy_search import toy_context
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.algorithms.search_over_paths import search_over_paths
from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.errors import StorageError
from tts_vision.ledger import Spent
from tts_vision.moves import from_description
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.trace import (
    Answer,
    Birth,
    Checkpoint,
    Computed,
    Done,
    Event,
    Family,
    ancestry,
    answers,
    lineage,
    read_trace,
)
from tts_vision.types import Score, State

OTHER = Condition("a blue star")
EVENTS: list[Event] = [
    Birth(
        op=0,
        uids=(0, 1),
        move={"name": "init"},
        seeds=(7, 2**62),
        spent=Spent(nfe=1.5, seconds={"denoise": 0.25}),
    ),
    Computed(op=1, what="advance", uids=(0, 1), step=2, blob="a.safetensors"),
    Birth(op=2, uids=(1, 2), parents=(1, 1), step=2, from_step=2, move={"name": "select"}),
    Birth(op=3, uids=(3,), parents=(2,), step=2, from_step=2, move={"name": "blend", "beta": 0.2}),
    Birth(
        op=4,
        uids=(4,),
        parents=(3,),
        step=1,
        from_step=2,
        move={"name": "renoise", "to_step": 1},
        sampler="editor",
        conditions=(OTHER.digest,),
        defined={OTHER.digest: OTHER.describe()},
    ),
    Computed(op=5, what="decode", uids=(4,), preview=True, step=2),
    Answer(
        op=5,
        what="score",
        uids=(4,),
        step=2,
        preview=True,
        scores=(Score(value=0.1, parts={"a": 1.0}, satisfied=False),),
        files=("4.png",),
    ),
    Computed(
        op=6, what="gradient", uids=(4,), from_step=1, step=2, rewards=(0.5,), reasons=(None,), backwards=3
    ),
    Answer(op=7, what="note", value={"ess": 1 / 3, "worst": -math.inf}),
    Answer(op=8, what="critic", value=["a red circle", None, {"sure": True}]),
    Checkpoint(op=9, reason="stopped"),
    Done(op=9, best=4, budget_spent=True, satisfied=True),
]


def write(path: Path, events: list[Event], tail: bytes = b"") -> Path:
    path.write_bytes(b"".join(event.model_dump_json().encode() + b"\n" for event in events) + tail)
    return path


def test_events_survive_the_file(tmp_path: Path) -> None:
    assert read_trace(write(tmp_path / "trace.jsonl", EVENTS)) == EVENTS


def test_nan_survives_the_file(tmp_path: Path) -> None:
    blind = Score(value=math.nan, parts={"a": math.nan}, reason="blind")
    scored = Answer(op=0, what="score", uids=(0,), scores=(blind,))
    asked = Answer(op=1, what="critic", value=[math.nan, {"worst": -math.inf}])
    again, answer = read_trace(write(tmp_path / "trace.jsonl", [scored, asked]))
    assert again.kind == answer.kind == "answer"
    assert math.isnan(again.values[0]) and math.isnan(again.scores[0].parts["a"])
    assert again.scores[0].reason == "blind"
    assert math.isnan(answer.value[0]) and answer.value[1] == {"worst": -math.inf}


def test_every_event_says_what_it_is() -> None:
    assert [event.what for event in EVENTS] == [
        "init",
        "advance",
        "select",
        "blend",
        "renoise",
        "decode",
        "score",
        "gradient",
        "note",
        "critic",
        "checkpoint",
        "done",
    ]
    assert [answer.value for answer in answers(EVENTS, "critic")] == [["a red circle", None, {"sure": True}]]
    assert not list(answers(EVENTS, "advance"))


@pytest.mark.parametrize("tail", [b'{"op": 9, "kind": "no', b"\xff\xfe", b"garbage", b'{"op": 9}'])
def test_an_unfinished_last_line_is_no_event(tmp_path: Path, tail: bytes) -> None:
    path = write(tmp_path / "trace.jsonl", EVENTS, tail)
    before = path.read_bytes()
    assert read_trace(path) == EVENTS
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\n", b"garbage\n", b"[1, 2]\n", b"\n", b"a\rb\n", b'{"op": 0, "kind": "bi\n']
)
@pytest.mark.parametrize("where", [0, 4, len(EVENTS)])
def test_a_damaged_finished_line_is_refused(tmp_path: Path, line: bytes, where: int) -> None:
    path = write(tmp_path / "trace.jsonl", EVENTS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:where], line, *lines[where:]]))
    before = path.read_bytes()
    message = f"line {where + 1} of '.*trace.jsonl' is damaged; restore the file, or start the search again"
    with pytest.raises(StorageError, match=message):
        read_trace(path)
    assert path.read_bytes() == before, "it is left as it is"


# as the former version wrote them
FORMER: list[dict[str, Any]] = [
    {"op": 0, "uids": [0, 1], "spent": {"nfe": 0.0}, "kind": "init", "seeds": [3, 9]},
    {"op": 1, "uids": [0], "step": 2, "kind": "advance", "from_step": 0, "first": 0, "blob": None},
    {"op": 2, "uids": [0], "kind": "mutate", "parents": [0], "mutation": {"name": "blend", "beta": 0.2}},
    {
        "op": 3,
        "uids": [0],
        "kind": "score",
        "values": [1.0],
        "parts": [{}],
        "reasons": [None],
        "files": ["a"],
    },
    {"op": 4, "kind": "note", "values": {"ess": 1.0}},
]


@pytest.mark.parametrize("event", FORMER, ids=lambda event: event["kind"])
def test_the_trace_of_an_earlier_version_is_refused(tmp_path: Path, event: dict[str, Any]) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(event) + "\n")
    message = (
        rf"must be of this version but '.*trace.jsonl' was written by an earlier one \(event "
        rf"'{event['kind']}' in line 1\); resume it with that version, or start the search again in another"
    )
    with pytest.raises(StorageError, match=message):
        read_trace(path)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"op": 0, "kind": "vision"}, "does not match any of the expected tags"),
        ({"op": 0, "kind": "done", "mood": "glad"}, "Extra inputs are not permitted"),
        ({"op": 0, "kind": "birth"}, "Field required"),
    ],
)
def test_events_that_this_version_does_not_know(tmp_path: Path, event: dict[str, Any], reason: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(event) + "\n")
    message = rf"line 1 of .* is '{event['kind']}' \(.*{reason}.*\); it may be of a newer version"
    with pytest.raises(StorageError, match=message):
        read_trace(path)


def test_no_file_no_events(tmp_path: Path) -> None:
    assert read_trace(tmp_path / "trace.jsonl") == []


def test_lineage_leads_back_to_the_seed() -> None:
    chain = lineage(EVENTS, 4)
    assert [(a.uid, a.origin, a.parent, a.step, a.parent_step) for a in chain] == [
        (1, "init", None, 0, None),
        (2, "select", 1, 2, 2),
        (3, "blend", 2, 2, 2),
        (4, "renoise", 3, 1, 2),
    ]
    assert chain[0].seed == 2**62 and chain[2].move == {"name": "blend", "beta": 0.2}
    assert [a.move for a in chain[:2]] == [None, None]
    assert [a.sampler for a in chain] == [None, None, None, "editor"]
    assert [a.condition for a in chain] == [None, None, None, {"text": "a blue star"}]
    with pytest.raises(KeyError):
        lineage(EVENTS, 99)


def test_the_first_copy_stays_who_it_was() -> None:
    assert ancestry(EVENTS)[1].origin == "init"


def test_children_have_the_condition_of_their_parents() -> None:
    family = Family()
    child = Birth(op=9, uids=(5,), parents=(4,), step=1, from_step=1, move={"name": "select"})
    for event in [*EVENTS, child]:
        family.add(event)
    assert family.condition_of(5) == family.condition_of(4) == {"text": "a blue star"}
    assert family.condition_of(3) is None


def search_over_conditions(ctx: SearchContext) -> State:
    """Fresh particles of two conditions, and children that change theirs on the way."""
    state = ctx.advance(ctx.init(2, [Condition("one"), OTHER]), 3)
    children = ctx.recondition(state, ["three", "four", "four"], [0, 0, 1])
    return ctx.finish(ctx.select(ctx.advance(children), [1, 2]))


@pytest.mark.parametrize("strict_reference", [False, True])
def test_a_particle_can_be_made_again_from_its_lineage_alone(strict_reference: bool) -> None:
    searches = [
        lambda ctx: evosearch(ctx, n=4, strict_reference=strict_reference),
        search_over_paths,
        search_over_conditions,
    ]
    for search in searches:
        sampler = GaussianMixtureSampler(num_steps=6, order=2)
        ctx = toy_context(sampler, seed=11)
        final: State = search(ctx)
        for row, uid in enumerate(final.uids):
            chain = lineage(ctx.events, uid)
            condition = Condition(**(chain[0].condition or {"text": "x"}))
            state = sampler.init(condition, [chain[0].uid], seed=11)
            for child in chain[1:]:
                assert child.parent_step is not None
                state = sampler.advance(state, child.parent_step - state.step).select([0], [child.uid])
                if child.condition is not None:
                    state = replace(state, conditions=(Condition(**child.condition),))
                state = sampler.apply(from_description(child.move or {"name": child.origin}), state)
            state = sampler.advance(state, sampler.num_steps - state.step)
            assert state.latents[0].tolist() == pytest.approx(final.latents[row].tolist(), abs=1e-6)
            assert state.conditions == final.conditions[row : row + 1]
