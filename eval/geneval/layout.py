"""GenEval's folder of samples: read from anybody, written so that its own script scores it again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tts_vision.errors import StorageError
from tts_vision.eval.evaluator import Found, Item, Judged, Sample
from tts_vision.eval.geneval.prompts import Record, parse_record
from tts_vision.files import read_file, replace_file

METADATA, SAMPLES, RESULTS = "metadata.jsonl", "samples", "results.jsonl"
_SAMPLE = re.compile(r"(\d+)\.png")


def record_of(item: Item) -> Record:
    """The record of a prompt, as in GenEval's file."""
    return {**item.prompt.metadata, "prompt": item.prompt.text}


def write_metadata(folder: Path, items: Iterable[Item]) -> list[Path]:
    """Writes the record of each prompt into its folder; the files written."""
    written = []
    for item in items:
        path = folder / item.id / METADATA
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(record_of(item)), "The record of a prompt")
        written.append(path)
    return written


def write_rows(folder: Path, judged: Iterable[Judged]) -> Path:
    """Writes verdicts as GenEval's script does, one JSON object in each line.

    A sample that could not be judged has no row: GenEval's summary knows right and wrong only.
    """
    rows = [
        {
            "filename": _shown(each.sample.path, folder),
            "tag": each.sample.item.prompt.metadata["tag"],
            "prompt": each.sample.item.prompt.text,
            "correct": each.verdict.correct,
            "reason": each.verdict.reason or "",
            "metadata": json.dumps(record_of(each.sample.item)),
            "details": json.dumps(dict(each.verdict.details)),
        }
        for each in judged
        if each.verdict.correct is not None
    ]
    path = folder / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, "".join(json.dumps(row) + "\n" for row in rows), "The verdicts")
    return path


def _write(path: Path, text: str, what: str) -> None:
    replace_file(path, lambda part: part.write_text(text), what)


def find_samples(root: Path, items: Sequence[Item], wanted: int) -> Found:
    """The samples of a folder in GenEval's layout, by the rules of its script.

    A prompt has a folder whose name is all digits, of any width, with its record in ``metadata.jsonl`` and
    images ``samples/<digits>.png``; everything else is left alone. Folders belong to prompts by their
    records, not by their numbers. Nothing is followed out of `root`.

    Args:
        root: The folder.
        items: Prompts of the benchmark.
        wanted: Samples of each prompt.
    """
    by_record = {_key(record_of(item)): item for item in items}
    texts = {item.prompt.text for item in items}
    samples: dict[str, list[Sample]] = {}
    complaints: list[str] = []
    for place in sorted((p for p in _entries(root) if p.name.isascii() and p.name.isdigit()), key=_number):
        try:
            record = _read_record(place / METADATA, root)
        except ValueError as error:
            complaints.append(f"{place.name}: {error}")
            continue
        item = by_record.get(_key(record))
        if item is None:
            known = (
                "differs from the benchmark's for" if record["prompt"] in texts else "is of another prompt,"
            )
            complaints.append(f"{place.name}: the record in {METADATA} {known} {record['prompt']!r}")
        elif item.id in samples:
            complaints.append(
                f"{place.name}: a folder before it has the same prompt, {item.prompt.text!r}; this one is "
                "left out"
            )
        else:
            samples[item.id], faults = _images(item, place, root)
            complaints += faults
            if len(samples[item.id]) != wanted:
                complaints.append(
                    f"{place.name}: {len(samples[item.id])} samples of {item.prompt.text!r} instead of "
                    f"{wanted}"
                )
    missing = [item for item in items if item.id not in samples]
    complaints += [f"{item.id}: no folder has the prompt {item.prompt.text!r}" for item in missing]
    return Found([s for item in items for s in samples.get(item.id, [])], complaints)


def _images(item: Item, place: Path, root: Path) -> tuple[list[Sample], list[str]]:
    """The images of a prompt that can be read, and a line for each that cannot."""
    found: dict[int, Sample] = {}
    faults = []
    for path in _entries(place / SAMPLES):
        match = _SAMPLE.fullmatch(path.name)
        if match is None:
            continue
        at = f"{place.name}/{SAMPLES}/{path.name}"
        fault = _fault(path, root)
        if fault:
            faults.append(f"{at}: {fault}")
        elif int(match[1]) in found:
            faults.append(f"{at}: another file is sample {int(match[1])} as well; this one is left out")
        else:
            found[int(match[1])] = Sample(item, int(match[1]), path)
    return [found[index] for index in sorted(found)], faults


def _fault(path: Path, root: Path) -> str:
    """The reason why an image cannot be judged; empty if it can, as far as its structure shows."""
    if not path.resolve().is_relative_to(root.resolve()):
        return "a link that leads out of the folder; put the image itself in its place"
    if not path.is_file():
        return "no file"
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        return f"it cannot be read: {error}"
    return ""


def _read_record(path: Path, root: Path) -> Record:
    """The record of a folder.

    Raises:
        ValueError: If there is none; says why.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path.name} leads out of the folder; put the file itself in its place")
    try:
        return parse_record(read_file(path).decode("utf-8-sig"))
    except (OSError, StorageError, ValueError) as error:
        raise ValueError(f"{path.name} must hold the record of a prompt but: {error}") from error


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, by name; nothing if it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _number(path: Path) -> tuple[int, str]:
    return int(path.name), path.name


def _key(record: Any) -> str:
    return json.dumps(record, sort_keys=True)


def _shown(path: Path, folder: Path) -> str:
    """A path as seen from the folder of the results, if it is in it."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
