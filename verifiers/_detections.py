"""Detected objects, and GenEval's rules on them (Ghosh et al. 2023), as pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from torch import Tensor

from tts_vision.types import Region
from tts_vision.verifiers._predicates import Demands, Group, Predicate, number, plural

Box: TypeAlias = tuple[float, float, float, float]

# the axis along which the reference lies, and the sign of the direction
DIRECTIONS = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
    "on top of": (1, -1),
    "under": (1, 1),
    "underneath": (1, 1),
    "beneath": (1, 1),
}
DEAD_BAND = 0.1


@dataclass(frozen=True)
class Detection:
    """One object found in an image.

    Attributes:
        label: Its name in the prompt.
        score: Confidence in [0, 1].
        box: ``(x0, y0, x1, y1)`` in pixels.
        mask: ``(H, W)`` bool, if the detector makes masks.
    """

    label: str
    score: float
    box: Box
    mask: Tensor | None = None


@dataclass(frozen=True)
class Findings:
    """What an image was found to hold.

    Attributes:
        faults: Of each predicate, as by `check`.
        detections: By falling confidence; of wanted objects and those that were looked for as well.
    """

    faults: dict[str, str]
    detections: list[Detection]


ColourOf: TypeAlias = Callable[[Detection, Group], str]
"""The colour of a detection that a group asks for."""


def strongest(
    found: Sequence[Detection], *, max_objects: int = 16, max_overlap: float = 1.0
) -> list[Detection]:
    """At most `max_objects` of each label, the most confident first.

    Args:
        found: Detections.
        max_objects: Of each label.
        max_overlap: Of two boxes of a label the weaker is dropped if their intersection over union is this
            much or more; 1 keeps all.
    """
    kept: list[Detection] = []
    for detection in sorted(found, key=lambda d: -d.score):
        same = [d for d in kept if d.label == detection.label]
        if max_overlap < 1 and any(overlap(detection.box, d.box) >= max_overlap for d in same):
            continue
        if len(same) < max_objects:
            kept.append(detection)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; as in GenEval, the far edges count as pixels of the box."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    areas = [max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0) for box in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def direction(a: Box, b: Box) -> tuple[float, float]:
    """Where box `a` lies as seen from `b`: the offset of centres, less a dead band, over its full length.

    The dead band is a tenth of the sum of both sizes on each axis. The length is that of the offset before
    it is shortened, as in GenEval's code.

    Returns:
        ``(x, y)``, y pointing down; zeros if both are within the dead band.
    """
    corners = np.array([a, b], dtype=float)
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    offset = centres[0] - centres[1]
    rest = np.sign(offset) * np.maximum(np.abs(offset) - DEAD_BAND * sizes.sum(0), 0)
    if (np.abs(rest) < 1e-3).all():
        return 0.0, 0.0
    x, y = rest / np.linalg.norm(offset)
    return float(x), float(y)


def lies(a: Box, words: str, b: Box) -> bool:
    """Whether box `a` is `words` (of `DIRECTIONS`) of box `b`: its direction is longer than 0.5 that way."""
    axis, sign = DIRECTIONS[words]
    return direction(a, b)[axis] * sign > 0.5


def check(demands: Demands, found: Sequence[Detection], colour_of: ColourOf | None) -> dict[str, str]:
    """The fault of each predicate that detections can decide, by GenEval's rules.

    Each group takes its `least` most certain detections; these must have its colour, and each of them must
    lie to each of the reference group as asked. More of a kind do no harm, unless the group has a limit.
    Groups of one kind look at detections of their own colour only. Where all predicates hold, GenEval calls
    the image correct.

    Args:
        demands: Demands of the prompt.
        found: Detections by falling confidence.
        colour_of: Names colours; without it, predicates that need one are left out.

    Returns:
        By the name of the predicate, its fault; empty if it holds. Attributes, written text and relations
        that are not in `DIRECTIONS` are left out.
    """
    pools = [_pool(demands, i, found, colour_of) for i in range(len(demands.groups))]
    wrong: dict[str, str] = {}
    for predicate in demands.predicates():
        verdict = _verdict(predicate, demands, pools, colour_of)
        if verdict is not None:
            wrong[predicate.name] = verdict
    return wrong


def located(
    demands: Demands, failed: Collection[str], found: Sequence[Detection], size: tuple[int, int]
) -> tuple[Region, ...]:
    """Where an image is wrong: the boxes of the detections that failed predicates are about.

    A wrong colour, attribute or place is that of the most certain objects of its group, and of too many
    objects each one may be the wrong one. An object that is missing lies nowhere.

    Args:
        demands: Demands of the prompt.
        failed: Names of the predicates that failed.
        found: Detections by falling confidence.
        size: Width and height of the image.

    Returns:
        Boxes as shares of the image, each once.
    """
    width, height = size
    boxes: list[Box] = []
    for predicate in demands.predicates():
        if predicate.name not in failed or predicate.group is None:
            continue
        group = demands.groups[predicate.group]
        pool = [detection.box for detection in found if detection.label == group.noun]
        counted = predicate.kind in ("object", "count")
        boxes += pool if counted and len(pool) > group.least else [] if counted else pool[: group.least]
    return tuple((a / width, b / height, c / width, d / height) for a, b, c, d in dict.fromkeys(boxes))


def coloured(demands: Demands, found: Sequence[Detection]) -> list[tuple[Detection, Group]]:
    """The detections whose colours decide predicates, each with the group that asks; `check` asks no others.

    Args:
        demands: Demands of the prompt.
        found: Detections by falling confidence.
    """
    asked: list[tuple[Detection, Group]] = []
    for i, group in enumerate(demands.groups):
        if group.colour is None:
            continue
        pool = [detection for detection in found if detection.label == group.noun]
        if not demands.shares_noun(i):
            asked += [(detection, group) for detection in pool[: group.least]]
        elif not group.attributes:
            asked += [(detection, group) for detection in pool]
    return asked


def _pool(
    demands: Demands, i: int, found: Sequence[Detection], colour_of: ColourOf | None
) -> list[Detection] | None:
    """The detections that may be of a group; None if those of another group look the same."""
    group = demands.groups[i]
    pool = [detection for detection in found if detection.label == group.noun]
    if not demands.shares_noun(i):
        return pool
    if group.attributes or (group.colour and colour_of is None):
        return None
    return [d for d in pool if group.colour is None or (colour_of and colour_of(d, group) == group.colour)]


def _verdict(
    predicate: Predicate,
    demands: Demands,
    pools: Sequence[list[Detection] | None],
    colour_of: ColourOf | None,
) -> str | None:
    """The fault of a predicate, empty if it holds; None if detections cannot decide."""
    if predicate.group is None or predicate.kind == "attribute":
        return None
    pool, group, called = (
        pools[predicate.group],
        demands.groups[predicate.group],
        demands.called(predicate.group),
    )
    if pool is None:
        return None
    chosen = pool[: group.least]
    if predicate.kind in ("object", "count"):
        right = len(pool) >= group.least and (group.most is None or len(pool) <= group.most)
        return "" if right else f"wanted {predicate.name}, found {quantity(len(pool), called)}"
    if predicate.kind == "colour":
        if colour_of is None:
            return None
        if not chosen:
            return f"no {called} to be {predicate.value}"
        seen = [colour_of(detection, group) for detection in chosen]
        right = all(colour == predicate.value for colour in seen)
        return "" if right else f"wanted {predicate.value} {called}, found {quantities(seen)}"
    assert predicate.reference is not None
    others, other = pools[predicate.reference], demands.called(predicate.reference)
    if others is None or predicate.value not in DIRECTIONS:
        return None
    others = others[: demands.groups[predicate.reference].least]
    if not (chosen and others):
        return f"no {other if chosen else called} for {predicate.name}"
    right = all(lies(a.box, predicate.value, b.box) for a in chosen for b in others)
    return "" if right else f"not {predicate.name}"


def quantity(n: int, noun: str) -> str:
    """A count of one kind in words."""
    return f"no {noun}" if not n else f"{number(n)} {noun if n == 1 else plural(noun)}"


def quantities(words: Sequence[str]) -> str:
    """Each word once, with how often it occurs if that is more than once."""
    return ", ".join(f"{n} {word}" if n > 1 else word for word, n in Counter(words).items())
