"""Binary spherical quantisation over scales, as in Infinity (Han et al. 2024; BSQ: Zhao et al. 2024).

An image's feature map is a sum: at each scale, the sign of the remainder, scaled to unit length
and brought to full size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tts_vision.pipelines.var.schedules import Grid, Schedule


@dataclass(frozen=True)
class MultiScaleBSQ:
    """How bits of tokens make features, and back.

    Attributes:
        channels: Channels ``C`` of the feature map.
        patch: Side of the square of feature cells that one token stands for; its bits are ``D = C patch^2``.
    """

    channels: int
    patch: int = 1

    @property
    def bits(self) -> int:
        """Bits of a token."""
        return self.channels * self.patch**2

    def size(self, grid: Grid) -> Grid:
        """Height and width of the features of a grid of tokens."""
        return grid[0] * self.patch, grid[1] * self.patch

    def codes(self, bits: Tensor, grid: Grid) -> Tensor:
        """Bits ``(B, L, D)`` of a grid as features ``(B, C, h, w)``: plus or minus ``1 / sqrt(C)``."""
        signs = bits.float() * 2 - 1
        return self.unpatched(signs, grid) / math.sqrt(self.channels)

    def unpatched(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens ``(B, L, D)`` as cells ``(B, C, h, w)``."""
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), self.patch)

    def tokens(self, features: Tensor) -> Tensor:
        """Cells ``(B, C, h, w)`` as tokens ``(B, L, D)``."""
        return F.pixel_unshuffle(features, self.patch).flatten(2).transpose(1, 2)

    def added(self, features: Tensor, bits: Tensor, grid: Grid) -> Tensor:
        """The sum so far ``(B, C, H, W)`` with one more scale in it."""
        return features + resized(self.codes(bits, grid), features.shape[-2:])

    def summed(self, bits: Tensor, schedule: Schedule, scales: int) -> Tensor:
        """The sum ``(B, C, H, W)`` of the first `scales` scales of ``(B, T, D)`` bits."""
        features = self.empty(len(bits), schedule).to(bits.device)
        for k in range(scales):
            features = self.added(
                features, bits[:, schedule.starts[k] : schedule.starts[k + 1]], schedule.grids[k]
            )
        return features

    def empty(self, n: int, schedule: Schedule) -> Tensor:
        """The sum of no scales: zeros ``(n, C, H, W)``."""
        return torch.zeros(n, self.channels, *self.size(schedule.final))

    def next_input(self, features: Tensor, grid: Grid) -> Tensor:
        """The transformer's input before it predicts `grid`: ``(B, L, D)`` of the sum so far."""
        return self.tokens(resized(features, self.size(grid)))

    def encode(
        self, features: Tensor, schedule: Schedule, flip: Callable[[Tensor, int], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantises features scale by scale.

        Args:
            features: ``(B, C, H, W)`` of an encoder.
            schedule: The scales.
            flip: Given the right bits of a scale and its number, those to go on with: later scales then
                learn to correct the wrong ones (bitwise self-correction).

        Returns:
            The right bits ``(B, T, D)``, the inputs of all scales after the first ``(B, T - L_0, D)``, and
            the sum of all scales ``(B, C, H, W)``.
        """
        total, rest = torch.zeros_like(features), features
        bits, inputs = [], []
        for k, grid in enumerate(schedule.grids):
            if k:
                inputs.append(self.next_input(total, grid))
            right = self.tokens(F.interpolate(rest, self.size(grid), mode="area")) > 0
            taken = right if flip is None else flip(right, k)
            code = resized(self.codes(taken, grid), features.shape[-2:])
            total, rest = total + code, rest - code
            bits.append(right)
        return torch.cat(bits, 1), torch.cat(inputs, 1), total


def resized(features: Tensor, size: Grid | torch.Size) -> Tensor:
    """Features at another size, bilinear without antialiasing; as they are if they have it."""
    if features.shape[-2:] == torch.Size(size):
        return features
    return F.interpolate(features, tuple(size), mode="bilinear", align_corners=False)
