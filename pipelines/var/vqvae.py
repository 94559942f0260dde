"""VAR's tokenizer (Tian et al. 2024): an autoencoder with attention around a residual quantiser over scales.

Plain torch; the parameters are named as in the published checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tts_vision.pipelines.var.bsq_vae import BSQVAEConfig, Decoder, Encoder
from tts_vision.pipelines.var.schedules import Grid, Schedule


@dataclass(frozen=True)
class VQVAEConfig(BSQVAEConfig):
    """Architecture of an autoencoder; the published one by default.

    Attributes:
        vocabulary: Tokens ``V`` to choose from.
        phis: Convolutions that smooth the part of a scale, shared by neighbouring scales.
    """

    width: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    attention: bool = True
    vocabulary: int = 4096
    phis: int = 4


class VQVAE(nn.Module):
    """Encoder and decoder around a multi-scale residual quantiser.

    Args:
        config: Its architecture.
    """

    def __init__(self, config: VQVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VQVAEConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = MultiScaleVQ(config)
        self.quant_conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)

    @property
    def quantizer(self) -> MultiScaleVQ:
        """How ids of tokens make features, and back."""
        return self.quantize

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in [-1, 1] as features ``(B, C, H / stride, W / stride)``."""
        return self.quant_conv(self.encoder(pixels))

    def decode(self, features: Tensor) -> Tensor:
        """Features ``(B, C, h, w)`` as RGB pixels ``(B, 3, h * stride, w * stride)`` in [-1, 1]."""
        weight = self.post_quant_conv.weight
        features = self.post_quant_conv(features.to(weight.device, weight.dtype))
        return self.decoder(features).float().clamp(-1, 1)


class MultiScaleVQ(nn.Module):
    """Tokens of a vocabulary over scales: each adds its embedding to the sum of the scales before.

    Args:
        config: Of the autoencoder.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        C = config.channels
        self.embedding = nn.Embedding(config.vocabulary, C)
        phis = nn.ModuleList(nn.Conv2d(C, C, 3, padding=1) for _ in range(config.phis))
        self.quant_resi = nn.ModuleDict({"qresi_ls": phis})

    @property
    def channels(self) -> int:
        """Channels ``C`` of the feature map."""
        return self.embedding.embedding_dim

    @property
    def _phis(self) -> nn.ModuleList:
        return self.quant_resi["qresi_ls"]  # type: ignore[return-value]

    def empty(self, n: int, schedule: Schedule) -> Tensor:
        """The sum of no scales: zeros ``(n, C, H, W)``."""
        return torch.zeros(n, self.channels, *schedule.final)

    def embedded(self, tokens: Tensor) -> Tensor:
        """The vectors ``(B, L, C)`` of tokens: of ids ``(B, L)``, or of mixtures, which are vectors."""
        return tokens.float() if tokens.is_floating_point() else self.embedding(tokens.long()).float()

    def mixed(self, weights: Tensor) -> Tensor:
        """Mixtures ``(B, L, C)`` of all embeddings, weighted by ``(B, L, V)``."""
        return weights.float() @ self.embedding.weight.float()

    def codes(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens of a grid, as in `embedded`, as cells ``(B, C, h, w)``."""
        return self.embedded(tokens).transpose(1, 2).unflatten(2, grid)

    def contribution(self, tokens: Tensor, schedule: Schedule, scale: int) -> Tensor:
        """The part of one scale in the sum, ``(B, C, H, W)``: its vectors at full size, smoothed."""
        codes = self.codes(tokens, schedule.grids[scale])
        if schedule.grids[scale] != schedule.final:
            codes = F.interpolate(codes, schedule.final, mode="bicubic")
        phi = self._phis[phi_of_scale(scale, len(schedule), len(self._phis))]
        return 0.5 * codes + 0.5 * phi(codes.to(self.embedding.weight.dtype)).float()

    def with_expected(self, features: Tensor, probability: Tensor, schedule: Schedule, scale: int) -> Tensor:
        """The sum so far with the expectation of one more scale.

        Args:
            features: ``(B, C, H, W)``.
            probability: ``(B, L, V)`` of each id.
            schedule: The scales.
            scale: Which one is added.
        """
        return self.added(features, self.mixed(probability), schedule, scale)

    def added(self, features: Tensor, tokens: Tensor, schedule: Schedule, scale: int) -> Tensor:
        """The sum so far ``(B, C, H, W)`` with one more scale in it, as a new tensor."""
        return features + self.contribution(tokens, schedule, scale)

    def summed(self, tokens: Tensor, schedule: Schedule, scales: int) -> Tensor:
        """The sum ``(B, C, H, W)`` of the first `scales` scales of tokens ``(B, T, ...)``."""
        features = self.empty(len(tokens), schedule).to(tokens.device)
        for k in range(scales):
            of_scale = tokens[:, schedule.starts[k] : schedule.starts[k + 1]]
            features = self.added(features, of_scale, schedule, k)
        return features

    def next_input(self, features: Tensor, grid: Grid) -> Tensor:
        """The transformer's input before it predicts `grid`: ``(B, L, C)``, means over the sum so far."""
        return F.interpolate(features, grid, mode="area").flatten(2).transpose(1, 2)

    def nearest(self, vectors: Tensor) -> Tensor:
        """The ids ``(...)`` of the embeddings nearest to vectors ``(..., C)``."""
        table = self.embedding.weight.float()
        return (table.square().sum(-1) - 2 * vectors.float() @ table.T).argmin(-1)

    def encode(self, features: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        """Quantises features scale by scale.

        Args:
            features: ``(B, C, H, W)`` of an encoder.
            schedule: The scales.

        Returns:
            The ids ``(B, T)``, the inputs of all scales after the first ``(B, T - L_0, C)``, and the sum of
            all scales ``(B, C, H, W)``.
        """
        total, rest = torch.zeros_like(features), features
        ids, inputs = [], []
        for k, grid in enumerate(schedule.grids):
            if k:
                inputs.append(self.next_input(total, grid))
            nearest = self.nearest(self.next_input(rest, grid))
            more = self.contribution(nearest, schedule, k)
            total, rest = total + more, rest - more
            ids.append(nearest)
        return torch.cat(ids, 1), torch.cat(inputs, 1), total


def phi_of_scale(scale: int, scales: int, phis: int) -> int:
    """Which smoothing convolution a scale has: that of the nearest tick.

    The arithmetic is the published one to the last bit, because scales lie half-way between two ticks.
    """
    ends = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(ends, 1 - ends, phis)
    return int(np.argmin(np.abs(ticks - scale / max(1, scales - 1))))
