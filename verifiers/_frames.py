"""Frames of a clip: which ones a paper looks at, and the chosen ones as images.

Each choice is a pure function of the number of frames; it returns indices in order. Frames of a clip that is
too short repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image

from tts_vision.model_verifier import UnusableSample
from tts_vision.types import Media, Video


def evenly(total: int, count: int, *, nearest: bool = False) -> list[int]:
    """`count` of `total` frames from the first to the last, both included.

    Args:
        total: Frames of the clip, at least 1.
        count: Frames wanted, at least 1.
        nearest: Rounds to the nearest frame, as Qwen2-VL's tools do; else down, as VideoScore's
            evaluation and CogVLM2-Video do.
    """
    if nearest:
        return [int(at) for at in torch.linspace(0, total - 1, count).round()]
    return [int(at) for at in np.linspace(0, total - 1, count)]


def starts(total: int, count: int) -> list[int]:
    """The first frame of each of `count` equal intervals, as VideoScore's example; all of a shorter clip."""
    return [int(i * (total / count)) for i in range(count)] if total > count else list(range(total))


def middles(total: int, count: int) -> list[int]:
    """The middle frame of each of `count` equal intervals, as VBench; the last repeats in a shorter clip."""
    if total < count:
        return [min(i, total - 1) for i in range(count)]
    edges = [int(at) for at in np.linspace(0, total, count + 1)]
    return [(a + b - 1) // 2 for a, b in pairwise(edges)]


def each_second(total: int, fps: float, limit: int) -> list[int]:
    """The frame nearest to each whole second from 0 on, at most `limit`, as VisionReward.

    Args:
        total: Frames of the clip, at least 1.
        fps: Frames per second.
        limit: Most frames.
    """
    times = np.arange(total) / fps
    seconds = range(min(round(float(times[-1])) + 1, limit))
    return [int(np.abs(times - second).argmin()) for second in seconds]


def at_rate(total: int, fps: float, wanted: float) -> list[int]:
    """The frames nearest to the times of `wanted` frames per second, each once.

    Args:
        total: Frames of the clip, at least 1.
        fps: Frames per second of the clip.
        wanted: Frames per second wanted; a clip that has fewer gives all of its frames.
    """
    step = max(1.0, fps / wanted)
    count = int((total - 1) / step + 1e-9) + 1
    return [round(i * step) for i in range(count)]


def clip(sample: Media, name: str) -> Video:
    """The sample, if it is a clip that can be looked at.

    Raises:
        UnusableSample: If it is no clip, is not uint8, or has no frames or pixels.
    """
    if not isinstance(sample, Video):
        raise UnusableSample(f"{name} scores clips but got an image; use a verifier of images")
    frames = sample.frames
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.numel():
        raise UnusableSample(
            f"a clip must be (T, H, W, 3) with frames and pixels but is {tuple(frames.shape)}"
        )
    if frames.dtype != torch.uint8:
        raise UnusableSample(f"a clip must be uint8, from 0 to 255, but is {frames.dtype}")
    if not sample.fps > 0:
        raise UnusableSample(f"a clip must have positive frames per second but has {sample.fps}")
    return sample


def moving(sample: Media, name: str) -> Video:
    """The sample, if it is a clip of two frames or more.

    Raises:
        UnusableSample: If it is not.
    """
    video = clip(sample, name)
    if len(video.frames) < 2:
        raise UnusableSample(f"{name} compares frames of a clip but it has only one")
    return video


def frame_images(video: Video, indices: Sequence[int]) -> list[Image.Image]:
    """The frames at `indices` as RGB images, in that order, repeats allowed."""
    return [Image.fromarray(video.frames[i].numpy()) for i in indices]
