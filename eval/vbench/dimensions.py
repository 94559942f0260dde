"""The sixteen dimensions of VBench (Huang et al. 2024): their kinds, ranges, weights, and the total."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Literal

FrameWeight = Literal["video", "frames", "pairs"]


@dataclass(frozen=True)
class Dimension:
    """One dimension.

    Attributes:
        name: As in VBench's files.
        kind: Which of the two scores it counts towards.
        low: Raw score that is normalised to 0.
        high: Raw score that is normalised to 1.
        weight: In the mean of its kind.
        per: What the mean over clips weights a clip by: nothing, the frames looked at, or the pairs of
            neighbouring frames.
        needs_label: Whether it compares with a label of the prompt, which own prompts do not have.
    """

    name: str
    kind: Literal["quality", "semantic"]
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0
    per: FrameWeight = "video"
    needs_label: bool = False

    def normalised(self, raw: float) -> float:
        """The raw score on the scale of `low` and `high`, not clipped."""
        return (raw - self.low) / (self.high - self.low)


# in the order of the official script
_ALL = (
    Dimension("subject_consistency", "quality", 0.1462, per="pairs"),
    Dimension("background_consistency", "quality", 0.2615, per="pairs"),
    Dimension("temporal_flickering", "quality", 0.6293),
    Dimension("motion_smoothness", "quality", 0.706, 0.9975),
    Dimension("dynamic_degree", "quality", weight=0.5),
    Dimension("aesthetic_quality", "quality"),
    Dimension("imaging_quality", "quality"),
    Dimension("object_class", "semantic", per="frames", needs_label=True),
    Dimension("multiple_objects", "semantic", per="frames", needs_label=True),
    Dimension("human_action", "semantic"),
    Dimension("color", "semantic", needs_label=True),
    Dimension("spatial_relationship", "semantic", per="frames", needs_label=True),
    Dimension("scene", "semantic", 0.0, 0.8222, per="frames", needs_label=True),
    Dimension("appearance_style", "semantic", 0.0009, 0.2855, per="frames", needs_label=True),
    Dimension("temporal_style", "semantic", 0.0, 0.364),
    Dimension("overall_consistency", "semantic", 0.0, 0.364),
)
DIMENSIONS: dict[str, Dimension] = {each.name: each for each in _ALL}

NATIVE = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
)
"""Dimensions that this toolkit measures itself."""

_GRIT = "needs the GRiT detector with detectron2 and CenterNet2"
LEFT_OUT: dict[str, str] = {
    "motion_smoothness": "needs the frame interpolator AMT-S, whose code is licensed CC BY-NC",
    "object_class": f"{_GRIT}; object_class_proxy uses another detector",
    "multiple_objects": f"{_GRIT}; multiple_objects_proxy uses another detector",
    "human_action": "needs UMT-L/16 trained on Kinetics-400, which no installed package has",
    "color": f"{_GRIT}; color_proxy uses another detector",
    "spatial_relationship": f"{_GRIT}; spatial_relationship_proxy uses another detector",
    "scene": "needs the captioner Tag2Text, which no installed package has",
}
"""Dimensions that only the official package measures, and why."""

PROXIES: dict[str, str] = {
    "object_class_proxy": "object_class",
    "multiple_objects_proxy": "multiple_objects",
    "color_proxy": "color",
    "color_proxy_all": "color",
    "spatial_relationship_proxy": "spatial_relationship",
    "spatial_relationship_proxy_directed": "spatial_relationship",
}
"""Stand-ins by another detector, with the dimension whose prompts they judge; never part of a total."""


@dataclass(frozen=True)
class Totals:
    """The three scores that sum a model up; NaN where a dimension is missing.

    Attributes:
        quality: Weighted mean of seven normalised dimensions.
        semantic: Mean of nine.
        total: Four parts of quality and one of semantic.
    """

    quality: float
    semantic: float
    total: float


def totals(raw: Mapping[str, float], *, strict: bool = False) -> Totals:
    """VBench's scores.

    Args:
        raw: Raw scores by dimension; NaN and absent ones are missing.
        strict: Whether a missing dimension counts as a raw score of 0, as in the official script.
    """
    missing = 0.0 if strict else nan
    scores = {name: raw.get(name, nan) for name in DIMENSIONS}
    known = {name: missing if score != score else score for name, score in scores.items()}
    quality, semantic = (_mean(known, kind) for kind in ("quality", "semantic"))
    return Totals(quality, semantic, (4 * quality + semantic) / 5)


def _mean(raw: Mapping[str, float], kind: str) -> float:
    chosen = [each for each in DIMENSIONS.values() if each.kind == kind]
    weights = sum(each.weight for each in chosen)
    return sum(each.weight * each.normalised(raw[each.name]) for each in chosen) / weights
