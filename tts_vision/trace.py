"""The record of a search: typed events, appended as they happen, and the lineage read from them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tts_vision.ledger import Spent


class _Event(BaseModel):
    """What all events have: the number of the operation, the rows it made, the cost so far."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    op: int
    uids: tuple[int, ...] = ()
    step: int = 0
    spent: Spent = Spent()


class Init(_Event):
    """Fresh particles; `seeds` are the row seeds of their initial noise."""

    kind: Literal["init"] = "init"
    seeds: tuple[int, ...] = ()


class Advance(_Event):
    """Rows ``first`` to ``first + len(uids)`` of a state taken from `from_step` to `step`."""

    kind: Literal["advance"] = "advance"
    from_step: int
    first: int = 0
    blob: str | None = None


class Gradient(_Event):
    """As `Advance`, with gradients of the reward.

    `values` are the rewards, NaN where there is none with the reason; `backwards` is how much of the nfe
    went into going back, for the rows of this event.
    """

    kind: Literal["gradient"] = "gradient"
    from_step: int
    first: int = 0
    blob: str | None = None
    values: tuple[float, ...] = ()
    reasons: tuple[str | None, ...] = ()
    backwards: float = 0.0


class Measure(_Event):
    """Numbers that rows of a state carried under `key`."""

    kind: Literal["measure"] = "measure"
    key: str
    values: tuple[float, ...] = ()


class Select(_Event):
    """Rows chosen from a state; `parents[i]` became `uids[i]`."""

    kind: Literal["select"] = "select"
    parents: tuple[int, ...] = ()


class Mutate(_Event):
    """Children made from parents by `mutation` at `step`."""

    kind: Literal["mutate"] = "mutate"
    parents: tuple[int, ...] = ()
    mutation: dict[str, Any] = Field(default_factory=dict)


class Renoise(_Event):
    """Children sent from `from_step` back to `step` with fresh noise."""

    kind: Literal["renoise"] = "renoise"
    parents: tuple[int, ...] = ()
    from_step: int


class Decode(_Event):
    """Rows ``first`` to ``first + len(uids)`` decoded to pixels."""

    kind: Literal["decode"] = "decode"
    first: int = 0
    preview: bool = False


class Scored(_Event):
    """Verdicts of the verifier, NaN where there is none, with the reason; and where samples are stored.

    Where previews are calibrated, `trust` is the rank correlation of previews at this step with their
    finished samples so far.
    """

    kind: Literal["score"] = "score"
    preview: bool = False
    values: tuple[float, ...] = ()
    parts: tuple[dict[str, float], ...] = ()
    reasons: tuple[str | None, ...] = ()
    files: tuple[str, ...] = ()
    trust: float | None = None


class Embedded(_Event):
    """Samples, or previews of them, embedded by an extractor."""

    kind: Literal["features"] = "features"
    extractor: str
    preview: bool = False
    blob: str | None = None


class HeldOut(_Event):
    """Verdicts on finished samples by a verifier that never guided the search, after its end."""

    kind: Literal["holdout"] = "holdout"
    values: tuple[float, ...] = ()
    reasons: tuple[str | None, ...] = ()
    seconds: float = 0.0


class Note(_Event):
    """Numbers an algorithm reports about itself (effective sample size, generation, best score)."""

    kind: Literal["note"] = "note"
    values: dict[str, float] = Field(default_factory=dict)


class Checkpoint(_Event):
    """A search that was interrupted or continued."""

    kind: Literal["checkpoint"] = "checkpoint"
    reason: str = ""


class Done(_Event):
    """The end: which particle won, and whether the budget ended the search early."""

    kind: Literal["done"] = "done"
    best: int | None = None
    budget_spent: bool = False


Event = Annotated[
    Init
    | Advance
    | Gradient
    | Measure
    | Select
    | Mutate
    | Renoise
    | Decode
    | Scored
    | Embedded
    | Note
    | Checkpoint
    | Done
    | HeldOut,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def read_trace(path: Path) -> list[Event]:
    """The events in a trace file; an unfinished last line, left by a kill, is not one of them."""
    events: list[Event] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            if not line.endswith(b"\n"):
                break
            events.append(_ADAPTER.validate_json(line))
        except ValidationError:
            break
    return events


class Ancestor(BaseModel):
    """One link of a lineage: how `uid` came to be, at which step, from which parent."""

    uid: int
    step: int
    origin: Literal["init", "select", "mutate", "renoise"]
    parent: int | None = None
    parent_step: int | None = None
    seed: int | None = None
    mutation: dict[str, Any] | None = None


def ancestry(events: Iterable[Event]) -> dict[int, Ancestor]:
    """How every particle of a trace came to be."""
    born: dict[int, Ancestor] = {}
    for event in events:
        if event.kind == "init":
            for uid, seed in zip(event.uids, event.seeds):
                born[uid] = Ancestor(uid=uid, step=0, origin="init", seed=seed)
        elif event.kind == "select" or event.kind == "mutate" or event.kind == "renoise":
            for uid, parent in zip(event.uids, event.parents):
                if uid != parent:
                    back = event.mutation.get("back", 0) if event.kind == "mutate" else 0
                    born[uid] = Ancestor(
                        uid=uid,
                        step=event.step - back,
                        origin=event.kind,
                        parent=parent,
                        parent_step=event.from_step if event.kind == "renoise" else event.step,
                        mutation=event.mutation if event.kind == "mutate" else None,
                    )
    return born


def lineage(events: Iterable[Event], uid: int) -> list[Ancestor]:
    """The chain from the seed of a particle to the particle itself.

    Raises:
        KeyError: If the trace has no such particle.
    """
    born = ancestry(events)
    chain = [born[uid]]
    while (parent := chain[-1].parent) is not None:
        chain.append(born[parent])
    return chain[::-1]
