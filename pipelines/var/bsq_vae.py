"""The convolutional autoencoder of Infinity's tokenizer (Han et al. 2024), without its quantiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tts_vision.pipelines.var.bsq import MultiScaleBSQ


@dataclass(frozen=True)
class BSQVAEConfig:
    """Architecture of an autoencoder.

    Attributes:
        channels: Of the feature map.
        patch: Side of the square of feature cells that one token stands for.
        width: Channels at full resolution.
        multipliers: Of `width`, by level; each level but the last halves the resolution.
        groups: Of the group normalisation.
        encoder_blocks: Residual blocks of a level on the way down.
        decoder_blocks: And on the way up.
    """

    channels: int = 32
    patch: int = 1
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    groups: int = 32
    encoder_blocks: int = 2
    decoder_blocks: int = 3

    @property
    def stride(self) -> int:
        """Pixels, on a side, of one feature cell."""
        return 2 ** (len(self.multipliers) - 1)


VAES = {
    "2b": BSQVAEConfig(channels=32),
    "8b": BSQVAEConfig(channels=14, patch=2, multipliers=(1, 2, 4, 4)),
}


class BSQVAE(nn.Module):
    """Encoder and decoder around a multi-scale binary quantiser.

    Args:
        config: Its architecture.
    """

    def __init__(self, config: BSQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = MultiScaleBSQ(config.channels, config.patch)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in [-1, 1] as features ``(B, C, H / stride, W / stride)``."""
        return self.encoder(pixels)

    def decode(self, features: Tensor) -> Tensor:
        """Features ``(B, C, h, w)`` as RGB pixels ``(B, 3, h * stride, w * stride)`` in [-1, 1]."""
        weight = self.decoder.conv_in.weight
        return self.decoder(features.to(weight.device, weight.dtype)).float().clamp(-1, 1)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside the identity, or beside a 1x1 one where the width changes."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Downsample(nn.Module):
    """Halves the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _middle(channels: int, groups: int) -> nn.Module:
    middle = nn.Module()
    middle.block_1 = ResBlock(channels, channels, groups)
    middle.block_2 = ResBlock(channels, channels, groups)
    return middle


class Encoder(nn.Module):
    """Pixels to features."""

    def __init__(self, config: BSQVAEConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1)
        self.down = nn.ModuleList()
        before = config.width
        for level, width in enumerate(widths):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(config.encoder_blocks):
                stage.block.append(ResBlock(before, width, config.groups))
                before = width
            if level < len(widths) - 1:
                stage.downsample = Downsample(width)
            self.down.append(stage)
        self.mid = _middle(before, config.groups)
        self.norm_out = nn.GroupNorm(config.groups, before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down:
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample(h)
        h = self.mid.block_2(self.mid.block_1(h))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Features to pixels."""

    def __init__(self, config: BSQVAEConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        before = widths[-1]
        self.conv_in = nn.Conv2d(config.channels, before, 3, padding=1)
        self.mid = _middle(before, config.groups)
        stages = []
        for level, width in reversed(list(enumerate(widths))):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(config.decoder_blocks):
                stage.block.append(ResBlock(before, width, config.groups))
                before = width
            if level:
                stage.upsample = Upsample(width)
            stages.append(stage)
        self.up = nn.ModuleList(reversed(stages))  # by level, as published
        self.norm_out = nn.GroupNorm(config.groups, before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid.block_2(self.mid.block_1(self.conv_in(x)))
        for stage in reversed(self.up):
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "upsample"):
                h = stage.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def plain_names(state: Mapping[str, Tensor], vae: nn.Module) -> dict[str, Tensor]:
    """A state dict in the names of `vae`: published files wrap each layer, as in ``conv_in.conv.weight``."""
    wrappers: dict[type, str] = {nn.Conv2d: "conv", nn.GroupNorm: "norm"}
    ours = {
        f"{name}.{wrappers[type(layer)]}.{kind}": f"{name}.{kind}"
        for name, layer in vae.named_modules()
        if type(layer) in wrappers
        for kind in ("weight", "bias")
    }
    return {ours.get(key, key): value for key, value in state.items()}
