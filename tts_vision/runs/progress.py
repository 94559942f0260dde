"""Shows how a run gets on: a bar on a terminal, a line for each search elsewhere."""

from __future__ import annotations

import time
from typing import TextIO

from rich.progress import BarColumn, TextColumn

from tts_vision.progress import SECONDS_BETWEEN_LINES, Report, clock
from tts_vision.runs.executors import Done, Failed


class RunReport(Report):
    """Observes a run and reports searches done, their rate, and the time left.

    Use it as a context manager, and pass it as ``progress`` to `run_tasks`.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, (BarColumn(), TextColumn("{task.description}")))
        self._start = time.monotonic()
        self._before: int | None = None
        self._last_line = -SECONDS_BETWEEN_LINES

    def __call__(self, done: int, total: int, search: Done) -> None:
        """Takes note of a search that has ended."""
        if self._before is None or done <= self._before:  # the first one, or a new round
            self._before = done - 1
        if isinstance(search, Failed):
            self._print(f"failed  {search.task.name}: {search.error}")
        words = self._words(done, total)
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=words)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES or done == total:
            self._last_line = now
            self._print(words)
        if done == total:
            self._start = now

    def _words(self, done: int, total: int) -> str:
        assert self._before is not None
        gone = time.monotonic() - self._start
        rate = (done - self._before) / gone if gone > 0 else 0.0
        left = f", {clock((total - done) / rate)} left" if rate and done < total else ""
        return f"{done}/{total} searches, {60 * rate:.3g} a minute, {clock(gone)} gone{left}"

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self._stream, flush=True)
