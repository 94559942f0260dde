"""Attacks from a browser or over HTTP: files, code, bombs, other sites' pages, and other people's markup."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs tts-vision[app]")

from fastapi.testclient import TestClient
from PIL import Image

from tts_vision.app import uploads
from tts_vision.app.guard import LOOPBACK, Guard
from tts_vision.app.http import JSON_BYTES, serve_jobs
from tts_vision.app.job import Job
from tts_vision.app.jobs import Jobs
from tts_vision.app.rules import PROMPT, Rules
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError
from tts_vision.resolve import Live
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Video

HTML = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class ToyModels:
    def live(self, config: RunConfig) -> Live:
        return Live(pipe=GaussianMixtureSampler(num_steps=4), verifier=TargetReward())


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path / "out")
    made._models = ToyModels()  # type: ignore[assignment]
    yield made
    made.close()


@pytest.fixture
def client(jobs: Jobs) -> TestClient:
    return TestClient(Guard(serve_jobs(jobs), LOOPBACK), base_url="http://127.0.0.1:7860")


@pytest.fixture
def job(jobs: Jobs) -> Job:
    made = jobs.submit(RunConfig(prompt=HTML, budget="2x"))
    assert made.wait(60) == "finished", made.error
    return made


# Files


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Job]]:
    """A finished job that nothing changes, among files and links that must not be served."""
    root = tmp_path_factory.mktemp("attacked")
    jobs = Jobs(root / "out")
    jobs._models = ToyModels()  # type: ignore[assignment]
    job = jobs.submit(RunConfig(prompt=HTML, budget="2x"))
    assert job.wait(60) == "finished", job.error
    for secret in (root / "out" / "secret.txt", root / "out" / "secret.png"):
        secret.write_text("treasure")
    (job.folder / "secret.txt").write_text("treasure")  # of a kind that is not shown
    (job.folder / "linked.png").symlink_to(root / "out" / "secret.png")
    (job.folder / "linked").symlink_to(root / "out")
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.yaml").write_text((job.folder / "config.yaml").read_text())
    (root / "out" / "linked").symlink_to(elsewhere)
    yield TestClient(Guard(serve_jobs(jobs), LOOPBACK), base_url="http://127.0.0.1:7860"), job
    jobs.close()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "..%2fsecret.txt",
        "%2e%2e/secret.txt",
        "population/../../secret.txt",
        "population/..%2f..%2fsecret.txt",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "//etc/passwd",
        ".tts-vision.lock",
        "population",
        "",
        "population/",
        "a\x00.png",
        "state/000001-00000.safetensors",
        "secret.txt",
        "linked.png",
        "linked/secret.png",
    ],
)
def test_only_files_of_a_job_are_served(attacked: tuple[TestClient, Job], name: str) -> None:
    client, job = attacked
    assert client.get(f"/v1/jobs/{job.id}/files/best.png").status_code == 200
    answer = client.get(f"/v1/jobs/{job.id}/files/{name}".replace("\x00", "%00"))
    assert answer.status_code in (404, 405) and "treasure" not in answer.text


@pytest.mark.parametrize("id", ["..", "%2e%2e", "..%2f..", "%2fetc", "linked", ".hidden", "population"])
def test_only_folders_of_the_output_are_jobs(attacked: tuple[TestClient, Job], id: str) -> None:
    client, _ = attacked
    for path in ("", "/files/config.yaml", "/events"):
        answer = client.get(f"/v1/jobs/{id}{path}")
        assert answer.status_code in (400, 404, 405) and "budget" not in answer.text


def test_a_linked_folder_is_in_no_list(jobs: Jobs, job: Job) -> None:
    (job.folder.parent / "linked").symlink_to(job.folder)
    assert [found.id for found in jobs.all()] == [job.id]


def test_files_are_inert(client: TestClient, job: Job) -> None:
    for name, kind in (("lineage.svg", "image/svg+xml"), ("config.yaml", "text/plain; charset=utf-8")):
        answer = client.get(f"/v1/jobs/{job.id}/files/{name}")
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_markup_in_a_prompt_is_text(client: TestClient, job: Job) -> None:
    assert "<script" not in client.get(f"/v1/jobs/{job.id}/files/lineage.svg").text
    for answer in (
        client.get(f"/v1/jobs/{job.id}"),
        client.get(f"/v1/jobs/{HTML}"),
        client.post("/v1/jobs", json={"prompt": "x", "algorithm": HTML}),
    ):
        assert answer.headers["content-type"] == "application/json"
    assert "<" not in job.id and "&" not in job.id


# Code, models and verifiers


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """A plugin file that leaves a mark when it is run."""
    path, mark = tmp_path / "evil.py", tmp_path / "mark"
    path.write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef evil(*a, **k): return 1\n")
    yield path
    assert not mark.exists(), "the file was run"


ASKS: list[dict[str, Any]] = [
    {"verifier": "{file}@evil"},
    {"verifier": "os:system"},
    {"verifier": "ensemble(playground_clip, {file}@evil)"},
    {"verifier": "ensemble(playground_clip, ensemble(os:system, playground_oracle))"},
    {"verifier": "frame_mean(os:system)"},
    {"verifier": "vlm_judge:base_url=http://127.0.0.1:1/v1"},
    {"verifier": "vlm_judge:checkpoint=/etc"},
    {"verifier": "playground_clip:path={folder}"},
    {"verifier": "playground_clip:path=~/models"},
    {"verifier": "playground_clip:path=.."},
    {"verifier": "orm:key_variable=HOME"},
    {"holdout_verifier": "{file}@evil"},
    {"holdout_verifier": "ensemble(os:system, playground_clip)"},
    {"algorithm": "{file}@evil"},
    {"algorithm": "os:system"},
    {"algorithm": "prompt_search", "algorithm_params": {"rewriter": "{file}@evil"}},
    {"algorithm": "prompt_search", "algorithm_params": {"rewriter": "os:system"}},
    {"algorithm": "prompt_search", "algorithm_params": {"rewriter": "chat:base_url=http://127.0.0.1:1"}},
    {"algorithm": "parm_pp", "algorithm_params": {"corrector": "{file}@evil"}},
    {"algorithm": "parm_pp", "algorithm_params": {"corrector": "os:system"}},
    {"algorithm": "parm_pp", "algorithm_params": {"corrector": "edit:model={file}@evil"}},
    {"algorithm": "parm_pp", "algorithm_params": {"corrector": "edit:strength=0.5,model=os:system"}},
    {"algorithm": "parm_pp", "algorithm_params": {"corrector": "edit:model=/etc"}},
    {"algorithm": "parm_pp", "algorithm_params": {"critic": "chat:base_url=http://127.0.0.1:1,model=m"}},
    {"algorithm": "raise_search", "algorithm_params": {"actions": ["prompt", "edit:model=os:system?a=1"]}},
    {"algorithm": "reflection_flow", "algorithm_params": {"refine_by": "os:system"}},
    {"algorithm": "tts_var", "algorithm_params": {"features": "{file}@evil"}},
    {"algorithm": "tts_var", "algorithm_params": {"features": "os:system"}},
    {"algorithm": "best_of_n", "algorithm_params": {"verifier": "ensemble(os:system, playground_clip)"}},
    {"model": "/etc", "verifier": "playground_clip"},
    {"model": "{folder}", "verifier": "playground_clip"},
    {"model": "../models/mine", "verifier": "playground_clip"},
    {"model": "./mine", "verifier": "playground_clip"},
    {"model": "tests/app", "verifier": "playground_clip"},
    {"model": "~/mine", "verifier": "playground_clip"},
    {"model": "file:///etc/passwd", "verifier": "playground_clip"},
    {"model": "https://example.com/x", "verifier": "playground_clip"},
    {"model": "C:\\models", "verifier": "playground_clip"},
    {"model": "{file}@evil", "verifier": "playground_clip"},
    {"model": "os:system", "verifier": "playground_clip"},
    {"model": "infinity-2b:/etc", "verifier": "playground_clip"},
    {"model": "diffusers", "verifier": "playground_clip"},
    {"model_options": {"lora": ["/etc/passwd"]}},
    {"model_options": {"lora": ["somebody/lora"]}},
    {"model_options": {"preview_vae": "/etc"}},
    {"model_options": {"revision": "refs/pr/1"}},
]


@pytest.mark.parametrize("asked", ASKS, ids=lambda asked: str([*asked.values()][-1])[:60])
@pytest.mark.parametrize("allowed", [None, frozenset({"some/model", "clip_score"})])
def test_code_addresses_and_files_are_refused(
    jobs: Jobs, plugin: Path, asked: dict[str, Any], allowed: frozenset[str] | None
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{file}", str(plugin)).replace("{folder}", str(plugin.parent))
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return value

    object.__setattr__(jobs, "rules", Rules(allowed))
    config = RunConfig(**{"prompt": "x", "verifier": "playground_clip", **filled(asked)})
    with pytest.raises(ConfigError, match=r"not accepted|server allows|must be a registered one"):
        jobs.submit(config)
    with pytest.raises(ConfigError, match=r"not accepted|server allows|must be a registered one"):
        jobs.estimate(config)
    assert jobs.all() == []


@pytest.mark.parametrize(
    "field", [{"algorithm": "os:system"}, {"verifier": "os:system"}, {"model": "/etc"}, {"model": "a:b"}]
)
def test_they_are_refused_over_http(client: TestClient, field: dict[str, str]) -> None:
    for path in ("/v1/jobs", "/v1/images/generations"):
        answer = client.post(path, json={"prompt": "x", **field})
        assert answer.status_code == 400 and "accepted" in answer.json()["error"]["message"]


def test_a_folder_of_somebody_else_runs_no_code(jobs: Jobs, job: Job, plugin: Path) -> None:
    """A configuration that was put into the output folder is held to the same rules."""
    theirs = job.folder.parent / "theirs"
    theirs.mkdir()
    config = job.config.model_copy(update={"verifier": f"{plugin}@evil"})
    (theirs / "config.yaml").write_text(config.dump())
    found = jobs.get("theirs")
    assert found.state == "paused"
    found.resume()
    assert found.wait(30) == "failed" and "not accepted from a browser" in (found.error or "")


def test_only_images_of_the_output_folder_are_refined(jobs: Jobs, job: Job, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    (jobs.output / "linked.png").symlink_to(tmp_path / "private.png")
    own = job.folder / "best.png"
    for path in (
        str(tmp_path / "private.png"),
        "private.png",
        "~/private.png",
        f"{jobs.output}/../{tmp_path.name}/private.png",
        str(jobs.output / "linked.png"),
        str(jobs.output / "nothing.png"),
        str(job.folder / "config.yaml"),
        "data:image/png;base64,AAAA",
    ):
        asked = RunConfig(prompt="x", algorithm="variations", algorithm_params={"image": path})  # type: ignore[call-arg]
        with pytest.raises(ConfigError, match=r"are not accepted from a browser"):
            jobs.submit(asked)
    assert jobs.rules.files_of(
        RunConfig(prompt="x", algorithm="variations", algorithm_params={"image": str(own)})  # type: ignore[call-arg]
    ) == [str(own)]


def test_away_from_this_machine_only_what_is_allowed_may_be_used() -> None:
    rules = Rules(frozenset({"some/model", "clip_score", "vlm_judge:checkpoint=/models/judge"}))

    def check(**settings: Any) -> None:
        rules.check(RunConfig(**{"prompt": "x", "verifier": "playground_clip", **settings}))

    check()
    check(model="some/model", verifier="clip_score")
    check(verifier="ensemble(clip_score, human)")
    check(verifier="vlm_judge:checkpoint=/models/judge")
    for settings in (
        {"model": "other/model"},
        {"model": "playground-var"},
        {"verifier": "pickscore"},
        {"verifier": "ensemble(clip_score, pickscore)"},
        {"verifier": "vlm_judge"},
        {"verifier": "vlm_judge:checkpoint=/models/other"},
    ):
        with pytest.raises(ConfigError, match=r"must be one that this server allows \(.*\) but got"):
            check(**settings)
    assert rules.models() == ["playground", "some/model", "vlm_judge:checkpoint=/models/judge"]
    Rules().check(RunConfig(prompt="x", model="some/model", verifier="pickscore"))


@pytest.mark.parametrize("name", ["evil.py@evil", "os:system"])
def test_code_is_not_allowed_either(name: str) -> None:
    with pytest.raises(ConfigError, match="code is never accepted from a browser"):
        Rules(frozenset({name}))


# Prompts


def test_long_prompts_are_refused(jobs: Jobs, client: TestClient) -> None:
    with pytest.raises(ConfigError, match=f"at most {PROMPT} characters but got 1000000"):
        jobs.submit(RunConfig(prompt="x" * 10**6))
    answer = client.post("/v1/jobs", json={"prompt": "x" * 10**6})
    assert answer.status_code == 413 and f"at most {JSON_BYTES} bytes" in answer.json()["error"]["message"]
    shorter = client.post("/v1/jobs", json={"prompt": "x" * (PROMPT + 1)})
    assert shorter.status_code == 400 and f"at most {PROMPT} characters" in shorter.text
    with pytest.raises(ConfigError, match="prompt_metadata must have at most"):
        jobs.submit(RunConfig(prompt="x", prompt_metadata={"a": "x" * 10**6}))
    for kwargs in ({"height": 30_000, "width": 30_000}, {"num_frames": 5000}, {"num_inference_steps": 9000}):
        with pytest.raises(ConfigError, match="at most"):
            jobs.submit(RunConfig(prompt="x", sampler_options={"pipeline_kwargs": kwargs}))


# Uploads


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, frames: int = 0) -> bytes:
    """A PNG of one colour, with little more than its header."""
    rows = zlib.compress(b"\0" * 10_000)
    animation = chunk(b"acTL", struct.pack(">II", frames, 0)) if frames else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + animation + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gif(width: int, height: int, frames: int, *, reaches: tuple[int, int] | None = None) -> bytes:
    """A GIF whose frames are almost empty."""
    right, bottom = reaches or (width, height)
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, right, bottom, 0) + b"\x02\x02\x4c\x01\x00"
    return screen + frame * frames + b"\x3b"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (png(10_000, 10_000), "at most 32 megapixels but .* has 10000x10000"),
        (png(50_000, 50_000), "at most 32 megapixels|damaged"),
        (png(5000, 5000, frames=400), "256 megapixels in all but .* 40[01] frames of 5000x5000"),
        (gif(2000, 2000, 900), "256 megapixels in all but .* has 65 frames of 2000x2000"),
        (gif(10, 10, 5000), "at most 1000 frames"),
        (gif(10, 10, 2, reaches=(60_000, 60_000)), "lie on its screen but .* reaches 60000x60000 on 10x10"),
        (gif(65_535, 65_535, 1), "at most 32 megapixels"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "none that can be read|damaged"),
        (b"GIF89a", "none that can be read|damaged"),
        (b"", "none that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none that can be read"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 64, "cannot be read|PyAV"),
        (b"\x1a\x45\xdf\xa3" + b"\0" * 64, "cannot be read|PyAV"),
        (pickle.dumps({"a": 1}), "none that can be read"),
    ],
)  # fmt: skip
def test_bombs_and_other_files_are_refused_before_they_are_decoded(
    data: bytes, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image.Image, "convert", never)
    monkeypatch.setattr("tts_vision.app.uploads.read_animation", never)
    with pytest.raises(ConfigError, match=told):
        uploads.decode(data)


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 64 MB but the upload has 65"):
        uploads.decode(bytes(65 * 2**20))
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(ConfigError, match=r"at most 64 MB but 'large\.png' has 65"):
        uploads.read(path)
    with pytest.raises(ConfigError, match=r"must be readable but 'none\.png'"):
        uploads.read(tmp_path / "none.png")


def test_honest_files_are_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    for suffix in ("png", "webp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(pixels).save(path, lossless=True)
        image = uploads.read(path)
        assert isinstance(image, Image.Image)
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
    frames = [Image.new("P", (6, 4), i) for i in range(3)]
    for number, frame in enumerate(frames):
        frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
        frame.paste(number, (0, 0, 6, 4))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=250)
    clip = uploads.read(tmp_path / "a.gif")
    assert isinstance(clip, Video) and clip.frames.shape == (3, 4, 6, 3) and clip.fps == 4
    assert clip.frames[:, 0, 0].tolist() == [[0, 0, 0], [255, 0, 0], [0, 255, 0]]


@pytest.mark.parametrize(
    ("colours", "duration", "frames"), [(["red", "blue"], 60_000, 2), (["red"], 100, 10**5)]
)
def test_animations_do_not_grow_by_the_facts_in_them(
    colours: list[str], duration: int, frames: int, tmp_path: Path
) -> None:
    comment = json.dumps({"fps": "10", "frames": str(frames)})
    first, *rest = [Image.new("RGB", (9, 9), colour) for colour in colours]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=duration, comment=comment)
    with pytest.raises(ConfigError, match="at most 1000 frames"):
        uploads.read(tmp_path / "a.gif")


def test_clips_are_read_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    import torch

    from tts_vision.media import write_media

    clip = Video(torch.randint(0, 255, (5, 32, 48, 3), dtype=torch.uint8), 8.0)
    for suffix in ("mp4", "mkv"):
        write_media(clip, tmp_path / f"a.{suffix}", {})
        found = uploads.read(tmp_path / f"a.{suffix}")
        assert isinstance(found, Video) and found.frames.shape == (5, 32, 48, 3) and found.fps == 8
    monkeypatch.setattr(uploads, "FRAMES", 4)
    with pytest.raises(ConfigError, match="at most 4 frames"):
        uploads.read(tmp_path / "a.mp4")


def test_scoring_takes_no_pickles_and_no_bombs(client: TestClient, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (mark,))

    bombs = [pickle.dumps(Evil()), png(10_000, 10_000), gif(2000, 2000, 900)]
    for data in bombs:
        given = {"prompts": ["x"], "verifiers": ["playground_oracle"]}
        text = base64.b64encode(data).decode()
        by_json = client.post("/v1/score", json={**given, "images": [text]})
        by_form = client.post("/v1/score", data=given, files=[("images", ("a.png", data))])
        assert by_json.status_code == by_form.status_code == 400
    for kind in ("application/octet-stream", "application/python-pickle"):
        answer = client.post("/v1/score", content=pickle.dumps(Evil()), headers={"Content-Type": kind})
        assert answer.status_code == 400 and "must be JSON" in answer.text
    assert not mark.exists()
    endless = client.post(
        "/v1/score", content=iter([b"{"] * 10), headers={"Content-Type": "application/json"}
    )
    assert endless.status_code == 400


# Other sites and other people


def test_other_names_of_this_machine_are_refused(client: TestClient) -> None:
    assert client.get("/v1/models").status_code == 200
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::1", "localhost.evil"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 403
    for host in ("localhost", "localhost:7860", "127.0.0.1:1", "[::1]:7860"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_change_nothing(client: TestClient, jobs: Jobs) -> None:
    body = {"prompt": "x", "budget": "1x"}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:7860"):
        assert client.post("/v1/jobs", json=body, headers={"Origin": origin}).status_code == 403
    as_form = client.post("/v1/jobs", content=b'{"prompt": "x"}', headers={"Content-Type": "text/plain"})
    assert as_form.status_code == 400
    assert jobs.all() == []
    assert client.post("/v1/jobs", json=body, headers={"Origin": "http://127.0.0.1:7860"}).status_code == 200


def test_the_password_is_asked_for_everywhere(jobs: Jobs) -> None:
    client = TestClient(Guard(serve_jobs(jobs), None, ("ada", "sesame")), base_url="http://example.com")
    for path in ("/v1/models", "/v1/jobs/x", "/", "/anything"):
        answer = client.get(path)
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic")
    wrong = [
        "Bearer nothing",
        "Bearer ",
        "Basic !!",
        "Basic " + base64.b64encode(b"ada:x").decode(),
        "Bearer ä",
    ]
    for authorization in wrong:
        headers = {"Authorization": authorization.encode("latin-1")}
        assert client.get("/v1/models", headers=headers).status_code == 401
    assert client.get("/v1/models", auth=("ada", "sesame")).status_code == 200
    assert client.get("/v1/models", headers={"Authorization": "Bearer sesame"}).status_code == 200


def test_away_from_loopback_rules_are_strict_and_a_taken_port_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    from tts_vision.app import server

    seen: list[tuple[Rules, Any, Any]] = []

    def assemble(jobs: Jobs, **settings: Any) -> Any:
        seen.append((jobs.rules, settings["hosts"], settings["auth"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "assemble", assemble)
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"must listen on 127\.0\.0\.1:{port} but the system says"):
        server.serve(tmp_path, port=port)
    free.close()
    for settings in (
        {},
        {"host": "0.0.0.0"},
        {"share": True},
        {"allow": ["clip_score"]},
        {"host": "0.0.0.0", "allow": ["a/b"], "auth": ("ada", "sesame")},
    ):
        with pytest.raises(KeyboardInterrupt):
            server.serve(tmp_path, port=port, **settings)  # type: ignore[arg-type]
    everything = LOOPBACK
    assert [(rules.allowed, hosts, auth) for rules, hosts, auth in seen] == [
        (None, everything, None),
        (frozenset(), None, None),
        (frozenset(), None, None),
        (frozenset({"clip_score"}), everything, None),
        (frozenset({"a/b"}), None, ("ada", "sesame")),
    ]


def test_without_gradio_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tts_vision.cli import app

    monkeypatch.setattr("tts_vision.app.server.importlib.util.find_spec", lambda name: None)
    told = CliRunner().invoke(app, ["app", "-o", str(tmp_path)])
    assert told.exit_code == 2 and "pip install 'tts-vision[app]'" in told.output
    told = CliRunner().invoke(app, ["app", "--auth", "ada"])
    assert told.exit_code == 2 and "--auth must be a user and a password" in told.output


def test_memory_is_bounded_while_a_body_is_read(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 2**16
            yield b" " * 2**16

    answer = client.post("/v1/jobs", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    form = {"prompts": ["x"], "verifiers": ["playground_oracle"], "more": ["y"]}
    told = client.post("/v1/score", data=form, files=[("images", ("a.png", buffer.getvalue()))])
    assert told.status_code == 400 and "but got 'more'" in told.text
