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
        attention: Whether cells attend to each other at the coarsest level and in the middle.
    """

    channels: int = 32
    patch: int = 1
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    groups: int = 32
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    attention: bool = False

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


class Attention(nn.Module):
    """One head of attention between all cells of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[-2:]))


class Middle(nn.Module):
    """Two residual blocks at the coarsest resolution."""

    def __init__(self, config: BSQVAEConfig) -> None:
        super().__init__()
        channels = config.width * config.multipliers[-1]
        self.block_1 = ResBlock(channels, channels, config.groups)
        self.attn_1 = Attention(channels, config.groups) if config.attention else nn.Identity()
        self.block_2 = ResBlock(channels, channels, config.groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Stage(nn.Module):
    """The residual blocks of one level."""

    def __init__(self, config: BSQVAEConfig, channels: int, level: int, blocks: int) -> None:
        super().__init__()
        width, coarsest = config.width * config.multipliers[level], level == len(config.multipliers) - 1
        widths = [channels] + (blocks - 1) * [width]
        self.block = nn.ModuleList(ResBlock(before, width, config.groups) for before in widths)
        attending = blocks if config.attention and coarsest else 0
        self.attn = nn.ModuleList(Attention(width, config.groups) for _ in range(attending))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class DownStage(Stage):
    """One level of an encoder."""

    def __init__(self, config: BSQVAEConfig, channels: int, level: int) -> None:
        super().__init__(config, channels, level, config.encoder_blocks)
        if level < len(config.multipliers) - 1:
            self.downsample = Downsample(config.width * config.multipliers[level])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class UpStage(Stage):
    """One level of a decoder."""

    def __init__(self, config: BSQVAEConfig, channels: int, level: int) -> None:
        super().__init__(config, channels, level, config.decoder_blocks)
        if level:
            self.upsample = Upsample(config.width * config.multipliers[level])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Encoder(nn.Module):
    """Pixels to features."""

    def __init__(self, config: BSQVAEConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in (1, *config.multipliers)]
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1)
        self.down = nn.ModuleList(
            DownStage(config, channels, level) for level, channels in enumerate(widths[:-1])
        )
        self.mid = Middle(config)
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down:
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Features to pixels."""

    def __init__(self, config: BSQVAEConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in (*config.multipliers, config.multipliers[-1])]
        self.conv_in = nn.Conv2d(config.channels, widths[-1], 3, padding=1)
        self.mid = Middle(config)
        levels = range(len(config.multipliers))
        stages = [UpStage(config, widths[level + 1], level) for level in reversed(levels)]
        self.up = nn.ModuleList(reversed(stages))  # by level, as published
        self.norm_out = nn.GroupNorm(config.groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid(self.conv_in(x))
        for stage in reversed(self.up):
            h = stage(h)
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
