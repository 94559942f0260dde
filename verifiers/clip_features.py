"""Embeddings by CLIP: semantic content, in the space that CLIP shares with text."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from tts_vision.registry import register
from tts_vision.verifiers._backbones import clip_embeddings, clip_standard_pixels, load_clip
from tts_vision.verifiers._features import ImageFeatures


@register(
    "features",
    "clip_features",
    paper="CLIP (Radford et al. 2021)",
    notes={"licence": "MIT (OpenAI's weights)", "weights": "openai/clip-vit-large-patch14"},
)
class ClipFeatures(ImageFeatures):
    """Projected image embeddings of CLIP, not normalised: divide by the norm for cosines.

    Images are resized to the model's resolution on the shorter edge and cropped in the centre, as CLIP's.

    Args:
        checkpoint: Folder or hub id of a CLIP of transformers.
    """

    name = "clip_features"

    def __init__(
        self,
        *,
        checkpoint: str = "openai/clip-vit-large-patch14",
        frames: int = 8,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(frames=frames, device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint = checkpoint

    def _load(self) -> None:
        self._model = load_clip(self.checkpoint, self.name, self.dtype).to(self.device)
        self.size = self._model.config.projection_dim

    def _embed(self, images: list[Image.Image]) -> Tensor:
        return clip_embeddings(self._model, clip_standard_pixels(self._model, images))
