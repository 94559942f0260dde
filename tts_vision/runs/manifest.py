"""The manifest of a run: one line for each finished search, only ever appended to."""

from __future__ import annotations

import os
from pathlib import Path

from tts_vision.files import append_lines, is_file, open_file, storage
from tts_vision.runs.task import Record

MANIFEST = "manifest.jsonl"


class Manifest:
    """The finished searches of a run.

    Several processes may append to one manifest. A line that a killed process left half written is skipped;
    its search is finished, and gets its line again from its folder.

    Args:
        root: The folder of the run.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / MANIFEST
        self._known: dict[str, Record] = {}
        self._read = 0  # bytes, up to the end of a line

    def read(self) -> dict[str, Record]:
        """The records by the names of their searches; of several with one name, the first.

        Only what was appended since the last time is read.

        Raises:
            StorageError: If it cannot be read.
        """
        if not is_file(self.path):
            return {}
        with storage(self.path, "The manifest"), os.fdopen(open_file(self.path, os.O_RDONLY), "rb") as file:
            file.seek(self._read)
            new, end, _ = file.read().rpartition(b"\n")
        self._read += len(new) + len(end)
        for line in new.decode("utf-8", "replace").split("\n"):
            try:
                record = Record.load(line)
            except ValueError:
                continue
            self._known.setdefault(record.name, record)
        return dict(self._known)

    def add(self, record: Record) -> None:
        """Appends a finished search, unless it is there.

        Raises:
            StorageError: If it cannot be written.
        """
        if record.name in self.read():
            return
        with storage(self.path, "The manifest"):
            append_lines(self.path, record.dump() + "\n")
