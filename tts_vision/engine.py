"""The machinery under every operation of a search: numbers, records, charges, batches and resumes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tts_vision.condition import Condition
from tts_vision.errors import BudgetSpent, ConfigError, PipelineError, StorageError
from tts_vision.journal import Journal
from tts_vision.ledger import Ledger
from tts_vision.memory import in_halves, out_of_memory
from tts_vision.moves import Move, describe
from tts_vision.rng import row_seed
from tts_vision.sampler import Sampler
from tts_vision.trace import OPERATIONS, PART, Answer, Birth, Checkpoint, Computed, Done, Event
from tts_vision.types import Cost, State

if TYPE_CHECKING:
    from tts_vision.recovery import Recovery

Result = TypeVar("Result")
Work = Callable[[State], tuple[State, Mapping[str, Any]]]


class Engine:
    """Runs operations so that they are charged, recorded, computed in batches, and repeated on resume.

    Attributes:
        seed: Root seed of the search.
        ledger: The budget and what is spent.
        journal: Where operations are recorded.
        max_batch: Rows computed at once; shrinks when memory runs out.
        op: Number of the next operation.
        concluded: Whether the algorithm saves the rest of its budget.
        recovery: Computes rows again whose stored tensors are lost.
        listeners: Called with each event, when it is recorded or, after a resume, repeated.
        observe: Called with each event that is recorded, and with the last one of each repeated operation.
    """

    def __init__(self, seed: int, ledger: Ledger, journal: Journal, max_batch: int | None) -> None:
        self.seed, self.ledger, self.journal, self.max_batch = seed, ledger, journal, max_batch
        self.op = 0
        self.concluded = False
        self.recovery: Recovery | None = None
        self.listeners: list[Callable[[Event], None]] = []
        self.observe: Callable[[Event], None] = lambda event: None
        self._next_uid = 0
        self._defined: set[str] = set()
        self._asked = ""  # the answer that is being given
        self._parts: dict[str, Any] = {}  # answers inside the operation that runs

    def begin(self, what: str) -> tuple[int, list[Event]]:
        """The number of the operation that starts, and the events that a former session recorded for it.

        Raises:
            StorageError: If that was another operation.
            ConfigError: If an answer is being given.
        """
        if self._asked:
            # a resumed search takes the answer from the record, so it would never get to this operation
            raise ConfigError(
                f"What ctx.ask calls must run no operation but {what!r} came while {self._asked!r} "
                "was asked; run it before, and pass its result."
            )
        op = self.op
        self.op += 1
        past = self.journal.past(op)
        parts = [e.value for e in past if e.kind == "answer" and e.what == PART]
        self._parts = {part["key"]: part["answer"] for part in parts}
        if all(event.what in ("decode", PART) for event in past):
            past = []  # killed between decoding and scoring: both are done again
        if past:
            check_repeats(past[-1].what == what)
            self.ledger.restore(past[-1].spent)
            for event in past:
                for listen in self.listeners:
                    listen(event)
            self.observe(past[-1])
        return op, past

    def record(self, event: Event) -> None:
        """Records an event with the cost so far."""
        event = event.model_copy(update={"spent": self.ledger.read()})
        self.journal.append(event)
        for listen in self.listeners:
            listen(event)
        self.observe(event)

    def check_affordable(self, cost: Cost) -> None:
        """Checks that `cost` can still be paid for.

        Raises:
            BudgetSpent: If it cannot.
        """
        if self.journal.is_spent or not self.ledger.affords(cost):
            raise BudgetSpent

    # Births

    def number_from(self, uid: int) -> None:
        """Gives new particles numbers from `uid` on, or from the next free number if that is higher."""
        self._next_uid = max(uid, self._next_uid)

    def new_uids(self, n: int) -> tuple[int, ...]:
        first, self._next_uid = self._next_uid, self._next_uid + n
        return tuple(range(first, first + n))

    def init(self, sampler: Sampler, name: str, conditions: Sequence[Condition], default: Condition) -> State:
        """Fresh particles, one for each condition."""
        op, past = self.begin("init")
        uids = self.new_uids(len(conditions))
        event = Birth(
            op=op,
            uids=uids,
            move={"name": "init"},
            seeds=tuple(row_seed(self.seed, uid) for uid in uids),
            sampler=name,
            **self._conditions(None if all(c == default for c in conditions) else conditions),
        )
        check_repeats(not past or _same_birth(past[-1], event))
        parts = []
        for a, b in self.batches(len(uids)):
            for first, last in _runs(conditions, a, b):
                parts.append(sampler.init(conditions[first], uids[first:last], seed=self.seed).to("cpu"))
        if not past:
            self.record(event)
        return State.cat(parts)

    def birth(
        self,
        sampler: Sampler,
        name: str,
        state: State,
        move: Move,
        index: Sequence[int],
        *,
        keeps_first: bool = False,
        conditions: Sequence[Condition] | None = None,
    ) -> State:
        """Children of the rows `index` of a state, made by `move`.

        Args:
            sampler: The sampler of the state.
            name: How the trace calls it.
            state: The parents.
            move: How the children are made.
            index: The parent of each child.
            keeps_first: Whether the first child of a row keeps its uid, as a copy of it does.
            conditions: New conditions, one for each child.
        """
        op, past = self.begin(move.name)
        step = move.target(state.step)
        seen: set[int] = set()
        uids = []
        for i in index:
            uids.append(state.uids[i] if keeps_first and i not in seen else self.new_uids(1)[0])
            seen.add(i)
        event = Birth(
            op=op,
            uids=tuple(uids),
            parents=tuple(state.uids[i] for i in index),
            step=step,
            from_step=state.step,
            move=describe(move),
            sampler=name,
            **self._conditions(conditions),
        )
        if past:
            check_repeats(_same_birth(past[-1], event))
        children = state.select(index, uids)
        if conditions is not None:
            children = replace(children, conditions=tuple(conditions))
        children = sampler.apply(move, children)
        if not past:
            self.record(event)
        return children

    def _conditions(self, conditions: Sequence[Condition] | None) -> dict[str, Any]:
        """The fields of a birth that record conditions; keeps their images and tensors."""
        if conditions is None:
            return {}
        defined = {}
        for condition in conditions:
            if condition.digest not in self._defined:
                self._defined.add(condition.digest)
                defined[condition.digest] = condition.describe()
                for asset in condition.assets:
                    self.journal.keep(asset)
        return {"conditions": tuple(condition.digest for condition in conditions), "defined": defined}

    # Computed rows

    def compute(
        self,
        op: int,
        past: Sequence[Event],
        what: Literal["advance", "gradient"],
        state: State,
        step: int,
        price: Callable[[State], Cost],
        work: Work,
    ) -> tuple[State, list[Computed]]:
        """The state taken to `step`, a micro-batch at a time, each stored as soon as it is computed.

        Args:
            op: Number of the operation.
            past: Its recorded events.
            what: Name of the operation.
            state: Where to start.
            step: Where to end.
            price: The cost of some rows.
            work: Computes some rows; the mapping goes into their event.

        Raises:
            BudgetSpent: If not all rows can be paid for.
        """
        events = {e.first: e for e in past if e.kind == "computed" and e.what == what}
        done: dict[int, State] = {}
        for first, event in events.items():
            rows = state.select(range(first, min(first + len(event.uids), len(state))))
            check_repeats((event.from_step, event.step, event.uids) == (state.step, step, rows.uids))
            done[first] = self.stored(event.blob, rows, event.uids, step)
        missing = _gaps({first: len(part) for first, part in done.items()}, len(state))
        if missing:
            if state.is_placeholder:
                self.check_affordable(Cost())
                state = self.whole(state)
            parts = [part for a, b in missing for part in self.batches(b - a, offset=a)]
            self.check_affordable(sum((price(_outline(state, a, b)) for a, b in parts), Cost()))
        for a, b in (part for gap in missing for part in self.batches(gap[1] - gap[0], offset=gap[0])):
            rows = state if (a, b) == (0, len(state)) else state.select(range(a, b))
            ahead, facts = work(rows)
            done[a], blob = self.journal.save(ahead, op, a)
            events[a] = Computed(
                op=op, what=what, uids=rows.uids, from_step=state.step, step=step, first=a, blob=blob, **facts
            )
            self.record(events[a])
        order = sorted(done)
        return State.cat([done[first] for first in order]), [events[first] for first in order]

    def stored(self, name: str | None, rows: State, uids: tuple[int, ...], step: int) -> State:
        """The stored rows, as `Journal.load`; a placeholder also where their tensors are damaged."""
        try:
            return self.journal.load(name, rows, uids, step)
        except StorageError:
            return replace(rows, uids=uids, step=step, carry={}, keepalive=frozenset()).placeholder()

    def whole(self, state: State) -> State:
        """The state with its tensors, which are computed again where they are lost.

        Raises:
            StorageError: If they cannot be.
        """
        if not state.is_placeholder:
            return state
        check_repeats(self.recovery is not None)
        assert self.recovery is not None
        return self.recovery(state)

    def batches(self, n: int, offset: int = 0) -> Iterator[tuple[int, int]]:
        """Row ranges of at most `max_batch`, which may shrink while they are being worked on."""
        a, end = offset, offset + n
        while a < end:
            b = min(end, a + (self.max_batch or n))
            yield a, b
            a = b

    def halving(self, rows: State, work: Callable[[State], Result]) -> list[Result]:
        """`work` on the rows; on out-of-memory on half as many at a time, which stays the micro-batch.

        Raises:
            PipelineError: If memory does not suffice for one row.
        """

        def piece(a: int, b: int) -> Result:
            spent = self.ledger.spent
            try:
                return work(rows if b - a == len(rows) else rows.select(range(a, b)))
            except Exception as error:
                if out_of_memory(error):
                    self.ledger.spent = spent  # what failed gave nothing and is charged again, piece by piece
                raise

        def shrunk(size: int) -> None:
            self.max_batch = min(size, self.max_batch or size)

        try:
            return in_halves(len(rows), len(rows), piece, shrunk=shrunk)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise PipelineError(
                f"One sample at a time must fit into memory but the system says: {error}; use a smaller "
                "image, half precision or offloading."
            ) from error

    # Answers

    def ask(
        self,
        name: str,
        function: Callable[[], Any],
        *,
        cost: Cost | Mapping[str, int] | None = None,
        uids: tuple[int, ...] = (),
    ) -> Any:
        """The answer of `function`, recorded under `name`; on resume from the record.

        Args:
            name: How the record calls it.
            function: Gives an answer of values that JSON can hold.
            cost: Charged before it is asked.
            uids: The particles that it is about.
        """
        if name in OPERATIONS:
            raise ConfigError(f"Answers need a name of their own but {name!r} is an operation; rename it.")
        op, past = self.begin(name)
        for event in past:
            if event.kind == "answer":
                check_repeats(event.uids == uids)
                return event.value
        if self.journal.is_spent and cost is not None:
            raise BudgetSpent
        if isinstance(cost, Cost):
            self.ledger.charge(cost)
        elif cost is not None:
            self.ledger.charge_calls(cost, asked=True)
        self._asked = name
        try:
            with self.ledger.phase("ask"):
                answer = function()
        finally:
            self._asked = ""
        try:
            value = json.loads(json.dumps(answer))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"An answer must be made of values that JSON can hold but that of {name!r} is not: {error}; "
                "convert it inside the function."
            ) from error
        self.record(Answer(op=op, what=name, uids=uids, value=value))
        return value

    def part(self, key: str, function: Callable[[], Any]) -> Any:
        """An answer inside the operation that runs, such as a person's; recorded at once.

        A search that is killed within the operation starts it again, and takes the answers from its record.

        Args:
            key: Tells the question from all others of the operation.
            function: Gives an answer of values that JSON can hold.
        """
        if key not in self._parts:
            with self.ledger.phase("ask"):
                answer = function()
            self._parts[key] = json.loads(json.dumps(answer))
            value = {"key": key, "answer": self._parts[key]}
            self.record(Answer(op=self.op - 1, what=PART, value=value))
        return self._parts[key]

    # The end

    def done(self, best: int | None, *, budget_spent: bool, satisfied: bool | None) -> None:
        """Records the end of the search, once."""
        if not any(event.kind == "done" for event in self.journal.events):
            self.record(Done(op=self.op, best=best, budget_spent=budget_spent, satisfied=satisfied))

    def interrupted(self, reason: str) -> None:
        """Records that the search stopped before its end, and keeps what it needs to go on."""
        self.journal.frozen = True
        self.journal.append(Checkpoint(op=self.op, reason=reason, spent=self.ledger.read()))


DIVERGED = (
    "A resumed search must repeat itself but this one asks for something else than its trace records; use "
    "the same configuration and version, let algorithms draw from ctx.rng() alone, decide by ctx alone and "
    "ask others through ctx.ask, or start afresh."
)


def check_repeats(repeats: bool) -> None:
    """Checks that a resumed search does what its trace records.

    Raises:
        StorageError: If it does not.
    """
    if not repeats:
        raise StorageError(DIVERGED)


def check_steps(sampler: Sampler, state: State, steps: int, *, least: int) -> None:
    """Checks that a state can be advanced by so many steps.

    Raises:
        ConfigError: If it cannot.
    """
    most = sampler.num_steps - state.step
    if not least <= steps <= most:
        raise ConfigError(
            f"A state can be advanced by {least} to {most} more steps but got {steps}; "
            f"it is at step {state.step} of {sampler.num_steps}."
        )


def _same_birth(recorded: Event, event: Birth) -> bool:
    # as the trace has them: tuples are lists there, and NaN equals itself
    return recorded.model_copy(update={"spent": event.spent}).model_dump_json() == event.model_dump_json()


def _runs(conditions: Sequence[Condition], a: int, b: int) -> Iterator[tuple[int, int]]:
    """Ranges of ``[a, b)`` with one condition each."""
    while a < b:
        end = a + 1
        while end < b and conditions[end] == conditions[a]:
            end += 1
        yield a, end
        a = end


def _outline(state: State, a: int, b: int) -> State:
    """Rows ``[a, b)`` as far as prices depend on them."""
    return replace(
        state, latents=state.latents[a:b], uids=state.uids[a:b], conditions=state.conditions[a:b], carry={}
    )


def _gaps(done: Mapping[int, int], n: int) -> list[tuple[int, int]]:
    """Row ranges of ``range(n)`` that ``{first: length}`` leaves out."""
    gaps, at = [], 0
    for first in sorted(done):
        if first > at:
            gaps.append((at, first))
        at = first + done[first]
    if at < n:
        gaps.append((at, n))
    return gaps
