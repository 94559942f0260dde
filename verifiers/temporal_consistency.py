"""Subject and background consistency: how alike the frames of a clip look to DINO or CLIP."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tts_vision.memory import in_halves
from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifiers._backbones import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    clip_embeddings,
    dino_tokens,
    load_clip,
    load_dino,
)
from tts_vision.verifiers._frames import moving

CHECKPOINTS = {"dino": "facebook/dino-vitb16", "clip": "openai/clip-vit-base-patch32"}


def consistency(features: Tensor) -> tuple[float, float]:
    """Mean of max(0, cosine) of each later frame to the one before it, and to the first.

    Args:
        features: ``(T, D)``, two frames or more.
    """
    unit = F.normalize(features.double(), dim=-1)
    later = unit[1:]
    previous, first = (later * unit[:-1]).sum(-1), (later * unit[:1]).sum(-1)
    return float(previous.clamp(min=0).mean()), float(first.clamp(min=0).mean())


def vbench_pixels(frames: Tensor, model: Literal["dino", "clip"], size: int = 224) -> Tensor:
    """Frames as VBench gives them to DINO or CLIP.

    They are resized as numbers in [0, 255] that are neither filtered nor rounded nor clipped, bilinear and
    uncropped for DINO, bicubic and cropped in the centre for CLIP.

    Args:
        frames: ``(T, H, W, 3)`` uint8.
        model: For which model.
        size: Of the shorter edge.

    Returns:
        ``(T, 3, h, w)`` float32.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    pixels = frames.permute(0, 3, 1, 2).float()
    if model == "dino":
        pixels = TF.resize(pixels, [size], InterpolationMode.BILINEAR, antialias=False)
        return TF.normalize(pixels / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    pixels = TF.resize(pixels, [size], InterpolationMode.BICUBIC, antialias=False)
    return TF.normalize(TF.center_crop(pixels, [size]) / 255, list(CLIP_MEAN), list(CLIP_STD))


@register(
    "verifier",
    "temporal_consistency",
    paper="VBench (Huang et al. 2024), subject and background consistency",
    notes={"licence": "Apache-2.0 (DINO), MIT (CLIP)", "weights": ", ".join(CHECKPOINTS.values())},
)
class TemporalConsistency(BatchedVerifier):
    """How alike the frames of a clip are: VBench's subject (DINO) or background (CLIP) consistency.

    In [0, 1]: the mean over all frames but the first of max(0, cosine) to the previous and to the first
    frame, of which `parts` gives each. A still clip gets 1. The prompt is not read.

    Args:
        features: ``dino`` for subjects, ``clip`` for backgrounds.
        checkpoint: Folder or hub id; by default the one of VBench for these features.
        batch_size: Frames computed at once.
    """

    name = "temporal_consistency"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(
        self,
        *,
        features: Literal["dino", "clip"] = "dino",
        checkpoint: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 16,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.features, self.checkpoint = features, checkpoint or CHECKPOINTS[features]

    def _load(self) -> None:
        load = load_dino if self.features == "dino" else load_clip
        self._model = load(self.checkpoint, self.name, self.dtype).to(self.device)

    def _usable(self, sample: Media) -> Video:
        return moving(sample, self.name)

    def _score_batch(self, samples: list[Video], prompts: list[Prompt]) -> list[Score]:
        return [self._score(video) for video in samples]

    def _score(self, video: Video) -> Score:
        def work(start: int, stop: int) -> Tensor:
            return self._embed(video.frames[start:stop])

        found = in_halves(len(video.frames), self.batch_size, work, shrunk=self._use_batches_of)
        previous, first = consistency(torch.cat(found))
        return Score(value=(previous + first) / 2, parts={"previous": previous, "first": first})

    def _embed(self, frames: Tensor) -> Tensor:
        if self.features == "dino":
            return dino_tokens(self._model, vbench_pixels(frames, "dino"))[0]
        size = self._model.config.vision_config.image_size
        return clip_embeddings(self._model, vbench_pixels(frames, "clip", size))
