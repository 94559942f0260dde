"""Makes the measures of dimensions, which share models where they can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tts_vision.errors import ConfigError
from tts_vision.eval.vbench.measures import (
    AppearanceStyle,
    Consistency,
    Dynamic,
    Flickering,
    FrameAesthetic,
    FrameMean,
    Measure,
    TextConsistency,
)
from tts_vision.eval.vbench.proxies import Colour, Frames, Objects, Side
from tts_vision.verifiers._colour_namer import CLIP_CHECKPOINT, ColourNamer
from tts_vision.verifiers._mask2former import Mask2Former
from tts_vision.verifiers._object_judge import DETECTORS
from tts_vision.verifiers.aesthetic import HEADS
from tts_vision.verifiers.imaging_quality import ImagingQuality
from tts_vision.verifiers.motion import RAFT_WEIGHTS, Motion
from tts_vision.verifiers.temporal_consistency import CHECKPOINTS, TemporalConsistency
from tts_vision.verifiers.viclip_score import CHECKPOINT, ViClipScore

OWNER = "vbench"
WEIGHTS: dict[str, str] = {
    "dino": CHECKPOINTS["dino"],
    "clip_b32": CHECKPOINTS["clip"],
    "clip_l14": CLIP_CHECKPOINT,
    "aesthetic": HEADS["linear"],
    "raft": RAFT_WEIGHTS,
    "viclip": CHECKPOINT,
    "musiq": "",
    "detector": DETECTORS["mask2former"][1],
}
"""Where the weights of each model come from; pyiqa downloads MUSIQ's itself."""
USED: dict[str, tuple[str, ...]] = {
    "subject_consistency": ("dino",),
    "background_consistency": ("clip_b32",),
    "temporal_flickering": (),
    "dynamic_degree": ("raft",),
    "aesthetic_quality": ("clip_l14", "aesthetic"),
    "imaging_quality": ("musiq",),
    "appearance_style": ("clip_b32",),
    "temporal_style": ("viclip",),
    "overall_consistency": ("viclip",),
    "object_class_proxy": ("detector",),
    "multiple_objects_proxy": ("detector",),
    "color_proxy": ("detector", "clip_l14"),
    "color_proxy_all": ("detector", "clip_l14"),
    "spatial_relationship_proxy": ("detector",),
    "spatial_relationship_proxy_directed": ("detector",),
}
"""The models that each dimension needs; temporal flickering needs RAFT for its filter."""


class Judges:
    """Makes measures.

    Args:
        weights: Replacements of `WEIGHTS`.
        device: Of all models.
        dtype: Precision of the CLIPs, DINO and ViCLIP.
        batch_size: Frames, or pairs of them, computed at once.
        strict: See `Dynamic`.
        static_filter: Whether temporal flickering is measured on clips only that pass the filter.

    Raises:
        ConfigError: If a replacement is of no model.
    """

    def __init__(
        self,
        weights: Mapping[str, str],
        *,
        device: str | None,
        dtype: str,
        batch_size: int,
        strict: bool,
        static_filter: bool,
    ) -> None:
        unknown = [name for name in weights if name not in WEIGHTS]
        if unknown:
            raise ConfigError(
                f"weights of vbench are {', '.join(WEIGHTS)} but got {unknown[0]!r}; change it."
            )
        self.weights = WEIGHTS | dict(weights)
        self.strict, self.static_filter, self.dtype = strict, static_filter, dtype
        self._size: dict[str, Any] = {"device": device, "batch_size": batch_size}
        self._sized: dict[str, Any] = self._size | {"dtype": dtype}

    def models(self, dimensions: Sequence[str]) -> list[str]:
        """Names of the models that dimensions need."""
        filtering = ("raft",) if self.static_filter and "temporal_flickering" in dimensions else ()
        return list(dict.fromkeys([*(name for each in dimensions for name in USED[each]), *filtering]))

    def make(self, dimension: str) -> Measure:
        """The measure of a dimension of `USED`."""
        return {
            "subject_consistency": lambda: self._consistency("dino", "dino"),
            "background_consistency": lambda: self._consistency("clip", "clip_b32"),
            "temporal_flickering": lambda: Flickering(self.raft if self.static_filter else None),
            "dynamic_degree": lambda: Dynamic(self.raft, strict=self.strict),
            "aesthetic_quality": self._aesthetic,
            "imaging_quality": self._imaging,
            "appearance_style": lambda: AppearanceStyle(self.weights["clip_b32"], OWNER, self._sized),
            "temporal_style": lambda: TextConsistency(self._viclip),
            "overall_consistency": lambda: TextConsistency(self._viclip),
            "object_class_proxy": lambda: Objects(self._frames, "object_class"),
            "multiple_objects_proxy": lambda: Objects(self._frames, "multiple_objects"),
            "color_proxy": lambda: Colour(self._frames, self._colours, keep=False),
            "color_proxy_all": lambda: Colour(self._frames, self._colours, keep=True),
            "spatial_relationship_proxy": lambda: Side(self._frames, directed=False),
            "spatial_relationship_proxy_directed": lambda: Side(self._frames, directed=True),
        }[dimension]()

    @cached_property
    def raft(self) -> Motion:
        """Computes optical flow, as often refined as in VBench."""
        return Motion(checkpoint=self.weights["raft"], updates=20, **self._size)

    @cached_property
    def _viclip(self) -> ViClipScore:
        return ViClipScore(checkpoint=self.weights["viclip"], **self._sized)

    @cached_property
    def _frames(self) -> Frames:
        detector = Mask2Former(self.weights["detector"], owner=OWNER, size=800, **self._size)
        return Frames(detector, Mask2Former.cutoffs.others)

    @cached_property
    def _colours(self) -> ColourNamer:
        return ColourNamer(self.weights["clip_l14"], owner=OWNER, **self._size)

    def _consistency(self, features: Any, model: str) -> Measure:
        return Consistency(
            TemporalConsistency(features=features, checkpoint=self.weights[model], **self._sized)
        )

    def _aesthetic(self) -> Measure:
        head, backbone = self.weights["aesthetic"], self.weights["clip_l14"]
        return FrameMean(
            FrameAesthetic(head="linear", checkpoint=head, backbone=backbone, **self._sized), scale=10
        )

    def _imaging(self) -> Measure:
        return FrameMean(
            ImagingQuality(checkpoint=self.weights["musiq"] or None, device=self._size["device"])
        )
