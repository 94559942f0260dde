"""Checks what prompts demand against the objects that a detector finds, and their colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import UnusableSample
from tts_vision.verifiers._colour_namer import CLIP_CHECKPOINT, ColourNamer, cut_out
from tts_vision.verifiers._detections import Detection, Findings, check, coloured, strongest
from tts_vision.verifiers._detectors import Cutoffs, ObjectDetector
from tts_vision.verifiers._grounding_dino import GROUNDING_DINO_CHECKPOINT, GroundingDino
from tts_vision.verifiers._mask2former import MASK2FORMER_CHECKPOINT, Mask2Former
from tts_vision.verifiers._mmdet import is_mmdet
from tts_vision.verifiers._predicates import Demands, Group

DetectorName: TypeAlias = Literal["mask2former", "grounding_dino"]
DETECTORS: dict[str, tuple[type[ObjectDetector], str]] = {
    "mask2former": (Mask2Former, MASK2FORMER_CHECKPOINT),
    "grounding_dino": (GroundingDino, GROUNDING_DINO_CHECKPOINT),
}
COLOURS_AT_ONCE = 8
"""Crops for CLIP, at 224 pixels, that take the place of an image for the detector, at 800."""


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
