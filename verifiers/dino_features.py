"""Embeddings by DINO and DINOv2: what a picture shows and how it is laid out, without words."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from torch import Tensor

from tts_vision.registry import register
from tts_vision.verifiers._backbones import dino_tokens, load_dino, standard_pixels
from tts_vision.verifiers._features import PictureFeatures


@register(
    "features",
    "dino_features",
    paper="DINOv2 (Oquab et al. 2023), DINO (Caron et al. 2021)",
    notes={
        "licence": "Apache-2.0",
        "weights": "facebook/dinov2-base; facebook/dinov2-with-registers-large, facebook/dino-vitb16, ...",
    },
)
class DinoFeatures(PictureFeatures):
    """Last tokens of DINO, after its final layer norm and not normalised further.

    Pictures are resized to 256 on the shorter edge and cropped to 224 in the centre, as both papers evaluate.

    Args:
        checkpoint: Folder or hub id of a DINO, DINOv2 or DINOv2-with-registers backbone of transformers.
        pool: ``cls`` for the class token, ``patches_mean`` for the mean of the patch tokens.
        frames: Frames of a clip whose embeddings are averaged, evenly spaced; all of a shorter clip.
        device: Where it computes; by default the accelerator, if there is one.
        dtype: Precision of its weights: float32, bfloat16 or float16.
        batch_size: Pictures or frames computed at once.
    """

    name = "dino_features"

    def __init__(
        self,
        *,
        checkpoint: str = "facebook/dinov2-base",
        pool: Literal["cls", "patches_mean"] = "cls",
        frames: int = 8,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(frames=frames, device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.pool = checkpoint, pool

    def _load(self) -> None:
        self._model = load_dino(self.checkpoint, self.name, self.dtype).to(self.device)
        self.size = self._model.config.hidden_size

    def _embed(self, pictures: list[Image.Image]) -> Tensor:
        cls, patches = dino_tokens(self._model, standard_pixels(pictures, resize=256, crop=224))
        return cls if self.pool == "cls" else patches.mean(1)
