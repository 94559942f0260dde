"""Tells whether rows get from a pipeline in one call the inputs that each gets alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ONE_BY_ONE = {
    "PRXPipeline": "its loop makes one timestep for all rows under guidance",
    "PRXPixelPipeline": "its loop makes one timestep for all rows under guidance",
    "LattePipeline": "its call trims the text of one row and pads that of several",
    "AllegroPipeline": "its autoencoder decodes one clip in tiles",
    "HunyuanVideo15Pipeline": "its autoencoder decodes one clip",
    "HunyuanVideo15ImageToVideoPipeline": "its autoencoder decodes one clip",
}
"""Pipelines whose own call fails for several rows, or makes them other than each alone, with the reason."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a loop.

    Attributes:
        tensors: The latents that entered, and the tensors that the denoiser was first called on.
        generators: The states in which the rows' generators were left.
    """

    tensors: Sequence[Tensor]
    generators: Sequence[Tensor]


def agree(alone: Sequence[Inputs | None], together: Inputs | None) -> bool:
    """Whether each row of a batch has the inputs that it has alone.

    Args:
        alone: Of each row.
        together: Of the batch; None if the pipeline cannot take it.
    """
    if together is None:
        return False
    for row, one in enumerate(alone):
        if one is None or len(one.tensors) != len(together.tensors):
            return False
        if not torch.equal(one.generators[0], together.generators[row]):
            return False
        if not all(_holds(batch, single, len(alone)) for batch, single in zip(together.tensors, one.tensors)):
            return False
    return True


def _holds(batch: Tensor, single: Tensor, rows: int) -> bool:
    """Whether each row of one tensor is among the rows of another, or is shared by all."""
    if batch.shape == single.shape:
        return torch.allclose(batch.float(), single.float(), rtol=0, atol=_tolerance(single))
    if batch.shape[1:] != single.shape[1:] or len(batch) != rows * len(single):
        return False
    flat, wanted = batch.float().reshape(len(batch), -1), single.float().reshape(len(single), -1)
    return all(bool(((flat - row).abs().amax(1) <= _tolerance(single)).any()) for row in wanted)


def _tolerance(tensor: Tensor) -> float:
    return 1e-4 * max(1.0, float(tensor.float().abs().max())) if tensor.numel() else 0.0
