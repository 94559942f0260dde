"""A person's say in a running search: particles that are pinned are kept, those that are banned are dropped.

A search looks at the decisions after each scoring and records them when they changed, so that a search that
is killed and resumed takes them from its record. A search that nobody steers records nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

STEERING = "steering"
"""Name of the answers that record decisions."""


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
