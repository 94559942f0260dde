"""Embeddings by the playground's small CLIP, for searches on the playground without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tts_vision.pipelines.playground import weights_path
from tts_vision.pipelines.playground.quiet import quietly
from tts_vision.registry import register
from tts_vision.verifiers._backbones import clip_embeddings, load_clip
from tts_vision.verifiers._features import ImageFeatures
from tts_vision.verifiers._weights import processor_from


@register(
    "features",
    "playground_features",
    paper="CLIP (Radford et al. 2021)",
    notes={"licence": "Apache-2.0", "weights": "bundled"},
)
class PlaygroundFeatures(ImageFeatures):
    """Projected image embeddings of the playground's CLIP, not normalised.

    Args:
        path: Folder of the model; the bundled one by default.
    """

    name = "playground_features"

    def __init__(
        self, *, path: Path | None = None, frames: int = 8, device: str | None = None, batch_size: int = 8
    ) -> None:
        super().__init__(frames=frames, device=device, batch_size=batch_size)
        self.path = weights_path("clip") if path is None else path

    def _load(self) -> None:
        from transformers import CLIPImageProcessor

        folder = str(self.path)
        with quietly():
            self._model = load_clip(folder, self.name, self.dtype).to(self.device)
        self._processor: Any = processor_from(CLIPImageProcessor, folder, self.name)
        self.size = self._model.config.projection_dim

    def _embed(self, images: list[Image.Image]) -> Tensor:
        return clip_embeddings(self._model, self._processor(images, return_tensors="pt").pixel_values)
