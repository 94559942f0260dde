"""Clips as Qwen2-VL and Qwen2.5-VL look at them, by the rules of their authors' tools (qwen-vl-utils)."""

from __future__ import annotations

import math

from torch import Tensor

from tts_vision.model_verifier import UnusableSample
from tts_vision.types import Media, Video
from tts_vision.verifiers._frames import clip

FACTOR = 28
MIN_PIXELS = 128 * FACTOR**2  # of a frame
MIN_FRAMES, MAX_FRAMES, MAX_RATIO = 4, 768, 200


def looked_at(sample: Media, name: str) -> Video:
    """The sample, if it is a clip whose frames are not too narrow.

    Raises:
        UnusableSample: If it is not.
    """
    video = clip(sample, name)
    short, long = sorted(video.frames.shape[1:3])
    if long > MAX_RATIO * short:
        raise UnusableSample(
            f"a frame must be at most {MAX_RATIO} times as long as wide but is {long}x{short}"
        )
    return video


def frame_size(height: int, width: int, most: int) -> tuple[int, int]:
    """The size at which a frame is looked at: multiples of 28, within bounds of pixels.

    Args:
        height: Of the frame.
        width: Of the frame.
        most: Pixels of it, at most.
    """
    size = [max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width)]
    if size[0] * size[1] > most:
        shrink = math.sqrt(height * width / most)
        size = [max(FACTOR, math.floor(side / shrink / FACTOR) * FACTOR) for side in (height, width)]
    elif size[0] * size[1] < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (height * width))
        size = [math.ceil(side * grow / FACTOR) * FACTOR for side in (height, width)]
    return size[0], size[1]


def resized(frames: Tensor, most: int) -> Tensor:
    """Frames ``(T, 3, H, W)`` uint8 in the size of `frame_size`.

    The tools use torchvision's first functions, which compute in floating point and round to bytes. The
    second ones, which transformers uses, also round between rows and columns: smooth frames then differ by
    one level, noisy ones by up to 25.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    height, width = frames.shape[-2:]
    size = list(frame_size(height, width, most))
    return resize(frames, size, InterpolationMode.BICUBIC, antialias=True)
