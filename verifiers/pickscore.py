"""PickScore: human preference by a CLIP ViT-H/14 that was tuned on the choices of users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from tts_vision.registry import register
from tts_vision.verifiers._backbones import clip_embeddings, load_clip
from tts_vision.verifiers._rewards import PixelReward, TextCache, cosines, fit_clip, pillow_processor
from tts_vision.verifiers._weights import processor_from


@register(
    "verifier",
    "pickscore",
    paper="Pick-a-Pic (Kirstain et al. 2023)",
    notes={"licence": "MIT", "weights": "yuvalkirstain/PickScore_v1", "gradients": "yes"},
)
class PickScore(PixelReward):
    """PickScore: the learned scale times the cosine of image and prompt; around 20 for most images.

    A softmax over the images of one prompt gives the probability that each is chosen. Prompts are cut at
    77 tokens.

    Args:
        checkpoint: Folder or hub id of the weights.
        processor: Folder or hub id of the tokenizer and the image processor.
    """

    name = "pickscore"

    def __init__(
        self,
        *,
        checkpoint: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.processor = checkpoint, processor

    def _load(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = processor_from(AutoTokenizer, self.processor, self.name)
        self._image_processor = pillow_processor("CLIP", self.processor, self.name)
        self._model = load_clip(self.checkpoint, self.name, self.dtype).to(self.device)
        self._texts = TextCache(self._encode)

    def _encode(self, texts: list[str]) -> Tensor:
        words = self._tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        return self._model.get_text_features(**words.to(self.device)).pooler_output

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        return self._image_processor(samples, return_tensors="pt").pixel_values

    def _fit(self, pixels: Tensor) -> Tensor:
        return fit_clip(self._image_processor, pixels)

    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        found = cosines(clip_embeddings(self._model, pixels), self._texts(texts))
        return self._model.logit_scale.to(found.dtype).exp() * found
