"""An exact checker of playground images: detections by plain image analysis, and GenEval's verdict on them.

No learned part: the ground is the median of the border, objects are connected components that stand off
from it, a colour is the nearest of the palette, a shape the template that overlaps best. Scoring follows
GenEval (Ghosh et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage

from tts_vision.pipelines.playground import world

UNKNOWN = "unknown"
STAND_OFF = 28
MIN_AREA = 20
MIN_OVERLAP = 0.72
_GRID = 24
_TEMPLATE_RADII = (7.0, 9.0, 11.0, 13.5)


@dataclass(frozen=True)
class Detection:
    """One object found in an image.

    Attributes:
        label: One of `world.SHAPES`, or "unknown" for a component that resembles none.
        colour: One of `world.COLOURS`.
        box: `(x0, y0, x1, y1)` in pixels, the far edges exclusive.
        score: Overlap with the template, 0 to 1.
        area: Pixels.
    """

    label: str
    colour: str
    box: tuple[float, float, float, float]
    score: float
    area: int


@dataclass(frozen=True)
class Verdict:
    """What the checker says about an image and a prompt.

    Attributes:
        correct: Whether the image shows what the prompt asks, by GenEval's rules.
        reason: What is missing, empty when correct.
        detections: What was found.
        fraction: Share of the single demands that are met, 0 to 1; 1 exactly when correct.
    """

    correct: bool
    reason: str
    detections: tuple[Detection, ...]
    fraction: float


def detect(image: np.ndarray) -> tuple[Detection, ...]:
    """Finds the objects of an image.

    Args:
        image: RGB, uint8 of shape `(h, w, 3)`.

    Returns:
        Detections by falling score.

    Raises:
        ValueError: The image is not of that type and shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"An image is an RGB uint8 array (h, w, 3); got {image.dtype} {image.shape}. "
            f"Convert it with np.asarray(image.convert('RGB'))."
        )
    pixels = image.astype(np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    off = np.abs(pixels - ground).max(-1)
    labels, _ = ndimage.label(off > STAND_OFF, structure=np.ones((3, 3)))
    found = []
    for k, window in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[window] == k
        area = int(mask.sum())
        if area < MIN_AREA:
            continue
        inner = ndimage.binary_erosion(mask)
        core = pixels[window][inner if inner.sum() >= 8 else mask]
        colour = _nearest_colour(np.median(core, axis=0))
        # The threshold takes in faint rims; half-way to the object's own colour is where its edge lies.
        strength = off[window] / max(float(np.median(off[window][inner if inner.any() else mask])), 1.0)
        label, score = _classify(np.where(mask, np.clip(strength, 0.0, 1.0), 0.0))
        rows, columns = window
        box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        found.append(Detection(label, colour, box, score, area))
    return tuple(sorted(found, key=lambda d: -d.score))


def _nearest_colour(value: np.ndarray) -> str:
    palette = np.array(list(world.COLOURS.values()))
    return list(world.COLOURS)[int(np.abs(palette - value).sum(1).argmin())]


def _normalise(strength: np.ndarray) -> tuple[np.ndarray, float]:
    """Crops a soft mask to its half-height box and resizes it to the comparison grid.

    Args:
        strength: Coverage, shape `(h, w)`.

    Returns:
        Coverage on the grid, `(24, 24)`, and the box's width over its height.
    """
    rows, columns = np.flatnonzero((strength > 0.5).any(1)), np.flatnonzero((strength > 0.5).any(0))
    crop = strength[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    zoom = [(np.arange(_GRID) + 0.5) * side / _GRID - 0.5 for side in crop.shape]
    grid = ndimage.map_coordinates(crop, np.meshgrid(*zoom, indexing="ij"), order=1, mode="nearest")
    return grid, crop.shape[1] / crop.shape[0]


@lru_cache(maxsize=1)
def _templates() -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    names, grids, aspects = [], [], []
    for shape in world.SHAPES:
        for radius in _TEMPLATE_RADII:
            for shift in (0.0, 0.5):
                drawn = world.coverage(
                    shape, np.array([32 + shift]), np.array([32 + shift]), np.array([radius])
                )[0]
                grid, aspect = _normalise(drawn)
                names.append(shape)
                grids.append(grid)
                aspects.append(aspect)
    return tuple(names), np.stack(grids), np.array(aspects)


def _classify(strength: np.ndarray) -> tuple[str, float]:
    """The best template of a soft mask, and their overlap (soft intersection over union)."""
    names, grids, aspects = _templates()
    if not (strength > 0.5).any():
        return UNKNOWN, 0.0
    grid, aspect = _normalise(strength)
    overlap = np.minimum(grids, grid).sum((1, 2)) / np.maximum(grids, grid).sum((1, 2))
    overlap = np.where(np.abs(np.log(aspect / aspects)) < 0.35, overlap, 0.0)
    best = int(overlap.argmax())
    score = float(overlap[best])
    return (names[best], score) if score >= MIN_OVERLAP else (UNKNOWN, score)


def evaluate(image: np.ndarray, metadata: Mapping[str, Any]) -> Verdict:
    """Judges an image against a prompt by GenEval's rules.

    Each include takes its `count` most certain detections of the class; fewer fail. Their colours must be
    the asked one, and each must lie to every object of the reference group as asked. Any exclude that is
    met fails. Objects nobody asked for do no harm. Where two includes name one class, each looks at its own
    colour only.

    Args:
        image: RGB, uint8 of shape `(h, w, 3)`.
        metadata: GenEval-schema record, see `world.metadata`.

    Returns:
        The verdict.
    """
    return judge(detect(image), metadata)


def judge(detections: Sequence[Detection], metadata: Mapping[str, Any]) -> Verdict:
    """The verdict on given detections, see `evaluate`.

    Args:
        detections: What was found, by falling score.
        metadata: GenEval-schema record.

    Returns:
        The verdict.
    """
    include = metadata["include"]
    classes = [entry["class"] for entry in include]
    met, demands = 0.0, 0
    reasons: list[str] = []
    groups: list[list[Detection]] = []
    for entry in include:
        pool = [d for d in detections if d.label == entry["class"]]
        colour = entry.get("color")
        if classes.count(entry["class"]) > 1:
            pool = [d for d in pool if d.colour == colour]
        chosen = pool[: entry["count"]]
        groups.append(chosen)
        demands += 1
        met += len(chosen) / entry["count"]
        if len(chosen) < entry["count"]:
            reasons.append(f"expected {entry['class']}>={entry['count']}, found {len(chosen)}")
        if colour is not None:
            demands += 1
            right = sum(d.colour == colour for d in chosen)
            met += right / entry["count"]
            if right < len(chosen):
                seen = ", ".join(d.colour for d in chosen)
                reasons.append(f"expected {colour} {entry['class']}, found {seen}")
        if "position" in entry:
            relation, target = entry["position"]
            demands += 1
            pairs = [
                world.holds(relation, world.relation_offset(a.box, b.box))
                for a in chosen
                for b in groups[target]
            ]
            wanted = entry["count"] * include[target]["count"]
            met += sum(pairs) / max(wanted, len(pairs))
            if not groups[target]:
                reasons.append(f"no target for {entry['class']} to be {relation}")
            elif not all(pairs):
                reasons.append(f"expected {entry['class']} {relation} {include[target]['class']}")
    for entry in metadata.get("exclude", []):
        number = sum(d.label == entry["class"] for d in detections)
        demands += 1
        met += 1.0 if number < entry["count"] else 1.0 / (2 + number - entry["count"])
        if number >= entry["count"]:
            reasons.append(f"expected {entry['class']}<{entry['count']}, found {number}")
    correct = not reasons
    return Verdict(correct, "; ".join(reasons), tuple(detections), 1.0 if correct else met / demands)
