"""Prompts of VBench: the published suite, or one's own as a list or as the names of clips."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Item
from tts_vision.eval.vbench.dimensions import DIMENSIONS
from tts_vision.types import Prompt

PUBLISHED = "full_info.json.gz"
LABELLED = sorted(each.name for each in DIMENSIONS.values() if each.needs_label)
_LABELS = {
    "object_class": ("object",),
    "multiple_objects": ("object",),
    "color": ("color",),
    "appearance_style": ("appearance_style",),
    "scene": ("scene", "scene"),
    "spatial_relationship": ("spatial_relationship",),
}
CLIPS = frozenset({".mp4", ".mkv", ".gif", ".webm", ".mov", ".avi"})


@dataclass(frozen=True)
class Entry:
    """An entry of the suite. A prompt may have several.

    Attributes:
        prompt: The text.
        dimensions: That are measured on its clips.
        auxiliary: Labels by dimension, as published.
    """

    prompt: str
    dimensions: tuple[str, ...]
    auxiliary: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As in the published file."""
        found: dict[str, Any] = {"prompt_en": self.prompt, "dimension": list(self.dimensions)}
        return found | ({"auxiliary_info": self.auxiliary} if self.auxiliary else {})


@dataclass(frozen=True)
class Suite:
    """A list of prompts.

    Attributes:
        entries: In the published order.
        is_custom: Whether they are somebody's own, for which VBench has another mode.
        name: The file or folder that they come from; ``VBench`` for the published suite.
    """

    entries: list[Entry]
    is_custom: bool
    name: str


def published() -> Suite:
    """The suite of the paper: 946 entries of 944 prompts (Apache-2.0, Vchitect/VBench)."""
    text = gzip.decompress(files("tts_vision.eval.vbench").joinpath(PUBLISHED).read_bytes())
    return Suite(_entries(json.loads(text), PUBLISHED), is_custom=False, name="VBench")


def read_suite(data: str) -> Suite:
    """A suite from a file or folder.

    Args:
        data: A JSON list as VBench publishes it, with ``prompt_en`` and ``dimension``; or own prompts: any
            other file with one in each line, or a folder of clips named ``{prompt}-{index}``.

    Raises:
        ConfigError: If it cannot be read or is neither.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        stems = (file.stem for file in sorted(path.iterdir()) if file.suffix.lower() in CLIPS)
        return _own((re.sub(r"-\d+$", "", stem) for stem in stems), data, "clips named {prompt}-{index}.mp4")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data of vbench must be a file of prompts in UTF-8 or a folder of clips but {data!r} cannot be "
            f"read: {error}; check the path."
        ) from error
    if path.suffix.lower() != ".json":
        return _own(text.splitlines(), data, "a prompt in each line")
    try:
        records = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"data of vbench must be whole JSON but {data!r} is not: {error}; download it again."
        ) from error
    if isinstance(records, list) and records and all(isinstance(each, str) for each in records):
        return _own(records, data, "a list of prompts")
    return Suite(_entries(records, data), is_custom=False, name=str(path))


def items(suite: Suite, dimensions: Sequence[str]) -> list[Item]:
    """Each distinct prompt that one of the dimensions is measured on, in the order of the suite.

    The tags of an item are those of `dimensions` that are measured on it; the metadata of its prompt is its
    entry, joined where there are two. The identifier is its number in the whole suite.
    """
    joined: dict[str, Entry] = {}
    for entry in suite.entries:
        known = joined.get(entry.prompt, Entry(entry.prompt, ()))
        names = tuple(dict.fromkeys(known.dimensions + entry.dimensions))
        joined[entry.prompt] = Entry(entry.prompt, names, known.auxiliary | entry.auxiliary)
    found = []
    for number, entry in enumerate(joined.values()):
        tags = tuple(name for name in dimensions if suite.is_custom or name in entry.dimensions)
        metadata = {key: value for key, value in entry.plain().items() if key != "prompt_en"}
        if tags:
            found.append(Item(f"{number:05d}", Prompt(entry.prompt, metadata), tags))
    return found


def label(prompt: Prompt, dimension: str) -> Any:
    """The label of a prompt for a dimension that needs one, as `_entries` has checked it."""
    found = prompt.metadata["auxiliary_info"][dimension]
    for key in _LABELS[dimension]:
        found = found[key]
    return found


def file_stem(text: str) -> str:
    """A prompt as VBench's clips are named by it: itself, up to signs that no file name may have.

    A prompt that is too long for file systems is cut.
    """
    name = re.sub(r"[/\\\x00-\x1f]", "_", unicodedata.normalize("NFC", text)).strip() or "_"
    while len(name.encode()) > 230:
        name = name[:-1]
    return name


def _own(prompts: Iterable[str], data: str, form: str) -> Suite:
    """Own prompts, each once."""
    distinct = dict.fromkeys(line.strip() for line in prompts if line.strip())
    if not distinct:
        raise ConfigError(f"data of vbench must be {form} but {data!r} has none; check the path.")
    stems: dict[str, str] = {}
    for prompt in distinct:
        other = stems.setdefault(file_stem(prompt), prompt)
        if other != prompt:
            raise ConfigError(
                f"Prompts of {data!r} must differ in the first 230 bytes and in more than slashes, because "
                f"clips are named by them, but {other!r} and {prompt!r} do not; change one."
            )
    return Suite([Entry(prompt, ()) for prompt in distinct], is_custom=True, name=data)


def _entries(records: Any, name: str) -> list[Entry]:
    """The entries of a published file.

    Raises:
        ConfigError: If it is of another form.
    """
    if not isinstance(records, list) or not records:
        raise ConfigError(
            f"data of vbench must be a JSON list of entries but {name!r} is not; give VBench_full_info.json."
        )
    return [_entry(record, number, name) for number, record in enumerate(records)]


def _entry(record: Any, number: int, name: str) -> Entry:
    def wrong(what: str) -> ConfigError:
        return ConfigError(
            f"Entry {number} (from 0) of {name!r} must have {what}; give a file like VBench_full_info.json."
        )

    if not isinstance(record, dict) or not isinstance(record.get("prompt_en"), str):
        raise wrong("a text 'prompt_en'")
    names = record.get("dimension")
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise wrong("a list 'dimension'")
    unknown = [each for each in names if each not in DIMENSIONS]
    if unknown:
        raise wrong(f"dimensions of {', '.join(DIMENSIONS)} but has {unknown[0]!r}")
    auxiliary = record.get("auxiliary_info", {})
    for dimension in set(names) & set(LABELLED):
        found = auxiliary
        for key in (dimension, *_LABELS[dimension]):
            found = found.get(key) if isinstance(found, dict) else None
        if not _is_label(dimension, found):
            raise wrong(f"a label for {dimension} in 'auxiliary_info' but has {auxiliary!r}")
    return Entry(record["prompt_en"], tuple(names), auxiliary if isinstance(auxiliary, dict) else {})


def _is_label(dimension: str, found: Any) -> bool:
    if dimension == "spatial_relationship":
        parts = ("object_a", "object_b", "relationship")
        return isinstance(found, dict) and all(isinstance(found.get(key), str) for key in parts)
    if dimension == "multiple_objects":
        return isinstance(found, str) and found.count(" and ") == 1
    return isinstance(found, str) and bool(found.strip())
