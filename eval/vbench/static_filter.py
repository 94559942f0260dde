"""VBench's filter of still clips, which temporal flickering is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tts_vision.memory import in_halves
from tts_vision.types import Video
from tts_vision.verifiers.motion import Motion, raft_pixels, top_magnitude

SHARE = 0.02
KEPT = 5
"""Still clips of a prompt that are measured."""
DRAWN = 25
"""Clips of a prompt that the published protocol chooses them from."""
Numbered = TypeVar("Numbered")


def is_static(neighbours: Sequence[float], ends: Sequence[float], shorter_side: int) -> bool:
    """VBench's rule.

    With N frames a clip moves if more than ``c = round(2 N / 16)`` pairs of neighbours exceed ``t``, 3 pixels
    per 256 of the shorter side, or if the flow between its ends, in either direction, exceeds ``2 t c``.

    Args:
        neighbours: Mean length of the 2 % longest flow vectors of each pair of neighbouring frames.
        ends: The same from the first frame to the last, and back.
        shorter_side: Of the frames, in pixels.
    """
    threshold = 3 * shorter_side / 256
    count = round(2 * (len(neighbours) + 1) / 16)
    if sum(length > threshold for length in neighbours) > count:
        return False
    return all(length <= 2 * threshold * count for length in ends)


def lengths(raft: Motion, video: Video) -> tuple[list[float], list[float]]:
    """The two kinds of flow lengths that `is_static` compares.

    Args:
        raft: Computes the flow; it is loaded if need be.
        video: Two frames or more, as `Motion` takes them.
    """
    raft.load()
    frames = raft_pixels(video.frames)
    count = len(frames)
    pairs = [*((t, t + 1) for t in range(count - 1)), (0, count - 1), (count - 1, 0)]

    def work(start: int, stop: int) -> Tensor:
        first, second = (list(each) for each in zip(*pairs[start:stop], strict=True))
        return top_magnitude(raft.flow(frames[first], frames[second]), SHARE)

    with torch.no_grad():
        found = torch.cat(in_halves(len(pairs), raft.batch_size, work)).tolist()
    return found[:-2], found[-2:]


def first_static(clips: Iterable[tuple[int, Numbered]]) -> list[Numbered]:
    """The still clips of one prompt that are measured: the first five, in the order of their file names.

    Args:
        clips: Each still clip with its index among all clips of the prompt.
    """
    ordered = sorted(clips, key=lambda each: str(each[0]))  # -1, -10, -11, ..., -2, as names are sorted
    return [clip for _, clip in ordered[:KEPT]]
