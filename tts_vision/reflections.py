"""The reflections in a trace: which finished samples were judged, why they were rejected, what followed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tts_vision.trace import Event
from tts_vision.types import Region

REFLECTION = "reflection"
"""Name of the answer that says whether a finished sample holds, and if not, why."""

REGIONS = "regions"
"""Name of the answer that says which parts of a rejected sample are wrong, where the verdict did not."""

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
        if event.kind != "answer" or not event.uids:
            continue
        value, uid = event.value, event.uids[0]
        if (
            event.what == REFLECTION
            and isinstance(value, dict)
            and {"holds", "reason", "regions"} <= value.keys()
        ):
            last[uid] = len(found)
            found.append(Reflection(uid, value["holds"], value["reason"], _regions(value["regions"])))
        elif event.what == REGIONS and uid in last and isinstance(value, list):
            found[last[uid]] = replace(found[last[uid]], regions=_regions(value))
        elif event.what == CORRECTION and isinstance(value, dict) and value.get("rejected") in last:
            at = last[value["rejected"]]
            new = Correction(value["corrector"], event.uids)
            found[at] = replace(found[at], corrections=(*found[at].corrections, new))
    return found


def _regions(value: Iterable[Iterable[float]]) -> tuple[Region, ...]:
    return tuple((left, top, right, bottom) for left, top, right, bottom in value)
