"""The journal: a search that is killed anywhere ends as if it never was."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from toy_search import run as conducted
from toy_search import toy_context
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.algorithms.fk_steering import fk_steering
from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.errors import StorageError
from tts_vision.journal import Journal
from tts_vision.ledger import Budget
from tts_vision.testing.contracts import FakeClock, Killed, SlowReward, kill_everywhere, results
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Event
from tts_vision.types import Rows, State


class Counting(GaussianMixtureSampler):
    """Counts the rows that it advances."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rows: list[int] = []

    def advance(self, state: State, steps: int = 1) -> State:
        self.rows.append(len(state))
        return super().advance(state, steps)


def steering(ctx: SearchContext) -> State:
    state: State = conducted(fk_steering, ctx, n=3, resample_steps=[2, 4], ess_threshold=None)
    return state


def run(
    folder: Path, *, die_before: int | None = None, die_after: int | None = None
) -> tuple[SearchContext, Counting]:
    """A steered search whose journal or observer kills it at the given number of new events."""

    class Fragile(Journal):
        written = 0

        def append(self, event: Event) -> None:
            self.written += 1
            if self.written == die_before:
                raise Killed
            super().append(event)

    journal, sampler, seen = Fragile(folder), Counting(num_steps=6, order=2), [0]

    def observe(context: SearchContext, event: Event) -> None:
        seen[0] += 1
        if seen[0] == die_after:
            raise Killed

    ctx = toy_context(sampler, journal=journal, observer=observe, max_batch=2)
    try:
        steering(ctx)
    except Killed:
        journal.frozen = True
    return ctx, sampler


def test_killed_before_any_write(tmp_path: Path) -> None:
    whole, sampler = run(tmp_path / "whole")
    for count in range(1, len(whole.events) + 1):
        folder = tmp_path / str(count)
        _, killed = run(folder, die_before=count)
        resumed, rest = run(folder)
        assert results(resumed) == results(whole)
        assert resumed.ledger.spent == whole.ledger.spent
        # at most the one micro-batch whose record was lost is done again
        assert sum(sampler.rows) <= sum(killed.rows) + sum(rest.rows) <= sum(sampler.rows) + 2


