"""VBench: text-to-video models by sixteen dimensions, here or by the official package."""

from __future__ import annotations

import importlib.util
import math
import tempfile
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from tts_vision.errors import ConfigError, SearchWarning, VerifierError
from tts_vision.eval.evaluator import Evaluator, Found, Item, Judged, Sample, Verdict
from tts_vision.eval.vbench import layout
from tts_vision.eval.vbench.dimensions import DIMENSIONS, LEFT_OUT, NATIVE, PROXIES, totals
from tts_vision.eval.vbench.judges import Judges
from tts_vision.eval.vbench.measures import Measure, Measured, check_static
from tts_vision.eval.vbench.official import Official, Round, staged
from tts_vision.eval.vbench.prompts import LABELLED, Suite, file_stem, items, published, read_suite
from tts_vision.eval.vbench.results import Table, write_results
from tts_vision.eval.vbench.static_filter import DRAWN
from tts_vision.media import open_media
from tts_vision.model_verifier import UnusableSample
from tts_vision.registry import register
from tts_vision.types import Modality, Prompt, Video
from tts_vision.verifiers._frames import clip

FLICKER = "temporal_flickering"
_NEAR = 1e-4
"""Difference of two ways to sum up the same values that is no fault."""


@register(
    "evaluator",
    "vbench",
    paper="VBench (Huang et al. 2024, arXiv:2311.17982)",
    notes={"licence": "Apache-2.0 (prompts and rules); of each model for its weights"},
)
class VBench(Evaluator):
    """VBench: how good videos look and how well they fit their prompts, by up to sixteen dimensions.

    Nine dimensions are measured by this toolkit, one of them, imaging quality, if pyiqa is installed. The
    other seven need models that it does not have; with `official_python`, the official package measures all.
    Raw scores are those of the paper; `quality`, `semantic` and `total` are normalised and weighted as on
    its leaderboard, and NaN as long as a dimension is missing. The proxies apply the rules of the object
    dimensions to another detector: they count towards no total and compare with no leaderboard.

    Args:
        data: Prompts: a file like VBench_full_info.json, own prompts as a file with one in each line, or a
            folder of clips that are named by theirs. By default the published 944 prompts.
        dimensions: To measure; by default all that can be. Own prompts have no labels, which the
            dimensions object_class, multiple_objects, color, spatial_relationship, scene and
            appearance_style need.
        strict: Whether the official code's behaviour is kept where it misleads: a missing dimension counts
            as 0, and clips with one or two frames at 8 per second get a dynamic degree.
        static_filter: Whether temporal flickering is measured on the first five clips of a prompt that
            pass VBench's filter of still clips; by the native RAFT, also for the official package.
        official_python: Interpreter that has the package vbench; measures all dimensions but the proxies.
        official_timeout: Seconds that the package may take for one dimension.
        weights: Folders, files or hub ids of models, by name: dino, clip_b32, clip_l14, aesthetic, raft,
            viclip, musiq, detector.
        device: Of the models; by default the accelerator, if there is one.
        dtype: Precision of DINO, CLIP and ViCLIP. VBench runs OpenAI's CLIP in half precision on a GPU.
        batch_size: Frames computed at once.
        run_name: Begins the names of the result files.
    """

    name: ClassVar[str] = "vbench"
    modality: ClassVar[Modality] = "video"
    metric: ClassVar[str] = "total"

    def __init__(
        self,
        *,
        data: str | None = None,
        dimensions: list[str] | None = None,
        strict: bool = False,
        static_filter: bool = True,
        official_python: str | None = None,
        official_timeout: float = 86400.0,
        weights: dict[str, str] | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
        run_name: str = "vbench",
    ) -> None:
        self.data, self.strict, self.static_filter = data, strict, static_filter
        if not run_name or run_name != file_stem(run_name):
            raise ConfigError(
                f"run_name must be the beginning of a file name but got {run_name!r}; change it."
            )
        self.run_name = run_name
        self.official: Official | None = None
        if official_python is not None:
            where = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.official = Official(official_python, device=where, timeout=official_timeout)
        self.dimensions = _chosen(
            dimensions, official=self.official is not None, custom=data is not None and self._suite.is_custom
        )
        self._judges = Judges(
            weights or {},
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            strict=strict,
            static_filter=static_filter,
        )
        self._measures: dict[str, Measure] = {}
        self._table: Table | None = None  # of the arm that is resampled

    @property
    def together(self) -> bool:  # type: ignore[override]
        """True for the official package, whose models load anew for each dimension and call."""
        return self.official is not None

    @property
    def samples_per_item(self) -> int:  # type: ignore[override]
        """Five; 25 where only temporal flickering is measured, for its filter to choose from."""
        return DRAWN if self.static_filter and self.dimensions == (FLICKER,) else 5

    @cached_property
    def _suite(self) -> Suite:
        return published() if self.data is None else read_suite(self.data)

    @property
    def _native(self) -> list[str]:
        """Dimensions and proxies that are measured here."""
        return [name for name in self.dimensions if self.official is None or name in PROXIES]

    @property
    def notes(self) -> list[str]:
        found = []
        missing = [name for name in DIMENSIONS if name not in self.dimensions]
        if missing and self.strict:
            found.append(f"Missing dimensions count as 0 (strict): {', '.join(missing)}.")
        elif missing:
            found.append(
                f"No total is given, because these dimensions are not measured: {', '.join(missing)}."
            )
        if self.official is None:
            found.append(
                "Dimensions are measured by this toolkit's implementation, not by the official package; RAFT "
                "has torchvision's weights C_T_V1 in place of raft-things."
            )
        if any(name in PROXIES for name in self.dimensions):
            found.append("Proxies use another detector than VBench and compare with no leaderboard.")
        if FLICKER in self.dimensions and not self.static_filter:
            found.append(
                "Temporal flickering is measured without the static filter, so still models gain less."
            )
        elif FLICKER in self.dimensions and self.samples_per_item != DRAWN:
            found.append(
                f"VBench draws {DRAWN} samples of a prompt for temporal flickering and keeps five still "
                f"ones; vbench:dimensions={FLICKER} does so."
            )
        if self._suite.is_custom:
            found.append("The prompts are not VBench's, so no score compares with its leaderboard.")
        return found

    @property
    def judge_name(self) -> str:
        where = "official package" if self.official is not None else "native"
        models = self._judges.models(self._native) if self._native else []
        facts = [f"{name}={self._judges.weights[name]}" for name in models]
        return (
            f"vbench, {where}: {', '.join(self.dimensions)}; strict={self.strict}, "
            f"static_filter={self.static_filter}, {self._judges.dtype}; {', '.join(facts)}"
        )

    def items(self) -> list[Item]:
        bases = list(dict.fromkeys(PROXIES.get(name, name) for name in self.dimensions))
        found = items(self._suite, bases)
        if not found:
            raise ConfigError(
                f"The prompts of vbench must have one of {', '.join(self.dimensions)} but none in "
                f"{self._suite.name!r} has; choose other dimensions."
            )
        return found

    def samples_of(self, item: Item) -> int:
        """How many samples of a prompt the published protocol asks for."""
        return DRAWN if self.static_filter and FLICKER in item.tags else 5

    def place(self, item: Item, index: int) -> str:
        return f"{file_stem(item.prompt.text)}-{index}"

    def read_layout(self, folder: Path) -> Found:
        if not folder.is_dir():
            raise ConfigError(f"A folder of clips must exist but {str(folder)!r} does not; check the path.")
        others = {file_stem(entry.prompt) for entry in self._suite.entries}
        wanted = (lambda item: None) if self._suite.is_custom else self.samples_of
        found = layout.read_folder(folder, self.items(), others, wanted)
        if not found.samples:
            reason = next((line for line in found.complaints if "cannot be read" in line), "none is there")
            raise ConfigError(
                f"A folder of vbench holds clips such as {self.place(self.items()[0], 0)}.mp4 but of "
                f"{str(folder)!r} none can be judged ({reason}); check the folder."
            )
        return found

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        if self.official is None:
            return [self._native_verdict(sample, self._native) for sample in samples]
        natively = [self._native_verdict(sample, self._native) for sample in samples]
        return [_joined(mine, theirs) for mine, theirs in zip(natively, self._official_verdicts(samples))]

    def _native_verdict(self, sample: Sample, dimensions: Sequence[str]) -> Verdict:
        asked = [name for name in dimensions if PROXIES.get(name, name) in sample.item.tags]
        if not asked:
            return Verdict()
        try:
            media = open_media(layout.judged_file(sample.path))
            video = clip(media, self.name)
        except (OSError, UnusableSample) as error:
            return Verdict(reason=f"the clip cannot be read: {error}")
        measured: dict[str, Measured] = {}
        faults = []
        for name in asked:
            try:
                measured[name] = self._measure(name).measure(video, sample.item.prompt)
            except UnusableSample as error:
                faults.append(f"{name}: {error}")
        return _verdict(measured, faults)

    def _measure(self, name: str) -> Measure:
        if name not in self._measures:
            self._measures[name] = self._loaded(name)
        return self._measures[name]

    def _loaded(self, name: str) -> Measure:
        """A new measure with its models.

        Raises:
            VerifierError: If they cannot be loaded.
        """
        made = self._judges.make(name)
        try:
            made.load()
        except VerifierError as error:
            models = ", ".join(self._judges.models([name])) or "none"
            raise VerifierError(
                f"Dimension {name!r} of vbench must load its models ({models}) but: {error} In vbench, paths "
                'are given as weights=\'{"MODEL": "PATH"}\'; or leave the dimension out.'
            ) from error
        return made

    def _official_verdicts(self, samples: Sequence[Sample]) -> list[Verdict]:
        assert self.official is not None
        measured: list[dict[str, Measured]] = [{} for _ in samples]
        faults: list[list[str]] = [[] for _ in samples]
        failed: list[VerifierError] = []
        with tempfile.TemporaryDirectory(prefix="tts-vision-vbench-") as temporary:
            folder = Path(temporary)
            for number, name in enumerate(self._official_dimensions):
                rows = self._rows(samples, name, faults)
                rounds, unread = staged(rows, folder / f"{number}")
                for row, fault in unread.items():
                    faults[row].append(f"{name}: {fault}")
                for turn, clips in enumerate(rounds):
                    try:
                        found = self._by_package(name, clips, samples, folder / f"{number}" / f"output{turn}")
                    except VerifierError as error:
                        failed.append(error)
                        for row in clips.rows.values():
                            faults[row].append(f"{name}: {error}")
                        continue
                    for row in clips.rows.values():
                        if row in found:
                            measured[row][name] = found[row]
                        else:
                            faults[row].append(f"{name}: the official package leaves the clip out")
        if failed and not any(measured):
            raise failed[0]
        return [_verdict(values, reasons) for values, reasons in zip(measured, faults)]

    @property
    def _official_dimensions(self) -> list[str]:
        return [name for name in self.dimensions if name not in PROXIES]

    def _rows(
        self, samples: Sequence[Sample], name: str, faults: Sequence[list[str]]
    ) -> list[tuple[int, Sample]]:
        """The samples that a dimension is measured on, with their numbers."""
        rows = [(row, sample) for row, sample in enumerate(samples) if name in sample.item.tags]
        if name != FLICKER or not self.static_filter:
            return rows
        passed = []
        for row, sample in rows:
            try:
                media = open_media(layout.judged_file(sample.path))
                check_static(self._judges.raft, clip(media, self.name))
                passed.append((row, sample))
            except (OSError, UnusableSample) as error:
                faults[row].append(f"{name}: {error}")
        return passed

    def _by_package(
        self, name: str, clips: Round, samples: Sequence[Sample], output: Path
    ) -> dict[int, Measured]:
        """The values of the official package, with the frames that they count by.

        Raises:
            VerifierError: If the package fails.
        """
        assert self.official is not None
        score, found = self.official.measure(name, clips, self._suite, samples, output)
        measured = {}
        for row, (value, frames) in found.items():
            weight = frames
            if DIMENSIONS[name].per == "video":
                weight = 1
            elif weight is None:
                frames_of = clip(open_media(layout.judged_file(samples[row].path)), self.name).frames
                weight = len(frames_of) - (DIMENSIONS[name].per == "pairs")
            measured[row] = Measured(value, int(weight), {"judge": "official package"})
        weights = [each.weight for each in measured.values()]
        ours = (
            np.average([each.value for each in measured.values()], weights=weights) if measured else math.nan
        )
        if not abs(ours - score) <= _NEAR:
            warnings.warn(
                f"The official package gives {name} {score:.6f} but the mean of its clips is {ours:.6f}, "
                "which is reported; it may be another version than 0.1.5.",
                SearchWarning,
                stacklevel=2,
            )
        return measured

    def summarise(self, judged: Sequence[Judged], weights: np.ndarray) -> dict[str, float]:
        """Total, quality and semantic score, and the raw score of each dimension, all in parts of 1."""
        if self._table is None or self._table.judged is not judged:
            self._table = self._table_of(judged)
        means = {name: self._table.mean(name, weights) for name in self.dimensions}
        raw = {name: value for name, value in means.items() if name in DIMENSIONS}
        sums = totals(raw, strict=self.strict)
        return {"total": sums.total, "quality": sums.quality, "semantic": sums.semantic, **means}

    def write_results(self, folder: Path, judged: Sequence[Judged]) -> list[Path]:
        return write_results(folder, self.run_name, self._suite, self._table_of(judged))

    def _table_of(self, judged: Sequence[Judged]) -> Table:
        return Table(judged, self.dimensions, filtered=self.static_filter)

    def self_test(self) -> str:
        """Checks that weights load and that a still clip is as consistent and steady as can be."""
        if self.official is not None:
            with tempfile.TemporaryDirectory(prefix="tts-vision-vbench-") as temporary:
                self.official.check(Path(temporary))
        still, flashing = _still_clip()
        tested = []
        for name in self._native:
            measure = self._loaded(name)
            if measure.still is not None:
                _check_still(name, measure, still, flashing)
                tested.append(name)
        made = ["the official package can be imported"] if self.official is not None else []
        made += [f"a still clip scores 1 and a flashing one less by {', '.join(tested)}"] if tested else []
        return "; ".join(made)


