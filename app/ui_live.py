"""The live view of a search: what the script of the page asks the server for, and its element."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gradio as gr

from tts_vision.app.job import Job, Question
from tts_vision.app.jobs import Jobs
from tts_vision.app.ui_words import for_artists
from tts_vision.app.watch import kind_of
from tts_vision.errors import ConfigError, TTSVisionError
from tts_vision.files import inside, is_file, read_file

_IMAGES = 64
_REFINED = 64
TEMPLATE = '<section class="tv-panel" aria-label="{name}" data-hint="{hint}"></section>'


class LiveView:
    """Answers the script of a live view; every answer is JSON, and a refusal is one with an ``error``.

    Args:
        jobs: The searches of the server.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def look(self, request: Any) -> dict[str, Any]:
        """What changed in a search since an event.

        Args:
            request: ``job``, and ``since``, the event of the last answer.
        """
        return answered(lambda: self._look(self._job(request), _number(request, "since")))

    def images(self, request: Any) -> dict[str, Any]:
        """Small images of samples as data URLs by uid; ``uids`` that have none are left out."""
        return answered(lambda: self._images(self._job(request), _numbers(request, "uids")))

    def sample(self, request: Any) -> dict[str, Any]:
        """The sample ``uid`` in full as ``source``, a data URL, and its ``kind``; its preview before that."""
        return answered(lambda: self._sample(self._job(request), _number(request, "uid")))

    def act(self, request: Any) -> dict[str, Any]:
        """Carries out ``what``: pause, resume, stop, pin, ban, more, refine, answer or pick."""
        return answered(lambda: self._act(self._job(request), request))

    def _job(self, request: Any) -> Job:
        return self._jobs.get(text_of(request, "job"))

    def _look(self, job: Job, since: int) -> dict[str, Any]:
        shot = job.snapshot(since)
        active = shot.state in ("queued", "running")
        return {
            "job": job.id,
            "prompt": job.config.prompt,
            "state": shot.state,
            "event": shot.event,
            "samples": [asdict(particle) for particle in shot.particles],
            "best": shot.best,
            "spending": asdict(shot.spending),
            "curve": [[point.compute, point.best] for point in shot.curve],
            "unit": "multiply-accumulates" if shot.spending.macs else "network evaluations (nfe)",
            "warnings": [for_artists(text) for text in shot.warnings],
            "error": None if shot.error is None else for_artists(shot.error),
            "place": shot.place,
            "question": None if shot.question is None else _question(shot.question),
            "drafts": shot.drafts,
            "can": {
                "pause": active,
                "stop": active or shot.state == "paused",
                "resume": shot.state in ("paused", "stopped", "failed") and not shot.drafts,
                "steer": shot.state in ("running", "paused"),
                "more": shot.state != "queued",
            },
        }

    def _images(self, job: Job, uids: list[int]) -> dict[str, Any]:
        found = {uid: job.preview(uid) for uid in uids[:_IMAGES]}
        return {str(uid): _url(image) for uid, image in found.items() if image is not None}

    def _sample(self, job: Job, uid: int) -> dict[str, Any]:
        particle = next((each for each in job.snapshot().particles if each.uid == uid), None)
        if particle is not None and particle.file:
            path = inside(job.folder, particle.file)
            shown = path.with_suffix(".mp4")
            path = shown if is_file(shown) else path
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            return {"source": _url(read_file(path), kind), "kind": kind.partition("/")[0]}
        image = job.preview(uid)
        return {"source": None if image is None else _url(image), "kind": "image"}

    def _refine(self, job: Job, request: dict[str, Any]) -> Job:
        n, strength = _number(request, "n"), _given(request, "strength")
        if not 1 <= n <= _REFINED or not isinstance(strength, (int, float)):
            raise ConfigError(
                f"A refinement makes 1 to {_REFINED} samples with a strength but got {n} and {strength!r}; "
                "change them."
            )
        prompt = text_of(request, "prompt").strip() or None
        by_hand = bool(_given(request, "by_hand"))
        uid = _number(request, "uid")
        return self._jobs.refine(job, uid, prompt=prompt, n=n, strength=float(strength), by_hand=by_hand)

    def _act(self, job: Job, request: dict[str, Any]) -> dict[str, Any]:
        what = request.get("what")
        actions: dict[Any, Callable[[], Any]] = {
            "pause": job.pause,
            "resume": job.resume,
            "stop": job.stop,
            "pin": lambda: _toggle(job, _number(request, "uid"), "pinned"),
            "ban": lambda: _toggle(job, _number(request, "uid"), "banned"),
            "answer": lambda: job.answer(_number(request, "question"), _given(request, "answer")),
            "more": lambda: self._jobs.refine(job, _number(request, "uid")),
            "refine": lambda: self._refine(job, request),
            "pick": lambda: job.pick(_numbers(request, "uids")),
        }
        if what not in actions:
            raise ConfigError(
                f"An action must be one of {', '.join(actions)} but got {what!r}; reload the page."
            )
        made = actions[what]()
        return {"job": made.id if isinstance(made, Job) else job.id}


