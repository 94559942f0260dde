"""Executors: where the searches of a run are carried out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tts_vision.errors import BusyError, TTSVisionError
from tts_vision.hub import asked_once
from tts_vision.resolve import Live
from tts_vision.runs.task import Record, Task
from tts_vision.runs.worker import Worker

POLL = 1.0
"""Seconds between two looks at searches that other processes run."""


@dataclass(frozen=True)
class Failed:
    """A search that could not be carried out."""

    task: Task
    error: TTSVisionError


Done: TypeAlias = Record | Failed


class Executor(ABC):
    """Carries out the searches of a run."""

    @abstractmethod
    def run(self, tasks: Sequence[Task], root: Path) -> Iterator[Done]:
        """Carries out each search once and yields it when it has ended, in any order.

        Searches that another process runs are left to it and yielded when they are finished.

        Args:
            tasks: The searches.
            root: The folder of the run.
        """


class LocalExecutor(Executor):
    """One search after the other, in this process.

    Args:
        live: Objects in the place of names, for all searches.
    """

    def __init__(self, live: Live | None = None) -> None:
        self.live = live

    def run(self, tasks: Sequence[Task], root: Path) -> Iterator[Done]:
        with asked_once():
            yield from self._run(Worker(root, self.live), tasks)

    def _run(self, worker: Worker, tasks: Sequence[Task]) -> Iterator[Done]:
        waiting = list(tasks)
        while waiting:
            busy = []
            for task in waiting:
                try:
                    yield worker.do(task)
                except BusyError:
                    busy.append(task)
                except TTSVisionError as error:
                    yield Failed(task, error)
            if len(busy) == len(waiting):
                time.sleep(POLL)
            waiting = busy