def _chosen(dimensions: list[str] | None, *, official: bool, custom: bool) -> tuple[str, ...]:
    """The dimensions to measure.

    Raises:
        ConfigError: If one is unknown, or cannot be measured.
    """
    if dimensions is None:
        everywhere = [name for name in DIMENSIONS if not (custom and name in LABELLED)]
        if official:
            return tuple(everywhere)
        has_pyiqa = importlib.util.find_spec("pyiqa") is not None
        return tuple(n for n in everywhere if n in NATIVE and (has_pyiqa or n != "imaging_quality"))
    if not dimensions:
        raise ConfigError(
            f"dimensions must name at least one of {', '.join(DIMENSIONS)} but is empty; name one."
        )
    for name in dimensions:
        if name not in DIMENSIONS and name not in PROXIES:
            known = ", ".join([*DIMENSIONS, *PROXIES])
            raise ConfigError(f"dimensions must be of {known} but got {name!r}; change it.")
        if name in LEFT_OUT and not official:
            raise ConfigError(
                f"Dimension {name!r} must be left to the official package because it {LEFT_OUT[name]}; set "
                "official_python, or leave it out."
            )
        if custom and PROXIES.get(name, name) in LABELLED:
            raise ConfigError(
                f"Dimension {name!r} must have a label for each prompt, which own prompts lack; give data "
                "like VBench_full_info.json, or leave it out."
            )
    return tuple(dict.fromkeys(dimensions))


