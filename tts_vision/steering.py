"""A person's say in a running search: what is pinned is kept, what is banned is dropped, drafts are picked.

A search looks at the decisions after each scoring and records them when they changed, so that a search that
is killed and resumed takes them from its record. A search that nobody steers records nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tts_vision.errors import StopSearch

if TYPE_CHECKING:
    from tts_vision.context import SearchContext
    from tts_vision.types import State

STEERING = "steering"
"""Name of the answers that record decisions."""

ORIGINAL = "original"
"""Name of the number that a note records: the particle that all others of a search are variations of."""
PICKS = "picks"
"""Name of the answers that say which drafts are finished."""
_picks: ContextVar[list[list[int]] | None] = ContextVar("picks", default=None)


@contextmanager
def picking(*answers: Sequence[int]) -> Iterator[None]:
    """In the block, a search of drafts that asks which ones to finish gets `answers`, one after the other."""
    token = _picks.set([list(answer) for answer in answers])
    try:
        yield
    finally:
        _picks.reset(token)


def picked() -> list[int]:
    """The drafts to finish next.

    Raises:
        StopSearch: If nobody has picked any yet; the search can go on when somebody has.
    """
    waiting = _picks.get()
    if not waiting:
        raise StopSearch("drafts wait to be picked")
    return waiting.pop(0)


@dataclass(frozen=True)
class Decisions:
    """What a person decided so far.

    Attributes:
        pinned: Particles to keep.
        banned: Particles to drop.
    """

    pinned: frozenset[int] = frozenset()
    banned: frozenset[int] = frozenset()

    def as_json(self) -> dict[str, list[int]]:
        """The decisions as a trace has them."""
        return {"pinned": sorted(self.pinned), "banned": sorted(self.banned)}

    @classmethod
    def from_json(cls, value: Any) -> Decisions:
        """The decisions that a trace recorded."""
        return cls(frozenset(map(int, value["pinned"])), frozenset(map(int, value["banned"])))

    def applied(self, scores: Tensor, uids: Sequence[int]) -> Tensor:
        """Scores by which an algorithm keeps what is pinned and drops what is banned.

        Args:
            scores: ``(B,)`` float64, NaN where a particle has no score.
            uids: ``(B,)`` the particles.

        Returns:
            ``(B,)`` float64: -inf for banned particles; for pinned ones just above the highest of the others.
        """
        if not (self.pinned | self.banned).intersection(uids):
            return scores
        values = scores.clone()
        others = [
            value
            for uid, value in zip(uids, scores.tolist())
            if uid not in self.banned and uid not in self.pinned and math.isfinite(value)
        ]
        top = math.nextafter(max(others), math.inf) if others else 0.0
        for i, uid in enumerate(uids):
            if uid in self.banned:
                values[i] = -math.inf
            elif uid in self.pinned and not values[i] >= top:  # also where it is NaN
                values[i] = top
        return values


@dataclass
class Steered:
    """The decisions in effect in a search.

    Attributes:
        steering: Where a person decides; None where nobody does.
        decisions: What is in effect since the last scoring.
        rows: Pinned particles that are not finished, as they stood at their last scoring, each with the
            context on its generator.
    """

    steering: Steering | None = None
    decisions: Decisions = Decisions()
    rows: dict[int, tuple[SearchContext, State]] = field(default_factory=dict)

    def hold(self, context: SearchContext, state: State) -> None:
        """Remembers where the pinned particles of a state stand."""
        for i, uid in enumerate(state.uids):
            if uid in self.decisions.pinned:
                self.rows[uid] = context, state.select([i])


class Steering:
    """The decisions of a person about one search; may be changed from another thread while it runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decisions = Decisions()

    @property
    def decisions(self) -> Decisions:
        """What is decided now."""
        with self._lock:
            return self._decisions

    def pin(self, uid: int) -> None:
        """Keeps a particle: its score ranks first among those that are scored with it, and it is finished.

        An algorithm that drops it nevertheless, such as one that resamples by chance, ends without it; then
        it is finished at the end of the search, from where it stood at its last scoring.
        """
        with self._lock:
            d = self._decisions
            self._decisions = Decisions(d.pinned | {uid}, d.banned - {uid})

    def ban(self, uid: int) -> None:
        """Drops a particle: it ranks last, and is never the best sample."""
        with self._lock:
            d = self._decisions
            self._decisions = Decisions(d.pinned - {uid}, d.banned | {uid})

    def release(self, uid: int) -> None:
        """Takes back what was decided about a particle."""
        self.restore(Decisions(self.decisions.pinned - {uid}, self.decisions.banned - {uid}))

    def restore(self, decisions: Decisions) -> None:
        """Goes on with the decisions of a former session."""
        with self._lock:
            self._decisions = decisions
