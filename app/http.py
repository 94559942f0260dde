"""The searches over HTTP: images as OpenAI's clients ask for them, progress, control, and scores."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from starlette.concurrency import run_in_threadpool

from tts_vision.app import uploads
from tts_vision.app.job import Job
from tts_vision.app.jobs import Jobs, QueueFullError
from tts_vision.app.rules import Rules, check_prompt
from tts_vision.app.watch import kind_of
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError, StorageError, TTSVisionError
from tts_vision.files import inside, is_file, read_file

if TYPE_CHECKING:
    from tts_vision.types import Media

JSON_BYTES = 256 * 2**10
"""Bytes of a request that asks for images, at most."""
SCORE_BYTES = 96 * 2**20
"""Bytes of a request that asks for scores, at most."""
SCORE_IMAGES = 64
"""Samples of a request that asks for scores, at most."""
_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
    ".mp4": "video/mp4",
    ".mkv": "video/x-matroska",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".yaml": "text/plain; charset=utf-8",
}
# no script of a file from the output folder runs, and no browser takes it for something else
_INERT = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
}
Body = TypeVar("Body", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SearchBody(_Body):
    """A search over HTTP.

    Attributes:
        prompt: What to generate.
        model: A registered model, or the id of one on the hub; by default the bundled one.
        size: ``WIDTHxHEIGHT`` in pixels, or ``auto`` for that of the model.
        algorithm: A search algorithm, with parameters as ``name:key=value``.
        verifier: What scores, as on the command line; by default the one of the model.
        budget: As on the command line.
        until: A score, or ``satisfied``, that ends the search.
        seed: Root seed.
    """

    prompt: StrictStr
    model: StrictStr | None = None
    size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")] | None = None
    algorithm: StrictStr = "best_of_n"
    verifier: StrictStr | None = None
    budget: StrictStr = "16x"
    until: float | Literal["satisfied"] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**62)] = 0

    def config(self, rules: Rules, number: int = 0) -> RunConfig:
        """The search; the `number`-th of several has the `number`-th seed from `seed` on.

        Raises:
            ConfigError: If it cannot be used as given, or is not allowed.
        """
        check_prompt(self.prompt)
        if self.model is not None:
            rules.check_model(self.model)
        values: dict[str, Any] = {
            "prompt": self.prompt,
            "algorithm": self.algorithm,
            "budget": self.budget,
            "target": self.until,
            "seed": self.seed + number,
        }
        values |= {} if self.model is None else {"model": self.model}
        values |= {} if self.verifier is None else {"verifier": self.verifier}
        if self.pixels is not None:
            width, height = self.pixels
            values["sampler_options"] = {"pipeline_kwargs": {"width": width, "height": height}}
        return RunConfig(**values)

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height; None for those of the model."""
        if self.size in (None, "auto"):
            return None
        width, _, height = str(self.size).partition("x")
        return int(width), int(height)


class ImagesBody(SearchBody):
    """A request for images, as OpenAI's clients make it, with the settings of the search beside.

    Attributes:
        n: Images: each is the best of a search of its own, with the seeds from `seed` on.
        response_format: ``b64_json``: the content of the PNG file; ``url``: an address of it on this server.
        user: The client's own mark; has no effect.
    """

    n: Annotated[StrictInt, Field(ge=1, le=10)] | None = 1
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    user: StrictStr | None = None


class ScoreBody(_Body):
    """A request for scores.

    Attributes:
        images: Files of images or clips, as base64.
        prompts: One for all, or one each.
        verifiers: What scores them, as on the command line.
    """

    images: Annotated[list[StrictStr], Field(min_length=1, max_length=SCORE_IMAGES)]
    prompts: Annotated[list[StrictStr], Field(min_length=1)]
    verifiers: Annotated[list[StrictStr], Field(min_length=1, max_length=16)]


class _TooLargeError(ConfigError):
    """A request with more bytes than may be sent."""


def serve_jobs(jobs: Jobs) -> FastAPI:
    """A server of searches, without a page.

    Args:
        jobs: The searches.
    """
    api = FastAPI(title="tts-vision", docs_url=None, redoc_url=None, openapi_url=None)
    api.include_router(routes(jobs))

    @api.exception_handler(TTSVisionError)
    async def refuse(request: Request, error: TTSVisionError) -> JSONResponse:
        status = (
            429 if isinstance(error, QueueFullError) else 413 if isinstance(error, _TooLargeError) else 400
        )
        return _error(str(error), status)

    return api


