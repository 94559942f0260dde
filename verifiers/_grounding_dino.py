"""Grounding DINO as a detector, by the rules of its authors' evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from tts_vision.errors import VerifierError
from tts_vision.model_verifier import UnusableSample
from tts_vision.verifiers._detections import Detection
from tts_vision.verifiers._detectors import LONGEST, Cutoffs, ObjectDetector
from tts_vision.verifiers._weights import from_pretrained, processor_from

GROUNDING_DINO_CHECKPOINT = "IDEA-Research/grounding-dino-tiny"


class GroundingDino(ObjectDetector):
    """Grounding DINO: finds objects by any name.

    The confidence of a name is the mean over its tokens, as in its authors' evaluation on COCO; each box
    goes to the name with the highest.
    """

    # its authors' box threshold; GenEval's belong to another detector
    cutoffs = Cutoffs(0.35, 0.35, 0.8)

    def _load(self) -> None:
        from transformers import AutoConfig, AutoProcessor, GroundingDinoForObjectDetection

        config = processor_from(AutoConfig, self.checkpoint, self.owner)
        if config.model_type != "grounding-dino":
            raise VerifierError(
                f"The detector of {self.owner!r} must be a Grounding DINO but {self.checkpoint!r} is "
                f"{config.model_type}; give another checkpoint."
            )
        self._processor = processor_from(AutoProcessor, self.checkpoint, self.owner)
        self._model = from_pretrained(GroundingDinoForObjectDetection, self.checkpoint, self.owner).to(
            self.device
        )

    def _detect(
        self, images: list[Image.Image], nouns: list[Sequence[str]], thresholds: list[float]
    ) -> list[list[Detection]]:
        size = {"shortest_edge": self.size, "longest_edge": round(self.size * LONGEST)}
        wanted = nouns[0]
        names = [" ".join(re.sub(r"[^\w' -]", " ", noun.lower()).split()) for noun in wanted]
        inputs = self._processor(
            images=images,
            text=[". ".join(names) + "."] * len(images),
            size=size,
            return_tensors="pt",
        )
        ids = inputs["input_ids"][0].tolist()
        spans = token_spans(ids, self._model.model.special_tokens.tolist())
        if len(spans) != len(wanted) or len(ids) > self._model.config.max_text_len:
            raise UnusableSample(
                f"the detector cannot read {', '.join(wanted)[:80]!r}; use fewer or shorter names"
            )
        output = self._model(**inputs.to(self.device))
        original = (images[0].height, images[0].width)
        rows = zip(output.logits, output.pred_boxes, thresholds)
        return [
            grounded(logits, boxes, dict(zip(wanted, spans)), threshold, original=original)
            for logits, boxes, threshold in rows
        ]


def token_spans(ids: Sequence[int], special: Sequence[int]) -> list[list[int]]:
    """The places of the tokens of each name, in a text in which special tokens end a name."""
    spans: list[list[int]] = [[]]
    for at, token in enumerate(ids):
        if token not in special:
            spans[-1].append(at)
        elif spans[-1]:
            spans.append([])
    return [span for span in spans if span]


def grounded(
    logits: Tensor,
    boxes: Tensor,
    spans: Mapping[str, Sequence[int]],
    threshold: float,
    *,
    original: tuple[int, int],
) -> list[Detection]:
    """Grounding DINO's boxes of one image, each for the name that fits it best.

    Args:
        logits: ``(Q, T)`` of each token of the text.
        boxes: ``(Q, 4)`` centre and size, as shares of the image.
        spans: Places of the tokens of each name.
        threshold: Confidence that a box must exceed.
        original: Height and width of the image.
    """
    probabilities = logits.float().sigmoid()
    scores = torch.stack([probabilities[:, list(span)].mean(1) for span in spans.values()], 1)
    best = scores.max(1)
    height, width = original
    found = []
    for score, name, (x, y, w, h) in zip(best.values.tolist(), best.indices.tolist(), boxes.float().tolist()):
        if score > threshold:
            box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            found.append(Detection(list(spans)[name], score, box))
    return found
