"""Mask2Former as a detector, by the rules of its authors' evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tts_vision.errors import VerifierError
from tts_vision.verifiers._backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from tts_vision.verifiers._cache import Recent
from tts_vision.verifiers._detections import Box, Detection
from tts_vision.verifiers._detectors import LONGEST, Cutoffs, ObjectDetector
from tts_vision.verifiers._mmdet import is_mmdet, load_mmdet
from tts_vision.verifiers._resize import opencv_bilinear
from tts_vision.verifiers._threads import preprocessing_threads
from tts_vision.verifiers._weights import from_pretrained, processor_from

MASK2FORMER_CHECKPOINT = "facebook/mask2former-swin-small-coco-instance"
NOUNS = 1024
"""Nouns whose class is remembered."""
BEST = 100  # pairs of query and class that Mask2Former's evaluation keeps
PIXELS_AT_ONCE = {"cpu": 2**20}
"""Pixels of masks that are resized at once: as many as a processor's cache holds."""
MOST_PIXELS = 2**25
"""The same for accelerators, 128 MB of each copy."""
# names that GenEval changed, and those of older lists of COCO's classes
ALIASES = {
    "computer mouse": ("mouse",),
    "tv remote": ("remote",),
    "computer keyboard": ("keyboard",),
    "motorcycle": ("motorbike",),
    "airplane": ("aeroplane",),
    "couch": ("sofa",),
    "potted plant": ("pottedplant",),
    "dining table": ("diningtable",),
    "tv": ("tvmonitor", "television"),
    "hair drier": ("hair dryer",),
}


class Mask2Former(ObjectDetector):
    """Mask2Former for instances, with the preprocessing and the confidences of its authors' evaluation.

    Those are mmdet's, which GenEval's thresholds belong to: an image is resized without a filter and padded
    with grey, masks are compared at the image's own size, and a confidence is the probability of the class
    times the mean probability within the mask. The processor of transformers does otherwise and is not used.
    """

    cutoffs = Cutoffs(0.3, 0.9, 1.0)
    reads_nouns = False

    def knows(self, noun: str) -> bool:
        """Whether it is a class of the checkpoint."""
        self.load()
        return self._number(noun) is not None

    def _load(self) -> None:
        self._model = self._pretrained().to(self.device)
        self._numbers = {str(name).lower(): int(i) for i, name in self._model.config.id2label.items()}
        self._known: Recent[str, int | None] = Recent(NOUNS)

    def _pretrained(self) -> Any:
        if is_mmdet(self.checkpoint):
            return load_mmdet(self.checkpoint, self.owner)
        from transformers import AutoConfig, Mask2FormerForUniversalSegmentation

        config = processor_from(AutoConfig, self.checkpoint, self.owner)
        if config.model_type != "mask2former":
            raise VerifierError(
                f"The detector of {self.owner!r} must be a Mask2Former but {self.checkpoint!r} is "
                f"{config.model_type}; give one that was trained on instances."
            )
        # published files are older than the last norm of transformers' Swin, which detection does not read
        return from_pretrained(
            Mask2FormerForUniversalSegmentation,
            self.checkpoint,
            self.owner,
            ignore=["attention.self.relative_position_index"],
            unread=["swin.layernorm.weight", "swin.layernorm.bias", "criterion.empty_weight"],
        )

    def _number(self, noun: str) -> int | None:
        names = (noun.lower(), *ALIASES.get(noun.lower(), ()))
        return next((self._numbers[name] for name in names if name in self._numbers), None)

    def _detect(
        self, images: list[Image.Image], nouns: list[Sequence[str]], thresholds: list[float]
    ) -> list[list[Detection]]:
        valid = resized(images[0].height, images[0].width, self.size)
        prepared = preprocessing_threads().map(partial(mask2former_pixels, valid=valid), images)
        pixels = torch.cat(list(prepared))
        output = self._model(pixel_values=pixels.to(self.device))
        original = (images[0].height, images[0].width)
        padded = (pixels.shape[-2], pixels.shape[-1])
        return instances(
            output.class_queries_logits,
            output.masks_queries_logits,
            [self._wanted(names) for names in nouns],
            thresholds,
            padded=padded,
            valid=valid,
            original=original,
        )

    def _wanted(self, nouns: Sequence[str]) -> dict[int, str]:
        """The nouns that it knows, by the number of their class; of two for one class, the first."""
        wanted: dict[int, str] = {}
        for noun in nouns:
            if noun not in self._known:
                self._known[noun] = self._number(noun)
            number = self._known[noun]
            if number is not None:
                wanted.setdefault(number, noun)
        return wanted


