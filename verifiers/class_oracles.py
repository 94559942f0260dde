"""Classifiers of ImageNet as verifiers of class-conditional samples (Ma et al. 2025)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tts_vision.errors import VerifierError
from tts_vision.imagenet import CLASSES, class_of
from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Prompt, Score
from tts_vision.verifiers._backbones import (
    INCEPTION_WEIGHTS,
    clip_embeddings,
    clip_standard_pixels,
    inception_pixels,
    load_clip,
    load_inception,
    standard_pixels,
)
from tts_vision.verifiers._weights import from_pretrained, processor_from

Value: TypeAlias = Literal["probability", "log_probability", "logit"]


class _Classifier(BatchedVerifier):
    """A classifier's output for the class of the prompt, in the form `value`; `parts` has all forms."""

    value: Value

    @abstractmethod
    def _logits(self, samples: list[Image.Image]) -> Tensor:
        """``(B, 1000)``."""

    def _score_batch(self, samples: list[Image.Image], prompts: list[Prompt]) -> list[Score]:
        wanted = [class_of(prompt) for prompt in prompts]
        logits = self._logits(samples).double().cpu()
        logs = logits.log_softmax(-1)
        scores = []
        for row, number in enumerate(wanted):
            log = float(logs[row, number])
            parts = {
                "probability": float(logs[row, number].exp()),
                "log_probability": log,
                "logit": float(logits[row, number]),
            }
            scores.append(Score(value=parts[self.value], parts=parts))
        return scores


@register(
    "verifier",
    "inception_confidence",
    paper="Ma et al. 2025, the oracle of the Inception Score",
    notes={"licence": "BSD-3-Clause", "weights": INCEPTION_WEIGHTS},
)
class InceptionConfidence(_Classifier):
    """Probability of the class of the prompt by Inception v3, which the Inception Score rewards.

    The class is the prompt's ``class_id``, or its text: a number or a class name of ImageNet. The weights
    are torchvision's, with torchvision's preprocessing, not those that FID and the Inception Score are
    reported with.

    Args:
        checkpoint: File of torchvision's Inception v3, or its address.
        value: ``probability``, ``log_probability`` or ``logit``; `parts` gives all three.
    """

    name = "inception_confidence"

    def __init__(
        self,
        *,
        checkpoint: str = INCEPTION_WEIGHTS,
        value: Value = "probability",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.value = checkpoint, value

    def _load(self) -> None:
        self._model = load_inception(self.checkpoint, self.name).to(self.device, self.dtype)

    def _logits(self, samples: list[Image.Image]) -> Tensor:
        return self._model(inception_pixels(samples).to(self.device, self.dtype))


@register(
    "verifier",
    "dino_classifier",
    paper="Ma et al. 2025; DINOv2 (Oquab et al. 2023)",
    notes={"licence": "Apache-2.0", "weights": "facebook/dinov2-base-imagenet1k-1-layer"},
)
class DinoClassifier(_Classifier):
    """Logit of the class of the prompt, by DINOv2 with its published linear head.

    The class is the prompt's ``class_id``, or its text: a number or a class name of ImageNet. The head reads
    the class token and the mean of the patch tokens; images are resized to 256 and cropped to 224.

    Args:
        checkpoint: Folder or hub id of a DINOv2 (with registers or without) of transformers with a linear
            head for ImageNet.
        value: ``probability``, ``log_probability`` or ``logit``; `parts` gives all three.
    """

    name = "dino_classifier"

    def __init__(
        self,
        *,
        checkpoint: str = "facebook/dinov2-base-imagenet1k-1-layer",
        value: Value = "logit",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.value = checkpoint, value

    def _load(self) -> None:
        from transformers import AutoModelForImageClassification

        model = from_pretrained(AutoModelForImageClassification, self.checkpoint, self.name, dtype=self.dtype)
        if model.config.num_labels != CLASSES or not model.config.model_type.startswith("dinov2"):
            raise VerifierError(
                f"The weights of {self.name!r} must be a DINOv2 with a head for {CLASSES} classes but "
                f"{self.checkpoint!r} is {model.config.model_type} for {model.config.num_labels}; give "
                "facebook/dinov2-base-imagenet1k-1-layer or one of its sizes."
            )
        self._model = model.to(self.device)

    def _logits(self, samples: list[Image.Image]) -> Tensor:
        pixels = standard_pixels(samples, resize=256, crop=224)
        return self._model(pixels.to(self.device, self.dtype)).logits


@register(
    "verifier",
    "clip_classifier",
    paper="Ma et al. 2025; CLIP (Radford et al. 2021), zero-shot",
    notes={"licence": "MIT (OpenAI's weights)", "weights": "openai/clip-vit-large-patch14"},
)
class ClipClassifier(BatchedVerifier):
    """Zero-shot logit of the class of the prompt, by CLIP: its temperature times a cosine.

    The vector of a class is the mean of the normalised embeddings of its name in several phrases. No other
    class is embedded, because the logit does not depend on them. The class is the prompt's ``class_id``, or
    its text: a number or a class name of ImageNet.

    Args:
        checkpoint: Folder or hub id of a CLIP of transformers.
        templates: ``openai`` for the 80 phrases of the paper's authors for ImageNet, ``simple`` for their 7.
    """

    name = "clip_classifier"

    def __init__(
        self,
        *,
        checkpoint: str = "openai/clip-vit-large-patch14",
        templates: Literal["openai", "simple"] = "openai",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.templates = checkpoint, templates
        self._vectors: dict[int, Tensor] = {}

    def _load(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = processor_from(AutoTokenizer, self.checkpoint, self.name)
        self._model = load_clip(self.checkpoint, self.name, self.dtype).to(self.device)

    def _score_batch(self, samples: list[Image.Image], prompts: list[Prompt]) -> list[Score]:
        vectors = torch.stack([self._vector(class_of(prompt)) for prompt in prompts])
        embeddings = clip_embeddings(self._model, clip_standard_pixels(self._model, samples)).float()
        cosines = (F.normalize(embeddings, dim=-1) * vectors).sum(-1)
        logits = self._model.logit_scale.float().exp() * cosines
        return [Score(value=value) for value in logits.tolist()]

    def _vector(self, number: int) -> Tensor:
        """The class as a unit vector ``(D,)``, remembered."""
        from open_clip import zero_shot_metadata as published

        if number not in self._vectors:
            templates = (
                published.OPENAI_IMAGENET_TEMPLATES
                if self.templates == "openai"
                else published.SIMPLE_IMAGENET_TEMPLATES
            )
            phrases = [template(published.IMAGENET_CLASSNAMES[number]) for template in templates]
            words = self._tokenizer(phrases, padding=True, truncation=True, return_tensors="pt").to(
                self.device
            )
            embeddings = self._model.get_text_features(**words).pooler_output.float()
            self._vectors[number] = F.normalize(F.normalize(embeddings, dim=-1).mean(0), dim=-1)
        return self._vectors[number]
