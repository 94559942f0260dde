"""Object detectors of transformers, and a CLIP that names the colours of the objects they find."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.memory import in_halves
from tts_vision.model_verifier import LazyModel, UnusableSample
from tts_vision.verifiers._backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    clip_embeddings,
    clip_standard_pixels,
    load_clip,
)
from tts_vision.verifiers._cache import Recent
from tts_vision.verifiers._detections import Box, Detection, Findings, check, coloured, strongest
from tts_vision.verifiers._mmdet import is_mmdet, load_mmdet
from tts_vision.verifiers._predicates import COLOURS, Demands, Group
from tts_vision.verifiers._resize import opencv_bilinear
from tts_vision.verifiers._threads import preprocessing_threads
from tts_vision.verifiers._weights import from_pretrained, processor_from

DetectorName: TypeAlias = Literal["mask2former", "grounding_dino"]
MASK2FORMER_CHECKPOINT = "facebook/mask2former-swin-small-coco-instance"
CLIP_CHECKPOINT = "openai/clip-vit-large-patch14"
NOUNS = 1024
"""Nouns whose class, or embeddings in all colours, are remembered."""
TEMPLATES = (
    "a photo of a {colour} {noun}",
    "a photo of a {colour}-colored {noun}",
    "a photo of a {colour} object",
)
BACKGROUND = (0x99, 0x99, 0x99)
LONGEST = 1333 / 800  # of the longer side, in shorter sides
BEST = 100  # pairs of query and class that Mask2Former's evaluation keeps
PIXELS_AT_ONCE = {"cpu": 2**20}
"""Pixels of masks that are resized at once: as many as a processor's cache holds."""
MOST_PIXELS = 2**25
"""The same for accelerators, 128 MB of each copy."""
QUICK = "quick_gelu"
COLOURS_AT_ONCE = 8
"""Crops for CLIP, at 224 pixels, that take the place of an image for the detector, at 800."""
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


DETECTORS: dict[str, tuple[type[ObjectDetector], str]] = {
    "mask2former": (Mask2Former, MASK2FORMER_CHECKPOINT),
    "grounding_dino": (GroundingDino, "IDEA-Research/grounding-dino-tiny"),
}