def resized(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after a resize to `size` on the shorter side, or 5/3 of it on the longer, as mmdet."""
    scale = min(size / min(height, width), round(size * LONGEST) / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def mask2former_pixels(image: Image.Image, valid: tuple[int, int]) -> Tensor:
    """An image as mmdet gives it to Mask2Former.

    Resized by OpenCV's arithmetic, padded with grey on the right and below to multiples of 32, normalised.

    Returns:
        ``(1, 3, H, W)`` float32.
    """
    pixels = torch.from_numpy(opencv_bilinear(np.array(image), *valid)).permute(2, 0, 1)[None].float()
    pixels = F.pad(pixels, (0, -valid[1] % 32, 0, -valid[0] % 32), value=128.0)
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def instances(
    classes: Tensor,
    masks: Tensor,
    wanted: Sequence[Mapping[int, str]],
    thresholds: Sequence[float],
    *,
    padded: tuple[int, int],
    valid: tuple[int, int],
    original: tuple[int, int],
) -> list[list[Detection]]:
    """Mask2Former's instances by its authors' rule, of each image the best class first.

    Args:
        classes: ``(B, Q, C + 1)`` logits, the last of no object.
        masks: ``(B, Q, h, w)`` logits.
        wanted: For each image, names of the wanted classes, by number.
        thresholds: For each image, the confidence that an instance must exceed.
        padded: Height and width of the model's input.
        valid: Height and width of the images in it.
        original: Height and width of the images.
    """
    probabilities = classes.float().softmax(-1)[..., :-1]
    number_of_classes = probabilities.shape[-1]
    best = probabilities.flatten(1).topk(min(BEST, probabilities[0].numel()))
    likely = []
    for row, (values, places) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
        for probability, at in zip(values, places):
            query, number = divmod(at, number_of_classes)
            # no confidence exceeds its class's probability, so that most masks need no look
            if number in wanted[row] and probability > thresholds[row]:
                likely.append((row, query, number, probability))
    pairs = list(dict.fromkeys((row, query) for row, query, _, _ in likely))
    shapes = _shapes(masks, pairs, padded=padded, valid=valid, original=original)
    found: list[list[Detection]] = [[] for _ in classes]
    for row, query, number, probability in likely:
        mask, inside, box = shapes[row, query]
        if probability * inside > thresholds[row]:
            found[row].append(Detection(wanted[row][number], probability * inside, box, mask))
    return found


def _shapes(
    masks: Tensor,
    pairs: list[tuple[int, int]],
    *,
    padded: tuple[int, int],
    valid: tuple[int, int],
    original: tuple[int, int],
) -> dict[tuple[int, int], tuple[Tensor, float, Box]]:
    """By row and query the mask at the image's size, the mean probability in it, and the box around it."""
    pixels = PIXELS_AT_ONCE.get(masks.device.type, MOST_PIXELS)
    at_once = max(1, pixels // max(math.prod(padded), math.prod(original)))
    found: dict[tuple[int, int], tuple[Tensor, float, Box]] = {}
    for start in range(0, len(pairs), at_once):
        some = pairs[start : start + at_once]
        rows, queries = zip(*some)
        logits = masks[list(rows), list(queries)].float()[None]
        logits = F.interpolate(logits, padded, mode="bilinear", align_corners=False)
        logits = logits[..., : valid[0], : valid[1]]
        if valid != original:
            logits = F.interpolate(logits, original, mode="bilinear", align_corners=False)
        logits = logits[0].contiguous()
        inside = logits > 0
        boxes = mask_boxes(logits.amax(2) > 0, logits.amax(1) > 0)
        weights = inside.float()
        means = logits.sigmoid_().mul_(weights).flatten(1).sum(1) / (weights.flatten(1).sum(1) + 1e-6)
        found.update(zip(some, zip(inside.cpu(), means.tolist(), boxes), strict=True))
    return found


def mask_boxes(rows: Tensor, columns: Tensor) -> list[Box]:
    """The box around each mask, its far edges exclusive; zeros around an empty one.

    Args:
        rows: ``(N, H)`` bool, whether the mask has a pixel in each row.
        columns: ``(N, W)`` bool, the same for columns.
    """
    starts = [side.byte().argmax(1) for side in (columns, rows)]
    ends = [side.shape[1] - side.flip(1).byte().argmax(1) for side in (columns, rows)]
    found = (torch.stack([*starts, *ends], 1) * rows.any(1)[:, None]).tolist()
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in found]
