"""CLIPScore: how well an image fits its prompt, by any CLIP of open_clip."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from tts_vision.registry import register
from tts_vision.verifiers._open_clip import (
    encode_texts,
    evaluation_pixels,
    fit_pixels,
    load_pretrained,
    tokenizer_of,
)
from tts_vision.verifiers._rewards import PixelReward, TextCache, cosines


@register(
    "verifier",
    "clip_score",
    paper="CLIPScore (Hessel et al. 2021); CLIP (Radford et al. 2021)",
    notes={
        "licence": "MIT (OpenAI's weights); of the weights for others",
        "weights": "ViT-L-14-quickgelu, openai; any model and tag of open_clip",
        "gradients": "yes",
    },
)
class ClipScore(PixelReward):
    """CLIPScore: 100 x max(0, cos) of the embeddings of image and prompt, by any CLIP of open_clip.

    The scale is that of torchmetrics and of most tables; the paper's own is 2.5 in place of 100. OpenAI's
    weights need a model whose name ends in ``-quickgelu``: with the plain one they give other values, so it
    is refused. Prompts are cut at the model's context, 77 tokens for most. Where the cosine is negative, the
    gradient is zero.

    Args:
        model: Name of a model of open_clip, or a folder or hub id with an ``open_clip_config.json``, which
            brings its weights itself.
        pretrained: Tag of open_clip or file, for a model by name. For a file it cannot be
            checked that the model has the activation it was trained with.
    """

    name = "clip_score"

    def __init__(
        self,
        *,
        model: str = "ViT-L-14-quickgelu",
        pretrained: str = "openai",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.model, self.pretrained = model, pretrained

    def _load(self) -> None:
        self._model = load_pretrained(self.model, self.pretrained, self.name).to(self.device, self.dtype)
        self._tokenizer = tokenizer_of(self.model, self.name)
        self._texts = TextCache(lambda texts: encode_texts(self._model, self._tokenizer, texts, self.device))

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        return evaluation_pixels(self._model, samples)

    def _fit(self, pixels: Tensor) -> Tensor:
        return fit_pixels(self._model, pixels, self.name)

    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return 100 * cosines(self._model.encode_image(pixels), self._texts(texts)).clamp(min=0)