def routes(jobs: Jobs) -> APIRouter:
    """The routes under ``/v1``."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    def models() -> dict[str, Any]:
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "tts-vision"}
            for name in jobs.rules.models()
        ]
        return {"object": "list", "data": listed}

    @router.post("/images/generations")
    async def images(request: Request) -> dict[str, Any]:
        body = await _json_body(request, ImagesBody)
        found = await _all(jobs, [body.config(jobs.rules, i) for i in range(body.n or 1)], request)
        data = [await run_in_threadpool(_image, job, body, request) for job in found]
        return {"created": int(time.time()), "data": data}

    @router.post("/jobs")
    async def submit(request: Request) -> dict[str, Any]:
        body = await _json_body(request, SearchBody)
        job = await run_in_threadpool(jobs.submit, body.config(jobs.rules))
        return {"id": job.id, "state": job.state}

    @router.get("/jobs/{id}")
    def snapshot(id: str) -> dict[str, Any]:
        return jobs.get(id).snapshot().as_json()

    @router.get("/jobs/{id}/events")
    def events(id: str) -> StreamingResponse:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_progress(jobs.get(id)), media_type="text/event-stream", headers=headers)

    @router.post("/jobs/{id}/{action}")
    def act(id: str, action: Literal["pause", "resume", "stop", "cancel"]) -> dict[str, Any]:
        job = jobs.get(id)
        actions: dict[str, Callable[[], None]] = {
            "pause": job.pause,
            "resume": job.resume,
            "stop": job.stop,
            "cancel": job.cancel,
        }
        actions[action]()
        return {"id": job.id, "state": job.state}

    @router.get("/jobs/{id}/previews/{uid}")
    def preview(id: str, uid: int) -> Response:
        image = jobs.get(id).preview(uid)
        if image is None:
            return _error(f"Particle {uid} has no image.", 404)
        return Response(image, media_type=kind_of(image), headers=_INERT)

    @router.get("/jobs/{id}/files/{name:path}")
    def file(id: str, name: str) -> Response:
        return serve_file(jobs.get(id), name)

    @router.post("/score")
    async def score(request: Request) -> dict[str, Any]:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            files, prompts, verifiers = await _form(request)
        else:
            body = await _json_body(request, ScoreBody, SCORE_BYTES)
            files = [_from_base64(text, i) for i, text in enumerate(body.images)]
            prompts, verifiers = body.prompts, body.verifiers
        return {"scores": await run_in_threadpool(_scores, jobs, files, prompts, verifiers)}

    return router


def serve_file(job: Job, name: str) -> Response:
    """A file of a job's folder; nothing else, and no symlink."""
    try:
        path = inside(job.folder, name)
        kind = _TYPES.get(path.suffix)
        if kind is None or not is_file(path):
            return _error(f"There is no file {name[:80]!r} to show.", 404)
        return Response(read_file(path), media_type=kind, headers=_INERT)
    except (StorageError, OSError, ValueError):
        return _error(f"There is no file {name[:80]!r} to show.", 404)


