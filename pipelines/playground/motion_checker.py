"""The exact motion checker: are the asked objects in every frame, do they move as asked, and when do they not?

Objects are those that `checker.detect` finds. A clip is judged chunk by chunk, so that its first chunks alone
can be judged on what they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tts_vision.pipelines.playground.checker import Detection, detect
from tts_vision.pipelines.playground.motion import CHUNK, DIRECTIONS, MotionSpec

# Per frame, in pixels and in the logarithm of the size. Drawn clips move by 1.0 to 2.2 and grow by 0.022 to
# 0.038.
_LEAST_PACE, _MOST_DRIFT, _MOST_JUMP = 0.5, 0.4, 5.0
_LEAST_GROWTH, _MOST_BREATH, _MOST_SWELL = 0.012, 0.012, 0.25


@dataclass(frozen=True)
class MotionVerdict:
    """What the checker says about a clip and a prompt.

    Attributes:
        correct: Whether the frames seen show what the prompt asks.
        reason: The first fault, empty when correct.
        fraction: Share of the single demands that are met, 0 to 1; 1 exactly when correct. The demands are the
            objects of each frame, and the motion of each object in each chunk.
        fails_at: The frame at which the clip first fails; None when correct.
        frames: Number of frames that were judged.
    """

    correct: bool
    reason: str
    fraction: float
    fails_at: int | None
    frames: int

    @property
    def failing_chunk(self) -> int | None:
        """The chunk in which the clip first fails."""
        return None if self.fails_at is None else self.fails_at // CHUNK

    def holds_until(self, chunk: int) -> bool:
        """Whether the clip was right up to the end of a chunk, counted from 0."""
        return self.fails_at is None or self.fails_at // CHUNK > chunk


@dataclass(frozen=True)
class Sight:
    """An object found in a frame: centre in pixels and logarithm of the size, both finer than a pixel."""

    shape: str
    colour: str
    x: float
    y: float
    size: float


def observe(frames: np.ndarray) -> list[tuple[Sight, ...]]:
    """The objects of each frame, by falling certainty of their shape.

    Args:
        frames: RGB, uint8 of shape `(t, h, w, 3)`.
    """
    return [tuple(_sight(frame, found) for found in detect(frame)) for frame in frames]


def _sight(frame: np.ndarray, found: Detection) -> Sight:
    """Weighs each pixel of an object by how far it is from the ground to the object's colour."""
    pixels = frame.astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    x0, y0, x1, y1 = (int(edge) for edge in found.box)
    left, top = max(x0 - 1, 0), max(y0 - 1, 0)
    off = np.abs(pixels[top : y1 + 1, left : x1 + 1] - np.median(border, axis=0)).max(-1)
    weight = np.clip(off / max(np.quantile(off, 0.9), 1.0), 0.0, 1.0)
    weight[weight < 0.1] = 0.0
    rows, columns = np.indices(weight.shape)
    mass = weight.sum()
    x, y = (columns * weight).sum() / mass + left + 0.5, (rows * weight).sum() / mass + top + 0.5
    return Sight(found.label, found.colour, float(x), float(y), float(np.log(mass) / 2))


def evaluate(frames: np.ndarray, spec: MotionSpec) -> MotionVerdict:
    """Judges a clip, or its first chunks, against a prompt.

    Every frame must show exactly the asked objects. In every chunk each object must move as asked, from the
    last frame of the chunk before to its own last one; it must not jump between two frames.

    Args:
        frames: RGB, uint8 of shape `(t, h, w, 3)`, from the first frame on.
        spec: What the prompt means.

    Returns:
        The verdict.
    """
    return judge(observe(frames), spec)


def judge(seen: Sequence[Sequence[Sight]], spec: MotionSpec) -> MotionVerdict:
    """The verdict on given objects, see `evaluate`.

    Args:
        seen: Objects of each frame, of `observe`.
        spec: What the prompt means.
    """
    faults: list[tuple[int, str]] = []
    demands = 0
    tracks = [_track(seen, actor.shape, actor.colour) for actor in spec.actors]
    for frame, sights in enumerate(seen):
        demands += 1
        missing = [a for a, track in zip(spec.actors, tracks) if np.isnan(track[frame, 0])]
        if missing:
            names = " and no ".join(f"{a.colour} {a.shape}" for a in missing)
            faults.append((frame, f"no {names} in frame {frame + 1}"))
        elif len(sights) != len(spec.actors):
            faults.append((frame, f"{len(sights)} objects in frame {frame + 1}"))
    for actor, track in zip(spec.actors, tracks):
        name = f"{actor.colour} {actor.shape}"
        for start in range(0, len(seen), CHUNK):
            window = track[max(start - 1, 0) : start + CHUNK]
            demands += 1
            fault = _fault(window, actor.motion)
            if fault:
                last = min(start + CHUNK, len(seen)) - 1
                faults.append((last, f"the {name} {fault} in chunk {start // CHUNK + 1}"))
    if not faults:
        return MotionVerdict(True, "", 1.0, None, len(seen))
    fails_at, reason = min(faults)
    return MotionVerdict(False, reason, max(0.0, 1 - len(faults) / max(demands, 1)), fails_at, len(seen))


def _track(seen: Sequence[Sequence[Sight]], shape: str, colour: str) -> np.ndarray:
    """Centre and logarithmic size of an object in each frame, `(t, 3)`; NaN where it is not seen."""
    track = np.full((len(seen), 3), np.nan)
    for frame, sights in enumerate(seen):
        for found in sights:
            if (found.shape, found.colour) == (shape, colour):
                track[frame] = found.x, found.y, found.size
                break
    return track


def _fault(window: np.ndarray, motion: str | None) -> str:
    """How an object of known places in a chunk, after its last place before it, does not move as asked."""
    known = np.flatnonzero(~np.isnan(window[:, 0]))
    if len(known) < 2:
        # One frame shows no motion; where the object is not seen, the frames are at fault.
        return "" if len(window) < 2 else "is not seen moving"
    steps = np.diff(window[known], axis=0) / np.diff(known)[:, None]
    if (np.abs(steps[:, :2]) > _MOST_JUMP).any() or (np.abs(steps[:, 2]) > _MOST_SWELL).any():
        return "jumps"
    if motion is None or known[-1] - known[0] < 2:
        return ""
    rate = (window[known[-1]] - window[known[0]]) / (known[-1] - known[0])
    pace, growth = rate[:2], rate[2]
    if motion in ("grow", "shrink"):
        right = growth * (1 if motion == "grow" else -1) >= _LEAST_GROWTH
        return "" if right and (np.abs(pace) <= _MOST_DRIFT).all() else f"does not {motion}"
    if abs(growth) > _MOST_BREATH:
        return "changes its size"
    if motion == "still":
        return "" if (np.abs(pace) <= _MOST_DRIFT).all() else "does not stand still"
    way = np.array(DIRECTIONS[motion])
    forward, aside = float(pace @ way), float(abs(pace @ way[::-1]))
    return "" if forward >= _LEAST_PACE and aside <= _MOST_DRIFT else f"does not move {motion}"
