"""A verifier with a parameter and with gradients."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.plugins import ALONE, Asked, Media, Prompt, Score, Verifier, register


@register("verifier", "contrast", notes={"licence": "no model", "gradients": "yes"})
class Contrast(Verifier):
    """Standard deviation of the brightness of an image, in [0, 0.5]; the prompt is not read.

    Args:
        most: Contrast from which on more is not better.
    """

    name = "contrast"
    accepts = frozenset({"image"})
    differentiable = True

    def __init__(self, *, most: float = 0.5) -> None:
        self.most = most

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return [self._score(image) for image in media]

    def _score(self, image: Media) -> Score:
        if not isinstance(image, Image.Image):
            return Score.unscored("contrast scores images only")
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
        return Score(value=float(self.rewards(pixels, [])))

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Rewards ``(B,)`` of pixels ``(B, 3, H, W)`` in [0, 1], with their gradient."""
        return pixels.mean(1).flatten(1).std(1, unbiased=False).clamp(max=self.most)
