"""The API: OpenAI's own client, the bytes of the command line, progress, scores."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs tts-vision[app]")
httpx = pytest.importorskip("httpx", reason="needs httpx")
openai = pytest.importorskip("openai", reason="needs the client of OpenAI: pip install openai")

import uvicorn  # noqa: E402
from PIL import Image  # noqa: E402

from tts_vision.app.guard import LOOPBACK, Guard  # noqa: E402
from tts_vision.app.http import serve_jobs  # noqa: E402
from tts_vision.app.jobs import Jobs  # noqa: E402
from tts_vision.config import RunConfig  # noqa: E402
from tts_vision.loaded import Models  # noqa: E402
from tts_vision.pipelines.playground import DEFAULTS  # noqa: E402
from tts_vision.results import load_result  # noqa: E402
from tts_vision.runner import run  # noqa: E402

PROMPT = "two red circles"


class FewSteps(Models):
    """The bundled model with less than a third of its steps."""

    def pipe(self, config: RunConfig) -> Any:
        pipe = super().pipe(config)
        pipe.tts_vision_defaults = {**DEFAULTS, "num_inference_steps": 4}
        return pipe


class Server:
    """A server in a thread of this process."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = Guard(serve_jobs(jobs), LOOPBACK)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self.jobs.close()

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}/v1{path}", timeout=60)

    def post(self, path: str, **content: Any) -> Any:
        return httpx.post(f"{self.url}/v1{path}", timeout=120, **content)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    jobs = Jobs(tmp_path_factory.mktemp("served"))
    jobs._models = FewSteps()
    made = Server(jobs)
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def cli() -> Models:
    """The model and the verifier of a process of its own, loaded once for several searches."""
    return FewSteps()


def searched(cli: Models, folder: Path, **settings: Any) -> bytes:
    """The best sample that the command line makes."""
    config = RunConfig(**{"prompt": PROMPT, "budget": "2x", **settings})
    run(config, cli.live(config), output=folder)
    return (folder / "best.png").read_bytes()


def test_the_clients_of_openai_get_the_bytes_of_the_command_line(
    client: Any, cli: Models, tmp_path: Path
) -> None:
    answer = client.images.generate(
        prompt=PROMPT,
        n=2,
        size="64x64",
        response_format="b64_json",
        extra_body={"algorithm": "evosearch", "verifier": "playground_clip", "budget": "4x", "seed": 3},
    )
    assert len(answer.data) == 2 and abs(answer.created - time.time()) < 120
    for i, image in enumerate(answer.data):
        sized = {"pipeline_kwargs": {"width": 64, "height": 64}}
        settings = {"algorithm": "evosearch", "budget": "4x", "seed": 3 + i, "sampler_options": sized}
        assert base64.b64decode(image.b64_json) == searched(cli, tmp_path / str(i), **settings)
        assert image.model_extra["seed"] == 3 + i and 0 < image.model_extra["score"] < 1


def test_a_url_is_one_of_the_sample(client: Any, server: Server) -> None:
    answer = client.images.generate(prompt=PROMPT, response_format="url", extra_body={"budget": "1x"})
    assert answer.data[0].b64_json is None and answer.data[0].url.startswith(server.url)
    image = Image.open(io.BytesIO(httpx.get(answer.data[0].url).content))
    assert image.size == (64, 64) and image.info["prompt"] == PROMPT


def test_size_is_honoured(client: Any) -> None:
    answer = client.images.generate(prompt=PROMPT, size="32x48", extra_body={"budget": "1x"})
    assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).size == (32, 48)


