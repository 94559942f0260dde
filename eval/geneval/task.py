"""The common part of evaluators that judge by GenEval's rules, whoever detects the objects."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Evaluator, Found, Item, Judged, Sample, Verdict
from tts_vision.eval.geneval.layout import find_samples, write_metadata, write_rows
from tts_vision.eval.geneval.prompts import Record
from tts_vision.eval.geneval.summary import summary
from tts_vision.model_verifier import UnusableSample, as_image
from tts_vision.types import Prompt
from tts_vision.verifiers._detections import Findings
from tts_vision.verifiers._predicates import Demands, from_record

KINDS = {"relation": "position"}
"""Kinds of predicates that GenEval calls otherwise."""


class GenEvalTask(Evaluator):
    """Base class of evaluators with GenEval's scorer, figures and folder layout.

    Define `records` and `find`. An image is right if its detections meet all demands of the prompt's record
    (Ghosh et al. 2023).

    Args:
        window: Images that are in memory at once, with all masks of their objects.
    """

    metric = "accuracy"
    samples_per_item = 4

    def __init__(self, *, window: int = 64) -> None:
        self.window = window
        self._known: list[Item] | None = None

    @abstractmethod
    def records(self) -> list[Record]:
        """The prompts with their records, in order.

        Raises:
            ConfigError: If they cannot be read.
        """

    @abstractmethod
    def find(
        self, images: Sequence[Image.Image], demands: Sequence[Demands], tags: Sequence[str]
    ) -> list[Findings | str]:
        """The detections in images, with the faults by them; or the reason why there are none.

        Args:
            images: RGB.
            demands: Of each image's prompt.
            tags: The task of each.
        """

    def items(self) -> list[Item]:
        if self._known is None:
            self._known = [
                Item(
                    f"{number:05d}",
                    Prompt(
                        record["prompt"], {key: value for key, value in record.items() if key != "prompt"}
                    ),
                    (record["tag"],),
                )
                for number, record in enumerate(self.records())
            ]
        return list(self._known)

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        starts = range(0, len(samples), self.window)
        return [v for start in starts for v in self._judge(samples[start : start + self.window])]

    def _judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts: dict[int, Verdict] = {}
        images: dict[int, Image.Image] = {}
        demands: dict[int, Demands] = {}
        for i, sample in enumerate(samples):
            try:
                images[i], demands[i] = as_image(sample.load(), self.name), demands_of(sample.item)
            except (OSError, ConfigError, UnusableSample) as error:
                verdicts[i] = Verdict(reason=str(error))
        rows = list(images)
        tags = [samples[i].item.prompt.metadata["tag"] for i in rows]
        found = self.find([images[i] for i in rows], [demands[i] for i in rows], tags)
        for i, each in zip(rows, found, strict=True):
            verdicts[i] = verdict_of(each, demands[i])
        return [verdicts[i] for i in range(len(samples))]

    def summarise(self, judged: Sequence[Judged], weights: np.ndarray) -> dict[str, float]:
        tasks = dict.fromkeys(item.tags[0] for item in self.items())
        return summary(
            np.array([each.verdict.values.get(self.metric, np.nan) for each in judged], dtype=float),
            [each.sample.item.tags[0] for each in judged],
            [each.sample.item.id for each in judged],
            np.asarray(weights, dtype=float),
            expected=list(tasks),
        )

    def place(self, item: Item, index: int) -> str:
        return f"{item.id}/samples/{index:05d}"

    def write_layout(self, folder: Path, items: Sequence[Item]) -> list[Path]:
        return write_metadata(folder, items)

    def read_layout(self, folder: Path) -> Found:
        found = find_samples(folder, self.items(), self.samples_per_item)
        if not found.samples:
            first = f"; {found.complaints[0]}" if found.complaints else ""
            raise ConfigError(
                f"A folder of {self.name} must hold samples such as 00000/samples/00000.png, with the record "
                f"of the prompt in 00000/metadata.jsonl, but {str(folder)!r} has none that can be "
                f"judged{first}. Check the folder."
            )
        return found

    def write_results(self, folder: Path, judged: Sequence[Judged]) -> list[Path]:
        return [write_rows(folder, judged)]


def demands_of(item: Item) -> Demands:
    """The demands of a prompt's record.

    Raises:
        ConfigError: If it has no record of GenEval.
    """
    try:
        demands = from_record(item.prompt.metadata)
    except ValueError as error:
        raise ConfigError(
            f"Prompt {item.id} must have a record of GenEval but: {error}; correct it."
        ) from error
    if demands is None or not isinstance(item.prompt.metadata.get("tag"), str):
        raise ConfigError(
            f"Prompt {item.id} must have a record of GenEval but its metadata holds "
            f"{', '.join(item.prompt.metadata) or 'nothing'}; take the prompts of the evaluator's items()."
        )
    return demands


def verdict_of(found: Findings | str, demands: Demands) -> Verdict:
    """The verdict by GenEval's rule: right if no demand has a fault, and all were checked."""
    if isinstance(found, str):
        return Verdict(reason=found)
    details: dict[str, list[list[float]]] = {}
    for detection in found.detections:
        details.setdefault(detection.label, []).append([*map(float, detection.box), detection.score])
    unchecked = [p.name for p in demands.predicates() if p.name not in found.faults]
    if unchecked:
        return Verdict(reason=f"not checked: {', '.join(unchecked)}", details=details)
    wrong = [predicate for predicate in demands.predicates() if found.faults[predicate.name]]
    return Verdict(
        values={GenEvalTask.metric: float(not wrong)},
        correct=not wrong,
        reason="; ".join(found.faults[predicate.name] for predicate in wrong) or None,
        details=details,
        faults=Counter(KINDS.get(predicate.kind, predicate.kind) for predicate in wrong),
    )
