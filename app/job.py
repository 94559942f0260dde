"""A job: one search of the app, as it is watched, steered, paused and resumed from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tts_vision.app.watch import Particle, Point, Spending, Watch, thumbnail, thumbnail_of
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError, StopSearch, TTSVisionError
from tts_vision.files import inside
from tts_vision.folders import has_result
from tts_vision.loaded import free_memory
from tts_vision.steering import Steering

if TYPE_CHECKING:
    from tts_vision.app.jobs import Jobs
    from tts_vision.context import SearchContext
    from tts_vision.results import Result
    from tts_vision.trace import Event
    from tts_vision.verifiers import human

JobState: TypeAlias = Literal["queued", "running", "paused", "finished", "stopped", "failed"]


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
        """A `thumbnail` of the last preview, or of the sample, of a particle; None if there is none.

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
