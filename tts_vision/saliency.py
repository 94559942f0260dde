"""The parts of an image that a differentiable verifier would have changed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.types import Prompt, Region
from tts_vision.verifier import Verifier

CELLS = 8
"""Cells along each edge of an image."""


def salient_regions(
    verifier: Verifier, image: Image.Image, prompts: Sequence[str], *, share: float = 0.25
) -> list[Region]:
    """The cells of an image where the rewards by some prompts have the largest gradient, largest first.

    Args:
        verifier: One that is `differentiable`.
        image: The image.
        prompts: The prompts, or the parts of one, that the image fails; gradients are compared by share.
        share: Share of the area that is named.

    Returns:
        Cells of a grid of `CELLS` by `CELLS`; fewer where the gradient is zero everywhere else.
    """
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    total = torch.zeros(CELLS * CELLS, dtype=torch.float64)
    for text in prompts:
        weights = cell_gradients(verifier, pixels, Prompt(text))
        total += weights / weights.sum() if weights.sum() > 0 else weights
    count = max(1, math.ceil(share * CELLS * CELLS))
    order = total.argsort(descending=True, stable=True)[:count]
    return [_cell(int(i)) for i in order if total[i] > 0]


def cell_gradients(verifier: Verifier, pixels: Tensor, prompt: Prompt) -> Tensor:
    """The size of the gradient of a reward in each cell, ``(CELLS * CELLS,)`` float64.

    Args:
        verifier: One that is `differentiable`.
        pixels: ``(1, 3, H, W)`` in [0, 1].
        prompt: What they are judged by.
    """
    with torch.enable_grad():
        x = pixels.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(verifier.rewards(x, [prompt]).sum(), x)
    size = gradient.double().nan_to_num().square().sum(1, keepdim=True)
    return torch.nn.functional.adaptive_avg_pool2d(size, CELLS).flatten().sqrt().cpu()


def _cell(i: int) -> Region:
    row, column = divmod(i, CELLS)
    return (column / CELLS, row / CELLS, (column + 1) / CELLS, (row + 1) / CELLS)
