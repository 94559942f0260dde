"""Data files of benchmarks, brought by the user: read strictly, each error with its line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Item
from tts_vision.prompt_files import decoded


@dataclass(frozen=True)
class Published:
    """Where the data of a benchmark is published.

    Attributes:
        benchmark: Name of the benchmark, for messages.
        address: Of the repository, with the name of the file.
        licence: Of the data.
        sha256: Of the published file, where it is known.
    """

    benchmark: str
    address: str
    licence: str
    sha256: str = ""


@dataclass(frozen=True)
class DataFile:
    """A data file, read whole.

    Attributes:
        path: As the user gave it.
        text: Its content without a byte order mark.
        sha256: Of its bytes.
        published: What it should be.
    """

    path: Path
    text: str
    sha256: str
    published: Published

    @property
    def note(self) -> str:
        """A sentence on whether it is the published file."""
        name, known = self.published.benchmark, self.published.sha256
        if not known:
            return f"The prompts of {name} are those of {self.path.name}, sha256 {self.sha256[:12]}."
        if self.sha256 == known:
            return f"The data of {name} is the published file, sha256 {known[:12]}."
        return (
            f"The data of {name} is not the published file (sha256 {self.sha256[:12]} instead of "
            f"{known[:12]}): figures do not compare with published ones."
        )

    def wrong(self, where: str, rule: str, found: str) -> ConfigError:
        """The error of a part of the file that breaks a rule.

        Args:
            where: Such as ``line 3``.
            rule: Completes "The data of ... must".
            found: Completes "but ... of the file".
        """
        return ConfigError(
            f"The data of {self.published.benchmark} must {rule} but {where} of {str(self.path)!r} {found}; "
            f"correct it, or take the published file ({self.published.address})."
        )


def read_data(path: Path | str | None, published: Published) -> DataFile:
    """Reads a data file as text in UTF-8 or, with a byte order mark, UTF-16.

    Raises:
        ConfigError: If it is missing or cannot be read; says where it is published, and its licence.
    """
    where = (
        f"it is published at {published.address} (licence: {published.licence}) and not part of this toolkit"
    )
    if path is None:
        raise ConfigError(f"{published.benchmark} needs its data but got none; give data=FILE: {where}.")
    file = Path(path).expanduser()
    try:
        raw = file.read_bytes()
        text = decoded(raw)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"The data of {published.benchmark} must be a readable file in UTF-8 but {str(path)!r} is not "
            f"({reason}); check the path: {where}."
        ) from error
    data = DataFile(file, text, hashlib.sha256(raw).hexdigest(), published)
    if not text.strip():
        raise data.wrong("all", "hold at least one prompt", "is empty")
    return data


def json_lines(data: DataFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with ``line N``; blank lines are skipped.

    Raises:
        ConfigError: If a line is no JSON object.
    """
    for number, line in enumerate(data.text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise data.wrong(where, "be JSON lines", f"is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise data.wrong(where, "have one JSON object in each line", f"is {record!r:.60}")
        yield where, record


def json_document(data: DataFile) -> Any:
    """The value of a JSON file.

    Raises:
        ConfigError: If it is no JSON.
    """
    try:
        return json.loads(data.text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise data.wrong(f"line {line}", "be JSON", f"is not ({error})") from error


def table(
    data: DataFile, columns: Sequence[str], delimiter: str = ","
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The rows of a table, each with ``line N``; rows without any cell are skipped.

    Args:
        data: The file; its first line names the columns.
        columns: Those that it must have.
        delimiter: Between cells.

    Raises:
        ConfigError: If a column is missing, or a row has another number of cells.
    """
    reader = csv.DictReader(io.StringIO(data.text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = reader.fieldnames or []
        if missing := [name for name in columns if name not in names]:
            raise data.wrong(
                "line 1", f"have the columns {', '.join(columns)}", f"lacks {', '.join(missing)}"
            )
        for row in reader:
            where = f"line {reader.line_num}"
            if None in row or any(value is None for value in row.values()):
                cells = sum(value is not None for key, value in row.items() if key) + len(row.get(None, []))
                raise data.wrong(where, f"have {len(names)} cells in each row", f"has {cells}")
            yield where, row
    except csv.Error as error:
        raise data.wrong(f"line {reader.line_num}", "be a table", f"is not ({error})") from error


def text_in(data: DataFile, where: str, record: Mapping[str, Any], key: str) -> str:
    """A text of a record, stripped.

    Raises:
        ConfigError: If it is missing, empty or no text.
    """
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise data.wrong(where, f"have a text {key!r} in each record", f"has {value!r:.60}")
    return value.strip()


def digest_of(items: Sequence[Item]) -> str:
    """Stands for prompts and their records, so that verdicts on others are not taken over."""
    facts = [[item.id, item.prompt.text, dict(item.prompt.metadata)] for item in items]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Distinct:
    """Refuses a value that was there before.

    Args:
        data: The file.
        what: Of which there must not be two, such as ``prompts``.
    """

    def __init__(self, data: DataFile, what: str) -> None:
        self._data, self._what = data, what
        self._seen: dict[Any, str] = {}

    def check(self, where: str, value: Any) -> None:
        """Remembers a value.

        Raises:
            ConfigError: If it was there before.
        """
        if value in self._seen:
            raise self._data.wrong(
                where, f"have distinct {self._what}", f"repeats {value!r:.60} of {self._seen[value]}"
            )
        self._seen[value] = where