def answers(jobs: Jobs) -> list[Callable[[Any], dict[str, Any]]]:
    """What the script of a live view may ask the server, as functions (Gradio takes no methods)."""
    view = LiveView(jobs)

    def look(request: Any) -> dict[str, Any]:
        return view.look(request)

    def images(request: Any) -> dict[str, Any]:
        return view.images(request)

    def sample(request: Any) -> dict[str, Any]:
        return view.sample(request)

    def act(request: Any) -> dict[str, Any]:
        return view.act(request)

    return [look, images, sample, act]


def live_view(jobs: Jobs, name: str, hint: str, elem_id: str, *, script: str, value: str = "") -> gr.HTML:
    """The element of a live view; its value is the id of the job that it shows.

    Args:
        jobs: The searches of the server.
        name: Name for screen readers.
        hint: Shown before there are any samples.
        elem_id: Id of the element in the page.
        script: The call that brings it to life, such as ``ttsVision.panel(element, server, {...})``.
        value: The job to begin with.
    """
    return gr.HTML(
        value,
        html_template=TEMPLATE.format(name=name, hint=hint),
        js_on_load=script,
        elem_id=elem_id,
        server_functions=answers(jobs),
        apply_default_css=False,
    )


def answered(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer of a function; a refusal is one as well, in words of the page."""
    try:
        return function()
    except TTSVisionError as error:
        return {"error": for_artists(str(error))}


def _toggle(job: Job, uid: int, mark: str) -> None:
    """Pins or bans a sample, or takes that back."""
    particle = next((each for each in job.snapshot().particles if each.uid == uid), None)
    if particle is not None and getattr(particle, mark):
        job.release(uid)
    elif mark == "pinned":
        job.pin(uid)
    else:
        job.ban(uid)


def _question(question: Question) -> dict[str, Any]:
    values = asdict(question)
    values["images"] = [_url(image) for image in question.images]
    return values


def _url(data: bytes, kind: str | None = None) -> str:
    """A data URL, by default of a thumbnail."""
    return f"data:{kind or kind_of(data)};base64,{base64.b64encode(data).decode()}"


def text_of(request: Any, name: str) -> str:
    """A text in a request of the script.

    Raises:
        ConfigError: If there is none.
    """
    value = request.get(name) if isinstance(request, dict) else None
    if not isinstance(value, str):
        raise ConfigError(f"{name} of a request must be a text but got {value!r}; reload the page.")
    return value


def _given(request: dict[str, Any], name: str) -> Any:
    """A value in a request, which may be null."""
    if name not in request:
        raise ConfigError(f"A request must give {name} but has none; reload the page.")
    return request[name]


def _number(request: Any, name: str) -> int:
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} of a request must be a whole number but got {value!r}; reload the page.")
    return value


def _numbers(request: Any, name: str) -> list[int]:
    values = request.get(name)
    if not isinstance(values, list):
        raise ConfigError(f"{name} of a request must be a list but got {values!r}; reload the page.")
    return [_number({name: value}, name) for value in values]
