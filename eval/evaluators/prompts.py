"""Any file of prompts with any verifier as its metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Item
from tts_vision.eval.evaluators._by_verifier import ByVerifier
from tts_vision.prompt_files import Record, read_records
from tts_vision.registry import register
from tts_vision.types import Modality, Prompt


@register("evaluator", "prompts")
class Prompts(ByVerifier):
    """Any prompt file, judged by any verifier: the mean of its values over all prompts.

    Args:
        data: Prompts, one per line, as a JSON list, JSON lines, or a table with a column ``prompt``.
        judge: The verifier that judges, as a command line writes it. Inside ``NAME:key=value``, ``;``
            stands for the commas between its parameters: ``vqa_score:variant=paper;batch_size=4``.
        tag: Column or key whose values divide the prompts into groups with means of their own; a list in
            JSON gives a prompt several.
    """

    name = "prompts"

    def __init__(self, *, data: Path | None = None, judge: str | None = None, tag: str = "") -> None:
        if data is None:
            raise ConfigError(
                f"{self.name} needs a file of prompts but got none; give one: '{self.name}:data=FILE'."
            )
        records = read_records(data)
        distinct = {json.dumps([r.text, dict(r.metadata)], sort_keys=True): r for r in records}
        self.duplicates = len(records) - len(distinct)
        if tag and not any(tag in record.metadata for record in records):
            known = sorted({key for record in records for key in record.metadata})
            raise ConfigError(
                f"tag must be a column or key of {str(data)!r} ({', '.join(known) or 'it has none'}) but got "
                f"{tag!r}; change it."
            )
        items = [
            Item(f"{number:05d}", Prompt(record.text, record.metadata), _tags(record, tag))
            for number, record in enumerate(distinct.values())
        ]
        super().__init__(items, judge)

    @property
    def notes(self) -> list[str]:
        if not self.duplicates:
            return []
        return [f"{self.duplicates} repeated prompts of the file count once."]


@register("evaluator", "video_prompts")
class VideoPrompts(Prompts):
    """Any prompt file for clips, judged by any verifier of clips: as ``prompts``."""

    name = "video_prompts"
    modality: ClassVar[Modality] = "video"


def _tags(record: Record, tag: str) -> tuple[str, ...]:
    value = record.metadata.get(tag) if tag else None
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(str(each) for each in values))
