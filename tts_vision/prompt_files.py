"""Files of prompts: one per line, JSON lists, JSON lines, CSV."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tts_vision.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """A prompt of a file, before anything heavy is imported.

    Attributes:
        text: As in `tts_vision.types.Prompt`.
        metadata: As in `tts_vision.types.Prompt`.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def decoded(raw: bytes) -> str:
    """The text of a file in UTF-8 or, with a byte order mark, UTF-16.

    Raises:
        UnicodeDecodeError: If it is in another encoding.
    """
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return raw.decode("utf-16" if utf16 else "utf-8-sig")


def read_records(path: Path | str) -> list[Record]:
    """Prompts from a file: one per line, a JSON list, JSON lines, or CSV with a column ``prompt``.

    Records keep their other fields as metadata for verifiers. A byte order mark is ignored. CSV is told by
    the ending ``.csv`` or ``.tsv``, or by a first line of several columns of which one is ``prompt``.

    Raises:
        ConfigError: If the file is no such file.
    """
    file = Path(path).expanduser()
    try:
        text = decoded(file.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Prompts must be a readable text file in UTF-8 but {str(path)!r}: {error}; check it."
        ) from error
    lines = text.splitlines()
    delimiter = _delimiter(file, lines)
    if delimiter:
        prompts = _from_table(text, delimiter, path)
    elif text.lstrip().startswith("["):
        prompts = _from_list(text, path)
    else:
        prompts = [
            _from_line(line.strip(), number, path) for number, line in enumerate(lines, 1) if line.strip()
        ]
    if not prompts:
        raise ConfigError(f"A file of prompts must hold at least one but {str(path)!r} is empty; add a line.")
    return prompts


def _delimiter(file: Path, lines: Sequence[str]) -> str:
    """What separates the columns of a table of prompts; empty if the file is no table."""
    if file.suffix.lower() in {".csv", ".tsv"}:
        return "\t" if file.suffix.lower() == ".tsv" else ","
    for delimiter in ("\t", ","):
        head = [cell.strip().strip('"').lower() for cell in lines[0].split(delimiter)] if lines else []
        if len(head) > 1 and "prompt" in head:
            return delimiter
    return ""


def _from_table(text: str, delimiter: str, path: Path | str) -> list[Record]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = [name or "" for name in rows.fieldnames or []]
        column = next((name for name in columns if name.strip().lower() == "prompt"), None)
        if column is None:
            raise ConfigError(
                f"A table of prompts must have a column 'prompt' but {str(path)!r} has "
                f"{', '.join(columns) or 'none'}; name it in the first line."
            )
        return [
            Record(row[column].strip(), {str(k): v for k, v in row.items() if k not in (column, None) and v})
            for row in rows
            if (row[column] or "").strip()
        ]
    except csv.Error as error:
        raise ConfigError(
            f"A table of prompts must be CSV but line {rows.line_num} of {str(path)!r} is not ({error}); "
            "correct it."
        ) from error


def _from_list(text: str, path: Path | str) -> list[Record]:
    """Prompts of a JSON list; of lines where a first line in brackets is no JSON."""
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and text.lstrip()[1:].lstrip()[:1] not in {'"', "{"}:
            lines = enumerate(text.splitlines(), 1)
            return [_from_line(line.strip(), number, path) for number, line in lines if line.strip()]
        raise ConfigError(
            f"A list of prompts must be JSON but {str(path)!r} is not ({error}); correct it."
        ) from error
    return [_from_record(record, f"item {number}", path) for number, record in enumerate(records, 1)]


def _from_line(line: str, number: int, path: Path | str) -> Record:
    if not line.startswith("{"):
        return Record(line)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"A line of JSON prompts must be an object with 'prompt' but line {number} of {str(path)!r} is "
            f"not ({error}); correct it."
        ) from error
    return _from_record(record, f"line {number}", path)


def _from_record(record: Any, where: str, path: Path | str) -> Record:
    """A prompt from a JSON value: a text, or an object with ``prompt``."""
    text = record.get("prompt") if isinstance(record, Mapping) else record
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(
            f"Prompts in JSON must be texts, or objects with a text 'prompt', but {where} of {str(path)!r} "
            f"is {json.dumps(record, ensure_ascii=False)[:80]}; correct it."
        )
    rest = {k: v for k, v in record.items() if k != "prompt"} if isinstance(record, Mapping) else {}
    return Record(text.strip(), rest)
