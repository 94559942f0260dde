"""Published lists of prompts without a judge of their own, or with one that is not built here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tts_vision.eval.evaluator import Found, Item
from tts_vision.eval.evaluators._by_verifier import ByVerifier
from tts_vision.eval.evaluators._data import (
    DataFile,
    Distinct,
    Published,
    json_document,
    read_data,
    table,
    text_in,
)
from tts_vision.eval.evaluators._images import found_by_stem, numbered_stem
from tts_vision.registry import register
from tts_vision.types import Prompt

DRAWBENCH = Published(
    "drawbench",
    "https://imagen.research.google (Saharia et al. 2022), a table with the columns Prompts and Category",
    "of the authors",
)
PARTI = Published("parti_prompts", "https://github.com/google-research/parti, PartiPrompts.tsv", "Apache-2.0")
GENAI = Published(
    "genai_bench",
    "https://huggingface.co/datasets/BaiqiL/GenAI-Bench-1600, genai_image.json and genai_skills.json",
    "Apache-2.0",
)
UNIGEN = Published(
    "unigenbench", "https://github.com/CodeGoat24/UniGenBench, data/test_prompts_en.csv", "of the authors"
)
TESTPOINTS = {"en": ("Testpoints", "Testpoint Description"), "zh": ("考点", "考点对应描述")}


@register("evaluator", "drawbench", paper="Imagen (Saharia et al. 2022, arXiv:2205.11487)")
class DrawBench(ByVerifier):
    """DrawBench: 200 prompts in 11 categories, judged by any verifier; the paper asked people.

    Args:
        data: The table with the columns ``Prompts`` and ``Category``, as CSV.
        judge: The verifier that judges, as a command line writes it; see ``prompts``.
    """

    name = "drawbench"

    def __init__(self, *, data: Path | None = None, judge: str | None = None) -> None:
        self.data = read_data(data, DRAWBENCH)
        super().__init__(_table_items(self.data, ",", "Prompts", ("Category",)), judge)

    @property
    def notes(self) -> list[str]:
        return [self.data.note, "DrawBench has no judge of its own: the paper asked people."]


@register("evaluator", "parti_prompts", paper="Parti (Yu et al. 2022, arXiv:2206.10789)")
class PartiPrompts(ByVerifier):
    """PartiPrompts: 1632 prompts by category and challenge, judged by any verifier; the paper asked people.

    Args:
        data: The published ``PartiPrompts.tsv``.
        judge: The verifier that judges, as a command line writes it; see ``prompts``.
    """

    name = "parti_prompts"

    def __init__(self, *, data: Path | None = None, judge: str | None = None) -> None:
        self.data = read_data(data, PARTI)
        super().__init__(_table_items(self.data, "\t", "Prompt", ("Category", "Challenge")), judge)

    @property
    def notes(self) -> list[str]:
        return [self.data.note, "PartiPrompts has no judge of its own: the paper asked people."]


@register("evaluator", "genai_bench", paper="GenAI-Bench (Li et al. 2024, arXiv:2406.13743)")
class GenAIBench(ByVerifier):
    """GenAI-Bench: 1600 prompts of designers by compositional skill, judged by VQAScore.

    The published scores are those of CLIP-FlanT5-XXL, which is not in transformers; the default here is the
    VQAScore of Qwen2.5-VL as its authors' t2v_metrics defines it, so figures do not compare with published
    ones. Means by skill need the file of skills.

    Args:
        data: The published ``genai_image.json``: an object from numbers to records with ``prompt``.
        skills: The published ``genai_skills.json``: an object from skills to numbers of prompts.
        judge: The verifier that judges, as a command line writes it; see ``prompts``.
    """

    name = "genai_bench"

    def __init__(
        self,
        *,
        data: Path | None = None,
        skills: Path | None = None,
        judge: str = "vqa_score:variant=qwen2.5-vl",
    ) -> None:
        self.data = read_data(data, GENAI)
        tags = {} if skills is None else _skills(read_data(skills, GENAI))
        super().__init__(_genai_items(self.data, tags), judge)

    @property
    def notes(self) -> list[str]:
        return [
            self.data.note,
            "Published scores of GenAI-Bench are those of CLIP-FlanT5-XXL; those of other judges do not "
            "compare with them.",
        ]

    def place(self, item: Item, index: int) -> str:
        return item.id if not index else f"{item.id}_{index}"

    def read_layout(self, folder: Path) -> Found:
        return found_by_stem(folder, self._items, self.name, numbered_stem, f"{self._items[0].id}.jpeg")


@register("evaluator", "unigenbench", paper="UniGenBench++ (Wang et al. 2025, arXiv:2510.18701)")
class UniGenBench(ByVerifier):
    """UniGenBench: 600 prompts with test points, judged by any verifier.

    Means are given for each test point and for the group that it belongs to, over the prompts that have it:
    a verifier judges the whole prompt. The published judge, a large language model that answers for each test
    point, is not built here.

    Args:
        data: A published table such as ``test_prompts_en.csv``.
        language: Its language, which names its columns.
        judge: The verifier that judges, as a command line writes it; see ``prompts``.
    """

    name = "unigenbench"
    samples_per_item = 4

    def __init__(
        self,
        *,
        data: Path | None = None,
        language: Literal["en", "zh"] = "en",
        judge: str | None = None,
    ) -> None:
        self.data = read_data(data, UNIGEN)
        super().__init__(list(_unigen_items(self.data, language)), judge)

    @property
    def notes(self) -> list[str]:
        return [
            self.data.note,
            f"The judge is {self.verifier_text}, which sees whole prompts, instead of a language model that "
            "answers for each test point: figures do not compare with published ones.",
        ]

    def place(self, item: Item, index: int) -> str:
        return f"{item.id}_{index}"

    def read_layout(self, folder: Path) -> Found:
        return found_by_stem(folder, self._items, self.name, numbered_stem, f"{self._items[0].id}_0.png")


def _table_items(data: DataFile, delimiter: str, prompt: str, tags: tuple[str, ...]) -> list[Item]:
    """Prompts of a table; a row that repeats another counts once."""
    found: dict[tuple[str, ...], Item] = {}
    for where, row in table(data, (prompt, *tags), delimiter):
        text = text_in(data, where, row, prompt)
        labels = tuple(text_in(data, where, row, tag) for tag in tags)
        if (text, *labels) not in found:
            rest = {key: value for key, value in row.items() if key != prompt and value}
            shown = labels if len(tags) == 1 else _named(tags, labels)
            found[(text, *labels)] = Item(f"{len(found):05d}", Prompt(text, rest), shown)
    return list(found.values())


def _named(tags: tuple[str, ...], labels: tuple[str, ...]) -> tuple[str, ...]:
    """Tags of several columns, each with the name of its column."""
    return tuple(f"{tag.lower()}: {label}" for tag, label in zip(tags, labels, strict=True))


def _genai_items(data: DataFile, tags: Mapping[str, list[str]]) -> list[Item]:
    records = json_document(data)
    if not isinstance(records, dict) or not records:
        raise data.wrong("all", "be a JSON object from numbers to records", f"is {records!r:.40}")
    items = []
    for key, record in records.items():
        where = f"record {key!r}"
        if not key.isdecimal() or not isinstance(record, dict):
            raise data.wrong(where, "have a record for each number", f"is {record!r:.40}")
        metadata = {"id": key}
        prompt = Prompt(text_in(data, where, record, "prompt"), metadata)
        items.append(Item(key, prompt, tuple(tags.get(str(int(key)), []))))
    unknown = tags.keys() - {str(int(key)) for key in records}
    if unknown and len(unknown) == len(tags):
        raise data.wrong("no record", "have the prompts that the file of skills names", "is named there")
    return items


def _skills(data: DataFile) -> dict[str, list[str]]:
    """The skills of each prompt, by its number."""
    skills = json_document(data)
    found: dict[str, list[str]] = {}
    if not isinstance(skills, dict) or not skills:
        raise data.wrong("all", "be a JSON object from skills to numbers", f"is {skills!r:.40}")
    for skill, numbers in skills.items():
        if not isinstance(numbers, list) or not all(str(number).isdecimal() for number in numbers):
            raise data.wrong(
                f"skill {skill!r}", "have a list of numbers for each skill", f"is {numbers!r:.40}"
            )
        for number in numbers:
            found.setdefault(str(int(number)), []).append(skill)
    return found


def _unigen_items(data: DataFile, language: str) -> Iterator[Item]:
    prompt, dimensions = f"prompt_{language}", f"sub_dims_{language}"
    points, descriptions = TESTPOINTS[language]
    numbers = Distinct(data, "numbers")
    for where, row in table(data, ("index", prompt, dimensions)):
        number = text_in(data, where, row, "index").removesuffix(".0")
        if not number.isdecimal():
            raise data.wrong(where, "have a number in the column index", f"has {number!r:.40}")
        numbers.check(where, number)
        record = _json_cell(data, where, row[dimensions])
        names, texts = (_texts(data, where, record, key) for key in (points, descriptions))
        if len(names) != len(texts):
            raise data.wrong(
                where, "describe each of its test points", f"has {len(names)} of them and {len(texts)} texts"
            )
        groups = [name.split("-")[0].strip() for name in names]
        metadata = {"testpoints": names, "descriptions": texts}
        text = Prompt(text_in(data, where, row, prompt), metadata)
        yield Item(number, text, tuple(dict.fromkeys([*groups, *names])))


def _texts(data: DataFile, where: str, record: Mapping[str, Any], key: str) -> list[str]:
    """A list of at least one text in a record."""
    values = record.get(key)
    if (
        not isinstance(values, list)
        or not values
        or not all(isinstance(value, str) and value.strip() for value in values)
    ):
        raise data.wrong(where, f"have texts in {key}", f"has {values!r:.60}")
    return values


def _json_cell(data: DataFile, where: str, cell: str) -> dict[str, Any]:
    try:
        record = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise data.wrong(where, "have a JSON object in its dimensions", f"has none ({error})") from error
    if not isinstance(record, dict):
        raise data.wrong(where, "have a JSON object in its dimensions", f"has {record!r:.40}")
    return record