class ColourNamer(LazyModel):
    """GenEval's classifier of colours: CLIP on the object cut out and put on grey.

    Args:
        checkpoint: Folder or hub id of a CLIP of transformers.
        owner: Name of the verifier, for messages.
        device: Device of the model; by default the accelerator, if there is one.
        batch_size: Crops computed at once.
    """

    def __init__(self, checkpoint: str, *, owner: str, device: Any, batch_size: int = 8) -> None:
        super().__init__(device=device, batch_size=batch_size)
        self.checkpoint, self.owner = checkpoint, owner
        self._matrices: Recent[tuple[tuple[str, ...], str], Tensor] = Recent(NOUNS)

    def _load(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = processor_from(AutoTokenizer, self.checkpoint, self.owner)
        model = load_clip(self.checkpoint, self.owner, self.dtype)
        parts = (model.config.text_config, model.config.vision_config)
        self.is_quick = all(part.hidden_act == QUICK for part in parts)
        if "openai/clip-vit" in self.checkpoint.replace("\\", "/") and not self.is_quick:
            raise VerifierError(
                f"OpenAI's CLIP must run with {QUICK} but the configuration of {self.checkpoint!r} says "
                f"{parts[1].hidden_act}, which names other colours; correct hidden_act in its config.json."
            )
        self._model = model.to(self.device)

    def name(self, image: Image.Image, detection: Detection, group: Group) -> str:
        """The colour of an object: that of GenEval's ten, or the one asked for, which fits it best."""
        return self.names([cut_out(image, detection)], [group])[0]

    @torch.no_grad()
    def names(self, crops: Sequence[Image.Image], groups: Sequence[Group]) -> list[str]:
        """As `name`, of objects that are cut out already, for the group that each is asked for."""
        self.load()

        def work(start: int, stop: int) -> Tensor:
            pixels = clip_standard_pixels(self._model, crops[start:stop])
            return F.normalize(clip_embeddings(self._model, pixels).float(), dim=-1)

        batches = in_halves(len(crops), self.batch_size, work, shrunk=self._use_batches_of)
        embeddings = [each for batch in batches for each in batch]
        return [self._nearest(e, group) for e, group in zip(embeddings, groups, strict=True)]

    def _nearest(self, embedding: Tensor, group: Group) -> str:
        colours = _candidates(group)
        return colours[int((self._matrix(colours, group.noun) @ embedding).argmax())]

    def _matrix(self, colours: tuple[str, ...], noun: str) -> Tensor:
        """A noun in each colour as unit vectors ``(N, D)``, remembered."""
        key = (colours, noun)
        if key not in self._matrices:
            phrases = [t.format(colour=colour, noun=noun) for colour in colours for t in TEMPLATES]
            words = self._tokenizer(phrases, padding=True, truncation=True, return_tensors="pt")
            embeddings = self._model.get_text_features(**words.to(self.device)).pooler_output.float()
            units = F.normalize(embeddings, dim=-1).unflatten(0, (len(colours), len(TEMPLATES)))
            self._matrices[key] = F.normalize(units.mean(1), dim=-1)
        return self._matrices[key]


def _candidates(group: Group) -> tuple[str, ...]:
    """GenEval's colours, and the one asked for."""
    return (*COLOURS, *((group.colour,) if group.colour and group.colour not in COLOURS else ()))


class ObjectJudge:
    """Checks the demands of prompts against the detections in images.

    Args:
        name: Name of the detector.
        checkpoint: Folder or hub id; by default the detector's published one.
        colours: Folder or hub id of the CLIP that names colours; ``none`` leaves them out.
        threshold: Confidence that a detection must exceed; by default the detector's own.
        counting_threshold: The same for prompts that limit a number.
        max_overlap: Of two boxes of a kind the weaker is dropped from here on; by default the detector's own.
        max_objects: Most detections of a kind.
        size: Shorter side of an image as the detector sees it.
        owner: Name of the verifier, for messages.
        device: Device of the models.
        batch_size: Images computed at once.
    """

    def __init__(
        self,
        name: DetectorName,
        *,
        checkpoint: str | None = None,
        colours: str = CLIP_CHECKPOINT,
        threshold: float | None = None,
        counting_threshold: float | None = None,
        max_overlap: float | None = None,
        max_objects: int = 16,
        size: int = 800,
        owner: str,
        device: Any,
        batch_size: int,
    ) -> None:
        if name not in DETECTORS:
            raise ConfigError(
                f"The detector of {owner} must be one of {', '.join(DETECTORS)} but got {name!r}."
            )
        if name != "mask2former" and checkpoint is not None and is_mmdet(checkpoint):
            raise ConfigError(
                f"A checkpoint of mmdet must be of mask2former but {owner} has the detector {name!r} and got "
                f"{checkpoint!r}; leave checkpoint out, or use mask2former."
            )
        for key, value in (("threshold", threshold), ("counting_threshold", counting_threshold)):
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{key} of {owner} must be in [0, 1) but got {value}; change it.")
        if max_overlap is not None and not 0 < max_overlap <= 1:
            raise ConfigError(f"max_overlap of {owner} must be in (0, 1] but got {max_overlap}; change it.")
        if max_objects < 1:
            raise ConfigError(f"max_objects of {owner} must be at least 1 but got {max_objects}; raise it.")
        kind, published = DETECTORS[name]
        own = kind.cutoffs
        self.name, self.max_objects = name, max_objects
        self.cutoffs = Cutoffs(
            own.others if threshold is None else threshold,
            own.counting if counting_threshold is None else counting_threshold,
            own.max_overlap if max_overlap is None else max_overlap,
        )
        self.detector = kind(
            checkpoint or published, owner=owner, size=size, device=device, batch_size=batch_size
        )
        self.colours = (
            None
            if colours == "none"
            else ColourNamer(colours, owner=owner, device=device, batch_size=COLOURS_AT_ONCE * batch_size)
        )

    def load(self) -> None:
        """Loads the detector and the CLIP."""
        self.detector.load()
        if self.colours is not None:
            self.colours.load()

    def checked(self, images: Sequence[Image.Image], demands: Sequence[Demands]) -> list[Findings | str]:
        """As `findings`, with the threshold of counting for the prompts that limit a number."""
        limits = [any(group.most is not None for group in each.groups) for each in demands]
        return self.findings(images, demands, limits)

    def findings(
        self,
        images: Sequence[Image.Image],
        demands: Sequence[Demands],
        counting: Sequence[bool],
        *,
        also: Sequence[str] = (),
    ) -> list[Findings | str]:
        """The detections in images and the faults by them; or the reason why there are none.

        Detector and colours see all images in batches; nothing is computed image by image.

        Args:
            images: RGB.
            demands: Of each image's prompt.
            counting: For each image, whether the threshold of counting applies.
            also: Further names of objects to look for, as far as they are known.
        """
        self.load()
        try:
            return self._findings(images, demands, counting, also)
        except UnusableSample as error:
            if len(images) == 1:
                return [str(error)]
            rows = zip(images, demands, counting)
            return [found for i, d, c in rows for found in self.findings([i], [d], [c], also=also)]

    def _findings(
        self,
        images: Sequence[Image.Image],
        demands: Sequence[Demands],
        counting: Sequence[bool],
        also: Sequence[str],
    ) -> list[Findings | str]:
        found: dict[int, Findings | str] = {}
        for i, wanted in enumerate(demands):
            unknown = [group.noun for group in wanted.groups if not self.detector.knows(group.noun)]
            if unknown:
                found[i] = (
                    f"{self.name} does not know {', '.join(map(repr, unknown))}; grounding_dino finds "
                    "objects by any name"
                )
        rows = [i for i in range(len(demands)) if i not in found]
        nouns = [list(dict.fromkeys([*(g.noun for g in demands[i].groups), *also])) for i in rows]
        thresholds = [self.cutoffs.counting if counting[i] else self.cutoffs.others for i in rows]
        seen = self.detector.detect([images[i] for i in rows], nouns, thresholds)
        best = {
            i: strongest(each, max_objects=self.max_objects, max_overlap=self.cutoffs.max_overlap)
            for i, each in zip(rows, seen)
        }
        names = self._colours(images, demands, best)
        for i, detections in best.items():
            colour_of = None if names is None else (lambda d, g, i=i: names[i, id(d), g])
            found[i] = Findings(check(demands[i], detections, colour_of), detections)
        return [found[i] for i in range(len(demands))]

    def _colours(
        self, images: Sequence[Image.Image], demands: Sequence[Demands], best: Mapping[int, list[Detection]]
    ) -> dict[tuple[int, int, Group], str] | None:
        """The colours that `check` will ask for, by image, detection and group; None without a namer."""
        if self.colours is None:
            return None
        asked = [(i, d, g) for i, each in best.items() for d, g in coloured(demands[i], each)]
        crops = [cut_out(images[i], detection) for i, detection, _ in asked]
        named = self.colours.names(crops, [group for _, _, group in asked])
        return {(i, id(d), group): colour for (i, d, group), colour in zip(asked, named)}


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


def cut_out(image: Image.Image, detection: Detection) -> Image.Image:
    """The crop of an object for CLIP: its box, with everything outside its mask, if it has one, in grey."""
    if detection.mask is not None:
        shape = Image.fromarray(detection.mask.numpy())
        image = Image.composite(image, Image.new("RGB", image.size, BACKGROUND), shape)
    x0, y0, x1, y1 = detection.box
    left, top = (
        max(0, min(math.floor(x0), image.width - 1)),
        max(0, min(math.floor(y0), image.height - 1)),
    )
    right, bottom = (
        min(image.width, max(math.ceil(x1), left + 1)),
        min(image.height, max(math.ceil(y1), top + 1)),
    )
    return image.crop((left, top, right, bottom))
