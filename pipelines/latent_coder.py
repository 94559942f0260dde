"""Small transformers between the latents of an autoencoder and a quantiser.

A tokenizer of images needs no convolutions of its own where a good autoencoder of continuous latents exists:
it quantises those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CoderConfig:
    """Architecture of the transformers around a quantiser, and of the frozen autoencoder around them.

    Attributes:
        channels: Channels ``C`` of the features that are quantised.
        grid: Height and width of these features.
        width: Channels of a cell inside the transformers.
        heads: Attention heads.
        encoder_blocks: Blocks from latents to features.
        decoder_blocks: Blocks from features to latents.
        autoencoder: Settings of diffusers' `AutoencoderTiny`, between pixels and latents.
        latent_size: Height and width of the latents.
    """

    channels: int
    grid: tuple[int, int]
    autoencoder: Mapping[str, Any]
    width: int = 128
    heads: int = 4
    encoder_blocks: int = 3
    decoder_blocks: int = 5
    latent_size: tuple[int, int] = (8, 8)


class LatentCoder(nn.Module):
    """Pixels to features and back; the autoencoder stays as it is while the rest is trained.

    Args:
        config: Its architecture.
    """

    def __init__(self, config: CoderConfig) -> None:
        super().__init__()
        from diffusers import AutoencoderTiny

        self.config = config
        self.autoencoder = AutoencoderTiny(**config.autoencoder).requires_grad_(False)
        latents = self.autoencoder.config.latent_channels
        self.encoder = CellTransformer(latents, config.channels, config, config.encoder_blocks)
        self.decoder = CellTransformer(config.channels, latents, config, config.decoder_blocks)

    def latents(self, pixels: Tensor) -> Tensor:
        """Scaled latents ``(B, c, h, w)`` of pixels ``(B, 3, H, W)`` in [-1, 1]."""
        return self.autoencoder.encode(pixels).latents * self.autoencoder.config.scaling_factor

    def features(self, latents: Tensor) -> Tensor:
        """Features ``(B, C, *grid)`` of scaled latents."""
        return F.adaptive_avg_pool2d(self.encoder(latents), self.config.grid)

    def drawn(self, features: Tensor) -> Tensor:
        """Scaled latents of features; of a smaller grid, smaller latents."""
        (height, width), (rows, columns) = features.shape[-2:], self.config.grid
        size = self.config.latent_size
        size = (size[0] * height // rows, size[1] * width // columns)
        if features.shape[-2:] != size:
            features = F.interpolate(features, size, mode="bilinear", align_corners=False)
        return self.decoder(features)

    def pixels(self, latents: Tensor) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in [-1, 1] of scaled latents."""
        return self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample


class CellTransformer(nn.Module):
    """A transformer over the cells of a grid, between two 3x3 convolutions."""

    def __init__(self, channels: int, out_channels: int, config: CoderConfig, blocks: int) -> None:
        super().__init__()
        width = config.width
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, width, *config.latent_size))
        self.layers = nn.ModuleList(CellBlock(width, config.heads) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h, size = self.conv_in(x), x.shape[-2:]
        positions: Tensor = self.positions
        if positions.shape[-2:] != size:
            positions = F.interpolate(positions, size, mode="bilinear", align_corners=False)
        h = (h + positions).flatten(2).transpose(1, 2)
        for layer in self.layers:
            h = layer(h)
        return self.conv_out(self.norm_out(h).transpose(1, 2).unflatten(2, size))


class CellBlock(nn.Module):
    """Attention between all cells and a feed-forward of twice the width, both beside the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
