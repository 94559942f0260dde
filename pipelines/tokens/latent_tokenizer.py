"""A tokenizer of images with binary codes and no table, on the latents of a continuous autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tts_vision.pipelines.latent_coder import CoderConfig, LatentCoder


@dataclass(frozen=True)
class LatentTokenizerConfig(CoderConfig):
    """Architecture of a tokenizer: `channels` are the bits of a token, `grid` is that of the tokens."""


class LatentTokenizer(LatentCoder):
    """Lookup-free quantisation (Yu et al. 2024): a token is the signs of its features.

    Bit 0 is the most significant one of an id.

    Args:
        config: Its architecture.
    """

    config: LatentTokenizerConfig

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of tokens."""
        return self.config.grid

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return 2**self.config.channels

    def codebook(self) -> Tensor:
        """The signs of every id, ``(V, bits)``, each -1 or 1."""
        return self._signs(torch.arange(self.vocabulary, device=self._weight.device))

    def encode(self, pixels: Tensor) -> Tensor:
        """Ids ``(B, h * w)``, int64, of pixels ``(B, 3, H, W)`` in [-1, 1]."""
        return self.ids(self.features(self.latents(pixels.to(self._weight.device, self._weight.dtype))))

    def ids(self, features: Tensor) -> Tensor:
        """Ids ``(B, h * w)`` of features ``(B, bits, h, w)``."""
        bits = (features > 0).flatten(2).transpose(1, 2)
        return (bits * self._powers(features.device)).sum(-1)

    def decode(self, ids: Tensor) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in [-1, 1] of ids ``(B, h * w)``."""
        weight = self._weight
        features = self._signs(ids.to(weight.device)).transpose(1, 2).unflatten(2, self.grid)
        return self.pixels(self.drawn(features.to(weight.dtype))).float().clamp(-1, 1)

    @property
    def _weight(self) -> Tensor:
        return self.decoder.conv_in.weight

    def _powers(self, device: torch.device) -> Tensor:
        return 2 ** torch.arange(self.config.channels - 1, -1, -1, device=device)

    def _signs(self, ids: Tensor) -> Tensor:
        return (ids[..., None] & self._powers(ids.device)).ne(0).float() * 2 - 1
