import math
from pathlib import Path

import numpy as np
import pytest
import torch

from samples import clips, some_images
from tts_vision import Prompt, Video
from tts_vision.media import read_media, write_media
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.verifiers.flicker import Flicker, steadiness

PROMPT = Prompt("two red circles")


def plain(*levels: int) -> Video:
    """A clip of plain grey frames."""
    return Video(torch.stack([torch.full((6, 9, 3), level, dtype=torch.uint8) for level in levels]))


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self) -> Flicker:
        return Flicker()

    @pytest.fixture
    def media(self) -> list[Video]:
        return [clips(1, frames=2)[0], *clips(2, frames=8, seed=1)]


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        (plain(7, 7, 7), 1.0),
        (plain(0, 255), 0.0),
        (plain(255, 0, 255, 0), 0.0),
        (plain(0, 51, 0), 0.8),  # 51 / 255, whichever way it goes
        (plain(10, 20, 50), 1 - (10 + 30) / 2 / 255),  # the mean over pairs, not from first to last
    ],
)
def test_hand_made_clips(video: Video, expected: float) -> None:
    (score,) = Flicker().score([video], [PROMPT])
    assert score.value == pytest.approx(expected, abs=1e-12)


def test_one_pixel_of_many() -> None:
    frames = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    frames[1, 2, 3, 0] = 60
    assert steadiness(frames) == pytest.approx(1 - 60 / (4 * 5 * 3) / 255, abs=1e-12)


def test_is_one_minus_the_mean_difference_of_neighbours() -> None:
    for video in clips(3):
        wide = video.frames.numpy().astype(np.float64)
        assert steadiness(video.frames) == pytest.approx(1 - np.abs(np.diff(wide, axis=0)).mean() / 255)


def test_less_moves_less_flickers_and_prompts_are_not_read() -> None:
    scores = Flicker().score(clips(1) * 2, [PROMPT, Prompt("a dog")])
    assert scores[0] == scores[1]
    still = Video(clips(1)[0].frames[:1].repeat(4, 1, 1, 1))
    (calm,) = Flicker().score([still], [PROMPT])
    assert calm.value == 1 > scores[0].value


def test_a_clip_from_a_file(tmp_path: Path) -> None:
    video = clips(1)[0]
    write_media(video, tmp_path / "clip.png", {})
    (score,) = Flicker().score([read_media(tmp_path / "clip.png")], [PROMPT])
    assert score.value == steadiness(video.frames)


def test_what_is_no_moving_clip_is_unscored_and_spoils_nothing() -> None:
    good = clips(1)[0]
    media = [
        some_images(1)[0],
        Video(good.frames[:1]),
        good,
        Video(torch.zeros(0, 8, 8, 3, dtype=torch.uint8)),
        Video(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
        Video(good.frames, fps=0.0),
        Video(good.frames / 255),
    ]
    scores = Flicker().score(media, [PROMPT] * len(media))
    assert [math.isnan(score.value) for score in scores] == [True, True, False, True, True, True, True]
    for score, reason in zip(
        scores,
        ["got an image", "only one", None, "(0, 8, 8, 3)", "(2, 3, 8, 8)", "per second", "uint8"],
        strict=True,
    ):
        assert score.reason is None if reason is None else reason in (score.reason or "")
    assert scores[2].value == steadiness(good.frames)
    assert Flicker().score([], []) == []


def test_is_registered() -> None:
    assert lookup("verifier", "flicker").target is Flicker
