"""Tells whether the latents that enter a loop are Gaussian noise, and by which factor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def noise_scale(row: Tensor, state: Tensor, known: Sequence[float]) -> float | None:
    """The factor on unit noise in the latents of one particle; None if they are not noise alone.

    The latents are compared with the numbers that the generator yields, in any order, because pipelines pack
    them.

    Args:
        row: ``(...)`` latents.
        state: State of the generator before they were drawn.
        known: Factors that are likely; one of these is returned exactly.
    """
    values = row.detach().float().cpu().flatten().sort().values
    for dtype in _DTYPES:
        generator = torch.Generator("cpu")
        generator.set_state(state)
        drawn = torch.randn(values.numel(), generator=generator, dtype=dtype).float().sort().values
        scale = float(values.norm() / drawn.norm())
        if scale > 0 and torch.allclose(values / scale, drawn, rtol=0, atol=1e-2):
            nearest = min(known, key=lambda k: abs(scale / k - 1), default=scale)
            return nearest if abs(scale / nearest - 1) < 1e-3 else scale
    return None


def unit_noise(latents: Tensor, scale: float) -> Tensor:
    """The unit noise that, times `scale`, is `latents` again, bit for bit where such a number exists."""
    if scale == 1.0:
        return latents
    unit = latents / scale
    for direction in (float("-inf"), float("inf")):
        wrong = unit * scale != latents
        near = torch.nextafter(unit, torch.full_like(unit, direction))
        unit = torch.where(wrong & (near * scale == latents), near, unit)
    return unit
