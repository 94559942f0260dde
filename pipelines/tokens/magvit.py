"""The MAGVIT-v2 tokenizer (Yu et al. 2024) as Show-o publishes it: an autoencoder around binary codes.

Plain torch; the parameters are named as in the published checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tts_vision.errors import ConfigError
from tts_vision.pipelines.var.bsq_vae import Downsample, ResBlock, Upsample


@dataclass(frozen=True)
class MAGVITConfig:
    """Architecture of the tokenizer; the published one by default.

    Attributes:
        grid: Height and width of the grid of tokens.
        bits: Bits of a code.
        width: Channels of the finest level.
        encoder_multipliers: Channels of each level of the encoder, finest first, as multiples of `width`.
        encoder_blocks: Residual blocks of each level of the encoder.
        decoder_multipliers: Likewise of the decoder.
        decoder_blocks: Likewise of the decoder.
        groups: Of group normalisation.
    """

    grid: tuple[int, int] = (16, 16)
    bits: int = 13
    width: int = 128
    encoder_multipliers: tuple[int, ...] = (1, 2, 2, 4, 4)
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    groups: int = 32

    @property
    def stride(self) -> int:
        """Pixels, on a side, of a token."""
        return 2 ** (len(self.encoder_multipliers) - 1)


class MAGVITv2(nn.Module):
    """Encoder and decoder around a quantiser without a learned table.

    Args:
        config: Its architecture.
    """

    def __init__(self, config: MAGVITConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MAGVITConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = LFQ(config.bits)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of tokens."""
        return self.config.grid

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes ``(B, h * w)``, int64, of pixels ``(B, 3, H, W)`` in [-1, 1].

        Raises:
            ConfigError: If the pixels are not those of the grid.
        """
        size = tuple(side * self.config.stride for side in self.grid)
        if tuple(pixels.shape[-2:]) != size:
            raise ConfigError(
                f"Images of this tokenizer must be {size[0]}x{size[1]} but got "
                f"{pixels.shape[-2]}x{pixels.shape[-1]}; resize them."
            )
        weight = self.encoder.conv_in.weight
        return self.quantize.ids(self.encoder(pixels.to(weight.device, weight.dtype)))

    def decode(self, codes: Tensor) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in [-1, 1] of codes ``(B, h * w)``."""
        weight = self.decoder.conv_in.weight
        signs = self.quantize.embedding[codes.to(weight.device)]
        features = signs.transpose(1, 2).unflatten(2, self.grid).to(weight.dtype)
        return self.decoder(features).float().clamp(-1, 1)

    def codebook(self) -> Tensor:
        """The signs of every code, ``(V, bits)``, each -1 or 1."""
        return self.quantize.embedding.float()


class LFQ(nn.Module):
    """Lookup-free quantisation: a code is the signs of its features, the most significant bit first.

    Args:
        bits: Of a code.
    """

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        powers = 2 ** torch.arange(bits - 1, -1, -1)
        signs = (torch.arange(2**bits)[:, None] & powers).ne(0).float() * 2 - 1
        self.register_buffer("embedding", signs)
        self.register_buffer("power_vals", powers)

    def ids(self, features: Tensor) -> Tensor:
        """Codes ``(B, h * w)`` of features ``(B, bits, h, w)``; zero counts as negative."""
        return ((features > 0).flatten(2).transpose(1, 2) * self.power_vals.long()).sum(-1)


class Attention(nn.Module):
    """One head of attention between all cells of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[-2:]))


class Middle(nn.Module):
    """Two residual blocks around attention, at the coarsest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = Attention(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Stage(nn.Module):
    """The residual blocks of one level, and what changes the resolution behind them."""

    def __init__(self, channels: int, width: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(channels if not i else width, width, groups) for i in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


def _stages(
    channels: Sequence[int], widths: Sequence[int], blocks: Sequence[int], groups: int
) -> nn.ModuleList:
    return nn.ModuleList(Stage(c, w, n, groups) for c, w, n in zip(channels, widths, blocks, strict=True))


class Encoder(nn.Module):
    """Pixels to features."""

    def __init__(self, config: MAGVITConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in (1, *config.encoder_multipliers)]
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1)
        self.down = _stages(widths[:-1], widths[1:], config.encoder_blocks, config.groups)
        for stage, width in zip(self.down[:-1], widths[1:]):
            stage.downsample = Downsample(width)
        self.mid = Middle(widths[-1], config.groups)
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down:
            h = stage(h)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(h)))))


class Decoder(nn.Module):
    """Features to pixels."""

    def __init__(self, config: MAGVITConfig) -> None:
        super().__init__()
        own = [config.width * m for m in config.decoder_multipliers]
        self.conv_in = nn.Conv2d(config.bits, own[-1], 3, padding=1)
        self.mid = Middle(own[-1], config.groups)
        coarser = [*own[1:], own[-1]]
        self.up = _stages(coarser, own, config.decoder_blocks, config.groups)
        for stage, width in zip(self.up[1:], own[1:]):
            stage.upsample = Upsample(width)
        self.norm_out = nn.GroupNorm(config.groups, own[0], eps=1e-6)
        self.conv_out = nn.Conv2d(own[0], 3, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid(self.conv_in(self.post_quant_conv(x)))
        for stage in reversed(self.up):
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(h)))