async def _json_body(request: Request, kind: type[Body], most: int = JSON_BYTES) -> Body:
    """The body of a request.

    Raises:
        ConfigError: If it is too large, no JSON, or not as `kind` wants it.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ConfigError("A request must be JSON, with 'Content-Type: application/json'; send it so.")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise _TooLargeError(f"A request must have at most {most} bytes but has more; shorten it.")
    try:
        return kind.model_validate_json(bytes(content))
    except ValidationError as error:
        raise ConfigError(_mistake(error, kind)) from None


def _mistake(error: ValidationError, kind: type[BaseModel]) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the body"
    if first["type"] == "extra_forbidden":
        return f"Fields of this request are {', '.join(kind.model_fields)} but got {where!r}; leave it out."
    if first["type"] == "missing":
        return f"This request needs {where!r}, which was not given; set it."
    given = repr(first.get("input"))[:80]
    return f"{where} cannot be used as given: {first['msg'].lower()}, but got {given}; change it."


async def _all(jobs: Jobs, configs: Sequence[RunConfig], request: Request) -> list[Job]:
    """The jobs of several searches, when all have ended; cancelled if the client goes away or one fails."""
    started: list[Job] = []
    try:
        for config in configs:
            started.append(await run_in_threadpool(jobs.submit, config))
        for job in started:
            while await run_in_threadpool(job.wait, 0.5) in ("queued", "running", "paused"):
                if await request.is_disconnected():
                    raise ConfigError("The client went away.")
                await asyncio.sleep(0.5 if job.state == "paused" else 0)
            if job.state == "failed" or job.result() is None:
                raise ConfigError(job.error or "The search was cancelled on the server.")
    except BaseException:
        for job in started:
            job.cancel()
        raise
    return started


def _image(job: Job, body: ImagesBody, request: Request) -> dict[str, Any]:
    result = job.result()
    assert result is not None
    path = job.folder / "best.png"
    if not is_file(path):
        raise ConfigError(
            f"Images come from a model that makes images but {job.config.model!r} makes clips; take them "
            f"from /v1/jobs/{job.id}/files/best.mp4, or choose another model."
        )
    content = read_file(path)
    media = result.best.load()
    size = getattr(media, "size", None)
    if body.pixels is not None and size != body.pixels:
        raise ConfigError(
            f"size must be one that the model makes but asked for {body.size}, {job.config.model!r} made "
            f"{size}; leave it out."
        )
    url = str(request.url_for("file", id=job.id, name="best.png"))
    shown = (
        {"url": url} if body.response_format == "url" else {"b64_json": base64.b64encode(content).decode()}
    )
    facts = {"score": _number(result.best.score.value), "seed": job.config.seed, "job": job.id}
    return {**shown, **facts}


async def _progress(job: Job) -> AsyncIterator[str]:
    """Server-sent events: a snapshot of what changed, each time something did, until the job rests."""
    seen = -1
    while True:
        snapshot = job.snapshot(seen)
        if snapshot.event != seen:
            seen = snapshot.event
            yield f"id: {seen}\nevent: progress\ndata: {json.dumps(snapshot.as_json(), allow_nan=False)}\n\n"
        if not job.is_active and snapshot.state == job.state:
            yield f"event: end\ndata: {json.dumps({'id': job.id, 'state': job.state})}\n\n"
            return
        await asyncio.sleep(0.1)


async def _form(request: Request) -> tuple[list[tuple[str, bytes]], list[str], list[str]]:
    """The files, prompts and verifiers of a multipart form."""
    if int(request.headers.get("content-length") or SCORE_BYTES + 1) > SCORE_BYTES:
        raise _TooLargeError(f"A form must say that it has at most {SCORE_BYTES} bytes; send less.")
    async with request.form(max_files=SCORE_IMAGES, max_fields=SCORE_IMAGES + 16) as form:
        unknown = set(form.keys()) - {"images", "prompts", "verifiers"}
        if unknown:
            raise ConfigError(
                f"Fields of this form are images, prompts, verifiers but got {sorted(unknown)[0]!r}; leave "
                "it out."
            )
        files = []
        for item in form.getlist("images"):
            if isinstance(item, str):
                raise ConfigError("images must be files but got a text; attach the file.")
            files.append((item.filename or "image", await item.read()))
        prompts = [str(text) for text in form.getlist("prompts")]
        return files, prompts, [str(text) for text in form.getlist("verifiers")]


def _from_base64(text: str, number: int) -> tuple[str, bytes]:
    try:
        return f"image {number}", base64.b64decode(text.partition(",")[2] or text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"images must be files as base64 but image {number} is not; encode it.") from None


def _scores(
    jobs: Jobs, files: Sequence[tuple[str, bytes]], prompts: Sequence[str], verifiers: Sequence[str]
) -> list[dict[str, Any]]:
    if not files or not verifiers or len(prompts) not in {1, len(files)}:
        raise ConfigError(
            "Scoring needs images, verifiers, and one prompt for all or one each, but got "
            f"{len(files)} images, {len(verifiers)} verifiers, {len(prompts)} prompts; add what is missing."
        )
    media: list[Media] = [uploads.decode(content, name) for name, content in files]
    each = list(prompts) * len(media) if len(prompts) == 1 else list(prompts)
    found = jobs.score(media, each, verifiers)
    return [
        {
            "prompt": prompt,
            "scores": {
                name: {
                    "value": _number(score.value),
                    "parts": {key: _number(value) for key, value in score.parts.items()},
                    "reason": score.reason,
                    "satisfied": score.satisfied,
                }
                for name, score in row.items()
            },
        }
        for prompt, row in zip(each, found, strict=True)
    ]


def _number(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None


def _error(message: str, status: int) -> JSONResponse:
    kind = "invalid_request_error" if status < 429 else "rate_limit_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status)
