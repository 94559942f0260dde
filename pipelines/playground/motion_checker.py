"""The exact motion checker: whether a clip shows the asked objects moving as asked, and when it first fails.

Objects are those that `checker.detect` finds. A clip is judged chunk by chunk, so that its first chunks alone
can be judged on what they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tts_vision.pipelines.playground.checker import Detection, detect
from tts_vision.pipelines.playground.motion import CHUNK, DIRECTIONS, FPS, MotionSpec

# Per frame, in pixels and in the logarithm of the size. Drawn clips move by 1.0 to 2.2 and grow by 0.022 to
# 0.038.
_LEAST_PACE, _MOST_DRIFT, _MOST_JUMP = 0.5, 0.5, 5.0
_LEAST_GROWTH, _MOST_BREATH, _MOST_SWELL = 0.012, 0.018, 0.25


@dataclass(frozen=True)
class MotionVerdict:
    """What the checker says about a clip and a prompt.

    Attributes:
        correct: Whether the frames seen show what the prompt asks.
        reason: The first fault, empty when correct.
        fraction: Share of the single demands that are met, 0 to 1; 1 exactly when correct. The demands are
            the objects of each frame, and the motion of each object in each chunk.
        fails_at: Number of the frame at which the clip first fails, among those given; None when correct.
        chunk: The chunk in which it first fails; None when correct.
    """

    correct: bool
    reason: str
    fraction: float
    fails_at: int | None = None
    chunk: int | None = None

    def holds_until(self, chunk: int) -> bool:
        """Whether the clip was right up to the end of a chunk, counted from 0."""
        return self.chunk is None or self.chunk > chunk


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


def evaluate(frames: np.ndarray, spec: MotionSpec, fps: float = FPS) -> MotionVerdict:
    """Judges a clip, or its first chunks, against a prompt.

    Every frame must show exactly the asked objects. In every chunk each object must move as asked, from the
    last frame of the chunk before to its own last one; it must not jump between two frames.

    Args:
        frames: RGB, uint8 of shape `(t, h, w, 3)`, from the first frame on; fewer, evenly spaced ones that
            end with the last frame may stand for them.
        spec: What the prompt means.
        fps: Frames per second, which says how many frames of the world lie between two of these; 5 % more
            than the world has are its own, as GIF rounds them.

    Returns:
        The verdict.

    Raises:
        ValueError: There are no frames, or more a second than the world has.
    """
    return judge(observe(frames), spec, fps)


def judge(seen: Sequence[Sequence[Sight]], spec: MotionSpec, fps: float = FPS) -> MotionVerdict:
    """The verdict on given objects, see `evaluate`.

    Args:
        seen: Objects of each frame, of `observe`.
        spec: What the prompt means.
        fps: Frames per second.
    """
    if not seen or not 0 < fps <= 1.05 * FPS:
        raise ValueError(
            f"A clip of the playground has frames, at most {FPS:g} a second, but got {len(seen)} at {fps:g}; "
            "give a clip of the playground."
        )
    times = (np.arange(len(seen)) + 1) * max(FPS / fps, 1.0) - 1  # in frames of the world
    chunks = (times + 1e-6).astype(int) // CHUNK
    tracks = [_track(seen, actor.shape, actor.colour) for actor in spec.actors]
    faults: list[tuple[int, str]] = []
    for frame, sights in enumerate(seen):
        missing = [a for a, track in zip(spec.actors, tracks) if np.isnan(track[frame, 0])]
        if missing:
            names = " and no ".join(f"{a.colour} {a.shape}" for a in missing)
            faults.append((frame, f"no {names} in frame {frame + 1}"))
        elif len(sights) != len(spec.actors):
            faults.append((frame, f"{len(sights)} objects in frame {frame + 1}"))
    for actor, track in zip(spec.actors, tracks):
        for chunk in np.unique(chunks):
            inside = np.flatnonzero(chunks == chunk)
            last = int(inside[-1])
            window = slice(max(inside[0] - 1, 0), last + 1)
            if fault := _fault(times[window], track[window], actor.motion):
                faults.append((last, f"the {actor.colour} {actor.shape} {fault} in chunk {chunk + 1}"))
    if not faults:
        return MotionVerdict(True, "", 1.0)
    fails_at, reason = min(faults)
    demands = len(seen) + len(spec.actors) * len(np.unique(chunks))
    return MotionVerdict(False, reason, 1 - len(faults) / demands, fails_at, int(chunks[fails_at]))


def _track(seen: Sequence[Sequence[Sight]], shape: str, colour: str) -> np.ndarray:
    """Centre and logarithmic size of an object in each frame, `(t, 3)`; NaN where it is not seen."""
    track = np.full((len(seen), 3), np.nan)
    for frame, sights in enumerate(seen):
        for found in sights:
            if (found.shape, found.colour) == (shape, colour):
                track[frame] = found.x, found.y, found.size
                break
    return track


def _fault(times: np.ndarray, track: np.ndarray, motion: str | None) -> str:
    """How an object does not move as asked in a chunk.

    Args:
        times: Of the frames of the chunk and the one before, in frames of the world, shape `(t,)`.
        track: Of `_track` in these frames, shape `(t, 3)`.
        motion: One of `motion.MOTIONS`, or None for any.
    """
    known = np.flatnonzero(~np.isnan(track[:, 0]))
    if len(known) < 2:
        # One frame shows no motion, which is no fault of it.
        return "is not seen moving" if len(times) > 1 else ""
    steps = np.diff(track[known], axis=0) / np.diff(times[known])[:, None]
    if (np.abs(steps[:, :2]) > _MOST_JUMP).any() or (np.abs(steps[:, 2]) > _MOST_SWELL).any():
        return "jumps"
    span = times[known[-1]] - times[known[0]]
    if motion is None or span < 2:
        return ""
    rate = (track[known[-1]] - track[known[0]]) / span
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
