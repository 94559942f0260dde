"""Searches on many processes and machines, by Ray: an actor for each worker, which keeps its model loaded."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tts_vision.errors import BusyError, ConfigError, TTSVisionError, VerifierError
from tts_vision.hub import asked_once
from tts_vision.resolve import find_verifier, load_verifier
from tts_vision.runs.executors import POLL, Done, Executor, Failed
from tts_vision.runs.task import Record, Task
from tts_vision.runs.worker import Worker
from tts_vision.scoring import safe_scores
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier

ATTEMPTS = 3
"""Workers that may be lost over one search before it counts as failed."""


class RayExecutor(Executor):
    """Actors of Ray that each keep a model and its verifiers loaded and run whole searches.

    A worker that is lost is replaced, and its search goes on in another one. All workers see the folder of
    the run: on several machines it lies on a shared file system. What a search finds does not depend on the
    number of workers, as long as each has as many threads.

    Args:
        workers: Actors; by default one for each GPU, or one without any.
        num_gpus: GPUs that the workers share evenly.
        verifier_gpus: GPUs for verifiers in actors of their own, one each; while one search is judged
            there, its worker goes on with another. 0 keeps verifiers in the workers.
        overlap: Searches that a worker alternates between while verifiers are elsewhere; by default 2 with
            `verifier_actors`, else 1.
        verifier_actors: Actors for verifiers; by default one for each of `verifier_gpus`.
        threads: CPU threads of a worker; by default as many as this process has.
        address: Of a Ray cluster that runs; by default one is started on this machine.

    Raises:
        ConfigError: If a number is out of range, or Ray is not installed.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        num_gpus: int = 0,
        verifier_gpus: int = 0,
        verifier_actors: int | None = None,
        overlap: int | None = None,
        threads: int | None = None,
        address: str | None = None,
    ) -> None:
        self.workers = workers if workers is not None else max(1, num_gpus)
        self.verifier_actors = verifier_actors if verifier_actors is not None else verifier_gpus
        self.overlap = overlap if overlap is not None else (2 if self.verifier_actors else 1)
        self.threads = threads if threads is not None else torch.get_num_threads()
        for name, value, least in (
            ("workers", self.workers, 1),
            ("num_gpus", num_gpus, 0),
            ("verifier_gpus", verifier_gpus, 0),
            ("verifier_actors", self.verifier_actors, 0),
            ("overlap", self.overlap, 1),
            ("threads", self.threads, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} of Ray must be at least {least} but got {value}; raise it.")
        self.num_gpus, self.verifier_gpus, self.address = num_gpus, verifier_gpus, address
        self.ray = _import_ray()

    def run(self, tasks: Sequence[Task], root: Path) -> Iterator[Done]:
        live = next((name for task in tasks for name in task.config.live), None)
        if live is not None:
            raise ConfigError(
                f"Searches in other processes need {live} by name but got a Python object; name it, or use "
                "the local executor."
            )
        if not tasks:
            return
        started = not self.ray.is_initialized()
        if started:
            self._start()
        try:
            yield from _Pool(self, root).run(tasks)
        finally:
            if started:
                self.ray.shutdown()

    def _start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        own: dict[str, Any] = {"num_cpus": self.workers + self.verifier_actors} if not self.address else {}
        self.ray.init(
            address=self.address,
            include_dashboard=False if not self.address else None,
            log_to_driver=False,
            logging_level="ERROR",
            **own,
        )

    def spawn(self, root: Path, verifiers: Sequence[Any]) -> Any:
        """A new worker."""
        share = self.num_gpus / self.workers
        made = self.ray.remote(_Actor).options(
            num_cpus=1,
            num_gpus=int(share) if share >= 1 else share,
            max_concurrency=self.overlap,
            runtime_env={"env_vars": self._environment()},
        )
        return made.remote(root, self.threads, verifiers)

    def spawn_verifier(self) -> Any:
        """A new actor for verifiers."""
        share = self.verifier_gpus / self.verifier_actors
        made = self.ray.remote(_VerifierActor).options(
            num_cpus=1, num_gpus=share, max_restarts=-1, runtime_env={"env_vars": self._environment()}
        )
        return made.remote(self.threads)

    def _environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}


