"""The trace: events survive JSON, a torn last line is none, lineage leads back to the seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from toy_search import toy_context
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.algorithms.search_over_paths import search_over_paths
from tts_vision.context import apply_mutation
from tts_vision.ledger import Spent
from tts_vision.mutations import from_description
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.trace import (
    Advance,
    Checkpoint,
    Decode,
    Done,
    Event,
    Init,
    Mutate,
    Note,
    Renoise,
    Scored,
    Select,
    ancestry,
    lineage,
    read_trace,
)
from tts_vision.types import State

EVENTS: list[Event] = [
    Init(op=0, uids=(0, 1), seeds=(7, 2**62), spent=Spent(nfe=1.5, seconds={"denoise": 0.25})),
    Advance(op=1, uids=(0, 1), from_step=0, step=2, first=0, blob="a.safetensors"),
    Select(op=2, uids=(1, 2), parents=(1, 1), step=2),
    Mutate(op=3, uids=(3,), parents=(2,), step=2, mutation={"name": "blend", "beta": 0.2}),
    Renoise(op=4, uids=(4,), parents=(3,), step=1, from_step=2),
    Decode(op=5, uids=(4,), preview=True, step=2),
    Scored(op=5, uids=(4,), values=(0.1,), parts=({"a": 1.0},), reasons=(None,), files=("4.png",)),
    Note(op=6, values={"ess": 1 / 3, "worst": -math.inf}),
    Checkpoint(op=7, reason="stopped"),
    Done(op=7, best=4, budget_spent=True),
]


def write(path: Path, events: list[Event], tail: bytes = b"") -> Path:
    path.write_bytes(b"".join(event.model_dump_json().encode() + b"\n" for event in events) + tail)
    return path


def test_events_survive_the_file(tmp_path: Path) -> None:
    assert read_trace(write(tmp_path / "trace.jsonl", EVENTS)) == EVENTS


def test_nan_survives_the_file(tmp_path: Path) -> None:
    scored = Scored(op=0, uids=(0,), values=(math.nan,), parts=({"a": math.nan},), reasons=("blind",))
    (again,) = read_trace(write(tmp_path / "trace.jsonl", [scored]))
    assert again.kind == "score"
    assert math.isnan(again.values[0]) and math.isnan(again.parts[0]["a"]) and again.reasons == ("blind",)


@pytest.mark.parametrize(
    "tail", [b'{"op": 9, "kind": "no', b'{"op": 9, "kind": "note"}', b"\xff\xfe\n", b"garbage\n"]
)
def test_a_torn_last_line_is_no_event(tmp_path: Path, tail: bytes) -> None:
    assert read_trace(write(tmp_path / "trace.jsonl", EVENTS, tail)) == EVENTS


def test_no_file_no_events(tmp_path: Path) -> None:
    assert read_trace(tmp_path / "trace.jsonl") == []


def test_lineage_leads_back_to_the_seed() -> None:
    chain = lineage(EVENTS, 4)
    assert [(a.uid, a.origin, a.parent, a.step, a.parent_step) for a in chain] == [
        (1, "init", None, 0, None),
        (2, "select", 1, 2, 2),
        (3, "mutate", 2, 2, 2),
        (4, "renoise", 3, 1, 2),
    ]
    assert chain[0].seed == 2**62 and chain[2].mutation == {"name": "blend", "beta": 0.2}
    with pytest.raises(KeyError):
        lineage(EVENTS, 99)


def test_the_first_copy_stays_who_it_was() -> None:
    assert ancestry(EVENTS)[1].origin == "init"


@pytest.mark.parametrize("strict_reference", [False, True])
def test_a_particle_can_be_made_again_from_its_lineage_alone(strict_reference: bool) -> None:
    searches = [lambda ctx: evosearch(ctx, n=4, strict_reference=strict_reference), search_over_paths]
    for search in searches:
        sampler = GaussianMixtureSampler(num_steps=6, order=2)
        ctx = toy_context(sampler, seed=11)
        final: State = search(ctx)
        for row, uid in enumerate(final.uids):
            chain = lineage(ctx._journal.events, uid)
            state = sampler.init(ctx._prompt, [chain[0].uid], seed=11)
            for child in chain[1:]:
                assert child.parent_step is not None
                state = sampler.advance(state, child.parent_step - state.step).select([0], [child.uid])
                if child.origin == "mutate":
                    state = apply_mutation(from_description(child.mutation or {}), state)
                elif child.origin == "renoise":
                    state = sampler.renoise(state, child.step)
            state = sampler.advance(state, sampler.num_steps - state.step)
            assert state.latents[0].tolist() == pytest.approx(final.latents[row].tolist(), abs=1e-6)
