"""Judges clips by the measures of this toolkit, and tests these before a long job."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tts_vision.errors import VerifierError
from tts_vision.eval.evaluator import Sample, Verdict
from tts_vision.eval.vbench.dimensions import PROXIES
from tts_vision.eval.vbench.judges import Judges
from tts_vision.eval.vbench.measures import Measure, Measured
from tts_vision.eval.vbench.verdicts import clip_of, verdict_of
from tts_vision.model_verifier import UnusableSample
from tts_vision.types import Prompt, Video

_SIDE = 144  # pixels, of the clips of the self-test


class Natively:
    """Measures dimensions and proxies; each model is loaded when the first clip needs it.

    Args:
        judges: Makes the measures.
        dimensions: Those to measure.
    """

    def __init__(self, judges: Judges, dimensions: Sequence[str]) -> None:
        self.judges, self.dimensions = judges, tuple(dimensions)
        self._measures: dict[str, Measure] = {}

    def verdict(self, sample: Sample) -> Verdict:
        """The verdict by those dimensions that are measured on the sample's prompt.

        Raises:
            VerifierError: If a model cannot be loaded.
        """
        asked = [name for name in self.dimensions if PROXIES.get(name, name) in sample.item.tags]
        if not asked:
            return Verdict()
        try:
            video = clip_of(sample)
        except (OSError, UnusableSample) as error:
            return Verdict(reason=f"the clip cannot be read: {error}")
        measured: dict[str, Measured] = {}
        faults = []
        for name in asked:
            if name not in self._measures:
                self._measures[name] = self._loaded(name)
            try:
                measured[name] = self._measures[name].measure(video, sample.item.prompt)
            except UnusableSample as error:
                faults.append(f"{name}: {error}")
        return verdict_of(measured, faults)

    def tested(self) -> list[str]:
        """Loads all models once, and checks the dimensions whose value on a still clip is known.

        Returns:
            The dimensions that were checked.

        Raises:
            VerifierError: If a model cannot be loaded, or a value is another.
        """
        checked = []
        for name in self.dimensions:
            measure = self._loaded(name)
            if measure.still is not None:
                _check_still(name, measure, measure.still)
                checked.append(name)
        return checked

    def _loaded(self, name: str) -> Measure:
        made = self.judges.make(name)
        try:
            made.load()
        except VerifierError as error:
            models = ", ".join(self.judges.models([name])) or "none"
            raise VerifierError(
                f"Dimension {name!r} of vbench must load its models ({models}) but: {error} In vbench, paths "
                'are given as weights=\'{"MODEL": "PATH"}\'; or leave the dimension out.'
            ) from error
        return made


def _check_still(name: str, measure: Measure, expected: float) -> None:
    """Checks that a still clip has its value, and a flashing one less.

    Raises:
        VerifierError: If not.
    """
    rows, columns = torch.meshgrid(torch.arange(_SIDE), torch.arange(_SIDE), indexing="ij")
    first = torch.stack((rows, columns, rows + columns), dim=-1) % 256
    frames = torch.stack((first, 255 - first)).to(torch.uint8)
    calm, wild = (_value(measure, Video(frames[order])) for order in ([0, 0, 0, 0], [0, 1, 0, 1]))
    if isinstance(calm, str):
        raise VerifierError(
            f"The measure {name!r} of vbench must score a still clip but: {calm}; check its weights."
        )
    # the static filter may see that the flashing one moves
    if abs(calm - expected) > 1e-3 or not (isinstance(wild, str) or wild < calm - 1e-6):
        raise VerifierError(
            f"The measure {name!r} of vbench must be {expected} on a still clip and less on a flashing one "
            f"but is {calm:.6f} and {wild}; check its weights."
        )


def _value(measure: Measure, video: Video) -> float | str:
    """The value, or the reason why there is none."""
    try:
        return measure.measure(video, Prompt("")).value
    except UnusableSample as error:
        return str(error)
