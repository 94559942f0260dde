"""A multi-scale binary tokenizer on the latents of a continuous autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tts_vision.pipelines.latent_coder import CoderConfig, LatentCoder
from tts_vision.pipelines.var.bsq import MultiScaleBSQ


@dataclass(frozen=True)
class LatentBSQVAEConfig(CoderConfig):
    """Architecture of a tokenizer.

    Attributes:
        patch: Side of the square of feature cells that one token stands for.
        stride: Pixels, on a side, of one feature cell.
    """

    patch: int = 2
    stride: int = 8


class LatentBSQVAE(LatentCoder):
    """Encoder and decoder around a multi-scale binary quantiser; takes the place of `BSQVAE`.

    Args:
        config: Its architecture.
    """

    config: LatentBSQVAEConfig

    def __init__(self, config: LatentBSQVAEConfig) -> None:
        super().__init__(config)
        self.quantizer = MultiScaleBSQ(config.channels, config.patch)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in [-1, 1] as features ``(B, C, H / stride, W / stride)``."""
        return self.features(self.latents(pixels))

    def decode(self, features: Tensor) -> Tensor:
        """Features ``(B, C, h, w)`` as RGB pixels ``(B, 3, h * stride, w * stride)`` in [-1, 1]."""
        weight = self.decoder.conv_in.weight
        return self.pixels(self.drawn(features.to(weight.device, weight.dtype))).float().clamp(-1, 1)
