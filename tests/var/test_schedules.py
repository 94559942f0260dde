"""Scale schedules: the published grids, by aspect ratio and size."""

from __future__ import annotations

import pytest

from tts_vision.errors import ConfigError
from tts_vision.pipelines.var.schedules import SIZES, TEMPLATES, Schedule, nearest_ratio, schedule_for


@pytest.mark.parametrize(
    ("size", "scales", "tokens", "side"),
    [("0.06M", 7, 521, 16), ("0.25M", 10, 2521, 32), ("0.60M", 12, 6425, 48), ("1M", 13, 10521, 64)],
)
def test_square_images(size, scales, tokens, side):
    schedule = schedule_for(1.0, size)
    assert len(schedule) == scales
    assert schedule.starts[-1] == sum(schedule.lengths) == tokens
    assert schedule.final == (side, side) and side**2 * 256 == pytest.approx(float(size[:-1]) * 1e6, rel=0.1)
    assert schedule.positions == (64, 64)  # of 1M, whatever the size


def test_the_ratios():
    tall = [1.0, 1.25, 1.333, 1.5, 1.75, 2.0, 2.5, 3.0]
    wide = [0.333, 0.4, 0.5, 0.571, 0.666, 0.75, 0.8]  # truncated to three places, not rounded
    assert sorted(TEMPLATES) == wide + tall


@pytest.mark.parametrize(
    ("ratio", "last"),
    [
        *((1.25, (70, 56)), (1.333, (72, 54)), (1.5, (78, 52)), (1.75, (84, 48)), (2.0, (90, 45))),
        *((2.5, (100, 40)), (3.0, (111, 37)), (0.8, (56, 70)), (0.666, (52, 78)), (0.571, (48, 84))),
    ],
)
def test_images_of_one_megapixel(ratio, last):
    schedule = schedule_for(ratio)
    assert schedule.final == schedule.positions == last
    assert len(schedule) == 13 and schedule.grids[0] == (1, 1)
    assert abs(last[0] / last[1] / ratio - 1) < 0.01
    assert 0.94 < last[0] * last[1] * 256 / 1024**2 < 1.02


def test_wide_images_are_tall_ones_on_their_side():
    for wide, tall in ((0.8, 1.25), (0.75, 1.333), (0.666, 1.5), (0.571, 1.75), (0.5, 2.0), (0.4, 2.5)):
        assert TEMPLATES[wide] == tuple((w, h) for h, w in TEMPLATES[tall])
    assert TEMPLATES[0.333][2] == (2, 6) and TEMPLATES[3.0][2] == (6, 2)


def test_scales_grow_and_smaller_sizes_are_their_beginning():
    for ratio, grids in TEMPLATES.items():
        areas = [h * w for h, w in grids]
        assert areas == sorted(areas) and len(grids) == 13
        for size, scales in SIZES.items():
            assert schedule_for(ratio, size) == Schedule(grids[:scales], grids[-1])


def test_starts_and_lengths():
    schedule = Schedule(((1, 1), (2, 2), (3, 4)), (3, 4))
    assert schedule.lengths == (1, 4, 12)
    assert schedule.starts == (0, 1, 5, 17)


def test_the_nearest_template():
    assert nearest_ratio(9 / 16) == 0.571
    assert nearest_ratio(16 / 9) == 1.75
    assert nearest_ratio(1.05) == 1.0
    assert nearest_ratio(40) == 3.0


def test_a_ratio_between_templates_takes_the_nearest():
    assert schedule_for(0.5625) == schedule_for(0.571)
    assert schedule_for(1.7).final == (84, 48)
    assert schedule_for(3.7) == schedule_for(3.0) and schedule_for(0.26) == schedule_for(0.333)


@pytest.mark.parametrize("ratio", [3.8, 0.24, 16.0, float("nan")])
def test_a_ratio_far_from_all_templates_is_refused(ratio):
    with pytest.raises(ConfigError, match=r"must be near one of 0.333, 0.4, .*, 3 but got"):
        schedule_for(ratio)


def test_unknown_sizes_are_refused():
    with pytest.raises(
        ConfigError, match=r"size must be one of 0.06M, 0.25M, 0.60M, 1M \(pixels\) but got '2M'"
    ):
        schedule_for(1.0, "2M")
