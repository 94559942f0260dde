"""Detectors: models that find the objects that a prompt names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.memory import in_halves
from tts_vision.model_verifier import LazyModel
from tts_vision.verifiers._detections import Detection

LONGEST = 1333 / 800  # of the longer side, in shorter sides


@dataclass(frozen=True)
class Cutoffs:
    """Confidences above which a detection counts, for prompts that limit a number and for all others."""

    others: float
    counting: float
    max_overlap: float


class ObjectDetector(LazyModel):
    """Finds the objects that a prompt names.

    Args:
        checkpoint: Folder or hub id; of Mask2Former also a file of mmdet, see `load_mmdet`.
        owner: Name of the verifier, for messages.
        size: Shorter side of an image as the model sees it; the longer is at most 5/3 of it.
        device: Device of the model; by default the accelerator, if there is one.
        batch_size: Images computed at once.
    """

    cutoffs: Cutoffs
    reads_nouns: ClassVar[bool] = True
    """Whether the model is given the nouns, so that only images with the same ones go together."""

    def __init__(self, checkpoint: str, *, owner: str, size: int, device: Any, batch_size: int) -> None:
        super().__init__(device=device, batch_size=batch_size)
        if size < 32:
            raise ConfigError(f"size of {owner} must be at least 32 but got {size}; raise it.")
        self.checkpoint, self.owner, self.size = checkpoint, owner, size

    def knows(self, noun: str) -> bool:
        """Whether it can find objects of that name."""
        return True

    @torch.no_grad()
    def detect(
        self, images: Sequence[Image.Image], nouns: Sequence[Sequence[str]], thresholds: Sequence[float]
    ) -> list[list[Detection]]:
        """The detections in each image.

        Only images of one size (and with the same nouns, for a model that reads them) are computed together,
        so that none is padded because of another. When memory is full, the batch size is halved and stays so.

        Args:
            images: RGB.
            nouns: Names of the objects to find in each; the model knows them.
            thresholds: For each image, the confidence that a detection must exceed.
        """
        self.load()
        alike: dict[Any, list[int]] = {}
        for i, (image, wanted) in enumerate(zip(images, nouns, strict=True)):
            alike.setdefault((image.size, tuple(wanted) if self.reads_nouns else ()), []).append(i)
        found: dict[int, list[Detection]] = {}
        for rows in alike.values():

            def work(start: int, stop: int, rows: list[int] = rows) -> list[list[Detection]]:
                some = rows[start:stop]
                return self._detect(
                    [images[i] for i in some], [nouns[i] for i in some], [thresholds[i] for i in some]
                )

            batches = in_halves(len(rows), self.batch_size, work, shrunk=self._use_batches_of)
            found.update(zip(rows, [each for batch in batches for each in batch], strict=True))
        return [found[i] for i in range(len(images))]

    @abstractmethod
    def _detect(
        self, images: list[Image.Image], nouns: list[Sequence[str]], thresholds: list[float]
    ) -> list[list[Detection]]:
        """As `detect`, of images that go together."""
