"""The record of a search: events of three kinds, appended as they happen, and the lineage read from them.

A *birth* makes particles, with or without parents; *computed rows* move particles on or decode them; an
*answer* is a fact that the search got from elsewhere: scores, features, and whatever it asks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tts_vision.errors import StorageError
from tts_vision.files import POPULATION, is_file, is_plain, read_file
from tts_vision.ledger import Spent
from tts_vision.types import Score


class _Event(BaseModel):
    """The facts that all events have: the number of the operation, its rows, the cost so far."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants", extra="forbid")

    op: int
    uids: tuple[int, ...] = ()
    step: int = 0
    spent: Spent = Spent()


class Began(_Event):
    """The start of a search, the first event of a trace: the settings that the trace belongs to.

    Attributes:
        config: The settings that decide the outcome, as YAML and JSON have them.
        hash: Their hash.
        max_batch: Rows computed at once in the first session. Those of later ones may be others, but all make
            as many independent samples at a time.
        fingerprint: Facts about the Python objects in the place of names; see `tts_vision.fingerprint`.
    """

    kind: Literal["began"] = "began"
    config: dict[str, Any]
    hash: str = ""
    max_batch: int | None = None
    fingerprint: dict[str, Any] = Field(default_factory=dict)

    @property
    def what(self) -> str:
        return self.kind


class Birth(_Event):
    """Particles at `step`, made by `move` from parents at `from_step`, or drawn from their seeds.

    Attributes:
        move: Name and values of the move; ``init`` for particles without parents.
        parents: ``parents[i]`` became ``uids[i]``; the same uid is the same particle.
        from_step: Step of the parents.
        seeds: Row seeds of the initial noise of particles without parents.
        sampler: Name of the generator, where it is not the search's own.
        conditions: Digest of the condition of each row, where it is not that of its parent or the search's.
        defined: Conditions by digest that no earlier event has.
    """

    kind: Literal["birth"] = "birth"
    move: dict[str, Any]
    parents: tuple[int, ...] = ()
    from_step: int = 0
    seeds: tuple[int, ...] = ()
    sampler: str = ""
    conditions: tuple[str, ...] = ()
    defined: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def what(self) -> str:
        """Name of the operation."""
        return str(self.move["name"])


class Computed(_Event):
    """Rows ``first`` to ``first + len(uids)`` of a state, advanced to `step` or decoded at it.

    Attributes:
        what: ``advance``; ``gradient``, which advances too; or ``decode``.
        from_step: Step of the rows before.
        first: The first row.
        blob: Name of the stored tensors.
        preview: Whether unfinished samples were decoded.
        rewards: Of ``gradient``: NaN where there is none, with the reason.
        reasons: Why rewards are NaN.
        backwards: Share of the nfe that went into going back.
    """

    kind: Literal["computed"] = "computed"
    what: Literal["advance", "gradient", "decode"]
    from_step: int = 0
    first: int = 0
    blob: str | None = None
    preview: bool = False
    rewards: tuple[float, ...] = ()
    reasons: tuple[str | None, ...] = ()
    backwards: float = 0.0


class Answer(_Event):
    """A recorded answer.

    Attributes:
        what: ``score``; ``stage_score``, by other prompts than that of the user; ``judge``, by a question of
            the verifier; ``features``; ``heldout``; ``note``; ``part``, inside another operation; or the name
            that an algorithm asked under.
        value: The answer as JSON has it; of ``features`` the name of the extractor, of ``stage_score`` the
            prompts, or with another verifier its name and these, of ``judge`` the question.
        scores: Of ``score``, ``stage_score``, ``judge`` and ``heldout``, one per row.
        files: Of ``score``: names of the stored samples, empty where there is none.
        preview: Whether the samples were unfinished.
        blob: Name of the stored tensor, of ``features``.
    """

    kind: Literal["answer"] = "answer"
    what: str
    value: Any = None
    scores: tuple[Score, ...] = ()
    files: tuple[str, ...] = ()
    preview: bool = False
    blob: str | None = None

    @property
    def values(self) -> tuple[float, ...]:
        """The values of the scores."""
        return tuple(score.value for score in self.scores)


class Recovered(_Event):
    """Particles that were computed again because their stored tensors were lost.

    Attributes:
        cost: The price, which is spent beyond the budget.
        message: What was lost, and the price, in words.
    """

    kind: Literal["recovered"] = "recovered"
    cost: Spent = Spent()
    message: str = ""

    @property
    def what(self) -> str:
        return self.kind


