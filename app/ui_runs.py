"""The runs of the output folder, as the gallery shows them."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tts_vision.app.jobs import Jobs
from tts_vision.app.ui_recipe import command, snippet
from tts_vision.app.ui_words import for_artists
from tts_vision.app.watch import kind_of, thumbnail_of
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError, TTSVisionError
from tts_vision.files import CONFIG, RESULT, TRACE, inside, is_file, is_folder, is_plain, read_file
from tts_vision.folders import has_result, is_finished, read_config
from tts_vision.replays import Replay, replay

PAGE = 24
"""Runs that are shown at once."""
_EXPORTS = {
    "best.png": "The image, with its settings in it (PNG)",
    "best.mp4": "The clip, with its settings in it (MP4)",
    "best.gif": "The clip, small (GIF)",
    "best.mkv": "The clip without loss (MKV)",
    "drafts.png": "The contact sheet of the drafts (PNG)",
    "contact_sheet.png": "All samples (PNG)",
    "scaling.png": "Score over compute (PNG)",
    "lineage.svg": "Lineage (SVG)",
    CONFIG: "All settings (YAML)",
}
_KINDS = {
    ".png": "image/png",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".mkv": "video/x-matroska",
    ".svg": "image/svg+xml",
}
_CHANGED_BY = ("steering", "picks")


@dataclass(frozen=True)
class Run:
    """A run of the output folder.

    Attributes:
        id: Name of its folder, which is the id of its job.
        prompt: What was asked for.
        model: The model.
        algorithm: The algorithm.
        verifier: The verifier.
        budget: The budget.
        seed: The root seed.
        state: ``finished``, ``stopped``, or ``unfinished``.
        score: Score of the best sample; None without one.
    """

    id: str
    prompt: str
    model: str
    algorithm: str
    verifier: str
    budget: str
    seed: int
    state: str
    score: float | None


class Runs:
    """The runs of a server's output folder.

    Args:
        jobs: The searches of the server.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._replays: dict[str, Future[Replay]] = {}

    def list(self, text: str = "", model: str = "", algorithm: str = "", first: int = 0) -> dict[str, Any]:
        """A page of the runs, newest first, as JSON has it.

        Args:
            text: Words that their prompts have.
            model: Their model, if not all.
            algorithm: Their algorithm, if not all.
            first: Runs before this page.
        """
        every = self._all()
        words = text.lower().split()
        found = [
            run
            for run in every
            if all(word in run.prompt.lower() for word in words)
            and model in ("", run.model)
            and algorithm in ("", run.algorithm)
        ]
        shown = found[first : first + PAGE]
        return {
            "runs": [{**asdict(run), "image": self._image(run.id)} for run in shown],
            "total": len(found),
            "models": sorted({run.model for run in every}),
            "algorithms": sorted({run.algorithm for run in every}),
        }

    def recipe(self, id: str) -> dict[str, Any]:
        """All about a run: its settings, its files, and how it is made again.

        Raises:
            ConfigError: If there is none.
        """
        root = self._folder(id)
        config = read_config(root)
        best = next((name for name in ("best.png", "best.mp4") if is_file(root / name)), "best.png")
        return {
            "run": asdict(_run(root)),
            "command": command(config),
            "snippet": snippet(config, best),
            "files": [
                {"name": name, "label": label} for name, label in _EXPORTS.items() if is_file(root / name)
            ],
            "best": _best(root),
            "note": _note(root, config),
        }

    def file(self, id: str, name: str) -> dict[str, Any]:
        """A file of a run as a data URL.

        Raises:
            ConfigError: If there is no such file to take home.
        """
        root = self._folder(id)
        if name not in _EXPORTS or not is_file(inside(root, name)):
            raise ConfigError(
                f"A run's files are {', '.join(_EXPORTS)} but got {name[:80]!r}; reload the page."
            )
        kind = _KINDS.get(Path(name).suffix, "text/plain")
        return {"source": _url(read_file(root / name), kind), "kind": kind.partition("/")[0]}

    def again(self, id: str) -> str:
        """Queues the same search as a run; returns the id of the new job.

        Raises:
            ConfigError: If there is no such run, or it asks for something that is not allowed here.
            QueueFullError: If the queue is full.
        """
        return self._jobs.submit(read_config(self._folder(id))).id

    def replay(self, id: str) -> dict[str, Any]:
        """Makes the best sample of a run again from its record; the first call begins, further ones ask.

        Raises:
            ConfigError: If there is no such run, or it asks for something that is not allowed here.
            QueueFullError: If the queue is full.
        """
        root = self._folder(id)
        with self._lock:
            future = self._replays.get(id)
            if future is None:
                config = read_config(root)
                self._jobs.rules.check(config)
                future = self._replays[id] = self._jobs.call(lambda: self._replayed(root, config))
            if not future.done():
                return {"state": "running"}
            del self._replays[id]
        made = future.result()
        image = _url(thumbnail_of(made.path))
        return {"state": "finished", "difference": made.max_difference, "image": image}

    def _replayed(self, root: Path, config: RunConfig) -> Replay:
        live = self._jobs.models.live(config)
        return replay(root, pipe=live.pipe, verifier=live.verifier)

    def _all(self) -> Sequence[Run]:
        found: list[tuple[float, Path]] = []
        with suppress(OSError):
            for path in self._jobs.output.iterdir():
                with suppress(OSError, TTSVisionError):
                    if is_plain(path.name) and is_folder(path) and is_file(path / CONFIG):
                        found.append((path.stat().st_mtime, path))
        runs = []
        for _, path in sorted(found, reverse=True):
            with suppress(OSError, TTSVisionError, ValueError, KeyError, TypeError):
                runs.append(_cached_run(path, _stamp(path)))
        return runs

    def _folder(self, id: str) -> Path:
        root = self._jobs.output / id
        if not is_plain(id) or not is_folder(root) or not is_file(root / CONFIG):
            raise ConfigError(f"There must be a run of that name but {id[:80]!r} is none; reload the page.")
        return root

    def _image(self, id: str) -> str | None:
        root = self._jobs.output / id
        for name in ("best.png", "best.mkv", "drafts.png"):
            with suppress(OSError, TTSVisionError):
                if is_file(root / name):
                    return _thumbnail(root / name, (root / name).stat().st_mtime_ns)
        return None


