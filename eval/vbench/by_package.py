"""Judges clips by the official package, dimension by dimension."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tts_vision.errors import SearchWarning, VerifierError
from tts_vision.eval.evaluator import Sample, Verdict
from tts_vision.eval.vbench.dimensions import DIMENSIONS
from tts_vision.eval.vbench.measures import Measured, check_static
from tts_vision.eval.vbench.official import Official, Round, staged
from tts_vision.eval.vbench.prompts import Suite
from tts_vision.eval.vbench.verdicts import clip_of, verdict_of
from tts_vision.model_verifier import UnusableSample
from tts_vision.verifiers.motion import Motion

_NEAR = 1e-4
"""Difference of two ways to sum up the same values that is no fault."""


class ByPackage:
    """Measures dimensions by the official package.

    Args:
        official: The package.
        suite: The prompts.
        dimensions: Those to measure.
        raft: Finds the still clips that temporal flickering is measured on; without it all are.
    """

    def __init__(
        self, official: Official, suite: Suite, dimensions: Sequence[str], raft: Motion | None
    ) -> None:
        self.official, self.suite, self.dimensions, self.raft = official, suite, tuple(dimensions), raft

    def check(self) -> None:
        """Checks that the package can be imported.

        Raises:
            VerifierError: If not.
        """
        with tempfile.TemporaryDirectory(prefix="tts-vision-vbench-") as folder:
            self.official.check(Path(folder))

    def verdicts(self, samples: Sequence[Sample]) -> list[Verdict]:
        """The verdict of each sample by those dimensions that are measured on its prompt.

        A dimension that the package fails at is missing, with the reason.

        Raises:
            VerifierError: If it fails at all of them.
        """
        measured: list[dict[str, Measured]] = [{} for _ in samples]
        faults: list[list[str]] = [[] for _ in samples]
        failed: list[VerifierError] = []
        with tempfile.TemporaryDirectory(prefix="tts-vision-vbench-") as temporary:
            for name in self.dimensions:
                folder = Path(temporary) / name
                told: dict[int, str] = {}
                rounds, unread = staged(self._rows(samples, name, told), folder)
                told |= unread
                for turn, clips in enumerate(rounds):
                    try:
                        found = self._measured(name, clips, samples, folder / f"output{turn}", told)
                    except VerifierError as error:
                        failed.append(error)
                        told |= dict.fromkeys(clips.rows.values(), str(error))
                        continue
                    for row, each in found.items():
                        measured[row][name] = each
                for row, reason in told.items():
                    faults[row].append(f"{name}: {reason}")
        if failed and not any(measured):
            raise failed[0]
        return [verdict_of(values, reasons) for values, reasons in zip(measured, faults, strict=True)]

    def _rows(self, samples: Sequence[Sample], name: str, told: dict[int, str]) -> list[tuple[int, Sample]]:
        """The samples that a dimension is measured on, with their numbers; `told` gets why others are not."""
        rows = [(row, sample) for row, sample in enumerate(samples) if name in sample.item.tags]
        if name != "temporal_flickering" or self.raft is None:
            return rows
        passed = []
        for row, sample in rows:
            try:
                check_static(self.raft, clip_of(sample))
                passed.append((row, sample))
            except (OSError, UnusableSample) as error:
                told[row] = str(error)
        return passed

    def _measured(
        self, name: str, clips: Round, samples: Sequence[Sample], output: Path, told: dict[int, str]
    ) -> dict[int, Measured]:
        """The measures of clips, with the frames that they count by; `told` gets why others have none.

        Raises:
            VerifierError: If the package fails.
        """
        score, found = self.official.measure(name, clips, self.suite, samples, output)
        dropped = set(clips.rows.values()) - set(found)
        told |= dict.fromkeys(dropped, "the official package leaves the clip out")
        measured = {}
        for row, (value, frames) in found.items():
            try:
                weight = _weight(name, frames, samples[row])
            except (OSError, UnusableSample) as error:
                told[row] = f"its frames cannot be counted: {error}"
                continue
            measured[row] = Measured(value, weight, {"judge": "official package"})
        _compare(name, score, measured)
        return measured


def _weight(name: str, frames: float | None, sample: Sample) -> int:
    """The frames or pairs that a clip counts by; they are counted where the package does not say.

    Raises:
        OSError: If the clip cannot be read.
        UnusableSample: If it is none.
    """
    per = DIMENSIONS[name].per
    if per == "video":
        return 1
    if frames is not None:
        return int(frames)
    return max(1, len(clip_of(sample).frames) - (per == "pairs"))


def _compare(name: str, score: float, measured: Mapping[int, Measured]) -> None:
    """Warns if the package sums its values up in another way."""
    weights = [each.weight for each in measured.values()]
    values = [each.value for each in measured.values()]
    ours = float(np.average(values, weights=weights)) if measured else math.nan
    if not abs(ours - score) <= _NEAR:
        warnings.warn(
            f"The official package gives {name} {score:.6f} but the mean of its clips is {ours:.6f}, which "
            "is reported; it may be another version than 0.1.5.",
            SearchWarning,
            stacklevel=2,
        )
