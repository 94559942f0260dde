"""Comparisons of the app: run on the worker of the searches, and followed by the script of the page."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from tts_vision.app.jobs import Jobs
from tts_vision.app.ui_words import for_artists
from tts_vision.comparisons import Cell, Comparison, compare
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError, StopSearch, TTSVisionError
from tts_vision.runs.task import json_value

SEARCHES = 2000
"""Searches of one comparison, at most."""
_KEPT = 16


@dataclass(frozen=True)
class Plan:
    """A comparison that is asked for.

    Attributes:
        model: The model.
        prompts: What to generate.
        algorithms: Names, with parameters as ``name:key=value``.
        verifiers: What guides.
        evaluator: Judges the best samples without guiding; None without one.
        budget: What each search may spend.
        seeds: Root seeds.
    """

    model: str
    prompts: Sequence[str]
    algorithms: Sequence[str]
    verifiers: Sequence[str]
    evaluator: str | None
    budget: str
    seeds: Sequence[int]

    def configs(self) -> list[RunConfig]:
        """The settings of one search for each prompt, algorithm and verifier.

        Raises:
            ConfigError: If something cannot be used as given.
        """
        if not (self.prompts and self.algorithms and self.verifiers and self.seeds):
            raise ConfigError(
                "A comparison needs prompts, algorithms, verifiers and seeds but one of them is missing; "
                "give at least one of each."
            )
        return [
            RunConfig(
                prompt=prompt,
                model=self.model,
                algorithm=algorithm,
                verifier=verifier,
                holdout_verifier=self.evaluator,
                budget=self.budget,
                seed=self.seeds[0],
            )
            for prompt in self.prompts
            for algorithm in self.algorithms
            for verifier in self.verifiers
        ]


@dataclass
class Running:
    """A comparison and how far it has come.

    Attributes:
        id: Name of the comparison, and of its folder.
        plan: What is compared.
        state: As the state of a job.
        done: Searches that have ended.
        total: Searches in all.
        cells: The searches that have ended, while it runs.
        outcome: The comparison at its end.
        error: Why it failed.
        stops: Whether it was told to stop.
    """

    id: str
    plan: Plan
    state: str = "queued"
    done: int = 0
    total: int = 0
    cells: list[Cell] = field(default_factory=list)
    outcome: Comparison | None = None
    error: str | None = None
    stops: bool = False


class Comparisons:
    """The comparisons of one server; the last few are kept in memory, all of them in the output folder.

    Args:
        jobs: The searches of the server, whose worker and models comparisons use.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}

    def start(self, plan: Plan) -> str:
        """Queues a comparison; returns its id.

        Raises:
            ConfigError: If something cannot be used as given, or is not allowed here.
            QueueFullError: If the queue is full.
        """
        configs = plan.configs()
        for config in configs:
            self._jobs.rules.check(config)
        total = len(configs) * len(plan.seeds)
        if total > SEARCHES:
            raise ConfigError(
                f"A comparison here may have {SEARCHES} searches but this one has {total}; give fewer "
                "prompts or seeds, or use 'tts-vision compare'."
            )
        running = Running(f"comparison-{secrets.token_hex(4)}", plan)
        future = self._jobs.call(lambda: self._run(running, configs[0]))
        future.add_done_callback(lambda done: _ended(running, done.exception))
        with self._lock:
            self._running[running.id] = running
            for id in list(self._running)[:-_KEPT]:
                if self._running[id].state not in ("queued", "running"):
                    del self._running[id]
        return running.id

    def stop(self, id: str) -> None:
        """Ends a comparison after the search that runs now; what is done stays.

        Raises:
            ConfigError: If there is none.
        """
        self._get(id).stops = True

    def look(self, id: str) -> dict[str, Any]:
        """How far a comparison has come, as JSON has it.

        Raises:
            ConfigError: If there is none.
        """
        running = self._get(id)
        found = running.outcome
        if found is None:
            root = self._jobs.output / running.id
            found = Comparison(running.plan.budget, running.plan.evaluator, list(running.cells), [], root)
        return {
            "id": running.id,
            "state": running.state,
            "done": running.done,
            "total": running.total,
            "error": None if running.error is None else for_artists(running.error),
            "evaluator": running.plan.evaluator,
            "unit": "multiply-accumulates" if found.counts_macs else "network evaluations (nfe)",
            "rows": [json_value(asdict(row)) for row in found.rows()] if _has_plain(found) else [],
            "curves": _curves(found) if running.outcome is not None else [],
            "folder": running.id,
        }

    def _get(self, id: str) -> Running:
        with self._lock:
            if id not in self._running:
                raise ConfigError(
                    f"There must be a comparison of that id but {id[:80]!r} is none of this session of the "
                    "server; its folder has the results, or start it again."
                )
            return self._running[id]

    def _run(self, running: Running, first: RunConfig) -> None:
        from tts_vision.resolve import Live
        from tts_vision.runs.executors import LocalExecutor
        from tts_vision.trust import allowing

        running.state = "running"
        _check_stop(running)

        def report(done: int, total: int, cell: Cell) -> None:
            running.done, running.total = done, total
            running.cells = [*running.cells, cell]
            _check_stop(running)

        plan = running.plan
        with allowing(()):
            pipe = self._jobs.models.live(first).pipe
            running.outcome = compare(
                plan.model,
                plan.prompts,
                algorithms=plan.algorithms,
                verifiers=plan.verifiers,
                evaluator=plan.evaluator,
                budget=plan.budget,
                seeds=plan.seeds,
                output=self._jobs.output / running.id,
                executor=LocalExecutor(Live(pipe=pipe)),
                progress=report,
            )


def _check_stop(running: Running) -> None:
    if running.stops:
        raise StopSearch("by the user")


def _ended(running: Running, exception: Callable[[], BaseException | None]) -> None:
    """Notes how a comparison ended."""
    from tts_vision.failures import explain

    error: BaseException | None = StopSearch("cancelled")
    with suppress(CancelledError):
        error = exception()
    if error is None:
        running.state = "finished"
    elif isinstance(error, StopSearch):
        running.state = "stopped"
    else:
        told = (
            error if isinstance(error, TTSVisionError) or not isinstance(error, Exception) else explain(error)
        )
        running.state, running.error = "failed", str(told)


def _has_plain(found: Comparison) -> bool:
    """Whether gains can be told: every verifier has a plain sample to compare with."""
    verifiers = {cell.verifier for cell in found.cells}
    return verifiers == {cell.verifier for cell in found.cells if cell.algorithm == "plain"}


def _curves(found: Comparison) -> list[dict[str, Any]]:
    """The mean curves by verifier."""
    charts = []
    for verifier in dict.fromkeys(cell.verifier for cell in found.cells):
        lines = []
        for name in dict.fromkeys(cell.algorithm for cell in found.cells):
            spent, best = found.mean_curve(verifier, name)
            lines.append({"name": name, "points": [list(point) for point in zip(spent, best)]})
        charts.append({"verifier": verifier, "lines": lines})
    return charts
