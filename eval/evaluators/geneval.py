"""GenEval: objects, counts, colours and positions by a detector (Ghosh et al. 2023)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.geneval.prompts import CLASSES, SHA256, Record, as_lines, published_records, read_records
from tts_vision.eval.geneval.self_test import (
    PHOTO_SHOWS,
    by_truth,
    photo,
    try_colours,
    try_detector,
    try_scorer,
)
from tts_vision.eval.geneval.task import GenEvalTask, demands_of
from tts_vision.registry import register
from tts_vision.verifiers._colour_namer import CLIP_CHECKPOINT
from tts_vision.verifiers._detections import Findings
from tts_vision.verifiers._mask2former import MASK2FORMER_CHECKPOINT
from tts_vision.verifiers._mmdet import is_mmdet
from tts_vision.verifiers._object_judge import ObjectJudge
from tts_vision.verifiers._predicates import Demands, from_text

SIZE = 800
OBJECTS = 16
WINDOW = 4
"""Batches whose masks are in memory at once, so that CLIP has a batch of crops as well."""
SATURATED = (
    "GenEval is saturated: on current models it is up to 17.7 points off human judgement (arXiv:2512.16853)."
)


@register(
    "evaluator",
    "geneval",
    paper="GenEval (Ghosh et al. 2023); Mask2Former (Cheng et al. 2022)",
    notes={"weights": f"{MASK2FORMER_CHECKPOINT} or mmdet's, {CLIP_CHECKPOINT}", "licence": "MIT"},
)
class GenEval(GenEvalTask):
    """GenEval with its rules, its prompts and a Mask2Former of transformers, in batches, on CPU or CUDA.

    With ``checkpoint=mmdet`` the weights are those of GenEval's own detector, converted; by default they are
    those of transformers, and figures say so.

    Args:
        data: A file of records in GenEval's format; by default the 553 published prompts.
        checkpoint: Folder or hub id of a Mask2Former, a checkpoint file of mmdet 2.x, or ``mmdet`` for the
            published one of these.
        colours: Folder or hub id of the CLIP that names colours.
        threshold: Confidence that a detection must exceed; GenEval's is 0.3.
        counting_threshold: The same for the task ``counting``; GenEval's is 0.9.
        max_objects: Most detections of a class.
        max_overlap: Of two boxes of a class that overlap this much (intersection over union), the weaker is
            dropped; 1 keeps all, as GenEval.
        size: Shorter side of an image as the detector sees it; GenEval's is 800.
        device: Device of the models; by default the accelerator, if there is one.
        batch_size: Images computed at once; those of one size only.
    """

    name = "geneval"

    def __init__(
        self,
        *,
        data: str | None = None,
        checkpoint: str = MASK2FORMER_CHECKPOINT,
        colours: str = CLIP_CHECKPOINT,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = OBJECTS,
        max_overlap: float = 1.0,
        size: int = SIZE,
        device: str | None = None,
        batch_size: int = 4,
    ) -> None:
        super().__init__(window=WINDOW * max(1, batch_size))
        if colours == "none":
            raise ConfigError(
                "colours of geneval must be a CLIP, since a third of its prompts ask for colours, but got "
                f"'none'; leave it out for {CLIP_CHECKPOINT}."
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size of geneval must be at least 1 but got {batch_size}; raise it.")
        self.data, self.checkpoint, self.colours = data, checkpoint, colours
        self._judge_objects = ObjectJudge(
            "mask2former",
            checkpoint=checkpoint,
            colours=colours,
            threshold=threshold,
            counting_threshold=counting_threshold,
            max_overlap=max_overlap,
            max_objects=max_objects,
            size=size,
            owner=self.name,
            device=device,
            batch_size=batch_size,
        )

    @property
    def notes(self) -> list[str]:
        found = []
        if not is_mmdet(self.checkpoint):
            found.append(
                f"GenEval (HF detector): objects are found by {self.checkpoint}, which has other weights "
                "than GenEval's own detector, so figures do not compare with published ones; those with "
                "checkpoint=mmdet do."
            )
        if self.colours != CLIP_CHECKPOINT:
            found.append(f"Colours are named by {self.colours} instead of {CLIP_CHECKPOINT}.")
        changed = [
            f"{key} {ours} instead of {theirs}" for key, ours, theirs in self._settings() if ours != theirs
        ]
        if changed:
            found.append(f"Settings differ from GenEval's: {', '.join(changed)}.")
        if self.data is not None and _digest(self.records()) != SHA256:
            found.append(f"Prompts are those of {self.data}, not the published ones.")
        return [*found, SATURATED]

    def _settings(self) -> list[tuple[str, float, float]]:
        """The name, value and published value of each setting that moves verdicts."""
        judge = self._judge_objects
        return [
            ("threshold", judge.cutoffs.others, 0.3),
            ("counting_threshold", judge.cutoffs.counting, 0.9),
            ("max_overlap", judge.cutoffs.max_overlap, 1.0),
            ("max_objects", judge.max_objects, OBJECTS),
            ("size", judge.detector.size, SIZE),
        ]

    @cached_property
    def judge_name(self) -> str:
        parts = [f"{key}={value}" for key, value, _ in self._settings()]
        return f"geneval({_identity(self.checkpoint)}, {_identity(self.colours)}, {', '.join(parts)})"

    def records(self) -> list[Record]:
        return published_records() if self.data is None else read_records(self.data)

    def find(
        self, images: Sequence[Image.Image], demands: Sequence[Demands], tags: Sequence[str]
    ) -> list[Findings | str]:
        counting = [tag == "counting" for tag in tags]
        return self._judge_objects.findings(images, demands, counting, also=CLASSES)

    def self_test(self) -> str:
        """Tests the scorer on drawn scenes, the detector on a photograph, the CLIP on plain colours.

        The weights are loaded key by key before, and the detector must know the classes of all prompts. A
        detector that loads in part, or was not trained, is found out here: the photograph shows a person.
        """
        said = [try_scorer(by_truth, self.name)]
        judge = self._judge_objects
        judge.load()
        self._check_classes()
        image, demands = photo(), from_text(f"a {PHOTO_SHOWS}")
        assert demands is not None and judge.colours is not None
        if image is None:
            said.append("The detector was tried on no photograph: matplotlib came without its sample data.")
        else:
            (found,) = judge.findings([image], [demands], [False])
            said.append(try_detector([] if isinstance(found, str) else found.detections, self.name))
        said.append(try_colours(judge.colours.names, self.name))
        return " ".join(said)

    def _check_classes(self) -> None:
        nouns = {group.noun for item in self.items() for group in demands_of(item).groups}
        unknown = sorted(noun for noun in nouns if not self._judge_objects.detector.knows(noun))
        if unknown:
            raise VerifierError(
                f"The detector of geneval must know the classes of all prompts but {self.checkpoint!r} does "
                f"not know {', '.join(map(repr, unknown[:5]))} ({len(unknown)} in all); give one that was "
                "trained on COCO, or other prompts."
            )


def _digest(records: Sequence[Record]) -> str:
    return hashlib.sha256(as_lines(records).encode()).hexdigest()


def _identity(checkpoint: str) -> str:
    """Names a checkpoint; a file by its content as well."""
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        return checkpoint
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    return f"{path.name}@{digest.hexdigest()[:12]}"
