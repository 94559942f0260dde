"""The searches of the app: a bounded queue, one worker, and a job for each search.

A job is kept in a folder of its own under the output folder, so that it is found again after a reload of the
page or a restart of the server. Pausing a search means interrupting it: resumed, it goes on from its record
with the same result, byte for byte.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tts_vision.app.job import Job, JobState
from tts_vision.app.rules import Rules
from tts_vision.condition import Asset
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError, TTSVisionError
from tts_vision.files import is_folder, is_plain, make_inside, replace_file, storage
from tts_vision.folders import has_result, is_finished, read_config
from tts_vision.loaded import Models
from tts_vision.steering import Decisions
from tts_vision.trust import allowing

if TYPE_CHECKING:
    from PIL import Image

    from tts_vision.app.estimate import Estimate, Speed
    from tts_vision.results import Result
    from tts_vision.types import Media, Score

UPLOADS = "uploads"
"""Folder, inside the output folder, of the images that people bring to refine them."""
JOBS_IN_MEMORY = 64
"""Jobs that are kept in memory after their end; older ones are read from their folders again."""
Answer = TypeVar("Answer")


class QueueFullError(ConfigError):
    """The queue has as many searches as it may have."""


class Jobs:
    """The searches of one server.

    Args:
        output: The folder that holds a folder for each search.
        queue: Searches that may wait; one more is refused.
        rules: What may be asked for.
        models: Models whose weights stay in memory; the least recently used one leaves first.
    """

    def __init__(
        self, output: Path | str, *, queue: int = 20, rules: Rules | None = None, models: int = 1
    ) -> None:
        self.output = Path(output).expanduser().resolve()
        self.rules = replace(rules or Rules(), output=self.output)
        self._bound = queue
        self._models = Models(models)
        self._jobs: dict[str, Job] = {}
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._queue: list[Job | Future[Any]] = []
        self._calls: dict[Future[Any], Callable[[], Any]] = {}
        self._speeds: dict[str, Speed] = {}
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="tts-vision searches", daemon=True)
        self._worker.start()

    def submit(self, config: RunConfig) -> Job:
        """Queues a search.

        Raises:
            ConfigError: If it asks for something that is not allowed here, or cannot be used as given.
            QueueFullError: If the queue is full.
        """
        from tts_vision.resolve import fill_defaults

        self.rules.check(config)
        config = fill_defaults(config)  # mistakes that need no model are told at once
        return self._add(config)

    def refine(
        self,
        job: Job,
        uid: int,
        *,
        prompt: str | None = None,
        n: int = 8,
        strength: float | None = None,
        by_hand: bool = False,
    ) -> Job:
        """Queues the refinement of a sample of another search: candidates around it, and the best kept.

        Args:
            job: The other search, finished or not.
            uid: The sample.
            prompt: What it should show; by default that of the other search.
            n: Candidates.
            strength: How far they may go from it, from 0 to 1.
            by_hand: Whether the person at the page judges them.

        Raises:
            ConfigError: If there is no such sample, it cannot be refined, or it is not allowed here.
            QueueFullError: If the queue is full.
        """
        from tts_vision.refining import of_result

        settings = {"verifier": "human"} if by_hand else {}
        self.rules.check(job.config)
        with allowing(()):
            config = of_result(job.folder, uid, prompt=prompt, n=n, strength=strength, settings=settings)
        return self.submit(config)

    def refine_image(
        self, image: Image.Image, config: RunConfig, *, n: int = 8, strength: float | None = None
    ) -> Job:
        """Queues the refinement of an image that somebody brings; it is kept in the output folder.

        Args:
            image: The image.
            config: The settings of a search, of which all but the algorithm count.
            n: Candidates.
            strength: How far they may go from it, from 0 to 1.

        Raises:
            ConfigError: If something cannot be used as given, or is not allowed here.
            QueueFullError: If the queue is full.
        """
        from tts_vision.refining import ALGORITHM

        self.rules.check(config)
        name = Asset.of(image.convert("RGB")).name
        path = self.output / UPLOADS / name
        with storage(path, "An image to refine"):
            make_inside(path.parent)
            replace_file(path, lambda part: image.convert("RGB").save(part, "PNG"), "An image to refine")
        params = {"image": str(path), "n": n, "strength": strength}
        update = {"algorithm": ALGORITHM, "algorithm_params": params, "budget": f"{n + 1}x", "target": None}
        return self.submit(config.model_copy(update=update))

    def _add(self, config: RunConfig) -> Job:
        words = re.sub(r"[^a-z0-9]+", "-", config.prompt.lower()).strip("-")[:40].rstrip("-") or "run"
        id = f"{words}-{secrets.token_hex(4)}"
        job = Job(id, self.output / id, config, self, "queued")
        with self._lock:
            self._enqueue(job)
            self._jobs[id] = job
            self._forget()
        return job

    def get(self, id: str) -> Job:
        """The job of an id; read from its folder if it is of a former session of the server.

        Raises:
            ConfigError: If there is none.
        """
        with self._lock:
            if id in self._jobs:
                return self._jobs[id]
            if not is_plain(id) or not is_folder(self.output / id):
                raise ConfigError(f"There must be a job of that id but {id[:80]!r} is none; see the gallery.")
            job = self._found(id)
            self._jobs[id] = job
            self._forget()
            return job

    def all(self) -> list[Job]:
        """All jobs of the output folder, newest first; folders that cannot be read are left out."""
        found: dict[str, float] = {}
        with suppress(OSError):
            for path in self.output.iterdir():
                with suppress(OSError, TTSVisionError):
                    if is_plain(path.name) and is_folder(path) and (path / "config.yaml").is_file():
                        found[path.name] = path.stat().st_mtime
        with self._lock:
            found |= {id: time.time() for id in self._jobs if id not in found}
        jobs = []
        for id in sorted(found, key=lambda id: -found[id]):
            with suppress(OSError, TTSVisionError):
                jobs.append(self.get(id))
        return jobs

    def call(self, function: Callable[[], Answer]) -> Future[Answer]:
        """Runs a function on the worker's thread, where the models are, after all that waits before it.

        Raises:
            QueueFullError: If the queue is full.
        """
        future: Future[Answer] = Future()
        with self._wake:
            self._check_room()
            self._calls[future] = function
            self._queue.append(future)
            self._wake.notify_all()
        return future

    def estimate(self, config: RunConfig) -> Estimate:
        """A forecast of the seconds and the cost of a search on this machine, before it starts.

        The first forecast for a model and a verifier loads them and times a step, a decoding and a scoring;
        further ones use that measurement. While a search runs, nothing is measured.

        Raises:
            ConfigError: If it asks for something that is not allowed here, or cannot be used as given.
        """
        from tts_vision.app.estimate import Estimate, forecast_from_budget
        from tts_vision.resolve import fill_defaults

        self.rules.check(config)
        config = fill_defaults(config)
        with self._lock:
            is_busy = bool(self._queue) or any(job.state == "running" for job in self._jobs.values())
        if is_busy:
            speed = self._speeds.get(_speed_key(config))
            if speed is None:
                return Estimate(note="No forecast while a search runs: this model was not measured yet.")
            return forecast_from_budget(config, speed)
        return self.call(lambda: self._forecast(config)).result()

    @property
    def models(self) -> Models:
        """The models in memory; to be used by functions of `call` only."""
        return self._models

    def score(
        self, media: Sequence[Media], prompts: Sequence[str], verifiers: Sequence[str]
    ) -> list[dict[str, Score]]:
        """Scores of samples by verifiers, once all that waits before is done.

        Args:
            media: Images or clips.
            prompts: One each.
            verifiers: As `Spec` reads them.

        Returns:
            For each sample its scores by verifier; NaN with the reason where there is none.

        Raises:
            ConfigError: If a verifier is unknown or not allowed here, or a prompt is too long.
            QueueFullError: If the queue is full.
        """
        from tts_vision.app.scores import check_scoring, scores_by

        check_scoring(self.rules, prompts, verifiers)
        return self.call(lambda: scores_by(self._models, media, prompts, verifiers)).result()

    def place_of(self, job: Job) -> int:
        """The place of a job in the queue, from 1; 0 if it does not wait."""
        with self._lock:
            return self._queue.index(job) + 1 if job in self._queue else 0

    def close(self, timeout: float | None = 10.0) -> None:
        """Pauses the running search and ends the worker."""
        with self._wake:
            self._closed = True
            running = [job for job in self._jobs.values() if job.state == "running"]
            self._wake.notify_all()
        for job in running:
            with suppress(ConfigError):
                job.pause()
        self._worker.join(timeout)

    def _enqueue(self, job: Job) -> None:
        with self._wake:
            self._check_room()
            job._move("queued")
            self._queue.append(job)
            self._wake.notify_all()

    def _check_room(self) -> None:
        if self._closed:
            raise QueueFullError("The server is shutting down and takes no searches; try again later.")
        if len(self._queue) >= self._bound:
            raise QueueFullError(
                f"At most {self._bound} searches may wait but {len(self._queue)} do; try again when one has "
                "ended, or start the app with a larger --queue."
            )

    def _drop(self, job: Job) -> None:
        with self._lock, suppress(ValueError):
            self._queue.remove(job)

    def _forget(self) -> None:
        """Drops the oldest jobs that have ended from memory."""
        ended = [id for id, job in self._jobs.items() if not job.is_active]
        for id in ended[: max(0, len(self._jobs) - JOBS_IN_MEMORY)]:
            del self._jobs[id]

    def _found(self, id: str) -> Job:
        from tts_vision.files import RESULT, TRACE, read_file
        from tts_vision.trace import answers, read_trace

        folder = self.output / id
        config = read_config(folder)
        state: JobState = "finished" if is_finished(folder) else "stopped" if has_result(folder) else "paused"
        job = Job(id, folder, config, self, state)
        events = read_trace(folder / TRACE)
        limits = json.loads(read_file(folder / RESULT))["budget"] if has_result(folder) else {}
        job._watch.read(events, {key: float(value) for key, value in limits.items()})
        for answer in answers(events, "steering"):
            job._steering.restore(Decisions.from_json(answer.value))
        return job

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                task = self._queue.pop(0)
                call = self._calls.pop(task, None) if isinstance(task, Future) else None
            if isinstance(task, Job):
                task._run()
            elif call is not None and task.set_running_or_notify_cancel():
                try:
                    task.set_result(call())
                except BaseException as error:
                    task.set_exception(error)

    def _forecast(self, config: RunConfig) -> Estimate:
        from tts_vision.app.estimate import forecast, measure
        from tts_vision.hub import asked_once
        from tts_vision.resolve import prepare
        from tts_vision.verifiers.human import answered_by

        with allowing(self.rules.files_of(config)), asked_once(), answered_by(lambda question: None):
            setup = prepare(config, self._models.live(config))
            key = _speed_key(config)
            if key not in self._speeds:
                self._speeds[key] = measure(setup)
            return forecast(setup, self._speeds[key])

    def _search(self, job: Job) -> Result:
        from tts_vision import drafts
        from tts_vision.hub import asked_once
        from tts_vision.runner import run
        from tts_vision.steering import picking
        from tts_vision.verifiers.human import answered_by

        self.rules.check(job.config)
        files = allowing(self.rules.files_of(job.config))
        with ExitStack() as stack:
            for context in (files, asked_once(), answered_by(job._ask), picking(*job._taken_picks())):
                stack.enter_context(context)
            live = self._models.live(job.config)
            is_draft = job.config.algorithm == drafts.ALGORITHM
            observe = drafts.keeping_previews(job.folder, job._observe) if is_draft else job._observe
            steering = job._steering
            result = run(
                job.config, live, output=job.folder, resume=True, progress=observe, steering=steering
            )
            if is_draft:
                drafts.write_sheet(job.folder)
            return result


def _speed_key(config: RunConfig) -> str:
    settings = (config.model, config.model_options, config.sampler_options, config.verifier, config.algorithm)
    return repr(settings)
