"""Embeddings by DINO and DINOv2: visual content and layout, learnt without text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from tts_vision.registry import register
from tts_vision.types import Media
from tts_vision.verifiers._backbones import dino_tokens, load_dino, standard_pixels
from tts_vision.verifiers._features import ImageFeatures

_SIDE = 224


@register(
    "features",
    "dino_features",
    paper="DINOv2 (Oquab et al. 2023), DINO (Caron et al. 2021); reduced patches: TTS-VAR (Chen et al. 2025)",
    notes={
        "licence": "Apache-2.0",
        "weights": "facebook/dinov2-base; facebook/dinov2-with-registers-large, facebook/dino-vitb16, ...",
    },
)
class DinoFeatures(ImageFeatures):
    """Last tokens of DINO, after its final layer norm and not normalised further.

    Images are resized to 256 on the shorter edge and cropped to 224 in the centre, as both papers evaluate;
    squeezed whole to 224 x 224 where patches are reduced by principal components, as TTS-VAR does.

    Args:
        checkpoint: Folder or hub id of a DINO, DINOv2 or DINOv2-with-registers backbone of transformers.
        pool: ``cls`` for the class token, ``patches_mean`` for the mean of the patch tokens; ``patches_pca``
            for one number of each patch, its share of the image's first principal component; ``pca_all``
            for the same by one component of all images that are embedded at once, so that a row depends on
            the others.
    """

    name = "dino_features"

    def __init__(
        self,
        *,
        checkpoint: str = "facebook/dinov2-base",
        pool: Literal["cls", "patches_mean", "patches_pca", "pca_all"] = "cls",
        frames: int = 8,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(frames=frames, device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.pool = checkpoint, pool

    def _load(self) -> None:
        self._model = load_dino(self.checkpoint, self.name, self.dtype).to(self.device)
        config = self._model.config
        self._patches = (_SIDE // config.patch_size) ** 2
        self.size = self._patches if self.pool in {"patches_pca", "pca_all"} else config.hidden_size

    def features(self, media: Sequence[Media]) -> Tensor:
        rows = super().features(media)
        if self.pool == "pca_all" and len(rows):
            tokens = rows.unflatten(1, (self._patches, -1))
            return first_component(tokens.flatten(0, 1)[None])[0].unflatten(0, (len(rows), self._patches))
        return rows

    def _embed(self, images: list[Image.Image]) -> Tensor:
        if self.pool in {"cls", "patches_mean"}:
            cls, patches = dino_tokens(self._model, standard_pixels(images, resize=256, crop=_SIDE))
            return cls if self.pool == "cls" else patches.mean(1)
        squeezed = [image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR) for image in images]
        _, patches = dino_tokens(self._model, standard_pixels(squeezed, resize=_SIDE, crop=_SIDE))
        return first_component(patches.float()) if self.pool == "patches_pca" else patches.flatten(1)


def first_component(tokens: Tensor) -> Tensor:
    """Each token's share of the first principal component of its group.

    Tokens are centred over their group and projected on the first right singular vector. The sign of that
    vector is arbitrary, so that near-identical images could end up opposite to each other. It is fixed by
    the third moment of the shares: the rarer and larger deviations, usually a thing before its ground, are
    positive. The moment changes continuously with the tokens, so near-identical images agree unless it is
    nearly zero for both.

    Args:
        tokens: ``(B, N, D)``, B groups of N tokens.

    Returns:
        ``(B, N)`` float32.
    """
    centred = tokens.double() - tokens.double().mean(1, keepdim=True)
    # the projections of the tokens are the left singular vectors times the singular values
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    shares = u[..., 0] * s[..., :1]
    moment = shares.pow(3).sum(1, keepdim=True)
    return torch.where(moment < 0, -shares, shares).float()