class Checkpoint(_Event):
    """A search that was interrupted or continued."""

    kind: Literal["checkpoint"] = "checkpoint"
    reason: str = ""

    @property
    def what(self) -> str:
        return self.kind


class Done(_Event):
    """The end of a search.

    Attributes:
        best: The particle that won.
        budget_spent: Whether the budget ended the search early.
        satisfied: Whether the target was reached; None without a target.
    """

    kind: Literal["done"] = "done"
    best: int | None = None
    budget_spent: bool = False
    satisfied: bool | None = None

    @property
    def what(self) -> str:
        return self.kind


Event = Annotated[
    Began | Birth | Computed | Answer | Recovered | Checkpoint | Done, Field(discriminator="kind")
]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)
PART = "part"
"""Name of the answers inside an operation that is not done yet."""
SCORES = frozenset({"score", "stage_score", "judge", "heldout"})
"""Names of the answers that are scores of particles."""
OPERATIONS = frozenset({"init", "advance", "gradient", "decode", "features", "select", PART}) | SCORES
"""Names that no answer of an algorithm can have."""
_FORMER = {"init", "advance", "select", "mutate", "renoise", "measure", "decode", "score", "features"}
_FORMER |= {"gradient", "note", "holdout"}


def read_trace(path: Path) -> list[Event]:
    """The events in a trace file; an unfinished last line, left by a kill, is not one of them.

    Raises:
        StorageError: If a finished line is no event of this version, or names a file outside the folder; the
            file is left as it is.
    """
    if not is_file(path):
        return []
    lines = read_file(path).split(b"\n")[:-1]
    return [_event(path, number, line) for number, line in enumerate(lines, start=1)]


def read_began(path: Path) -> Began | None:
    """The first event of a trace file; None where there is no event yet.

    Raises:
        StorageError: If it is another one, so that the trace belongs to no known settings.
    """
    if not is_file(path):
        return None
    line, end, _ = read_file(path).partition(b"\n")
    if not end:
        return None
    event = _event(path, 1, line)
    if event.kind != "began":
        raise StorageError(_FORMER_VERSION.format(path=str(path), kind=event.kind, number=1))
    return event


def _event(path: Path, number: int, line: bytes) -> Event:
    try:
        event = _ADAPTER.validate_json(line)
    except ValidationError as error:
        raise StorageError(_refusal(path, number, line, error)) from None
    flaw = _flaw(event)
    if flaw is not None:
        raise StorageError(_DAMAGED.format(path=str(path), number=number, flaw=f" ({flaw})"))
    for name in _files(event):
        if not is_plain(name.removeprefix(f"{POPULATION}/")):
            raise StorageError(
                f"Names in a trace must be of files in its folder but line {number} of {str(path)!r} names "
                f"{name!r}; the file was changed by somebody: do not use its folder."
            )
    return event


def check_order(events: Iterable[Event], path: Path) -> None:
    """Checks that each event is of particles and conditions that events before it made.

    Args:
        events: A whole trace.
        path: Its file, for the message.

    Raises:
        StorageError: If one is not.
    """
    born: set[int] = set()
    conditions: set[str] = set()
    for number, event in enumerate(events, start=1):
        known = event.uids
        if event.kind == "birth":
            conditions |= set(event.defined)
            known = event.parents
        elif event.kind == "answer" and not event.scores:
            known = ()
        unknown = [str(uid) for uid in known if uid not in born]
        unknown += [digest for digest in getattr(event, "conditions", ()) if digest not in conditions]
        if unknown:
            flaw = f" (no line before it made {unknown[0]})"
            raise StorageError(_DAMAGED.format(path=str(path), number=number, flaw=flaw))
        if event.kind == "birth":
            born |= set(event.uids)


def _flaw(event: Event) -> str | None:
    """The reason why an event cannot have been written by a search; None if there is none."""
    rows: dict[str, int] = {}
    if event.kind == "birth":
        if not isinstance(event.move.get("name"), str):
            return "its move has no name"
        rows = {"parents": len(event.parents), "seeds": len(event.seeds), "conditions": len(event.conditions)}
    elif event.kind == "computed":
        rows = {"rewards": len(event.rewards), "reasons": len(event.reasons)}
        if event.what == "gradient" and not event.rewards:
            return "it has no rewards"
    elif event.kind == "answer":
        rows = {"scores": len(event.scores), "files": len(event.files)}
        if event.what in SCORES and len(event.scores) != len(event.uids):
            return "scores are not one for each particle"
    wrong = next((name for name, n in rows.items() if n not in (0, len(event.uids))), None)
    if wrong is not None:
        return f"{wrong} are not one for each particle"
    counts = (event.op, event.step, getattr(event, "from_step", 0), getattr(event, "first", 0))
    return "operations, steps and rows are counted from 0" if min(counts) < 0 else None