def _run(root: Path) -> Run:
    config = read_config(root)
    best = json.loads(read_file(root / RESULT))["best"] if has_result(root) else None
    score = best["score"] if best is not None else None
    state = "finished" if is_finished(root) else "stopped" if has_result(root) else "unfinished"
    return Run(
        id=root.name,
        prompt=config.prompt,
        model=config.model,
        algorithm=config.algorithm,
        verifier=config.verifier,
        budget=config.budget,
        seed=config.seed,
        state=state,
        score=score if isinstance(score, (int, float)) else None,
    )


def _best(root: Path) -> int | None:
    """The best sample of a run, by its number."""
    best = json.loads(read_file(root / RESULT))["best"] if has_result(root) else None
    return None if best is None else int(best["uid"])


@lru_cache(maxsize=2048)
def _cached_run(root: Path, stamp: tuple[int, ...]) -> Run:
    return _run(root)


def _stamp(root: Path) -> tuple[int, ...]:
    """Changes when the state of a run does."""
    return tuple(
        path.stat().st_mtime_ns if path.exists() else 0 for path in (root, root / CONFIG, root / RESULT)
    )


@lru_cache(maxsize=512)
def _thumbnail(path: Path, stamp: int) -> str:
    return _url(thumbnail_of(path))


def _note(root: Path, config: RunConfig) -> str:
    """Why the settings alone do not make the same result again, if they do not."""
    from tts_vision.config import Spec
    from tts_vision.trace import read_trace

    asked = any(name == "human" for name in _names(Spec.parse(config.verifier)))
    touched = any(event.kind == "answer" and event.what in _CHANGED_BY for event in read_trace(root / TRACE))
    if not asked and not touched:
        return ""
    return for_artists(
        "You had a say in this run, so its settings alone may lead elsewhere; 'Replay' makes its best sample "
        "again."
    )


def _names(spec: Any) -> list[str]:
    return [spec.name, *(name for member in spec.members for name in _names(member))]


def _url(data: bytes, kind: str | None = None) -> str:
    """A data URL, by default of a thumbnail."""
    return f"data:{kind or kind_of(data)};base64,{base64.b64encode(data).decode()}"
