"""Evaluators: benchmarks that bring prompts, judge finished samples, and sum the verdicts up."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tts_vision.errors import ConfigError
from tts_vision.media import open_media
from tts_vision.types import Media, Modality, Prompt

_ANY = 98765  # stands for any index in the name of a file
MOST_NAME = 180
"""Characters of a prompt that a file is named by."""


@dataclass(frozen=True)
class Item:
    """A prompt of a benchmark.

    Attributes:
        id: Names it among the benchmark's prompts; part of file names, such as ``00012``.
        prompt: What to generate, with the record that it is judged by.
        tags: Tasks, skills or dimensions that it belongs to.
    """

    id: str
    prompt: Prompt
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A finished image or clip in a file.

    Attributes:
        item: The prompt that it was made for.
        index: Which of the item's samples it is, from 0 on.
        path: The file.
    """

    item: Item
    index: int
    path: Path

    def load(self) -> Media:
        """The pixels.

        Raises:
            OSError: If the file is missing or cannot be read.
        """
        return open_media(self.path)


@dataclass(frozen=True)
class Verdict:
    """The judgement of one sample.

    Attributes:
        values: By metric, higher is better; a metric that could not be judged is missing.
        correct: Whether the sample is what was asked for; None where the evaluator gives degrees only.
        reason: What is wrong with the sample, or why it could not be judged.
        details: What the judgement rests on (detections, answers), as JSON has it.
        faults: Kinds of demands that the sample does not meet (object, count, colour, position, ...), each
            with its number.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    correct: bool | None = None
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """A sample with its verdict."""

    sample: Sample
    verdict: Verdict


@dataclass(frozen=True)
class Found:
    """The samples of a folder that somebody made.

    Attributes:
        samples: Those that can be judged, by item and index.
        complaints: A line for each thing that is missing, surplus or cannot be read.
    """

    samples: list[Sample]
    complaints: list[str] = field(default_factory=list)


class Evaluator(ABC):
    """Base class of benchmarks. Define `items` and `judge`; the rest has defaults.

    Registered with ``register("evaluator", NAME)``; keyword-only constructor parameters are its settings,
    written ``NAME:key=value`` on a command line.
    """

    name: ClassVar[str]
    modality: ClassVar[Modality] = "image"
    metric: ClassVar[str]
    """The metric that the headline and the curves show."""
    samples_per_item: ClassVar[int] = 1
    """Samples of a prompt that the published protocol asks for."""
    together: ClassVar[bool] = False
    """Whether samples are judged in one call, because the judge compares them or is slow to start."""
    resamples: ClassVar[bool] = True
    """Whether intervals by resampling items make sense of its figures."""

    @property
    def notes(self) -> list[str]:
        """Facts that a reader of its figures must know, a sentence each."""
        return []

    @property
    def judge_name(self) -> str:
        """Names the judge and what decides its verdicts; verdicts of another one are not taken over."""
        return self.name

    def samples_of(self, item: Item) -> int:
        """Samples that the published protocol asks for, of one prompt."""
        return self.samples_per_item

    @abstractmethod
    def items(self) -> list[Item]:
        """The prompts, in the published order.

        Raises:
            ConfigError: If its data cannot be read.
        """

    @abstractmethod
    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """A verdict for each sample, in order.

        A sample that cannot be judged gets a verdict without values, with the reason; it never ends the run.
        """

    def summarise(self, judged: Sequence[Judged], weights: np.ndarray) -> dict[str, float]:
        """The figures of a report, by label; NaN where nothing can be said.

        By default the mean of `metric` over all samples, and over those of each tag.

        Args:
            judged: Winners of one arm.
            weights: ``(N,)`` how often each counts; intervals come from resampling items by it.
        """
        values = np.array([each.verdict.values.get(self.metric, np.nan) for each in judged])
        found = {self.metric: weighted_mean(values, weights)}
        for tag in dict.fromkeys(tag for each in judged for tag in each.sample.item.tags):
            belongs = np.array([tag in each.sample.item.tags for each in judged])
            found[tag] = weighted_mean(values[belongs], weights[belongs])
        return found

    def place(self, item: Item, index: int) -> str:
        """Where the published folder layout keeps a sample, without its suffix."""
        return f"{item.id}/{index:05d}"

    def write_layout(self, folder: Path, items: Sequence[Item]) -> list[Path]:
        """Writes what the published layout holds beside the samples; the files written."""
        return []

    def read_layout(self, folder: Path) -> Found:
        """The samples of a folder in the published layout, made by anybody.

        Raises:
            ConfigError: If it holds none.
        """
        samples, complaints = [], []
        for item in self.items():
            place = self.place(item, _ANY)
            at = (folder / place).parent
            before, _, after = Path(place).name.rpartition(str(_ANY))
            name = rf"{re.escape(before)}(\d+){re.escape(after)}"
            files = [] if not at.is_dir() else sorted(at.iterdir())
            found = [(m, f) for f in files if (m := re.fullmatch(name + r"\.\w+", f.name))]
            samples += [Sample(item, int(m[1]), f) for m, f in found]
            if not found:
                complaints.append(f"{item.id}: no sample of {item.prompt.text!r} in {at.name!r}")
        if not samples:
            raise ConfigError(
                f"A folder of {self.name} holds samples such as {self.place(self.items()[0], 0)}.png but "
                f"{str(folder)!r} has none; check the folder."
            )
        return Found(samples, complaints)

    def write_results(self, folder: Path, judged: Sequence[Judged]) -> list[Path]:
        """Writes the verdicts as the published tools write theirs; the files written."""
        return []

    def self_test(self) -> str:
        """Judges samples of known verdicts, before a long job.

        Returns:
            What was tested, for the report; empty where there is no such test.

        Raises:
            VerifierError: If the judge is not what it should be.
        """
        return ""


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """The mean of the values that are numbers; NaN without any."""
    known = ~np.isnan(values) & (weights > 0)
    return float(np.average(values[known], weights=weights[known])) if known.any() else float("nan")


def file_name(text: str) -> str:
    """A prompt as the name of a file: without slashes, not longer than file systems take."""
    return re.sub(r"[/\\\x00-\x1f]", "_", text).strip()[:MOST_NAME] or "_"
