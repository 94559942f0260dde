"""Verdicts made of the measures of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tts_vision.eval.evaluator import Sample, Verdict
from tts_vision.eval.vbench.layout import judged_file
from tts_vision.eval.vbench.measures import Measured
from tts_vision.media import open_media
from tts_vision.types import Video
from tts_vision.verifiers._frames import clip

NAME = "vbench"


def clip_of(sample: Sample) -> Video:
    """The frames that are judged.

    Raises:
        OSError: If the file cannot be read.
        UnusableSample: If it is no clip.
    """
    return clip(open_media(judged_file(sample.path)), NAME)


def verdict_of(measured: Mapping[str, Measured], faults: Sequence[str]) -> Verdict:
    """The verdict by the measures of each dimension, and the reasons why others are missing."""
    details: dict[str, Any] = {}
    for name, each in measured.items():
        found = {**each.details, **({"weight": each.weight} if each.weight != 1 else {})}
        details |= {name: found} if found else {}
    values = {name: each.value for name, each in measured.items()}
    return Verdict(values, reason="; ".join(faults) or None, details=details)


def joined(first: Verdict, second: Verdict) -> Verdict:
    """One verdict of the dimensions of two."""
    reasons = [each.reason for each in (first, second) if each.reason]
    return Verdict(
        {**first.values, **second.values},
        reason="; ".join(dict.fromkeys(reasons)) or None,
        details={**first.details, **second.details},
    )
