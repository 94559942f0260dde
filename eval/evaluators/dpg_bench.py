"""DPG-Bench: dense prompts, judged by questions that depend on one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Evaluator, Found, Item, Judged, Sample, Verdict, weighted_mean
from tts_vision.eval.evaluators._data import DataFile, Published, read_data, table, text_in
from tts_vision.eval.evaluators._images import found_by_stem, images_of, numbered_stem
from tts_vision.eval.evaluators._self_test import tells_colours
from tts_vision.model_verifier import UnusableSample
from tts_vision.registry import register
from tts_vision.types import Prompt
from tts_vision.verifiers._vlm import VisionLanguageModel

PUBLISHED = Published(
    "dpg_bench", "https://github.com/TencentQQGYLab/ELLA, dpg_bench/dpg_bench.csv", "Apache-2.0"
)
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
CHECKPOINT = "Qwen/Qwen2.5-VL-7B-Instruct"
TEMPLATE = "{question} Please answer yes or no."
MOST_PICTURES = 4


@register(
    "evaluator",
    "dpg_bench",
    paper="DPG-Bench, in ELLA (Hu et al. 2024, arXiv:2403.05135); DSG (Cho et al. 2024)",
    notes={
        "licence": "Apache-2.0 (data, not included); of the model",
        "weights": f"{CHECKPOINT}, or any image-text-to-text model of transformers",
    },
)
class DPGBench(Evaluator):
    """DPG-Bench with another judge: the share of questions about a dense prompt that are answered yes.

    A question counts as no where one that it depends on is answered no. The published judge, mPLUG-large of
    modelscope, is not in transformers; here any vision-language model answers yes or no, so figures are
    labelled and do not compare with published ones. ``dpg`` is the mean over images; figures by category are
    means of the answers themselves, as released.

    Args:
        data: The published ``dpg_bench.csv``.
        strict: Whether the first row of the file is left out, as the released reader does; the prompt that it
            belongs to then cannot be judged if other questions depend on it.
        pictures: Pictures in a sample, 1 to 4: the released tool reads grids of two by two, row by row.
        checkpoint: Folder or hub id of any transformers image-text-to-text model with a chat template.
        template: The text of a question; ``{question}`` is replaced by the question.
        device: Device of the model; by default the accelerator, if there is one.
        dtype: Precision of its weights: float32, bfloat16 or float16.
        batch_size: Questions computed at once.
    """

    name = "dpg_bench"
    metric = "dpg"
    samples_per_item = 4

    def __init__(
        self,
        *,
        data: Path | None = None,
        strict: bool = False,
        pictures: int = 1,
        checkpoint: str = CHECKPOINT,
        template: str = TEMPLATE,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 8,
    ) -> None:
        if not 1 <= pictures <= MOST_PICTURES:
            raise ConfigError(f"pictures must be from 1 to {MOST_PICTURES} but got {pictures}; change it.")
        if "{question}" not in template:
            raise ConfigError(f"template must contain {{question}} but is {template!r}; put it in.")
        self.data = read_data(data, PUBLISHED)
        self.strict, self.pictures, self.template, self.dtype = strict, pictures, template, dtype
        self._items = _items(self.data, strict)
        self._vlm = VisionLanguageModel(
            checkpoint, owner=self.name, device=device, dtype=dtype, batch_size=batch_size
        )

    @property
    def notes(self) -> list[str]:
        rows = "without its first row, as released" if self.strict else "with all its rows"
        return [
            self.data.note,
            f"The file is read {rows}.",
            f"The judge is {self._vlm.checkpoint} instead of mPLUG-large: figures do not compare with "
            "published ones.",
        ]

    @property
    def judge_name(self) -> str:
        return (
            f"dpg_bench {self.data.sha256[:12]} by {self._vlm.checkpoint} in {self.dtype}, "
            f"{self.pictures} pictures, strict {self.strict}, {self.template!r}"
        )

    def items(self) -> list[Item]:
        return list(self._items)

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        looked = images_of(samples, self.name)
        return [self._verdict(sample.item, looked[i]) for i, sample in enumerate(samples)]

    def _verdict(self, item: Item, image: Image.Image | str) -> Verdict:
        if isinstance(image, str):
            return Verdict(reason=image)
        questions: list[dict[str, Any]] = item.prompt.metadata["questions"]
        if orphans := _orphans(questions):
            return Verdict(reason=f"question {orphans[0]} depends on one that was left out (strict=True)")
        shown = crops(image, self.pictures)
        try:
            yes = self._vlm.yes_probabilities(
                [[crop] for crop in shown for _ in questions],
                [self.template.replace("{question}", q["question"]) for _ in shown for q in questions],
            )
        except UnusableSample as error:
            return Verdict(reason=str(error))
        if any(value != value for value in yes):
            return Verdict(reason="the model answered NaN")
        n = len(questions)
        answers = [[value > 0.5 for value in yes[at : at + n]] for at in range(0, len(yes), n)]
        shares = [sum(after_dependencies(questions, some)) / n for some in answers]
        last = answers[-1]
        return Verdict(
            values={"dpg": sum(shares) / len(shares)},
            correct=all(all(some) for some in answers),
            reason="; ".join(f"no: {q['question']}" for q, ok in zip(questions, last, strict=True) if not ok)
            or None,
            faults=Counter(_broad(q) for q, ok in zip(questions, last, strict=True) if not ok),
            details={"answers": last, "probabilities": yes},
        )

    def summarise(self, judged: Sequence[Judged], weights: np.ndarray) -> dict[str, float]:
        """The mean over images, then means of the answers of each broad and each detailed category."""
        values = np.array([each.verdict.values.get("dpg", np.nan) for each in judged], dtype=float)
        found = {"dpg": weighted_mean(values, weights)}
        answers: list[float] = []
        counts: list[float] = []
        names: list[tuple[str, str]] = []
        for each, weight in zip(judged, weights.tolist(), strict=True):
            questions = each.sample.item.prompt.metadata["questions"]
            for question, answer in zip(questions, each.verdict.details.get("answers", [])):
                answers.append(float(answer))
                counts.append(weight)
                names.append((_broad(question), question["category"]))
        for level in (0, 1):
            labels = np.array([name[level] for name in names], dtype=object)
            for label in sorted(set(labels.tolist()) - (set() if not level else found.keys())):
                mine = labels == label
                found[label] = weighted_mean(np.array(answers)[mine], np.array(counts)[mine])
        return found

    def self_test(self) -> str:
        def yes(images: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> list[float]:
            asked = [self.template.replace("{question}", question) for question in questions]
            return self._vlm.yes_probabilities(images, asked)

        return tells_colours(yes, self.name)

    def place(self, item: Item, index: int) -> str:
        return item.id if not index else f"{item.id}_{index}"

    def read_layout(self, folder: Path) -> Found:
        ids = {item.id for item in self._items}
        return found_by_stem(
            folder,
            self._items,
            self.name,
            lambda stem: (stem, 0) if stem in ids else numbered_stem(stem),
            f"{self._items[0].id}.png",
        )


def after_dependencies(questions: Sequence[Mapping[str, Any]], answers: Sequence[bool]) -> list[bool]:
    """Answers of which those count as no that depend on a no.

    As released, they are gone through in the order of the file: a question that became a no this way makes
    those after it that depend on it a no as well.

    Args:
        questions: Each with ``id`` and ``dependencies``, ids of others.
        answers: Whether each was answered yes.
    """
    counted = {question["id"]: answer for question, answer in zip(questions, answers, strict=True)}
    for question in questions:
        if not all(counted[parent] for parent in question["dependencies"]):
            counted[question["id"]] = False
    return list(counted.values())


def crops(image: Image.Image, pictures: int) -> list[Image.Image]:
    """The first pictures of a grid of two by two, row by row; the image itself if it is one."""
    if pictures == 1:
        return [image]
    w, h = image.width // 2, image.height // 2
    corners = [(0, 0), (w, 0), (0, h), (w, h)][:pictures]
    return [image.crop((left, top, left + w, top + h)) for left, top in corners]


def _broad(question: Mapping[str, Any]) -> str:
    """The broad category of a question, such as attribute of "attribute - color"."""
    category: str = question["category"]
    return category.split("-")[0].strip()


def _orphans(questions: Sequence[Mapping[str, Any]]) -> list[int]:
    """Ids of questions that depend on one that is not there."""
    there = {question["id"] for question in questions}
    return [q["id"] for q in questions if not set(q["dependencies"]) <= there]


def _items(data: DataFile, strict: bool) -> list[Item]:
    """The prompts of the table, each with its questions.

    Raises:
        ConfigError: If a row does not follow the published format.
    """
    texts: dict[str, str] = {}
    questions: dict[str, list[dict[str, Any]]] = {}
    for number, (where, row) in enumerate(table(data, COLUMNS)):
        key = text_in(data, where, row, "item_id")
        question = _question(data, where, row)
        text = text_in(data, where, row, "text")
        if texts.setdefault(key, text) != text:
            raise data.wrong(where, "have one text for each item_id", f"has another one for {key!r}")
        mine = questions.setdefault(key, [])
        if any(other["id"] == question["id"] for other in mine):
            raise data.wrong(where, "have distinct proposition_ids", f"repeats {question['id']} of {key!r}")
        if number or not strict:
            mine.append(question)
    if not strict:
        for key, mine in questions.items():
            if orphans := _orphans(mine):
                raise data.wrong(
                    f"item {key!r}",
                    "have the questions that others depend on",
                    f"lacks one that {orphans[0]} depends on",
                )
    return [
        Item(key, Prompt(text, {"questions": questions[key]}), ())
        for key, text in texts.items()
        if questions[key]
    ]


def _question(data: DataFile, where: str, row: Mapping[str, str]) -> dict[str, Any]:
    try:
        number = int(row["proposition_id"])
        parents = [int(part) for part in row["dependency"].split(",")]
    except ValueError as error:
        raise data.wrong(where, "have whole numbers in proposition_id and dependency", "has none") from error
    return {
        "id": number,
        "dependencies": [parent for parent in parents if parent],
        "question": text_in(data, where, row, "question_natural_language"),
        "category": text_in(data, where, row, "tuple").split("(")[0].strip(),
    }
