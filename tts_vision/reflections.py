"""The reflections in a trace: which finished samples were judged, why they were rejected, what followed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tts_vision.trace import Event
from tts_vision.types import Region

REFLECTION = "reflection"
"""Name of the answer that says whether a finished sample holds, and if not, why."""

CORRECTION = "correction"
"""Name of the answer that says which particles a corrector began from a rejected sample."""


@dataclass(frozen=True)
class Correction:
    """Particles that a corrector began."""

    corrector: str
    uids: tuple[int, ...]


@dataclass(frozen=True)
class Reflection:
    """A judgement of a finished sample.

    Attributes:
        uid: The particle.
        holds: Whether it is good enough.
        reason: Why it is not; empty if nobody said so.
        regions: The parts of the image that the reason is about.
        corrections: What was begun from it.
    """

    uid: int
    holds: bool
    reason: str = ""
    regions: tuple[Region, ...] = ()
    corrections: tuple[Correction, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """It as JSON has it."""
        return {
            "uid": self.uid,
            "holds": self.holds,
            "reason": self.reason,
            "regions": [list(region) for region in self.regions],
            "corrections": [{"corrector": c.corrector, "uids": list(c.uids)} for c in self.corrections],
        }


def reflections(events: Iterable[Event]) -> list[Reflection]:
    """The reflections of a search, in order."""
    found: list[Reflection] = []
    last: dict[int, int] = {}
    for event in events:
        if event.kind != "answer" or not isinstance(event.value, dict):
            continue
        if event.what == REFLECTION and {"holds", "reason", "regions"} <= event.value.keys() and event.uids:
            last[event.uids[0]] = len(found)
            regions = tuple(tuple(region) for region in event.value["regions"])
            found.append(Reflection(event.uids[0], event.value["holds"], event.value["reason"], regions))
        elif event.what == CORRECTION and event.value.get("rejected") in last:
            at = last[event.value["rejected"]]
            before, new = found[at], Correction(event.value["corrector"], event.uids)
            found[at] = Reflection(
                before.uid, before.holds, before.reason, before.regions, (*before.corrections, new)
            )
    return found
