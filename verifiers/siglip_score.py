"""SigLIP: how well an image fits its prompt, as the logit of a pair of its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from tts_vision.errors import VerifierError
from tts_vision.registry import register
from tts_vision.types import Prompt, Score
from tts_vision.verifiers._rewards import PixelReward, TextCache, cosines, fit_siglip, pillow_processor
from tts_vision.verifiers._weights import from_pretrained, processor_from


@register(
    "verifier",
    "siglip_score",
    paper="SigLIP (Zhai et al. 2023)",
    notes={
        "licence": "Apache-2.0",
        "weights": "google/siglip-so400m-patch14-384; google/siglip2-so400m-patch14-384, ...",
        "gradients": "yes",
    },
)
class SiglipScore(PixelReward):
    """SigLIP's logit of image and prompt, which unlike CLIP's does not depend on other pairs.

    The probability of a match is its sigmoid; it is close to 0 or 1 for most pairs, so that the logit tells
    more. Images are squashed to a square; prompts are padded and cut at 64 tokens, as in training.

    Args:
        checkpoint: Folder or hub id of a SigLIP or SigLIP 2 of transformers with a fixed resolution.
        value: ``logit``, ``probability`` or ``cosine``; `parts` gives all three.
    """

    name = "siglip_score"

    def __init__(
        self,
        *,
        checkpoint: str = "google/siglip-so400m-patch14-384",
        value: Literal["logit", "probability", "cosine"] = "logit",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.value = checkpoint, value

    def _load(self) -> None:
        from transformers import AutoConfig, AutoTokenizer, SiglipModel

        config = processor_from(AutoConfig, self.checkpoint, self.name)
        if config.model_type != "siglip":
            raise VerifierError(
                f"The weights of {self.name!r} must be a SigLIP with a fixed resolution but "
                f"{self.checkpoint!r} is {config.model_type}; give google/siglip-so400m-patch14-384 or one "
                "of its kind."
            )
        self._tokenizer: Any = processor_from(AutoTokenizer, self.checkpoint, self.name)
        self._image_processor = pillow_processor("Siglip", self.checkpoint, self.name)
        self._model = from_pretrained(SiglipModel, self.checkpoint, self.name, dtype=self.dtype)
        self._model.to(self.device)
        self._texts = TextCache(self._encode)

    def _encode(self, texts: list[str]) -> Tensor:
        length = self._model.config.text_config.max_position_embeddings
        words = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return self._model.text_model(input_ids=words.input_ids.to(self.device)).pooler_output

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        return self._image_processor(samples, return_tensors="pt").pixel_values

    def _fit(self, pixels: Tensor) -> Tensor:
        return fit_siglip(self._image_processor, pixels)

    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return self._forms(pixels, texts)[self.value]

    def _forms(self, pixels: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
        cosine = cosines(self._model.vision_model(pixel_values=pixels).pooler_output, self._texts(texts))
        scale, bias = (p.to(cosine.dtype) for p in (self._model.logit_scale, self._model.logit_bias))
        logit = scale.exp() * cosine + bias
        return {"logit": logit, "probability": logit.sigmoid(), "cosine": cosine}

    def _score_batch(self, samples: list[Future[Tensor]], prompts: list[Prompt]) -> list[Score]:
        forms = self._forms(self._ready(samples), [prompt.text for prompt in prompts])
        rows = torch.stack(list(forms.values()), dim=1).tolist()
        parts = [dict(zip(forms, row, strict=True)) for row in rows]
        return [Score(value=row[self.value], parts=row) for row in parts]