def _files(event: Event) -> list[str]:
    """The names of files in an event."""
    blob = [event.blob] if event.kind in ("computed", "answer") and event.blob is not None else []
    return blob + [name for name in event.files if name] if event.kind == "answer" else blob


_DAMAGED = (
    "Every line of a trace must be an event but line {number} of {path!r} is damaged{flaw}; restore the "
    "file, or start the search again in another folder."
)
_FORMER_VERSION = (
    "A trace must be of this version but {path!r} was written by an earlier one (event {kind!r} in line "
    "{number}); resume it with that version, or start the search again in another folder."
)


def _refusal(path: Path, number: int, line: bytes, error: ValidationError) -> str:
    try:
        kind = json.loads(line).get("kind")
    except (ValueError, AttributeError):
        return _DAMAGED.format(path=str(path), number=number, flaw="")
    if isinstance(kind, str) and kind in _FORMER:
        return _FORMER_VERSION.format(path=str(path), kind=kind, number=number)
    reason = error.errors()[0]["msg"]
    return (
        f"Every line of a trace must be an event of this version but line {number} of {str(path)!r} is "
        f"{kind!r} ({reason}); it may be of a newer version: update tts-vision, or restore the file."
    )


def answers(events: Iterable[Event], what: str) -> Iterator[Answer]:
    """The recorded answers of one name."""
    for event in events:
        if event.kind == "answer" and event.what == what:
            yield event


class Ancestor(BaseModel):
    """One link of a lineage: how `uid` came to be, at which step, from which parent.

    Attributes:
        uid: The particle.
        step: Step that it was born at.
        origin: Name of the move; ``init`` without a parent.
        parent: The parent, if there is one.
        parent_step: Step of the parent.
        seed: Row seed of its initial noise, without a parent.
        move: Name and values of the move, if it has any values.
        sampler: Name of the generator, where it is not the search's own.
        condition: Description of its condition, where it is not that of its parent or the search's.
    """

    uid: int
    step: int
    origin: str
    parent: int | None = None
    parent_step: int | None = None
    seed: int | None = None
    move: dict[str, Any] | None = None
    sampler: str | None = None
    condition: dict[str, Any] | None = None


def ancestry(events: Iterable[Event]) -> dict[int, Ancestor]:
    """How every particle of a trace came to be."""
    family = Family()
    for event in events:
        family.add(event)
    return family.born


class Family:
    """How every particle came to be, kept while events come in.

    Attributes:
        born: The particles by uid.
    """

    def __init__(self) -> None:
        self.born: dict[int, Ancestor] = {}
        self._conditions: dict[str, Mapping[str, Any]] = {}

    def add(self, event: Event) -> None:
        """Takes note of an event."""
        if event.kind != "birth":
            return
        self._conditions.update(event.defined)
        for i, uid in enumerate(event.uids):
            parent = event.parents[i] if event.parents else None
            if uid == parent:
                continue
            condition = self._conditions[event.conditions[i]] if event.conditions else None
            self.born[uid] = Ancestor(
                uid=uid,
                step=event.step,
                origin=event.what,
                parent=parent,
                parent_step=None if parent is None else event.from_step,
                seed=event.seeds[i] if event.seeds else None,
                move=event.move if len(event.move) > 1 else None,
                sampler=event.sampler or None,
                condition=None if condition is None else dict(condition),
            )

    def condition_of(self, uid: int) -> dict[str, Any] | None:
        """Description of a particle's condition; None where it is the search's own."""
        at: int | None = uid
        while at is not None:
            ancestor = self.born[at]
            if ancestor.condition is not None:
                return ancestor.condition
            at = ancestor.parent
        return None

    def lineage(self, uid: int) -> list[Ancestor]:
        """The chain from the seed of a particle to the particle itself.

        Raises:
            KeyError: If there is no such particle.
        """
        chain = [self.born[uid]]
        while (parent := chain[-1].parent) is not None:
            chain.append(self.born[parent])
        return chain[::-1]


def lineage(events: Iterable[Event], uid: int) -> list[Ancestor]:
    """The chain from the seed of a particle to the particle itself.

    Raises:
        KeyError: If the trace has no such particle.
    """
    family = Family()
    for event in events:
        family.add(event)
    return family.lineage(uid)
