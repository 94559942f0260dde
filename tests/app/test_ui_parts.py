"""What the page of the app asks its server, without a browser."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="the app needs gradio; pip install 'tts-vision[app]'")

from browsing import PROMPT
from toy_clips import Slides, position

from tts_vision import search
from tts_vision.app.job import Job
from tts_vision.app.jobs import Jobs
from tts_vision.app.rules import Rules
from tts_vision.app.ui_compare import Comparisons, Plan
from tts_vision.app.ui_form import config_of, parameters_of
from tts_vision.app.ui_live import LiveView
from tts_vision.app.ui_recipe import FROM_FILE, command, snippet
from tts_vision.app.ui_runs import Runs
from tts_vision.app.ui_scores import score_uploads, table
from tts_vision.app.ui_words import for_artists, forecast_of, told
from tts_vision.app.watch import kind_of, thumbnail
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError
from tts_vision.media import write_media
from tts_vision.types import Video


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    made = Jobs(tmp_path_factory.mktemp("searches"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def done(jobs: Jobs) -> Job:
    """A small search that is finished."""
    job = jobs.submit(
        config_of(
            prompt=PROMPT,
            model="playground",
            algorithm="zero_order",
            verifier="playground_clip",
            budget="4x",
            seed=3,
            parameters={"starts": "2", "neighbours": "", "tau": "0.9"},
            settings="pipeline.num_inference_steps=6\nsampler.eta=0.5",
        )
    )
    assert job.wait(120) == "finished", job.error
    return job


def test_the_form_is_the_search(done: Job) -> None:
    assert done.config.algorithm_params["starts"] == 2 and done.config.algorithm_params["tau"] == 0.9
    assert done.config.sampler_options.pipeline_kwargs == {"num_inference_steps": 6}
    assert (done.config.seed, done.config.sampler_options.eta) == (3, 0.5)


def test_the_command_makes_a_run_again(done: Job, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tts_vision.cli.application import app

    words = shlex.split(command(done.config))
    assert words[:3] == ["tts-vision", "generate", PROMPT]
    made = CliRunner().invoke(app, [*words[1:], "--output", str(tmp_path / "again")])
    assert made.exit_code == 0, made.output
    for name in ("best.png", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (done.folder / name).read_bytes()


def test_the_snippet_makes_a_run_again(done: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision.media import pixels, read_media

    monkeypatch.chdir(tmp_path)
    exec(snippet(done.config, "best.png"), {})
    again, stored = (pixels(read_media(path)) for path in (tmp_path / "best.png", done.folder / "best.png"))
    assert (again == stored).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": 'it\'s "two" $(circles)'},
        {"algorithm": "evosearch", "algorithm_params": {"evolution_schedule": [2, 5], "elites": 2}},
        {"algorithm": "prompt_search", "algorithm_params": {"rewrites": ["a, b", "c"]}},
        {"target": "satisfied", "verifier": "playground_oracle", "holdout_verifier": "playground_clip"},
        {"model_options": {"dtype": "bfloat16"}, "budget": "nfe=50 and seconds=5"},
        {"prompt_metadata": {"tag": "counting", "include": [{"class": "circle", "count": 2}]}},
        {"prompt": "-n"},
    ],
)
def test_a_command_says_all_settings_or_names_the_file(settings: dict[str, Any]) -> None:
    from tts_vision.config import override
    from tts_vision.resolve import fill_defaults

    config = fill_defaults(RunConfig(**{"prompt": "x", "verifier": "playground_clip", **settings}))
    line = command(config)
    if config.prompt == "-n":
        assert line == FROM_FILE
        return
    words = shlex.split(line)[2:]
    flags = dict(zip(words[1::2], words[2::2]))
    values = {name[2:].replace("-", "_"): value for name, value in flags.items() if name != "--set"}
    values["target"] = values.pop("until", None)
    values["seed"] = int(values["seed"])
    sets = [value for flag, value in zip(words[1::2], words[2::2]) if flag == "--set"]
    assert fill_defaults(RunConfig(**override({"prompt": words[0], **values}, sets))).hash == config.hash


def test_a_view_tells_what_changed(jobs: Jobs, done: Job) -> None:
    view = LiveView(jobs)
    first = view.look({"job": done.id, "since": -1})
    assert first["state"] == "finished" and len(first["samples"]) == 4
    assert view.look({"job": done.id, "since": first["event"]})["samples"] == []
    images = view.images({"job": done.id, "uids": [0, 3, 99]})
    assert set(images) == {"0", "3"} and images["0"].startswith("data:image/jpeg;base64,")
    assert view.sample({"job": done.id, "uid": 3})["source"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    "request_",
    [None, [], "x", {}, {"job": 3}, {"job": "../.."}, {"job": "none"}, {"job": "a/b", "since": 0}],
)
def test_requests_that_name_no_job_are_refused(jobs: Jobs, request_: Any) -> None:
    view = LiveView(jobs)
    for answer in (view.look, view.images, view.sample, view.act):
        assert set(answer(request_)) == {"error"}


def test_requests_with_wrong_values_are_refused(jobs: Jobs, done: Job) -> None:
    view = LiveView(jobs)
    assert "whole number" in view.look({"job": done.id, "since": "x"})["error"]
    assert "whole number" in view.sample({"job": done.id, "uid": True})["error"]
    assert "list" in view.images({"job": done.id, "uids": 3})["error"]
    assert "must be one of pause" in view.act({"job": done.id, "what": "delete"})["error"]
    assert "must give answer" in view.act({"job": done.id, "what": "answer", "question": 1})["error"]
    assert "Only a search that waits or runs" in view.act({"job": done.id, "what": "pause"})["error"]


def test_refinements_are_bounded(jobs: Jobs, done: Job) -> None:
    view = LiveView(jobs)
    asked = {
        "job": done.id,
        "what": "refine",
        "uid": 1,
        "prompt": "",
        "n": 2,
        "strength": 0.5,
        "by_hand": False,
    }
    for change, told_ in (
        ({"n": 0}, "makes 1 to 64 samples"),
        ({"n": 65}, "makes 1 to 64 samples"),
        ({"strength": "a lot"}, "with a strength but got"),
        ({"strength": 1.5}, "strength must be between 0 and 1 but got 1.5"),
        ({"uid": 99}, "99 is none of its samples"),
        ({"prompt": "x" * 10_001}, "at most 10000 characters"),
        ({"prompt": None}, "prompt of a request must be a text"),
    ):
        found = view.act({**asked, **change})
        made = jobs.get(found["job"]) if "job" in found else None
        message = found.get("error") or (made.wait(60) and made.error)  # type: ignore[union-attr]
        assert told_ in message, change


def test_clips_are_shown_as_mp4(jobs: Jobs, done: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    torch = pytest.importorskip("torch")
    pytest.importorskip("av")
    frames = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    for suffix in (".mkv", ".mp4"):
        write_media(Video(frames, 8.0), done.folder / f"clip{suffix}", {})
    shot = done.snapshot()
    particles = tuple(replace(each, file="clip.mkv") for each in shot.particles)
    monkeypatch.setattr(Job, "snapshot", lambda self, since=-1: replace(shot, particles=particles))
    found = LiveView(jobs).sample({"job": done.id, "uid": 0})
    assert found["kind"] == "video" and found["source"].startswith("data:video/mp4;base64,")


def test_the_gallery_filters_and_refuses_other_files(jobs: Jobs, done: Job) -> None:
    runs = Runs(jobs)
    assert [run["id"] for run in runs.list("BLUE circles")["runs"]] == [done.id]
    assert runs.list("green")["total"] == 0
    assert runs.list(algorithm="zero_order", model="playground")["total"] == 1
    assert runs.list(algorithm="best_of_n")["total"] == 0
    assert runs.list(first=1)["runs"] == []
    (done.folder / "secret.txt").write_text("x")
    (done.folder / "drafts.png").symlink_to("/etc/hostname")
    for name in ("secret.txt", "../x", "trace.jsonl", "/etc/hostname"):
        with pytest.raises(ConfigError, match="A run's files are"):
            runs.file(done.id, name)
    with pytest.raises(Exception, match="symlink"):
        runs.file(done.id, "drafts.png")
    (done.folder / "drafts.png").unlink()
    for id in ("..", "../etc", "", ".hidden", "none"):
        with pytest.raises(ConfigError, match="must be a run"):
            runs.recipe(id)


def test_folders_of_others_that_ask_for_code_are_not_run(jobs: Jobs, done: Job) -> None:
    folder = jobs.output / "theirs"
    folder.mkdir()
    config = done.config.model_copy(update={"verifier": "evil.py@f"})
    (folder / "config.yaml").write_text(config.dump())
    runs = Runs(jobs)
    for act in (runs.again, runs.replay):
        with pytest.raises(ConfigError, match="code, addresses and files are not accepted"):
            act("theirs")


def test_comparisons_ask_the_rules_before_they_start(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, rules=Rules(frozenset()))
    comparisons = Comparisons(jobs)
    plan = Plan("playground", [PROMPT], ["best_of_n"], ["playground_clip"], None, "2x", [0])
    for change, message in (
        ({"model": "/etc"}, "one that this server allows"),
        ({"verifiers": ["clip_score"]}, "one that this server allows"),
        ({"evaluator": "clip_score"}, "one that this server allows"),
        ({"algorithms": ["x.py@f"]}, "not accepted from a browser"),
        ({"prompts": []}, "one of them is missing"),
        ({"seeds": range(3000)}, "may have 2000 searches"),
    ):
        with pytest.raises(ConfigError, match=message):
            comparisons.start(Plan(**{**vars(plan), **change}))
    with pytest.raises(ConfigError, match="none of this session"):
        comparisons.look("comparison-x")
    jobs.close()


def test_a_comparison_that_is_stopped_keeps_what_is_done(jobs: Jobs) -> None:
    comparisons = Comparisons(jobs)
    id = comparisons.start(
        Plan("playground", [PROMPT], ["best_of_n"], ["playground_clip"], None, "2x", range(50))
    )
    wait(lambda: comparisons.look(id)["done"] > 2)
    comparisons.stop(id)
    wait(lambda: comparisons.look(id)["state"] == "stopped")
    found = comparisons.look(id)
    assert found["total"] == 100 and found["done"] < 100 and found["error"] is None
    assert found["rows"][0]["searches"] >= 1
    assert jobs.call(lambda: "free").result(30) == "free"


def wait(condition: Any, seconds: float = 60) -> None:
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def test_uploads_are_scored_and_bad_ones_say_why(jobs: Jobs, done: Job, tmp_path: Path) -> None:
    broken = tmp_path / "<b>broken.png"
    broken.write_bytes(b"no picture")
    names = ["playground_oracle", "playground_clip"]
    rows = score_uploads(jobs, [broken, done.folder / "best.png"], "three blue squares", names)
    assert rows[1].scores["playground_oracle"].satisfied is False
    page = table(rows, names)
    assert "Not as asked: expected square&gt;=3" in page and "&lt;b&gt;broken.png" in page
    assert "<b>" not in page and "none that can be read" in page
    with pytest.raises(ConfigError, match="At most 64 files"):
        score_uploads(jobs, [broken] * 65, "x", names)
    with pytest.raises(ConfigError, match="not accepted"):
        score_uploads(jobs, [broken], "x", ["evil.py@f"])


def test_parameters_of_another_algorithm_are_refused() -> None:
    written = {"algorithm": "zero_order", "values": {"tau": "0.9", "n": " "}}
    assert parameters_of("zero_order", written) == {"tau": "0.9"}
    with pytest.raises(ConfigError, match="must be of the algorithm 'best_of_n'"):
        parameters_of("best_of_n", written)
    assert parameters_of("best_of_n", {"algorithm": "zero_order", "values": {"n": ""}}) == {}


def test_forecasts_in_words() -> None:
    from tts_vision.app.estimate import Estimate

    told = forecast_of(Estimate(nfe=1200, verifier_calls=8, seconds=130, low=8.24, high=7300))
    assert "About 2 min (8.2 s to 2.0 h): 1,200 network evaluations, 8 verifier calls." in told
    assert "not &lt;now&gt;" in forecast_of(Estimate(note="not <now>"))


def test_words_for_artists() -> None:
    assert (
        for_artists("Particles are ``kept`` by `Job.pin`; a particle.")
        == "Samples are kept by Job.pin; a sample."
    )
    assert told("<img>") == '<p class="tv-told" role="alert">&lt;img&gt;</p>'


@pytest.mark.parametrize(("frames", "fps", "shown"), [(6, 12.5, 6), (49, 16.0, 17), (200, 24.0, 23)])
def test_small_clips_move_at_their_pace(frames: int, fps: float, shown: int) -> None:
    values = torch.zeros(frames, 300, 500, 3, dtype=torch.uint8)
    for t in range(frames):
        values[t, :, 2 * t : 2 * t + 90] = 250
    data = thumbnail(Video(values, fps))
    assert kind_of(data) == "image/webp" and len(data) < 100_000
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (192, 115) and image.n_frames == shown  # type: ignore[attr-defined]
        image.load()
        assert image.info["duration"] * shown == pytest.approx(1000 * frames / fps, rel=0.05)
    still = thumbnail(Video(values[:1], fps))
    assert kind_of(still) == "image/jpeg" and still[:2] == b"\xff\xd8"


def test_a_run_of_clips_is_shown_after_a_restart(jobs: Jobs) -> None:
    pytest.importorskip("av")
    result = search(
        Slides(num_steps=3),
        "a square that slides",
        verifier=position,
        budget="3x",
        output=jobs.output / "clips",
    )
    view = LiveView(jobs)
    uids = [sample.uid for sample in result.population]
    shot = view.look({"job": "clips", "since": -1})
    assert [sample["preview"] for sample in shot["samples"]] == [1] * 3, "each has an image to ask for"
    images = view.images({"job": "clips", "uids": uids})
    assert all(images[str(uid)].startswith("data:image/webp;base64,") for uid in uids)
    sample = view.sample({"job": "clips", "uid": result.best.uid})
    assert sample["kind"] == "video" and sample["source"].startswith("data:video/mp4;base64,")
    (run,) = (run for run in Runs(jobs).list()["runs"] if run["id"] == "clips")
    assert run["image"].startswith("data:image/webp;base64,")
    names = {file["name"] for file in Runs(jobs).recipe("clips")["files"]}
    assert {"best.mp4", "best.gif", "best.mkv", "contact_sheet.png"} <= names
    assert Runs(jobs).file("clips", "best.gif")["source"].startswith("data:image/gif;base64,")
