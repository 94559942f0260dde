"""Small images and clips to score in tests."""

import numpy as np
import torch
from PIL import Image

from tts_vision import Video


def some_images(n: int = 4, size: tuple[int, int] = (48, 40), seed: int = 0) -> list[Image.Image]:
    """Distinct smooth images of one size, as ``(width, height)``."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(n, 5, 6, 3), dtype=np.uint8)
    return [Image.fromarray(rows).resize(size, Image.Resampling.BICUBIC) for rows in coarse]


def clips(n: int = 3, frames: int = 8, size: tuple[int, int] = (48, 40), seed: int = 0) -> list[Video]:
    """Distinct clips in which an image slides to the side, each faster than the one before."""
    found = []
    for i, still in enumerate(some_images(n, size, seed)):
        pixels = np.asarray(still)
        rolled = np.stack([np.roll(pixels, (i + 1) * t, axis=1) for t in range(frames)])
        found.append(Video(torch.from_numpy(rolled), fps=8.0))
    return found
