"""Scoring files: tables, JSON, exit codes, clips, and every file or verifier that cannot be used."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tts_vision.cli import app
from tts_vision.errors import ConfigError
from tts_vision.media import open_media, write_media
from tts_vision.score_files import score_files
from tts_vision.types import Video

RED, LENGTH, WORDS = "mine.py@red", "mine.py@length", "mine.py@words"
runner = CliRunner()

MINE = '''
import numpy as np
from tts_vision.errors import VerifierError
from tts_vision.types import Score, Video

def red(images, prompts):
    """The mean of the red channel."""
    return [float(np.asarray(image.convert("RGB"))[..., 0].mean()) for image in images]

def words(images, prompts):
    return [float(len(prompt.split())) for prompt in prompts]

def too_few(images, prompts):
    return []

def raises(images, prompts):
    raise RuntimeError("no such reward")

class length:
    """The number of frames of a clip."""
    name, accepts = "length", frozenset({"video"})
    def score(self, media, prompts):
        return [Score(value=float(len(clip.frames)), parts={"fps": clip.fps}) for clip in media]

class images:
    name, accepts = "images", frozenset({"image"})
    seen = []
    def score(self, media, prompts):
        self.seen.append(len(media))
        return [Score(value=1.0) for _ in media]

class heavy:
    name, accepts = "heavy", frozenset({"image"})
    def load(self):
        raise VerifierError("'heavy' needs its weights at '/none'; download them first.")
    def score(self, media, prompts):
        raise AssertionError

class missing:
    name, accepts = "missing", frozenset({"image"})
    def load(self):
        import no_such_package
    def score(self, media, prompts):
        raise AssertionError
'''


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of red 10, 20, 30, a clip, and files that are neither."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    for value in (10, 20, 30):
        Image.new("RGB", (8, 6), (value, 0, 0)).save(f"{value}.png")
    frames = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 16, 16, 3) * 40
    write_media(Video(frames.contiguous(), fps=4.0), Path("clip.mp4"), {})
    Path("text.png").write_text("no image")
    Image.effect_noise((64, 64), 50).save("noise.png")
    Path("cut.png").write_bytes(Path("noise.png").read_bytes()[:1000])
    Path("cut.mp4").write_bytes(Path("clip.mp4").read_bytes()[:200])
    Path("folder").mkdir()


def run(*args: str, code: int = 0) -> Any:
    result = runner.invoke(app, ["score", *args])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_a_table_has_a_row_per_file_and_a_column_per_verifier() -> None:
    result = run("10.png", "30.png", "--prompt", "two red circles", "-v", RED, "-v", WORDS)
    rows = [line.split("│") for line in result.stdout.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row[1:-1]] for row in rows] == [
        ["10.png", "10.0000", "3.0000"],
        ["30.png", "30.0000", "3.0000"],
    ]
    heads = result.stdout.splitlines()[1]
    assert RED in heads and WORDS in heads
    assert result.stderr == ""


def test_json_has_everything_and_nothing_else() -> None:
    result = run("10.png", "text.png", "-p", "a", "-v", RED, "--verifier", LENGTH, "--json", code=1)
    found = json.loads(result.stdout)
    assert found[0] == {
        "file": "10.png",
        "prompt": "a",
        "scores": {
            RED: {"value": 10.0, "parts": {}, "reason": None},
            LENGTH: {"value": None, "parts": {}, "reason": "length does not score images"},
        },
    }
    assert found[1]["scores"][RED] == {
        "value": None,
        "parts": {},
        "reason": "it is no image that Pillow can read",
    }


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.mp4", "a.mkv"])
def test_a_file_says_its_prompt(name: str) -> None:
    sample: Any = Image.new("RGB", (16, 16), (40, 0, 0))
    if name.endswith((".gif", ".mp4", ".mkv")):
        sample = Video(torch.full((3, 16, 16, 3), 40, dtype=torch.uint8), 8.0)
    write_media(sample, Path(name), {"prompt": "two red circles, rewritten", "asked_prompt": "two red ü"})
    write_media(sample, Path(f"own{name}"), {"prompt": "three words here"})
    found = json.loads(run(name, f"own{name}", "-v", WORDS, "--json").stdout)
    assert [(file["prompt"], file["scores"][WORDS]["value"]) for file in found] == [
        ("two red ü", 3.0),
        ("three words here", 3.0),
    ]
    assert json.loads(run(name, "-p", "given", "-v", WORDS, "--json").stdout)[0]["prompt"] == "given"
    told = run(name, "10.png", "-v", WORDS, code=2)
    assert "'10.png' does not say its own" in " ".join(told.output.split())


def test_a_prompt_is_for_all_files_or_for_one() -> None:
    one = score_files(["10.png", "20.png"], ["a b"], [WORDS])
    assert [file.scores[WORDS].value for file in one] == [2, 2]
    each = score_files(["10.png", "20.png"], ["a b", "c"], [WORDS])
    assert [(file.prompt, file.scores[WORDS].value) for file in each] == [("a b", 2), ("c", 1)]


def test_clips_are_decoded() -> None:
    (file,) = score_files(["clip.mp4"], ["a"], [LENGTH])
    assert file.scores[LENGTH].value == 5 and file.scores[LENGTH].parts == {"fps": 4.0}
    result = run("clip.mp4", "-p", "a", "-v", LENGTH, "-v", "mine.py@images", code=1)
    assert "clip.mp4 is not scored by mine.py@images: images does not score clips; frame_mean(images)" in (
        " ".join(result.stderr.split())
    )
    (file,) = score_files(["clip.mp4"], ["a"], ["frame_mean(mine.py@images):frames=3"])
    assert file.scores["frame_mean(mine.py@images):frames=3"].value == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.png", "No such file or directory"),
        ("none.mp4", "No such file or directory"),
        ("folder", "it is a folder; name the files in it"),
        ("text.png", "it is no image that Pillow can read"),
        ("cut.png", "image file is truncated"),
        ("cut.mp4", "the clip cannot be decoded: .*(Invalid data|no video)"),
    ],
)
def test_a_file_that_cannot_be_read_costs_only_its_own_scores(name: str, reason: str) -> None:
    result = run("20.png", name, "30.png", "-p", "a", "-v", RED, "-v", WORDS, code=1)
    assert "20.0000" in result.stdout and "30.0000" in result.stdout and "unscored" in result.stdout
    assert re.search(f"{name} is not scored: .*(?:{reason})", result.stderr), result.stderr
    assert len(result.stderr.splitlines()) == 1, "a reason that all verifiers share is told once"


@pytest.mark.parametrize(
    ("verifier", "reason"),
    [
        ("heavy", "'heavy' needs its weights at '/none'; download them first."),
        ("missing", "No module named 'no_such_package'"),
        ("too_few", "must return one score per sample, 2 here, but returned 0"),
        ("raises", "raises raised RuntimeError: no such reward"),
    ],
)
def test_a_verifier_that_cannot_score_costs_only_its_own_column(verifier: str, reason: str) -> None:
    name = f"mine.py@{verifier}"
    result = run("10.png", "20.png", "-p", "a", "-v", name, "-v", RED, code=1)
    assert "10.0000" in result.stdout and "20.0000" in result.stdout
    for line, file in zip(result.stderr.splitlines(), ("10.png", "20.png"), strict=True):
        assert line.startswith(f"{file} is not scored by {name}: ") and reason in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["10.png", "-p", "a", "-v", "clipp"], "Verifier must be one of .* but got 'clipp'"),
        (["10.png", "-p", "a", "-v", "playground_clip:pth=x"], "got 'pth'; did you mean 'path'"),
        (["10.png", "20.png", "30.png", "-p", "a", "-p", "b", "-v", RED], "one for each, 3 here, but got 2"),
        (["10.png", "-p", "a"], "Missing option '--verifier'"),
        (["10.png", "-v", RED], "'10.png' does not say its own, .* give --prompt"),
        (["-p", "a", "-v", RED], "Missing argument 'FILES...'"),
    ],
)
def test_mistakes_have_exit_code_2(args: list[str], message: str) -> None:
    result = run(*args, code=2)
    text = " ".join(result.stderr.replace("│", " ").split())
    assert re.search(message.replace("(", r"\("), text), text
    assert result.stdout == ""


def test_nothing_to_score_is_told() -> None:
    for paths, verifiers in (([], [RED]), (["10.png"], [])):
        with pytest.raises(ConfigError, match="Scoring needs files and verifiers but got"):
            score_files(paths, ["a"], verifiers)


def test_files_are_taken_some_at_a_time_unless_they_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision import score_files as module
    from tts_vision.registry import lookup

    monkeypatch.setattr(module, "_BATCH", 2)
    seen = lookup("verifier", "mine.py@images").target.seen  # type: ignore[attr-defined]
    files = ["10.png", "20.png", "none.png", "30.png", "10.png"]
    score_files(files, ["a"], ["mine.py@images"])
    assert seen == [2, 1, 1]
    seen.clear()
    score_files(files, ["a"], ["ensemble(mine.py@images)"])
    assert seen == [4]


def test_a_pool_compares_the_files_of_one_prompt() -> None:
    pool = f"ensemble({RED})"
    files = score_files(["10.png", "30.png", "20.png", "none.png"], ["a"], [pool])
    values = [file.scores[pool].value for file in files]
    assert values[:3] == [0, 1, 0.5] and math.isnan(values[3])
    apart = score_files(["10.png", "30.png", "20.png"], ["a", "b", "a"], [pool])
    assert [file.scores[pool].value for file in apart] == [0, 0.5, 1]


def test_the_same_verifier_twice_is_one_column() -> None:
    (file,) = score_files(["10.png"], ["a"], [RED, RED])
    assert list(file.scores) == [RED]


# Reading


def test_images_keep_their_mode_and_stand_upright() -> None:
    Image.new("RGBA", (4, 2), (1, 2, 3, 0)).save("see-through.png")
    image = open_media(Path("see-through.png"))
    assert isinstance(image, Image.Image) and image.mode == "RGBA" and image.size == (4, 2)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.new("RGB", (4, 2), "red").save("turned.jpg", exif=exif)
    turned = open_media(Path("turned.jpg"))
    assert isinstance(turned, Image.Image) and turned.size == (2, 4)


def test_moving_images_are_clips() -> None:
    frames = [Image.new("RGB", (4, 4), (i * 80, 0, 0)) for i in range(3)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:], duration=250)
    clip = open_media(Path("moving.gif"))
    assert isinstance(clip, Video) and clip.frames.shape == (3, 4, 4, 3) and clip.fps == 4
    assert np.allclose(clip.frames[2, 0, 0].numpy(), [160, 0, 0], atol=8)


@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".MP4"])
def test_other_video_files(suffix: str) -> None:
    path = Path(f"other{suffix}")
    path.write_bytes(Path("clip.mp4").read_bytes())
    clip = open_media(path)
    assert isinstance(clip, Video) and len(clip.frames) == 5


def test_a_damaged_image_is_an_os_error() -> None:
    for name in ("cut.png", "text.png"):
        with pytest.raises(OSError):
            open_media(Path(name))
