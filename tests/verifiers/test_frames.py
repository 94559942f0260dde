import numpy as np
import pytest
import torch

from samples import clips, some_images
from tts_vision import Video
from tts_vision.model_verifier import UnusableSample
from tts_vision.verifiers import _frames
from tts_vision.verifiers._frames import clip, each_second, evenly, middles, starts


def test_evenly_takes_both_ends() -> None:
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(16, 8) == [0, 2, 4, 6, 8, 10, 12, 15]  # 2.14 and so on, rounded down
    assert evenly(16, 8, nearest=True) == [0, 2, 4, 6, 9, 11, 13, 15]
    assert evenly(3, 6) == [0, 0, 0, 1, 1, 2]  # repeats
    assert evenly(7, 1) == [0]


def test_starts_begin_equal_intervals_and_keep_short_clips_whole() -> None:
    assert starts(16, 8) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert starts(20, 8) == [0, 2, 5, 7, 10, 12, 15, 17]
    assert starts(5, 8) == [0, 1, 2, 3, 4]


def test_middles_are_those_of_vbench() -> None:
    assert middles(16, 8) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert middles(30, 3) == [4, 14, 24]
    assert middles(8, 8) == list(range(8))
    assert middles(3, 5) == [0, 1, 2, 2, 2]


def test_each_second_takes_the_nearest_frame() -> None:
    assert each_second(33, 8.0, 24) == [0, 8, 16, 24, 32]
    assert each_second(8, 8.0, 24) == [0, 7]  # 0.875 s is nearest to the second that is not there
    assert each_second(4, 8.0, 24) == [0]
    assert each_second(100, 10.0, 3) == [0, 10, 20]
    assert each_second(3, 0.5, 24) == [0, 0, 1, 1, 2]  # a tie goes to the first


@pytest.mark.parametrize("total", [1, 2, 7, 16, 33, 121])
@pytest.mark.parametrize("count", [1, 2, 8, 48])
def test_choices_are_in_order_and_in_range(total: int, count: int) -> None:
    choices = [
        evenly(total, count),
        evenly(total, count, nearest=True),
        middles(total, count),
        starts(total, count),
        each_second(total, 8.0, count),
    ]
    for chosen in choices:
        assert chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < total and len(chosen) <= count
    assert [len(chosen) for chosen in choices[:4]] == [count, count, count, min(count, total)]


def test_images_are_the_frames() -> None:
    video = clips(1)[0]
    chosen = _frames.frame_images(video, [3, 0, 3])
    for image, index in zip(chosen, [3, 0, 3], strict=True):
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), video.frames[index].numpy())


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (some_images(1)[0], "x scores clips but got an image"),
        (Video(torch.zeros(0, 4, 4, 3, dtype=torch.uint8)), r"is \(0, 4, 4, 3\)"),
        (Video(torch.zeros(2, 4, 0, 3, dtype=torch.uint8)), r"is \(2, 4, 0, 3\)"),
        (Video(torch.zeros(2, 4, 4, 4, dtype=torch.uint8)), r"is \(2, 4, 4, 4\)"),
        (Video(torch.zeros(4, 4, 3, dtype=torch.uint8)), r"is \(4, 4, 3\)"),
        (Video(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), fps=0.0), "positive frames per second"),
    ],
)
def test_what_is_no_clip_is_refused(sample: object, reason: str) -> None:
    with pytest.raises(UnusableSample, match=reason):
        clip(sample, "x")  # type: ignore[arg-type]