def test_killed_again_and_again(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    sessions, resumed = 0, None
    while resumed is None or len(resumed.candidates) < 3:
        resumed, _ = run(tmp_path / "dying", die_before=5)
        sessions += 1
        assert sessions < 50
    assert sessions > 3
    assert results(resumed) == results(whole) and resumed.ledger.spent == whole.ledger.spent


def test_torn_last_line(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    for count in range(1, len(whole.events) + 1):
        folder = tmp_path / str(count)
        run(folder, die_after=count)
        trace = folder / "trace.jsonl"
        data = trace.read_bytes()
        trace.write_bytes(data[: -len(data.splitlines()[-1]) // 2])
        resumed, _ = run(folder)
        assert results(resumed) == results(whole) and resumed.ledger.spent == whole.ledger.spent
        assert all(line.endswith(b"}\n") for line in trace.read_bytes().splitlines(keepends=True))


@pytest.mark.parametrize("damage", [b"garbage", b"gar\rbage", b'{"op": 0, "kind": "init", "seeds": [1]}'])
def test_a_trace_that_cannot_be_read_is_left_as_it_is(tmp_path: Path, damage: bytes) -> None:
    run(tmp_path, die_after=9)
    trace = tmp_path / "trace.jsonl"
    lines = trace.read_bytes().split(b"\n")
    lines[3] = damage
    trace.write_bytes(b"\n".join(lines))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.suffix == ".safetensors" for path in files)
    with pytest.raises(StorageError, match=r"in line 4|line 4 of"):
        run(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_nothing_finished_is_computed_again(tmp_path: Path) -> None:
    whole, _ = run(tmp_path)
    again, sampler = run(tmp_path)
    assert not sampler.rows
    assert results(again) == results(whole) and again.ledger.spent == whole.ledger.spent
    assert len(again.events) == len(whole.events)


@pytest.mark.parametrize("algorithm", [best_of_n, evosearch])
def test_plans_under_a_time_limit_are_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: Callable[[SearchContext], State]
) -> None:
    slow = SlowReward(FakeClock(monkeypatch), 1.0)
    sampler = lambda: GaussianMixtureSampler(num_steps=5)  # noqa: E731
    kill_everywhere(partial(conducted, algorithm), sampler, slow, tmp_path, budget=Budget(seconds=5.5))


def test_another_search_is_refused(tmp_path: Path) -> None:
    run(tmp_path, die_after=9)
    ctx = toy_context(Counting(num_steps=6, order=2), journal=Journal(tmp_path), max_batch=2)
    with pytest.raises(StorageError, match="A resumed search must repeat itself"):
        conducted(fk_steering, ctx, n=4)
    ctx = toy_context(Counting(num_steps=6, order=2), journal=Journal(tmp_path), max_batch=2)
    with pytest.raises(StorageError, match="A resumed search must repeat itself"):
        conducted(fk_steering, ctx, n=3, resample_steps=[], ess_threshold=None)


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "state").iterdir())


def some_state(n: int = 2, **changes: Any) -> State:
    state = State.initial(torch.randn(n, 3), range(n), Condition("x"), 0)
    return replace(state, **{"step": 2, **changes})


def test_states_survive_the_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    both = torch.randn(2, 3)
    state = some_state(
        latents=both[:, 1:],
        carry={"a": both, "b": both.to(torch.bfloat16), "same": both},
        shared={"order": 2, "names": ["x"], "sigma": torch.tensor(0.5)},
    )
    kept, name = journal.save(state, 3, 0)
    loaded = journal.load(name, some_state(), (0, 1), 2)
    assert torch.equal(loaded.latents, state.latents)
    assert loaded.carry.keys() == state.carry.keys()
    for key, value in state.carry.items():
        assert isinstance(value, torch.Tensor)
        assert torch.equal(loaded.carry[key], value) and loaded.carry[key].dtype == value.dtype  # type: ignore[arg-type,union-attr]
    assert loaded.shared["sigma"] == 0.5 and loaded.shared["order"] == 2 and loaded.shared["names"] == ["x"]
    assert len(kept.keepalive) == 1


def test_tensors_live_as_long_as_a_state_is_made_of_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, name = journal.save(some_state(), 0, 0)
    second, _ = journal.save(some_state(), 1, 0)
    assert len(stored(tmp_path)) == 2
    row, joined = first.select([0]), State.cat([first, second])
    del first
    assert len(stored(tmp_path)) == 2
    del row, second
    assert len(stored(tmp_path)) == 2
    del joined
    assert stored(tmp_path) == []
    assert journal.load(name, some_state(), (0, 1), 2).is_placeholder


def test_tensors_are_kept_after_a_failure(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    state, _ = journal.save(some_state(), 0, 0)
    journal.frozen = True
    del state
    assert len(stored(tmp_path)) == 1


def test_disk_holds_no_more_than_the_living(tmp_path: Path) -> None:
    most = [0]

    def observe(context: SearchContext, event: Event) -> None:
        most[0] = max(most[0], len(list((tmp_path / "state").iterdir())))

    ctx = toy_context(GaussianMixtureSampler(num_steps=9), journal=Journal(tmp_path), observer=observe)
    conducted(fk_steering, ctx, n=3, resample_steps=list(range(1, 8)), ess_threshold=None)
    # the population before a step and after it
    assert most[0] == 2
    ctx._engine.journal.close()
    assert not (tmp_path / "state").exists()


def test_full_disk_is_one_clear_message_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(tmp_path / "whole")
    journal = Journal(tmp_path / "full")
    ctx = toy_context(Counting(num_steps=6, order=2), journal=journal, max_batch=2)

    class Full:
        """Takes half a line, then no more."""

        def __init__(self, file: Any) -> None:
            self.file, self.lines = file, 0

        def write(self, data: bytes) -> int:
            self.lines += 1
            if self.lines > 5:
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(data))

        def flush(self) -> None:
            self.file.flush()

    journal._file = Full(journal._file)  # type: ignore[assignment]
    with pytest.raises(StorageError, match=r"must be written to .*No space left on device.*Free some space"):
        try:
            steering(ctx)
        except StorageError:
            journal.frozen = True
            raise
    resumed, _ = run(tmp_path / "full")
    assert results(resumed) == results(whole) and resumed.ledger.spent == whole.ledger.spent


def test_tensors_that_cannot_be_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "state").rmdir()
    with pytest.raises(StorageError, match="A checkpoint must be written to"):
        journal.save(some_state(), 0, 0)


def test_corrupt_tensors(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    state, name = journal.save(some_state(), 0, 0)
    assert name is not None
    path = tmp_path / "state" / name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StorageError, match=f"A checkpoint must be readable but '.*{name}' is not"):
        journal.load(name, state, (0, 1), 2)


def test_objects_are_made_again_and_not_stored(tmp_path: Path) -> None:
    tensor = torch.arange(2.0)
    state = some_state(carry={"words": Rows(["a", "b"]), "tensor": tensor})
    journal = Journal(tmp_path)
    stored, name = journal.save(state, 0, 0)
    assert stored.carry["words"] == ("a", "b")
    read = journal.load(name, state, (0, 1), 2)
    assert set(read.carry) == {"tensor"}
    assert torch.equal(read.carry["tensor"], tensor)  # type: ignore[arg-type]
    joined = State.cat([read, stored.select([1])])
    assert joined.carry["words"] == (None, None, "b")


def test_memory_only() -> None:
    journal = Journal()
    state = some_state()
    assert journal.save(state, 0, 0) == (state, None)
    ctx = toy_context(verifier=TargetReward(), journal=journal)
    conducted(best_of_n, ctx, n=2)
    assert [event.what for event in journal.events] == ["init", "advance", "decode", "score"]
    journal.close()
