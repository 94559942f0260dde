"""Samples as files: formats, exact pixels, facts inside, and what is read back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tts_vision import media as media_module
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.media import (
    all_valid,
    copied,
    facts_of,
    finite_rows,
    is_constant,
    open_media,
    pixels,
    read_media,
    read_text,
    shrunk,
    storable,
    suffix_of,
    write_media,
)
from tts_vision.types import Invalid, Media, Video

TEXT = {"prompt": "two red circles, ü 日本", "seed": "7", "parameters": "two red circles\nSteps: 3, Seed: 7"}
EXIF, USER_COMMENT = 0x8769, 0x9286


def image(mode: str = "RGB", size: tuple[int, int] = (17, 15)) -> Image.Image:
    width, height = size
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    values = np.random.default_rng(0).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if bands == 1 else values, mode)


def clip(frames: int = 5, height: int = 15, width: int = 17, fps: float = 23.976) -> Video:
    values = np.random.default_rng(1).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return Video(torch.from_numpy(values), fps)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_images_are_read_as_they_were_written(mode: str, tmp_path: Path) -> None:
    write_media(image(mode), tmp_path / "a.png", TEXT)
    back = read_media(tmp_path / "a.png")
    assert isinstance(back, Image.Image) and back.mode == mode
    assert np.array_equal(np.asarray(back), np.asarray(image(mode)))


def test_what_png_cannot_hold_is_converted_before_it_is_judged() -> None:
    assert storable(image("RGBA")).mode == "RGBA"  # type: ignore[union-attr]
    for mode in ("CMYK", "F", "YCbCr"):
        assert storable(image().convert("L" if mode == "F" else "RGB").convert(mode)).mode == "RGB"  # type: ignore[union-attr]
    video = clip()
    assert storable(video) is video


@pytest.mark.parametrize("shape", [(5, 15, 17), (1, 1, 1), (3, 65, 97), (3, 33, 7)])
@pytest.mark.parametrize("fps", [8.0, 23.976, 25.0, 29.97002997])
def test_clips_are_kept_without_loss(shape: tuple[int, int, int], fps: float, tmp_path: Path) -> None:
    pytest.importorskip("av")
    video = clip(*shape, fps=fps)
    assert suffix_of(video) == ".mkv"
    for name in ("a.mkv", "b.mkv"):
        write_media(video, tmp_path / name, TEXT)
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()
    back = read_media(tmp_path / "a.mkv")
    assert isinstance(back, Video)
    assert torch.equal(back.frames, video.frames) and back.fps == fps
    assert read_text(tmp_path / "a.mkv") == TEXT


@pytest.mark.parametrize("suffix", [".mp4", ".MOV", ".m4v"])
def test_clips_for_people_keep_all_rows_and_columns(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / f"a{suffix}"
    smooth = Video(torch.full((6, 15, 17, 3), 128, dtype=torch.uint8), fps=24.0)
    write_media(smooth, path, TEXT)
    back = read_media(path)
    assert isinstance(back, Video)
    assert back.frames.shape == (6, 16, 18, 3) and back.fps == 24.0
    assert (back.frames.int() - 128).abs().max() < 8
    assert read_text(path) == TEXT
    write_media(clip(2, 1, 1), tmp_path / f"b{suffix}", {})


@pytest.mark.parametrize("name", ["X.PNG", "a.png", "a.apng"])
def test_png_has_each_fact_as_text(name: str, tmp_path: Path) -> None:
    write_media(image(), tmp_path / name, TEXT)
    with Image.open(tmp_path / name) as opened:
        assert dict(opened.info) == TEXT
    assert read_text(tmp_path / name) == TEXT


@pytest.mark.parametrize("name", ["a.jpg", "A.JPEG", "a.webp", "a.tiff", "a.avif"])
def test_other_image_formats_have_exif(name: str, tmp_path: Path) -> None:
    if Path(name).suffix.lower() not in Image.registered_extensions():
        pytest.skip("this Pillow lacks the format")
    write_media(image(), tmp_path / name, TEXT)
    with Image.open(tmp_path / name) as opened:
        comment = opened.getexif().get_ifd(EXIF)[USER_COMMENT]
    assert comment.startswith(b"UNICODE\0") and comment[8:].decode("utf-16-be") == TEXT["parameters"]
    assert read_text(tmp_path / name) == TEXT
    plain = {key: value for key, value in TEXT.items() if key != "parameters"}
    write_media(image(), tmp_path / name, plain)
    with Image.open(tmp_path / name) as opened:
        comment = opened.getexif().get_ifd(EXIF)[USER_COMMENT]
    assert comment[8:].decode("utf-16-be") == TEXT["prompt"]


@pytest.mark.parametrize("name", ["a.bmp", "a.jp2", "a.ppm"])
def test_a_format_without_room_warns(name: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"has no room for the facts .*save it as PNG, JPEG or WebP"):
        write_media(image(), tmp_path / name, TEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_media(image(), tmp_path / name, {})
    assert read_text(tmp_path / name) == {}


def test_a_jpeg_without_room_for_all_keeps_the_most_it_can(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"room for 64 KB .* so configuration is left out"):
        write_media(image(), tmp_path / "a.jpg", {**TEXT, "configuration": "x" * 70_000})
    assert read_text(tmp_path / "a.jpg") == TEXT
    long = {"prompt": "y" * 200_000, "seed": "1"}
    with pytest.warns(UserWarning, match="prompt is left out"):
        write_media(image(), tmp_path / "a.jpg", long)
    assert read_text(tmp_path / "a.jpg") == {"seed": "1"}
    write_media(image(), tmp_path / "a.png", long)
    assert read_text(tmp_path / "a.png") == long


def test_transparent_images_are_saved_as_jpeg(tmp_path: Path) -> None:
    write_media(image("RGBA"), tmp_path / "a.jpg", TEXT)
    assert read_media(tmp_path / "a.jpg").mode == "RGB"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("sample", "name", "message"),
    [
        (image(), "a.xyz", r"The file of an image must end in \.png, .* but got 'a.xyz'"),
        (image(), "a", "must end in .* but got 'a'"),
        (image(), "a.psd", "must end in"),
        (clip(), "a.jpg", r"The file of a clip must end in \.mkv, \.mp4"),
        (clip(), "a.pdf", "The file of a clip must end in"),
    ],
)
def test_unknown_formats_are_told(sample: Media, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        write_media(sample, tmp_path / name, TEXT)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "A.MKV"])
def test_video_files_need_pyav(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "_has_av", lambda: False)
    with pytest.raises(ConfigError, match=r"(MP4|MKV) files need PyAV, .* pip install 'tts-vision\[video\]'"):
        write_media(clip(), tmp_path / name, TEXT)
    assert suffix_of(clip()) == ".png"
    with pytest.warns(UserWarning, match="stored as animated PNG"):
        write_media(clip(), tmp_path / "a.png", TEXT)
    back = read_media(tmp_path / "a.png")
    assert isinstance(back, Video) and torch.equal(back.frames, clip().frames) and back.fps == clip().fps


@pytest.mark.filterwarnings("ignore:PyAV")
@pytest.mark.parametrize("fps", [8.0, 23.976])
@pytest.mark.parametrize("same", [0, 2, 5])
def test_equal_frames_survive_an_animated_png(
    same: int, fps: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_module, "_has_av", lambda: False)
    video = clip(5, fps=fps)
    video.frames[:same] = 9
    write_media(video, tmp_path / "a.png", TEXT)
    back = read_media(tmp_path / "a.png")
    assert isinstance(back, Video) and torch.equal(back.frames, video.frames) and back.fps == fps


def moving(frames: int = 9, fps: float = 23.976) -> Video:
    """A red square that moves over a grey ramp, which stands still at the beginning and at the end."""
    values = torch.arange(64, dtype=torch.uint8).view(1, 1, 64, 1).repeat(frames, 48, 1, 3) * 3
    for t in range(frames):
        x = min(max(t - 2, 0), frames - 5) * 4
        values[t, 20:30, x : x + 10] = torch.tensor([220, 20, 20], dtype=torch.uint8)
    return Video(values, fps)


@pytest.mark.parametrize("name", ["a.webp", "a.gif"])
def test_animations_are_read_back(name: str, tmp_path: Path) -> None:
    write_media(clip(3, fps=10.0), tmp_path / name, TEXT)
    back = read_media(tmp_path / name)
    assert isinstance(back, Video) and back.frames.shape == (3, 15, 17, 3) and back.fps == 10.0
    told = read_text(tmp_path / name)
    assert told == {**TEXT, "fps": "10.0", "frames": "3"}


@pytest.mark.parametrize("fps", [8.0, 16.0, 23.976, 30.0])
@pytest.mark.parametrize("read", [read_media, open_media])
def test_a_gif_has_all_frames_at_their_rate(read: Any, fps: float, tmp_path: Path) -> None:
    video = moving(fps=fps)
    for name in ("a.gif", "b.gif"):
        write_media(video, tmp_path / name, TEXT)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    back = read(tmp_path / "a.gif")
    assert back.frames.shape == video.frames.shape and back.fps == fps
    assert (back.frames.int() - video.frames.int()).abs().max() <= 12  # 256 colours
    assert read_text(tmp_path / "a.gif") == {**TEXT, "fps": repr(fps), "frames": "9"}
    with Image.open(tmp_path / "a.gif") as opened:  # what a browser makes of it, without our facts
        lasts = 0
        for number in range(opened.n_frames):  # type: ignore[attr-defined]
            opened.seek(number)
            assert opened.info["duration"] >= 20  # of less, browsers make 100
            lasts += opened.info["duration"]
        assert opened.info["loop"] == 0
    assert lasts == pytest.approx(9000 / fps, abs=5)


def test_a_gif_is_small_and_of_one_palette(tmp_path: Path) -> None:
    video = Video(moving(30).frames.repeat_interleave(4, 1).repeat_interleave(4, 2), 16.0)
    video.frames[..., 1] = torch.where(  # a scene of more than 256 colours
        video.frames[..., 0] == 220, 20, torch.arange(192, dtype=torch.uint8)[:, None]
    )
    write_media(video, tmp_path / "a.gif", {})
    images = [Image.fromarray(frame.numpy()) for frame in video.frames]
    images[0].save(tmp_path / "plain.gif", save_all=True, append_images=images[1:], duration=62, loop=0)
    assert (tmp_path / "a.gif").stat().st_size < 0.5 * (tmp_path / "plain.gif").stat().st_size
    background = read_media(tmp_path / "a.gif").frames[:, 0, 0]  # type: ignore[union-attr]
    assert (background == background[0]).all()  # which flickers where each frame has colours of its own


def test_a_gif_shows_at_most_fifty_frames_a_second(tmp_path: Path) -> None:
    write_media(moving(12, fps=120.0), tmp_path / "a.gif", TEXT)
    back = read_media(tmp_path / "a.gif")
    assert isinstance(back, Video) and len(back.frames) == 4 and back.fps == 40.0


@pytest.mark.parametrize("frames", [1, 4])
def test_a_gif_of_a_clip_that_stands_still(frames: int, tmp_path: Path) -> None:
    video = Video(torch.full((frames, 6, 8, 3), 60, dtype=torch.uint8), 8.0)
    write_media(video, tmp_path / "a.gif", TEXT)
    back = read_media(tmp_path / "a.gif")
    assert isinstance(back, Video) and torch.equal(back.frames, video.frames) and back.fps == 8.0


def test_a_gif_of_an_image(tmp_path: Path) -> None:
    write_media(image("RGBA"), tmp_path / "a.gif", TEXT)
    assert isinstance(read_media(tmp_path / "a.gif"), Image.Image)
    assert read_text(tmp_path / "a.gif") == TEXT


@pytest.mark.parametrize("comment", [b"made by hand", b"[1]", b'{"fps": "-3", "frames": "nan"}', b"\xff\x00"])
def test_a_gif_of_somebody_else(comment: bytes, tmp_path: Path) -> None:
    first, *rest = [Image.new("RGB", (9, 7), colour) for colour in ("red", "green", "blue")]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=250, comment=comment)
    back = read_media(tmp_path / "a.gif")
    assert isinstance(back, Video) and back.frames.shape == (3, 7, 9, 3) and back.fps == 4.0


@pytest.mark.parametrize("size", [(48, 64), (720, 1280)])
def test_players_know_the_colours_of_an_mp4(size: tuple[int, int], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    for colour in ((255, 0, 0), (0, 255, 0), (30, 80, 200)):
        values = torch.tensor(colour, dtype=torch.uint8).expand(2, *size, 3).contiguous()
        write_media(Video(values), tmp_path / "a.mp4", TEXT)
        back = read_media(tmp_path / "a.mp4")
        assert isinstance(back, Video) and (back.frames.int() - values.int()).abs().max() <= 3
    with av.open(str(tmp_path / "a.mp4")) as file:
        context = file.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)  # BT.709
        assert file.metadata["title"] == TEXT["prompt"]
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # so that it plays while it arrives


def test_a_small_copy_keeps_the_proportions() -> None:
    assert shrunk(image(), 17).size == (17, 15) and shrunk(image(size=(40, 20)), 10).size == (10, 5)  # type: ignore[union-attr]
    small = shrunk(clip(3, 20, 40), 10)
    assert isinstance(small, Video) and small.frames.shape == (3, 5, 10, 3) and small.fps == clip().fps
    assert shrunk(clip(), 17).frames.shape == (5, 15, 17, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_files_without_facts_have_none(content: bytes, tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.mkv"):
        (tmp_path / name).write_bytes(content)
        assert read_text(tmp_path / name) == {}
    assert read_text(tmp_path / "missing.png") == {}
    described = Image.Exif()
    for value in ("no json", json.dumps([1])):
        described[0x010E] = value
        image().save(tmp_path / "b.jpg", exif=described)
        assert read_text(tmp_path / "b.jpg") == {}


def test_a_copy_shares_nothing() -> None:
    original = image()
    before = pixels(original)
    duplicate = copied(original)
    assert isinstance(duplicate, Image.Image)
    duplicate.paste((0, 0, 0), (0, 0, 9, 9))
    duplicate.thumbnail((3, 3))
    duplicate.close()
    assert np.array_equal(pixels(original), before)
    video = clip()
    frames = video.frames.clone()
    other = copied(video)
    assert isinstance(other, Video) and other.fps == video.fps
    other.frames.zero_()
    assert torch.equal(video.frames, frames)
    strange: Any = np.zeros(3)
    assert copied(strange) is strange


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_constant_images_are_recognised(mode: str) -> None:
    flat = Image.new(mode, (31, 20), 7 if mode == "L" else (7, 8, 9, 255)[: len(mode)])
    assert is_constant(flat)
    flat.putpixel((13, 5), 8 if mode == "L" else (7, 8, 10, 255)[: len(mode)])
    assert not is_constant(flat)
    assert not is_constant(image(mode))
    assert is_constant(Image.new("RGB", (1, 1)))
    assert not is_constant(Image.new("RGB", (0, 3)))


def test_constant_clips_are_recognised() -> None:
    flat = torch.full((4, 120, 100, 3), 9, dtype=torch.uint8)
    assert is_constant(Video(flat))
    flat[3, 50, 51, 1] = 8
    assert not is_constant(Video(flat))
    assert not is_constant(clip())
    assert not is_constant(Video(torch.empty(0, 4, 4, 3, dtype=torch.uint8)))


def values(dtype: torch.dtype) -> Tensor:
    return torch.linspace(-3, 3, 5 * 12, dtype=torch.float64).to(dtype).reshape(5, 3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_with_numbers_that_are_not_finite_are_found(dtype: torch.dtype) -> None:
    x = values(dtype)
    assert finite_rows(x) == [True] * 5
    x[1, 0, 0, 0], x[2, 2, 1, 1], x[4, 1, 0, 1] = float("nan"), float("inf"), float("-inf")
    x[4, 1, 1, 1] = float("inf")
    assert finite_rows(x) == [True, False, False, True, False]
    # a sum that overflows is no proof of infinity
    assert finite_rows(torch.full((2, 9), torch.finfo(dtype).max, dtype=dtype)) == [True, True]


def test_numbers_that_cannot_be_broken_are_not_looked_at() -> None:
    assert finite_rows(torch.ones(3, 2, dtype=torch.int64)) == [True] * 3
    assert finite_rows(torch.ones(3, 2, dtype=torch.bool)) == [True] * 3


def test_facts_of_samples() -> None:
    assert facts_of(image()) == {"size": "17x15"}
    assert facts_of(clip()) == {"size": "17x15", "frames": "5", "fps": "23.976"}


def test_samples_that_must_all_be_valid() -> None:
    sample = image()
    assert all_valid([sample, sample], "toy") == [sample, sample]
    with pytest.raises(PipelineError, match="must be valid here but toy gives an invalid one: broken"):
        all_valid([sample, Invalid("broken")], "toy")