def _verdict(measured: dict[str, Measured], faults: Sequence[str]) -> Verdict:
    details: dict[str, Any] = {}
    for name, each in measured.items():
        weight = {"weight": each.weight} if each.weight != 1 else {}
        found = {**each.details, **weight}
        details |= {name: found} if found else {}
    values = {name: each.value for name, each in measured.items()}
    return Verdict(values, reason="; ".join(faults) or None, details=details)


def _joined(first: Verdict, second: Verdict) -> Verdict:
    reasons = [each.reason for each in (first, second) if each.reason]
    return Verdict(
        {**first.values, **second.values},
        reason="; ".join(dict.fromkeys(reasons)) or None,
        details={**first.details, **second.details},
    )


def _still_clip() -> tuple[Video, Video]:
    """Clips of two different frames: one that only repeats the first, and one that flashes both."""
    side = 144
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    first = torch.stack((rows, columns, rows + columns), dim=-1) % 256
    frames = torch.stack((first, 255 - first)).to(torch.uint8)
    return Video(frames[[0, 0, 0, 0]]), Video(frames[[0, 1, 0, 1]])


def _check_still(name: str, measure: Measure, still: Video, flashing: Video) -> None:
    """Checks the measures of two clips.

    Raises:
        VerifierError: If the still one is not at its best, or the flashing one not worse.
    """
    prompt = Prompt("")
    try:
        calm = measure.measure(still, prompt).value
    except UnusableSample as error:
        raise VerifierError(
            f"The measure {name!r} of vbench must score a still clip but: {error}; check its weights."
        ) from error
    try:
        wild = measure.measure(flashing, prompt).value
    except UnusableSample:  # the static filter may see that it moves
        wild = 0.0
    if abs(calm - (measure.still or 0)) > 1e-3 or not wild < calm - 1e-6:
        raise VerifierError(
            f"The measure {name!r} of vbench must be {measure.still} on a still clip and less on a flashing "
            f"one but is {calm:.6f} and {wild:.6f}; check its weights."
        )
