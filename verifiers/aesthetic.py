"""Predictors of how people rate the look of an image, on embeddings of CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tts_vision.registry import register
from tts_vision.verifiers._backbones import clip_embeddings, clip_pixels, clip_standard_pixels, load_clip
from tts_vision.verifiers._rewards import PixelReward, fit_siglip, pillow_processor
from tts_vision.verifiers._weights import find_file, from_pretrained, load_strictly, read_state

HEADS = {
    "mlp": "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac+logos+ava1-l14-linearMSE.pth",
    "linear": "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
}
HEAD_V2_5 = (
    "https://github.com/discus0434/aesthetic-predictor-v2-5/raw/main/models/aesthetic_predictor_v2_5.pth"
)


class MLP(nn.Module):
    """The improved predictor's head: five linear layers without activations, as published."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings)


class MLPv25(nn.Module):
    """The head of version 2.5: as `MLP`, with one more dropout before the last layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scoring_head = nn.Sequential(
            nn.Linear(size, 1024),
            nn.Dropout(0.5),
            nn.Linear(1024, 128),
            nn.Dropout(0.5),
            nn.Linear(128, 64),
            nn.Dropout(0.5),
            nn.Linear(64, 16),
            nn.Dropout(0.2),
            nn.Linear(16, 1),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.scoring_head(embeddings)


class _Aesthetic(PixelReward):
    """A head on normalised embeddings, which it takes in float32 at least; the prompt is not read."""

    _head: nn.Module

    def _load_head(self, head: nn.Module, checkpoint: str, published: str) -> None:
        """Loads the head from a file, or from a folder that holds the published one."""
        file = find_file(checkpoint, published.rsplit("/", 1)[-1], self.name)
        load_strictly(head, read_state(file, self.name), self.name)
        self._head = head.eval().requires_grad_(False).float().to(self.device)

    def _rate(self, embeddings: Tensor) -> Tensor:
        wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return self._head(F.normalize(wide, dim=-1))[:, 0]


@register(
    "verifier",
    "aesthetic",
    paper="LAION-5B (Schuhmann et al. 2022), aesthetic predictors V1 (linear) and V2 (MLP)",
    notes={
        "licence": "Apache-2.0 (MLP), MIT (linear head, OpenAI's CLIP)",
        "weights": "sac+logos+ava1-l14-linearMSE.pth or sa_0_4_vit_l_14_linear.pth; "
        "openai/clip-vit-large-patch14",
        "gradients": "yes",
    },
)
class Aesthetic(_Aesthetic):
    """LAION's aesthetic predictor on CLIP ViT-L/14: about 1 to 10, 5 for most; the prompt is not read.

    Args:
        head: ``mlp`` for the improved predictor (V2), ``linear`` for the first one.
        checkpoint: File of the head, or a folder that holds it; by default it is downloaded.
        backbone: Folder or hub id of OpenAI's CLIP ViT-L/14 of transformers.
        dtype: Precision of the backbone's weights: float32, bfloat16 or float16.
    """

    name = "aesthetic"

    def __init__(
        self,
        *,
        head: Literal["mlp", "linear"] = "mlp",
        checkpoint: str | None = None,
        backbone: str = "openai/clip-vit-large-patch14",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.head, self.backbone = head, backbone
        self.checkpoint = checkpoint or HEADS[head]

    def _load(self) -> None:
        self._model = load_clip(self.backbone, self.name, self.dtype).to(self.device)
        size = self._model.config.projection_dim
        head = MLP(size) if self.head == "mlp" else nn.Linear(size, 1)
        self._load_head(head, self.checkpoint, HEADS[self.head])

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        return clip_standard_pixels(self._model, samples)

    def _fit(self, pixels: Tensor) -> Tensor:
        return clip_pixels(pixels, self._model.config.vision_config.image_size)

    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return self._rate(clip_embeddings(self._model, pixels))


@register(
    "verifier",
    "aesthetic_v2.5",
    paper="Aesthetic Predictor V2.5 (discus0434 2024); SigLIP (Zhai et al. 2023)",
    notes={
        "licence": "AGPL-3.0 (head), Apache-2.0 (SigLIP)",
        "weights": "aesthetic_predictor_v2_5.pth; google/siglip-so400m-patch14-384",
        "gradients": "yes",
    },
)
class AestheticV25(_Aesthetic):
    """Aesthetic Predictor V2.5 on SigLIP: 1 to 10, 5.5 and more is very good; the prompt is not read.

    It rates illustrations too. Images are squashed to a square.

    Args:
        checkpoint: File of the head, or a folder that holds it; by default it is downloaded.
        backbone: Folder or hub id of the SigLIP so400m of transformers that the head was trained on.
        dtype: Precision of the backbone's weights: float32, bfloat16 or float16.
    """

    name = "aesthetic_v2.5"

    def __init__(
        self,
        *,
        checkpoint: str = HEAD_V2_5,
        backbone: str = "google/siglip-so400m-patch14-384",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.backbone = checkpoint, backbone

    def _load(self) -> None:
        from transformers import SiglipModel

        self._image_processor = pillow_processor("Siglip", self.backbone, self.name)
        model: Any = from_pretrained(SiglipModel, self.backbone, self.name, dtype=self.dtype)
        self._model = model.vision_model.to(self.device)
        self._load_head(MLPv25(self._model.config.hidden_size), self.checkpoint, HEAD_V2_5)

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        return self._image_processor(samples, return_tensors="pt").pixel_values

    def _fit(self, pixels: Tensor) -> Tensor:
        return fit_siglip(self._image_processor, pixels)

    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return self._rate(self._model(pixel_values=pixels).pooler_output)
