"""Carries out a grid of searches, each once, over interruptions and by any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tts_vision.errors import ConfigError
from tts_vision.files import storage
from tts_vision.runs.executors import Done, Executor, Failed, LocalExecutor
from tts_vision.runs.manifest import Manifest
from tts_vision.runs.task import Record, Task

Progress: TypeAlias = Callable[[int, int, Done], None]
"""Called after each search with the number done, earlier ones included, their total, and the search."""


@dataclass(frozen=True)
class Run:
    """The outcome of a run.

    Attributes:
        root: Its folder.
        records: The finished searches, in the order of the tasks.
        failed: Those that could not be carried out.
    """

    root: Path
    records: list[Record]
    failed: list[Failed]


def run_tasks(
    tasks: Sequence[Task], root: Path, *, executor: Executor | None = None, progress: Progress | None = None
) -> Run:
    """Carries out searches, each in a folder of its own, and keeps a manifest of the finished ones.

    Called again with the same `root`, finished searches are read from the manifest and unfinished ones
    continued. Several processes, on any machines that see the folder, may work on it at once.

    Args:
        tasks: The searches.
        root: The folder of the run.
        executor: Where they are carried out; by default one after the other in this process.
        progress: Called after each search.

    Raises:
        TTSVisionError: The error of the first search, if it fails before any succeeded: most likely all will.
        ConfigError: If two searches have one name.
    """
    if len({task.name for task in tasks}) < len(tasks):
        twice = next(t.name for t in tasks if sum(o.name == t.name for o in tasks) > 1)
        raise ConfigError(f"Searches of a run need names of their own but two are called {twice!r}.")
    with storage(root, "The run"):
        root.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(root)
    known = manifest.read()
    done = {
        task.name: record
        for task in tasks
        if (record := known.get(task.name)) is not None
        and record.hash == task.config.hash
        and _is_kept(record, root)
    }
    failed: list[Failed] = []
    todo = [task for task in tasks if task.name not in done]
    for each in (executor or LocalExecutor()).run(todo, root):
        if isinstance(each, Failed):
            failed.append(each)
            if not done:
                raise each.error
        else:
            manifest.add(each)
            done[each.name] = each
        _tell(progress, len(done) + len(failed), len(tasks), each)
    return Run(root, [done[task.name] for task in tasks if task.name in done], failed)


def _is_kept(record: Record, root: Path) -> bool:
    """Whether the best sample of a search is where the record says."""
    path = record.path(root)
    return path is None or path.is_file()


def _tell(progress: Progress | None, count: int, total: int, done: Done) -> None:
    if progress is not None:
        progress(count, total, done)
