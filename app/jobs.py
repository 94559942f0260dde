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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from tts_vision.app.rules import Rules
from tts_vision.app.watch import Particle, Point, Spending, Watch, thumbnail, thumbnail_of
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError, StopSearch, TTSVisionError
from tts_vision.files import inside, is_folder, is_plain
from tts_vision.folders import has_result, is_finished, read_config
from tts_vision.loaded import Models, free_memory
from tts_vision.steering import Decisions, Steering

if TYPE_CHECKING:
    from tts_vision.app.estimate import Estimate, Speed
    from tts_vision.context import SearchContext
    from tts_vision.results import Result
    from tts_vision.trace import Event
    from tts_vision.types import Media, Score
    from tts_vision.verifiers import human

JobState: TypeAlias = Literal["queued", "running", "paused", "finished", "stopped", "failed"]
JOBS_IN_MEMORY = 64
"""Jobs that are kept in memory after their end; older ones are read from their folders again."""
Answer = TypeVar("Answer")


class QueueFullError(ConfigError):
    """The queue has as many searches as it may have."""


@dataclass(frozen=True)
class Question:
    """A question to the person who judges a search.

    Attributes:
        id: Number of the question within its job.
        kind: ``rate``: a number from 0 to 1 for the only image; ``pair``: which of two is better.
        prompt: The prompt that the samples are judged by.
        images: The samples as small JPEG files: one to rate, two to compare.
        step: The step of previews; None for finished samples.
    """

    id: int
    kind: Literal["rate", "pair"]
    prompt: str
    images: tuple[bytes, ...]
    step: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """The state of a job at one moment; nothing in it changes afterwards.

    Attributes:
        id: Of the job.
        state: Where it stands.
        event: Give it to the next `Job.snapshot` as `since` to get only what changed.
        particles: The particles that changed since, by uid.
        population: Uids of the particles that go on or are finished.
        best: Uid of the best sample so far, or of the best preview before any sample is finished.
        spending: What is spent, and the limits.
        curve: How the best score grew.
        warnings: What the user should know.
        error: Why it failed.
        place: Place in the queue, from 1; 0 while it does not wait.
        question: What a person is asked, if the search waits for an answer.
        drafts: Whether it waits for drafts to be picked; `Job.pick` does.
    """

    id: str
    state: JobState
    event: int
    particles: tuple[Particle, ...]
    population: tuple[int, ...]
    best: int | None
    spending: Spending
    curve: tuple[Point, ...]
    warnings: tuple[str, ...]
    error: str | None = None
    place: int = 0
    question: Question | None = None
    drafts: bool = False

    def as_json(self) -> dict[str, Any]:
        """The snapshot as JSON has it; the images of a question are left out."""
        values = asdict(self)
        if self.question is not None:
            values["question"].pop("images")
        return values


class _Interrupted(BaseException):
    """Ends a session of a search that is paused or cancelled."""


