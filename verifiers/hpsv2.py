"""HPSv2 and HPSv2.1: human preference by a CLIP ViT-H/14 that was tuned on comparisons of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tts_vision.registry import register
from tts_vision.verifiers._backbones import CLIP_MEAN, CLIP_STD
from tts_vision.verifiers._open_clip import build, encode_texts, tokenizer_of
from tts_vision.verifiers._rewards import PixelReward, TextCache, cosines, fitted_on, normalised
from tts_vision.verifiers._weights import find_file, load_strictly, read_state

NOTES = {"licence": "Apache-2.0", "gradients": "yes"}


def padded_pixels(pixels: Tensor, size: int, antialias: bool = True) -> Tensor:
    """Pixels as HPSv2 takes them: longer edge to `size`, black bars around, normalised; with their gradient.

    Args:
        pixels: ``(B, 3, H, W)`` in [0, 1].
        size: Side of the result.
        antialias: Whether large images are smoothed before they are sampled.

    Returns:
        ``(B, 3, size, size)``.
    """
    height, width = pixels.shape[-2:]
    scale = size / max(height, width)
    target = (max(1, round(height * scale)), max(1, round(width * scale)))
    if target != (height, width):
        # the authors resize numbers, not bytes, so bicubic overshoot is kept
        pixels = F.interpolate(pixels, target, mode="bicubic", antialias=antialias)
    down, right = size - target[0], size - target[1]
    padded = F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))
    return normalised(padded, CLIP_MEAN, CLIP_STD)


@register(
    "verifier",
    "hpsv2",
    paper="HPSv2 (Wu et al. 2023)",
    notes={**NOTES, "weights": "xswu/HPSv2, HPS_v2_compressed.pt"},
)
class HPSv2(PixelReward):
    """Human Preference Score v2: the cosine of image and prompt by a tuned CLIP ViT-H/14.

    Tables give 100 times this value, 27 or so. Only images of one prompt can be compared. Images are not
    cropped but framed in black, as the authors do; prompts are cut at 77 tokens.

    The authors resize tensors and leave antialiasing to torchvision: up to version 0.16 it did none for
    tensors, from 0.17 on it does, so that the same released code gives other scores for images larger than
    the model's 224 pixels. Here images are antialiased, as by current torchvision; ``antialias=false`` gives
    the scores of environments from the time of the paper.

    Args:
        checkpoint: The published file, a folder that holds it, or a repository on the hub.
        model: The architecture: a name of open_clip, or a folder or hub id with an ``open_clip_config.json``.
        antialias: Whether images are antialiased when they are made smaller.
    """

    name = "hpsv2"
    filename = "HPS_v2_compressed.pt"
    resizes_tensors = True

    def __init__(
        self,
        *,
        checkpoint: str = "xswu/HPSv2",
        model: str = "ViT-H-14",
        antialias: bool = True,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.model, self.antialias = checkpoint, model, antialias

    def _load(self) -> None:
        state = read_state(find_file(self.checkpoint, self.filename, self.name), self.name)
        self._model = build(self.model, self.name)
        load_strictly(self._model, state, self.name)
        self._model.to(self.device, self.dtype)
        self._tokenizer = tokenizer_of(self.model, self.name)
        self._texts = TextCache(lambda texts: encode_texts(self._model, self._tokenizer, texts, self.device))

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        return torch.cat([fitted_on(self.device, sample, self._fit) for sample in samples])

    def _fit(self, pixels: Tensor) -> Tensor:
        size = self._model.visual.image_size
        return padded_pixels(pixels, size if isinstance(size, int) else size[0], self.antialias)

    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return cosines(self._model.encode_image(pixels), self._texts(texts))


@register(
    "verifier",
    "hpsv2.1",
    paper="HPSv2 (Wu et al. 2023), weights of version 2.1",
    notes={**NOTES, "weights": "xswu/HPSv2, HPS_v2.1_compressed.pt"},
)
class HPSv21(HPSv2):
    """Human Preference Score v2.1: HPSv2 tuned on better data; its values cannot be compared with v2's."""

    name = "hpsv2.1"
    filename = "HPS_v2.1_compressed.pt"
