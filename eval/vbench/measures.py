"""The dimensions of VBench that this toolkit measures itself, each on one clip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tts_vision.eval.vbench.prompts import label
from tts_vision.eval.vbench.static_filter import is_static, lengths
from tts_vision.memory import in_halves
from tts_vision.model_verifier import LazyModel, UnusableSample
from tts_vision.types import Prompt, Score, Video
from tts_vision.verifier import Verifier
from tts_vision.verifiers._backbones import clip_embeddings, clip_standard_pixels, load_clip
from tts_vision.verifiers._frames import frame_images
from tts_vision.verifiers._rewards import TextCache
from tts_vision.verifiers._weights import processor_from
from tts_vision.verifiers.aesthetic import Aesthetic
from tts_vision.verifiers.flicker import Flicker
from tts_vision.verifiers.motion import Motion, at_eight_fps, comparable
from tts_vision.verifiers.temporal_consistency import TemporalConsistency, vbench_pixels
from tts_vision.verifiers.viclip_score import ViClipScore

STILL = 1.0
"""Consistency and steadiness of a clip in which nothing changes."""


@dataclass(frozen=True)
class Measured:
    """The measure of one clip.

    Attributes:
        value: Raw score; higher is better.
        weight: Frames or pairs that it is the mean of, where the mean over clips counts them; else 1.
        details: What it rests on, as JSON has it.
    """

    value: float
    weight: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)


class Measure(ABC):
    """Measures one dimension.

    Attributes:
        still: The value that it has on a clip in which nothing changes; None where that is not known.
    """

    still: float | None = None

    @abstractmethod
    def load(self) -> None:
        """Loads its models.

        Raises:
            VerifierError: If their weights cannot be found or do not fit.
        """

    @abstractmethod
    def measure(self, video: Video, prompt: Prompt) -> Measured:
        """The measure of a clip.

        Raises:
            UnusableSample: If it cannot be measured.
        """


class Consistency(Measure):
    """Subject and background consistency.

    Args:
        verifier: By DINO or by CLIP.
    """

    still = STILL

    def __init__(self, verifier: TemporalConsistency) -> None:
        self.verifier = verifier

    def load(self) -> None:
        self.verifier.load()

    def measure(self, video: Video, prompt: Prompt) -> Measured:
        score = scored(self.verifier, video, prompt)
        return Measured(score.value, len(video.frames) - 1, {"pairs": len(video.frames) - 1})


class Flickering(Measure):
    """Temporal flickering of still clips.

    Args:
        raft: Finds the clips that move, which are left out; without it every clip is measured.
    """

    still = STILL

    def __init__(self, raft: Motion | None) -> None:
        self.raft, self.verifier = raft, Flicker()

    def load(self) -> None:
        if self.raft is not None:
            self.raft.load()

    def measure(self, video: Video, prompt: Prompt) -> Measured:
        score = scored(self.verifier, video, prompt)
        if self.raft is None:
            return Measured(score.value)
        check_static(self.raft, video)
        return Measured(score.value)


class Dynamic(Measure):
    """Dynamic degree.

    Args:
        verifier: Computes the flow.
        strict: Whether clips with one or two sampled frames get VBench's verdicts, which do not depend on
            the pixels: one frame is still and two are dynamic. Else they are not measured.
    """

    def __init__(self, verifier: Motion, *, strict: bool) -> None:
        self.verifier, self.strict = verifier, strict

    def load(self) -> None:
        self.verifier.load()

    def measure(self, video: Video, prompt: Prompt) -> Measured:
        frames = len(at_eight_fps(len(video.frames), video.fps)) if video.fps > 0 else 0
        if frames in (1, 2):
            if self.strict:
                return Measured(float(frames == 2), details={"frames": frames})
            raise UnusableSample(
                f"the clip has {frames} of the frames at 8 per second, for which the rule asks for no moving "
                "pair; strict=true counts it as VBench does"
            )
        score = scored(self.verifier, video, prompt)
        return Measured(score.parts["dynamic"], details={"length": score.value, "frames": frames})


class FrameMean(Measure):
    """Mean of a verifier of images over all frames.

    Args:
        verifier: Of images.
        scale: Divisor.
    """

    def __init__(self, verifier: Verifier, scale: float = 1.0) -> None:
        self.verifier, self.scale = verifier, scale

    def load(self) -> None:
        self.verifier.load()

    def measure(self, video: Video, prompt: Prompt) -> Measured:
        images = frame_images(video, range(len(video.frames)))
        scores = self.verifier.score(images, [prompt] * len(images))
        for score in scores:
            _check(score)
        return Measured(sum(score.value for score in scores) / len(scores) / self.scale)


class AppearanceStyle(LazyModel, Measure):
    """Mean cosine of CLIP's embeddings of the frames and of the style that the prompt asks for.

    Args:
        checkpoint: Folder or hub id of OpenAI's CLIP ViT-B/32 of transformers.
        owner: For messages.
        settings: ``device``, ``dtype`` and ``batch_size``, frames at once.
    """

    def __init__(self, checkpoint: str, owner: str, settings: Mapping[str, Any]) -> None:
        super().__init__(**settings)
        self.checkpoint, self.owner = checkpoint, owner

    def _load(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = processor_from(AutoTokenizer, self.checkpoint, self.owner)
        self._model = load_clip(self.checkpoint, self.owner, self.dtype).to(self.device)
        self._texts = TextCache(self._encode)

    def _encode(self, texts: list[str]) -> Tensor:
        words = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        return self._model.get_text_features(**words).pooler_output.float()

    @torch.no_grad()
    def measure(self, video: Video, prompt: Prompt) -> Measured:
        self.load()
        images = frame_images(video, range(len(video.frames)))

        def work(start: int, stop: int) -> Tensor:
            return self._seen(images[start:stop])

        seen = torch.cat(in_halves(len(images), self.batch_size, work, shrunk=self._use_batches_of))
        text = self._texts([label(prompt, "appearance_style")])
        cosines = (F.normalize(seen, dim=-1) * F.normalize(text, dim=-1)).sum(-1)
        return Measured(float(cosines.double().mean()), len(images), {"frames": len(images)})

    def _seen(self, images: list[Image.Image]) -> Tensor:
        return clip_embeddings(self._model, clip_standard_pixels(self._model, images)).float()


class TextConsistency(Measure):
    """Overall consistency and temporal style.

    Args:
        verifier: Compares the clip with its prompt.
    """

    def __init__(self, verifier: ViClipScore) -> None:
        self.verifier = verifier

    def load(self) -> None:
        self.verifier.load()

    def measure(self, video: Video, prompt: Prompt) -> Measured:
        return Measured(scored(self.verifier, video, prompt).value)


class FrameAesthetic(Aesthetic):
    """LAION's first predictor on frames that are resized as VBench does: unfiltered, not clipped.

    It is no verifier of its own: `measures` makes it.
    """

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        frames = torch.from_numpy(np.stack([np.asarray(image) for image in samples]))
        return vbench_pixels(frames, "clip", self._model.config.vision_config.image_size)


def scored(verifier: Verifier, video: Video, prompt: Prompt) -> Score:
    """The score of a clip.

    Raises:
        UnusableSample: If it has none.
    """
    (score,) = verifier.score([video], [prompt])
    _check(score)
    return score


def check_static(raft: Motion, video: Video) -> None:
    """Checks that a clip passes the static filter.

    Raises:
        UnusableSample: If it moves, or its flow cannot be computed.
    """
    neighbours, ends = lengths(raft, comparable(video, "the static filter"))
    if not is_static(neighbours, ends, min(video.frames.shape[1:3])):
        raise UnusableSample("the clip moves, so the static filter leaves it out")


def _check(score: Score) -> None:
    if score.value != score.value:
        raise UnusableSample(score.reason or "it has no score")
