"""The coarse scales of a real image, which particles continue (``gt_leak`` of Infinity, Han et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.var.schedules import Schedule

IMAGE = "image"


class Quantizer(Protocol):
    """Tokens from features."""

    def empty(self, n: int, schedule: Schedule) -> Tensor:
        """The sum of no scales: zeros ``(n, C, H, W)``."""

    def encode(self, features: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens ``(B, T, ...)`` of features ``(B, C, H, W)``, and what else follows from them."""


@dataclass(frozen=True)
class Given:
    """The scales that an image gives.

    Attributes:
        scales: How many; 0 if none are given.
        image: The image; None if only conditions have one.
    """

    scales: int = 0
    image: Image.Image | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any], schedule: Schedule) -> Given:
        """What the settings ``gt_leak`` and ``image`` ask for.

        Raises:
            ConfigError: If they do not fit each other or the schedule.
        """
        scales, image = settings["gt_leak"], settings[IMAGE]
        most = len(schedule) - 1
        if not isinstance(scales, int) or isinstance(scales, bool) or not 0 <= scales <= most:
            raise ConfigError(
                f"gt_leak must be a number of scales from 0 to {most}, so that one is left to draw, but got "
                f"{scales!r}; change it."
            )
        if image is not None and not isinstance(image, Image.Image):
            raise ConfigError(
                f"image must be a PIL image but got {type(image).__name__}; open it with PIL.Image.open."
            )
        if image is not None and not scales:
            raise ConfigError(
                "An image gives its coarse scales to all particles but gt_leak is 0; set gt_leak to the "
                "number of scales to take from it, or leave the image out."
            )
        return cls(scales, image)

    @property
    def images(self) -> frozenset[str]:
        """The images of a condition that are used."""
        return frozenset({IMAGE}) if self.scales else frozenset()

    @torch.no_grad()
    def tokens(self, condition: Condition, vae: Any, schedule: Schedule) -> Tensor:
        """The tokens ``(1, T, ...)`` of the given scales of a condition's image, on the CPU.

        Args:
            condition: Its image ``image`` goes before that of the settings.
            vae: The tokenizer.
            schedule: The scales.

        Raises:
            ConfigError: If there is no image.
        """
        asset = condition.images.get(IMAGE)
        image = self.image if asset is None else asset.value
        if not isinstance(image, Image.Image):
            raise ConfigError(
                f"gt_leak={self.scales} continues the first scales of an image but none is given; set image "
                "in pipeline_kwargs, or give each condition an image."
            )
        quantizer: Quantizer = vae.quantizer
        height, width = (vae.config.stride * side for side in quantizer.empty(1, schedule).shape[-2:])
        weight = next(vae.parameters())
        pixels = covering(image, height, width)[None].to(weight.device, weight.dtype)
        tokens, _, _ = quantizer.encode(vae.encode(pixels).float(), schedule)
        tokens = tokens[:, : schedule.starts[self.scales]].cpu()
        return tokens.to(torch.uint8) if tokens.dtype == torch.bool else tokens


NOTHING = Given()


def covering(image: Image.Image, height: int, width: int) -> Tensor:
    """An image as pixels ``(3, height, width)`` in [-1, 1]: scaled to cover them, cropped in the centre."""
    image = image.convert("RGB")
    ratio = max(width / image.width, height / image.height)
    size = (max(width, int(image.width * ratio)), max(height, int(image.height * ratio)))
    resized = np.array(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))
    top, left = (resized.shape[0] - height) // 2, (resized.shape[1] - width) // 2
    cut = torch.from_numpy(resized[top : top + height, left : left + width])
    return cut.permute(2, 0, 1).float() / 127.5 - 1