class Job:
    """One search of the app. All methods may be called from any thread.

    Attributes:
        id: Name of the job, which is that of its folder under the output folder.
        folder: Its folder.
        config: What it searches for.
    """

    def __init__(self, id: str, folder: Path, config: RunConfig, jobs: Jobs, state: JobState) -> None:
        self.id, self.folder, self.config = id, folder, config
        self._jobs, self._state, self._error = jobs, state, None  # type: tuple[Jobs, JobState, str | None]
        self._lock = threading.RLock()
        self._moved = threading.Condition(self._lock)
        self._watch = Watch()
        self._steering = Steering()
        self._wanted: Literal["", "pause", "stop", "cancel"] = ""
        self._recorded: int | None = None
        self._picks: list[list[int]] = []
        self._question: Question | None = None
        self._answer: float | str | None = None
        self._answered = False
        self._questions = 0

    @property
    def state(self) -> JobState:
        """Where it stands."""
        return self._state

    @property
    def error(self) -> str | None:
        """Why it failed, if it did."""
        return self._error

    @property
    def is_active(self) -> bool:
        """Whether it waits in the queue or runs."""
        return self._state in ("queued", "running")

    def snapshot(self, since: int = -1) -> Snapshot:
        """What a page needs to show.

        Args:
            since: `Snapshot.event` of the last one that the page has; -1 for everything.
        """
        with self._lock, self._watch.lock:
            watch = self._watch
            alive = [uid for uid, p in sorted(watch.particles.items()) if p.fate in ("going on", "finished")]
            return Snapshot(
                id=self.id,
                state=self._state,
                event=watch.number,
                particles=tuple(watch.since(since)),
                population=tuple(alive),
                best=watch.best,
                spending=watch.spending,
                curve=tuple(watch.curve),
                warnings=tuple(watch.warnings),
                error=self._error,
                place=self._jobs.place_of(self),
                question=self._question,
                drafts=self.config.algorithm == "draft" and self._state == "stopped",
            )

    def preview(self, uid: int) -> bytes | None:
        """A small JPEG of the last preview, or of the sample, of a particle; None if there is none.

        Previews of former sessions of the server are gone; samples are read from the folder.
        """
        image = self._watch.image(uid)
        particle = self._watch.particles.get(uid)
        if image is None and particle is not None and particle.file:
            with suppress(OSError, TTSVisionError):
                image = thumbnail_of(inside(self.folder, particle.file))
        return image

    def result(self) -> Result | None:
        """The result of a finished or stopped search; None before."""
        from tts_vision.results import load_result

        return load_result(self.folder) if has_result(self.folder) else None

    def wait(self, timeout: float | None = None) -> JobState:
        """Waits until it neither waits nor runs, at most `timeout` seconds; returns its state then."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._moved:
            while self.is_active:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._moved.wait(left)
            return self._state

    # Control

    def pause(self) -> None:
        """Interrupts the search after its current operation, and lets others run; `resume` goes on with it.

        Raises:
            ConfigError: If it is neither queued nor running.
        """
        self._want("pause", "paused")

    def stop(self) -> None:
        """Ends the search with its best so far; its folder is whole, and `resume` can go on with it.

        Raises:
            ConfigError: If it came to its end.
        """
        with self._lock:
            if self._state == "paused":
                self._wanted = "stop"
                self._jobs._enqueue(self)
                return
        self._want("stop", "stopped")

    def cancel(self) -> None:
        """Ends the search without a result, and frees its memory; of no effect after its end.

        What it computed stays in its folder, and `resume` can go on with it.
        """
        with self._lock:
            if self.is_active:
                self._want("cancel", "stopped")
            elif self._state == "paused":
                self._move("stopped")
            self._watch.forget_images()

    def resume(self) -> None:
        """Queues a paused, stopped or failed search again, which goes on from its record.

        Raises:
            ConfigError: If it is in another state.
            QueueFullError: If the queue is full.
        """
        with self._lock:
            if self._state not in ("paused", "stopped", "failed"):
                raise ConfigError(
                    f"A search must be paused, stopped or failed to be resumed but {self.id!r} is "
                    f"{self._state}; leave it."
                )
            self._wanted, self._error = "", None
            self._jobs._enqueue(self)

    # Steering

    def pin(self, uid: int) -> None:
        """Keeps a particle from the next scoring on; see `tts_vision.steering.Steering.pin`.

        Raises:
            ConfigError: If it does not go on any more.
        """
        self._check_goes_on(uid, "pinned")
        self._steering.pin(uid)
        self._marked()

    def ban(self, uid: int) -> None:
        """Drops a particle from the next scoring on.

        Raises:
            ConfigError: If there is no such particle in the population.
        """
        self._check_goes_on(uid, "banned")
        self._steering.ban(uid)
        self._marked()

    def release(self, uid: int) -> None:
        """Takes back `pin` or `ban`."""
        self._steering.release(uid)
        self._marked()

    def answer(self, question: int, answer: float | Literal["first", "second", "tie"] | None) -> None:
        """Answers what the search asks the person.

        Args:
            question: `Question.id`.
            answer: A number from 0 to 1 to ``rate``; ``first``, ``second`` or ``tie`` of a ``pair``; None if
                the person cannot tell.

        Raises:
            ConfigError: If it is no answer to the question that is asked now.
        """
        with self._moved:
            asked = self._question
            if asked is None or asked.id != question:
                raise ConfigError(
                    f"An answer must be to the question that is asked now but got one to {question}; reload."
                )
            fits = answer is None or (
                answer in ("first", "second", "tie")
                if asked.kind == "pair"
                else isinstance(answer, (int, float)) and 0 <= answer <= 1
            )
            if not fits:
                rule = "first, second or tie" if asked.kind == "pair" else "a number from 0 to 1"
                raise ConfigError(f"The answer must be {rule} but got {answer!r}; change it.")
            self._answer, self._answered, self._question = answer, True, None
            self._moved.notify_all()

    def pick(self, numbers: Sequence[int]) -> None:
        """Finishes drafts, from exactly where they stand.

        Args:
            numbers: Their numbers on the contact sheet.

        Raises:
            ConfigError: If this is no job of drafts, or there are no such drafts.
        """
        from tts_vision.drafts import check_picks

        with self._lock:
            if self.config.algorithm != "draft" or self._state not in ("stopped", "paused"):
                raise ConfigError(
                    f"Drafts are picked once they are made but {self.id!r} is {self._state}, a search by "
                    f"{self.config.algorithm!r}; wait, or start a draft."
                )
            check_picks(self.folder, numbers)
            self._picks.append(list(numbers))
            self.resume()

    # The worker's side

    def _want(self, what: Literal["pause", "stop", "cancel"], queued: JobState) -> None:
        with self._moved:
            if self._state == "queued":
                self._jobs._drop(self)
                self._move(queued)
            elif self._state == "running":
                self._wanted = what
                self._moved.notify_all()
            else:
                raise ConfigError(
                    f"Only a search that waits or runs can be {queued} but {self.id!r} is {self._state}; "
                    "leave it."
                )

    def _move(self, state: JobState, error: str | None = None) -> None:
        with self._moved:
            self._state, self._error = state, error
            self._watch.touch()
            self._moved.notify_all()

    def _check_goes_on(self, uid: int, what: str) -> None:
        particle = self._watch.particles.get(uid)
        if particle is None or particle.fate not in ("going on", "finished"):
            raise ConfigError(
                f"A particle must be in the population to be {what} but {uid} is not; choose another one."
            )

    def _marked(self) -> None:
        decisions = self._steering.decisions
        self._watch.mark(decisions.pinned, decisions.banned)

    def _run(self) -> None:
        """Runs the search; on the worker's thread."""
        with self._moved:
            if self._state != "queued":
                return
            self._move("running")
        self._recorded = None
        state, error = self._outcome()
        free_memory()  # states of a search refer to each other in circles
        with self._moved:
            self._question, self._wanted = None, ""
            self._move(state, error)

    def _outcome(self) -> tuple[JobState, str | None]:
        """Where a session of the search ends, and why it failed if it did."""
        try:
            result = self._jobs._search(self)
        except _Interrupted:
            return ("paused" if self._wanted == "pause" else "stopped"), None
        except TTSVisionError as error:
            return "failed", str(error)
        except (Exception, SystemExit) as error:
            from tts_vision.failures import explain

            return "failed", str(explain(error))
        if result.stopped:
            return "stopped", None
        self._watch.end()
        return "finished", None

    def _observe(self, context: SearchContext, event: Event) -> None:
        self._watch.observe(context, event)
        if self._recorded is None:
            self._recorded = max(each.op for each in context.events)
        if event.what != "decode":  # its samples would be lost
            self._obey(is_repeating=event.op < self._recorded)

    def _obey(self, *, is_repeating: bool = False) -> None:
        if self._wanted in ("pause", "cancel"):
            raise _Interrupted
        if self._wanted == "stop" and not is_repeating:
            raise StopSearch("by the user")

    def _taken_picks(self) -> list[list[int]]:
        with self._lock:
            picks, self._picks = self._picks, []
            return picks

    def _ask(self, asked: human.Question) -> Any:
        """The person's answer; waits for it."""
        images = tuple(map(thumbnail, asked.media))
        with self._moved:
            self._questions += 1
            self._question = Question(self._questions, asked.kind, asked.prompt.text, images, asked.step)
            self._answered = False
            self._watch.touch()
            while not self._answered:
                self._obey()
                self._moved.wait()
            return self._answer


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
        self.rules = rules or Rules()
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

    def more_like(self, job: Job, uid: int, *, n: int = 8, strength: float = 0.5) -> Job:
        """Queues a search around one particle of another one: variations of it.

        Args:
            job: The other search.
            uid: The particle.
            n: Variations.
            strength: How far they may go from it, from 0 to 1.

        Raises:
            ConfigError: If there is no such particle, or it cannot be made again.
            QueueFullError: If the queue is full.
        """
        from tts_vision.files import TRACE
        from tts_vision.trace import lineage, read_trace

        try:
            chain = lineage(read_trace(job.folder / TRACE), uid)
        except KeyError:
            raise ConfigError(
                f"Variations are of a particle of the search but {uid} is none of {job.id!r}; choose another."
            ) from None
        text = json.dumps([link.model_dump(exclude_none=True) for link in chain])
        params = {"lineage": text, "n": n, "strength": strength}
        update = {
            "algorithm": "variations",
            "algorithm_params": params,
            "budget": f"{n + 2}x",
            "target": None,
        }
        return self.submit(job.config.model_copy(update=update))

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
        from tts_vision.trust import allowing
        from tts_vision.verifiers.human import answered_by

        with allowing(()), asked_once(), answered_by(lambda question: None):
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
        from tts_vision.trust import allowing
        from tts_vision.verifiers.human import answered_by

        self.rules.check(job.config)
        with ExitStack() as stack:
            for context in (allowing(()), asked_once(), answered_by(job._ask), picking(*job._taken_picks())):
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