class _Pool:
    """The workers of a run, by slot, and the searches that they are at."""

    def __init__(self, executor: RayExecutor, root: Path) -> None:
        self.executor, self.root, self.ray = executor, root, executor.ray
        self.verifiers = [executor.spawn_verifier() for _ in range(executor.verifier_actors)]
        self.workers = [self._spawn() for _ in range(executor.workers)]

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """Carries out the searches, each in the slot that is free first."""
        waiting = deque(tasks)
        free = deque(list(range(len(self.workers))) * self.executor.overlap)
        running: dict[Any, tuple[int, Any, Task]] = {}
        lost: Counter[str] = Counter()
        while waiting or running:
            while waiting and free:
                slot, task = free.popleft(), waiting.popleft()
                worker = self.workers[slot]
                running[worker.do.remote(task)] = (slot, worker, task)
            ready, _ = self.ray.wait(list(running), num_returns=1)
            slot, worker, task = running.pop(ready[0])
            free.append(slot)
            try:
                found = self.ray.get(ready[0])
            except self.ray.exceptions.RayActorError as error:
                if self.workers[slot] is worker:  # else another search of it has told so before
                    self.workers[slot] = self._spawn()
                lost[task.name] += 1
                if lost[task.name] < ATTEMPTS:
                    waiting.appendleft(task)
                else:
                    yield Failed(task, _lost(task, error))
                continue
            if found is None:  # another run's process has it
                waiting.append(task)
                time.sleep(POLL / len(self.workers))
            else:
                yield Failed(task, found) if isinstance(found, TTSVisionError) else found

    def _spawn(self) -> Any:
        return self.executor.spawn(self.root, self.verifiers)


class _Actor:
    """A worker in a process of its own."""

    def __init__(self, root: Path, threads: int, verifiers: Sequence[Any]) -> None:
        torch.set_num_threads(threads)
        asked_once().__enter__()  # for as long as the process lives
        # searches that alternate take turns at the model, which keeps state of its own while it computes
        self.turn = threading.Lock()
        self.verifiers = verifiers
        self.worker = Worker(root, load=self._load if verifiers else None)

    def do(self, task: Task) -> Record | TTSVisionError | None:
        """The record of a search; its error; None if another process runs it."""
        with self.turn:
            try:
                return self.worker.do(task)
            except BusyError:
                return None
            except TTSVisionError as error:
                return error

    def _load(self, text: str) -> Verifier:
        return _RemoteVerifier(text, self.verifiers, self.turn)


class _VerifierActor:
    """Verifiers in a process of their own."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.loaded: dict[str, Verifier] = {}

    def load(self, text: str) -> None:
        """Loads a verifier, once."""
        if text not in self.loaded:
            verifier = load_verifier(find_verifier(text))
            verifier.load()
            self.loaded[text] = verifier

    def score(
        self, text: str, media: list[Media], prompts: list[Prompt], step: int | None
    ) -> tuple[list[Score], list[dict[str, int]]]:
        """The scores of samples, and the calls that are charged beyond those announced."""
        self.load(text)
        charged: list[dict[str, int]] = []
        asked = Asked(charge=lambda calls: charged.append(dict(calls)), step=step)
        return safe_scores(self.loaded[text], media, prompts, asked=asked, paid=True), charged


class _RemoteVerifier(Verifier):
    """A verifier that scores in an actor of its own, while its worker goes on with another search."""

    def __init__(self, text: str, actors: Sequence[Any], turn: threading.Lock) -> None:
        local = load_verifier(find_verifier(text))  # for its facts: its model is not loaded
        if local.learns or local.relative or local.settles:
            raise VerifierError(
                f"A verifier in a process of its own must score each sample by itself but {text!r} compares "
                "samples or learns from the search; leave out --verifier-gpus."
            )
        self.text, self.turn, self.local = text, turn, local
        self.actor = actors[sum(text.encode()) % len(actors)]
        self.name, self.accepts, self.checks_demands = local.name, local.accepts, local.checks_demands

    def calls(self, n: int) -> dict[str, int]:
        return self.local.calls(n)

    def load(self) -> None:
        self._get(self.actor.load.remote(self.text))

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        scores, charged = self._get(
            self.actor.score.remote(self.text, list(media), list(prompts), asked.step)
        )
        for calls in charged:
            asked.charge(calls)
        found: list[Score] = scores
        return found

    def _get(self, reference: Any) -> Any:
        self.turn.release()
        try:
            return _import_ray().get(reference)
        finally:
            self.turn.acquire()


def _lost(task: Task, error: Exception) -> TTSVisionError:
    return TTSVisionError(
        f"A search must leave its worker alive but {ATTEMPTS} were lost over {task.name!r} "
        f"({str(error).splitlines()[0]}); most likely memory is full: use fewer workers or a smaller "
        "max_batch."
    )


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise ConfigError(
            "Searches on several workers need Ray but it is not installed; 'pip install tts-vision[ray]'."
        ) from None
    return ray