def test_until_ends_a_search(client: Any, server: Server) -> None:
    answer = client.images.generate(prompt=PROMPT, extra_body={"budget": "16x", "until": 0.1})
    result = server.jobs.get(answer.data[0].model_extra["job"]).result()
    assert result is not None and result.satisfied and len(result.population) == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"quality": "hd"}, "Fields of this request are prompt, .* but got 'quality'; leave it out"),
        ({"stream": False}, "but got 'stream'; leave it out"),
        ({"extra_body": {"steps": 3}}, "but got 'steps'; leave it out"),
        ({"n": 0}, "n cannot be used as given: .* greater than or equal to 1, but got 0"),
        ({"n": 11}, "less than or equal to 10, but got 11"),
        ({"size": "big"}, "size cannot be used as given"),
        ({"size": "20000x20000"}, "at most 16777216 pixels"),
        ({"size": "30x30"}, "must be|divisible|multiple"),
        ({"extra_body": {"n": "2"}}, "n cannot be used as given: .* valid integer, but got '2'"),
        ({"extra_body": {"seed": -1}}, "seed cannot be used as given"),
        ({"extra_body": {"budget": "plenty"}}, "A budget must be '40x'"),
        ({"extra_body": {"until": "perfect"}}, "until"),
        ({"extra_body": {"algorithm": "evo"}}, "must be a registered one but got 'evo'"),
        ({"extra_body": {"algorithm": "best_of_n:m=2"}}, "are n but got 'm'"),
        ({"extra_body": {"budget": "1x", "algorithm": "best_of_n:n=9"}}, "must fit its budget"),
        ({"model": "nothing-like-it"}, "A model must be a registered one"),
        ({"prompt": " "}, "must say what to generate"),
        ({"response_format": "gif"}, "response_format cannot be used as given"),
    ],
)
def test_mistakes_are_told(client: Any, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(openai.BadRequestError, match=told) as caught:
        client.images.generate(**{"prompt": PROMPT, **fields})
    assert caught.value.body["type"] == "invalid_request_error"


def test_a_request_without_a_prompt_or_as_no_json_is_refused(server: Server) -> None:
    assert "needs 'prompt', which was not given" in server.post("/images/generations", json={}).text
    assert server.post("/images/generations", content=b"{", headers=JSON).status_code == 400
    plain = server.post("/images/generations", content=b"{}", headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400 and "must be JSON" in plain.json()["error"]["message"]


JSON = {"Content-Type": "application/json"}


def test_eight_at_once_get_the_bytes_of_the_command_line(client: Any, cli: Models, tmp_path: Path) -> None:
    def ask(seed: int) -> bytes:
        extra = {"budget": "1x", "seed": seed}
        return base64.b64decode(client.images.generate(prompt=PROMPT, extra_body=extra).data[0].b64_json)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert len(set(answers)) > 1
    for seed in range(0, 8, 3):
        assert answers[seed] == searched(cli, tmp_path / str(seed), budget="1x", seed=seed)


def test_progress_is_streamed(server: Server) -> None:
    job = server.post("/jobs", json={"prompt": PROMPT, "algorithm": "evosearch", "budget": "6x"}).json()
    names, spent, last = [], [], {}
    with httpx.stream("GET", f"{server.url}/v1/jobs/{job['id']}/events", timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
                spent.append(last.get("spending", {}).get("nfe", 0))
    assert names[:-1] == ["progress"] * (len(names) - 1) and names[-1] == "end" and len(names) > 3
    assert last == {"id": job["id"], "state": "finished"} and spent[:-1] == sorted(spent[:-1])
    snapshot = server.get(f"/jobs/{job['id']}").json()
    assert snapshot["state"] == "finished" and snapshot["best"] in snapshot["population"]
    preview = server.get(f"/jobs/{job['id']}/previews/{snapshot['best']}")
    assert preview.headers["content-type"] == "image/jpeg" and preview.content[:2] == b"\xff\xd8"
    file = next(p["file"] for p in snapshot["particles"] if p["uid"] == snapshot["best"])
    assert server.get(f"/jobs/{job['id']}/files/{file}").content.startswith(b"\x89PNG")
    assert server.get(f"/jobs/{job['id']}/files/config.yaml").text.startswith("prompt:")
    assert server.get(f"/jobs/{job['id']}/previews/999").status_code == 404


def test_a_search_is_paused_resumed_and_stopped(server: Server) -> None:
    id = server.post("/jobs", json={"prompt": PROMPT, "budget": "40x"}).json()["id"]
    job = server.jobs.get(id)
    while not job.snapshot().best:
        time.sleep(0.01)
    server.post(f"/jobs/{id}/pause")
    assert job.wait(60) == "paused"
    assert server.post(f"/jobs/{id}/resume").json()["state"] in ("queued", "running")
    server.post(f"/jobs/{id}/stop")
    assert job.wait(60) == "stopped"
    if job.result() is not None:
        assert load_result(job.folder).stopped
    assert server.post(f"/jobs/{id}/explode").status_code == 422
    told = server.post(f"/jobs/{id}/pause")
    assert told.status_code == 400 and "is stopped; leave it" in told.json()["error"]["message"]


def test_a_client_that_goes_away_ends_its_search(server: Server) -> None:
    before = {job.id for job in server.jobs.all()}
    with pytest.raises(httpx.ReadTimeout):
        url = f"{server.url}/v1/images/generations"
        httpx.post(url, json={"prompt": PROMPT, "budget": "2000x"}, timeout=0.5)
    (job,) = [job for job in server.jobs.all() if job.id not in before]
    assert job.wait(60) == "stopped"


def test_models_are_listed(client: Any) -> None:
    assert "playground" in {model.id for model in client.models.list()}


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


def test_scores_are_json_by_base64_and_by_form(server: Server, cli: Models, tmp_path: Path) -> None:
    image = searched(cli, tmp_path / "cli", budget="1x")
    verifiers = ["playground_clip", "playground_oracle"]
    images = [base64.b64encode(content).decode() for content in (image, png("red"))]
    images[1] = f"data:image/png;base64,{images[1]}"
    given = {"images": images, "prompts": [PROMPT], "verifiers": verifiers}
    answer = server.post("/score", json=given)
    assert answer.headers["content-type"] == "application/json"
    first, second = answer.json()["scores"]
    best = load_result(tmp_path / "cli").best.score.value
    assert first["scores"]["playground_clip"]["value"] == pytest.approx(best, abs=1e-5)
    assert second["scores"]["playground_oracle"]["satisfied"] is False
    assert second["scores"]["playground_oracle"]["reason"]
    files = [("images", ("a.png", image, "image/png")), ("images", ("b.png", png("red"), "image/png"))]
    by_form = server.post("/score", files=files, data={"prompts": [PROMPT], "verifiers": verifiers})
    assert by_form.json() == answer.json()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"images": ["!"]}, "as base64 but image 0 is not"),
        ({"images": []}, "images cannot be used as given"),
        ({"prompts": ["a", "b", "c"]}, "one prompt for all or one each, but got 1 images, 1 verifiers, 3"),
        ({"verifiers": ["nothing"]}, "must be a registered one but got 'nothing'"),
        ({"images": [base64.b64encode(b"text").decode()]}, "image 0 is none that can be read"),
        ({"more": 1}, "Fields of this request are images, prompts, verifiers but got 'more'"),
    ],
)
def test_mistakes_in_scoring_are_told(server: Server, change: dict[str, Any], told: str) -> None:
    given = {
        "images": [base64.b64encode(png("red")).decode()],
        "prompts": ["x"],
        "verifiers": ["playground_clip"],
    }
    answer = server.post("/score", json={**given, **change})
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]


def test_a_full_queue_is_told_as_such(tmp_path: Path) -> None:
    small = Server(Jobs(tmp_path, queue=1))
    blocked = threading.Event()
    try:
        small.jobs.call(blocked.wait)
        while small.jobs._queue:
            time.sleep(0.01)
        assert small.post("/jobs", json={"prompt": PROMPT}).status_code == 200
        refused = small.post("/jobs", json={"prompt": PROMPT})
        assert (
            refused.status_code == 429 and "At most 1 searches may wait" in refused.json()["error"]["message"]
        )
    finally:
        for job in small.jobs.all():
            job.cancel()
        blocked.set()
        small.close()
