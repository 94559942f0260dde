"""Counts, colours and positions in an image by an object detector, judged by GenEval's rules."""

from __future__ import annotations

from PIL import Image

from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Prompt, Score
from tts_vision.verifiers._colour_namer import CLIP_CHECKPOINT
from tts_vision.verifiers._detections import Findings, located
from tts_vision.verifiers._object_judge import DETECTORS, DetectorName, ObjectJudge
from tts_vision.verifiers._predicates import Demands, from_record, from_text

UNREADABLE = (
    "the prompt is not of GenEval's form ('a photo of two red circles left of a blue star') and has no "
    "GenEval record; use checklist, which asks a language model for a list of checks"
)


@register(
    "verifier",
    "detector",
    paper="GenEval (Ghosh et al. 2023); Mask2Former (Cheng et al. 2022), Grounding DINO (Liu et al. 2023)",
    notes={
        "licence": "MIT (code of Mask2Former and CLIP), Apache-2.0 (Grounding DINO)",
        "weights": ", ".join([*(published for _, published in DETECTORS.values()), CLIP_CHECKPOINT]),
    },
)
class Detector(BatchedVerifier):
    """Share of a prompt's demands that a detector finds met: objects, counts, colours, positions; in [0, 1].

    The demands are those of the prompt's GenEval record, if its metadata is one (``include``, ``exclude``),
    or are parsed from a prompt of GenEval's form. ``parts`` has 1 for each demand that is met and 0 for the
    others; the reason names the faults. A value of 1 is GenEval's "correct". The rules are GenEval's; the
    detector has other weights unless ``checkpoint=mmdet``, so results do not compare with its leaderboard.
    Attributes other than colours, and written text, are not checked; an image of such a prompt never counts
    as satisfying all demands.

    Args:
        model: ``mask2former`` knows the 80 classes of COCO, as GenEval's detector; ``grounding_dino`` finds
            objects by any name.
        checkpoint: Folder or hub id of the detector; by default its published one. For Mask2Former also a
            checkpoint file of mmdet 2.x, or ``mmdet`` for the published one, which is GenEval's detector.
        threshold: Confidence that a detection must exceed; by default 0.3, as GenEval, for Mask2Former, and
            0.35, its authors' own, for Grounding DINO.
        counting_threshold: The same for prompts that limit a number; by default 0.9 and 0.35.
        max_overlap: Of two boxes of one kind that overlap this much (intersection over union), the weaker is
            dropped; by default 1, which keeps all, as GenEval, and 0.8 for Grounding DINO.
        max_objects: Most detections of a kind.
        size: Shorter side of an image as the detector sees it; smaller is faster.
        colours: Folder or hub id of the CLIP that names colours; ``none`` leaves colours out.
        batch_size: Images computed at once; those of one size only.
    """

    name = "detector"
    checks_demands = True

    def __init__(
        self,
        *,
        model: DetectorName = "mask2former",
        checkpoint: str | None = None,
        threshold: float | None = None,
        counting_threshold: float | None = None,
        max_overlap: float | None = None,
        max_objects: int = 16,
        size: int = 800,
        colours: str = CLIP_CHECKPOINT,
        device: str | None = None,
        batch_size: int = 4,
    ) -> None:
        super().__init__(device=device, batch_size=batch_size)
        self._judge = ObjectJudge(
            model,
            checkpoint=checkpoint,
            colours=colours,
            threshold=threshold,
            counting_threshold=counting_threshold,
            max_overlap=max_overlap,
            max_objects=max_objects,
            size=size,
            owner=self.name,
            device=self.device,
            batch_size=batch_size,
        )

    def _load(self) -> None:
        self._judge.load()

    def _score_batch(self, samples: list[Image.Image], prompts: list[Prompt]) -> list[Score]:
        found = [demands_of(prompt) for prompt in prompts]
        demands = {i: each for i, each in enumerate(found) if isinstance(each, Demands)}
        scores = {i: Score.unscored(each) for i, each in enumerate(found) if isinstance(each, str)}
        findings = self._judge.checked([samples[i] for i in demands], list(demands.values()))
        for (i, each), theirs in zip(demands.items(), findings, strict=True):
            scores[i] = share_met(theirs, each, samples[i].size)
        return [scores[i] for i in range(len(samples))]


def demands_of(prompt: Prompt) -> Demands | str:
    """The demands of a prompt by its record or its grammar; else the reason why there are none."""
    try:
        return from_record(prompt.metadata) or from_text(prompt.text) or UNREADABLE
    except ValueError as error:
        return str(error)


def share_met(findings: Findings | str, demands: Demands, size: tuple[int, int]) -> Score:
    """The share of predicates without a fault; each of them is a part.

    Args:
        findings: In an image; or a reason why there are none.
        demands: Of its prompt; all predicates must be checked for the prompt to be satisfied.
        size: Width and height of the image.
    """
    if isinstance(findings, str):
        return Score.unscored(findings)
    faults = findings.faults
    if not faults:
        return Score.unscored("the prompt asks for nothing that a detector can check; use checklist")
    parts = {name: float(not fault) for name, fault in faults.items()}
    failed = {name: fault for name, fault in faults.items() if fault}
    return Score(
        value=sum(parts.values()) / len(parts),
        parts=parts,
        reason="; ".join(failed.values()) or None,
        satisfied=False if failed else True if len(faults) == len(demands.predicates()) else None,
        regions=located(demands, failed, findings.detections, size),
    )
