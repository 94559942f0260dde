"""The manifest of a run: one line for each finished search, only ever appended to."""

from __future__ import annotations

import os
from pathlib import Path

from tts_vision.files import append_to, is_file, read_file, storage
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

    def read(self) -> dict[str, Record]:
        """The records by the names of their searches; of several with one name, the first.

        Raises:
            StorageError: If it cannot be read.
        """
        found: dict[str, Record] = {}
        if not is_file(self.path):
            return found
        with storage(self.path, "The manifest"):
            text = read_file(self.path).decode("utf-8", "replace")
        for line in text.splitlines():
            try:
                record = Record.load(line)
            except ValueError:
                continue
            found.setdefault(record.name, record)
        return found

    def add(self, record: Record) -> None:
        """Appends a finished search.

        Raises:
            StorageError: If it cannot be written.
        """
        with storage(self.path, "The manifest"):
            if record.name in self.read():
                return
            whole = not is_file(self.path) or read_file(self.path)[-1:] in (b"", b"\n")
            with append_to(self.path) as file:
                # one write, so that lines of two processes do not mix
                file.write(("" if whole else "\n").encode() + record.dump().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
