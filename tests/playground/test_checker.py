import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tts_vision.pipelines.playground import checker, world
from tts_vision.pipelines.playground.checker import Detection, evaluate, judge
from tts_vision.pipelines.playground.world import Scene, Thing


def drawn(n: int, seed: int) -> list[tuple[dict, np.ndarray]]:
    rng = np.random.default_rng(seed)
    pairs = [world.sample_example(rng) for _ in range(n)]
    images = world.render_batch([scene for _, scene in pairs])
    return [(world.metadata(spec), image) for (spec, _), image in zip(pairs, images)]


def drawing(*things: Thing, background: int = 128) -> np.ndarray:
    return world.render(Scene(things, background))


def found(label: str, colour: str = "red", x: float = 10, y: float = 10, score: float = 0.9) -> Detection:
    return Detection(label, colour, (x - 5, y - 5, x + 5, y + 5), score, 100)


def test_drawn_pictures_are_judged_right() -> None:
    assert np.mean([evaluate(image, record).correct for record, image in drawn(1000, 1)]) >= 0.985


def test_soft_and_noisy_pictures_are_judged_right() -> None:
    rng = np.random.default_rng(0)
    right = []
    for record, image in drawn(400, 2):
        soft = gaussian_filter(image.astype(float), (0.9, 0.9, 0)) + rng.normal(0, 3, image.shape)
        right.append(evaluate(np.clip(soft, 0, 255).astype(np.uint8), record).correct)
    assert np.mean(right) >= 0.985


@pytest.mark.parametrize("shape", world.SHAPES)
@pytest.mark.parametrize("colour", world.COLOURS)
def test_every_shape_in_every_colour_on_every_grey(shape: str, colour: str) -> None:
    for grey in world.GREYS:
        detections = checker.detect(drawing(Thing(shape, colour, 31.3, 32.6, 10.0), background=grey))
        assert [(d.label, d.colour) for d in detections] == [(shape, colour)]
        x0, y0, x1, y1 = detections[0].box
        assert x0 < 31.3 < x1 and y0 < 32.6 < y1


def test_wrong_pictures_are_judged_wrong() -> None:
    circle, star = Thing("circle", "red", 16, 32, 10), Thing("star", "blue", 48, 32, 10)
    image = drawing(circle, star)
    for text in (
        "a circle left of a star",
        "a red circle and a blue star",
        "one star",
        "a star right of a circle",
    ):
        assert evaluate(image, world.parse_prompt(text)).correct, text
    for text in (
        "a star left of a circle",
        "a blue circle and a red star",
        "two stars",
        "a ring",
        "a circle above a star",
    ):
        verdict = evaluate(image, world.parse_prompt(text))
        assert not verdict.correct and verdict.reason and verdict.fraction < 1.0, text


def test_counting_wants_the_exact_number() -> None:
    rings = [Thing("ring", "green", x, y, 8) for x, y in ((14, 14), (50, 14), (14, 50))]
    assert evaluate(drawing(*rings), world.parse_prompt("three rings")).correct
    more = evaluate(drawing(*rings), world.parse_prompt("two rings"))
    assert not more.correct and "expected ring<3, found 3" in more.reason
    fewer = evaluate(drawing(*rings), world.parse_prompt("four rings"))
    assert not fewer.correct and "expected ring>=4, found 3" in fewer.reason


def test_additional_objects_do_no_harm_outside_counting() -> None:
    image = drawing(
        Thing("circle", "red", 16, 16, 9), Thing("ring", "white", 48, 16, 9), Thing("star", "blue", 32, 48, 9)
    )
    assert evaluate(image, world.parse_prompt("a red circle and a blue star")).correct


def test_two_groups_of_one_shape_are_told_apart_by_colour() -> None:
    image = drawing(Thing("circle", "red", 16, 32, 10), Thing("circle", "blue", 48, 32, 10))
    assert evaluate(image, world.parse_prompt("a red circle left of a blue circle")).correct
    assert not evaluate(image, world.parse_prompt("a blue circle left of a red circle")).correct


def test_a_messy_blob_has_no_name() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    rng = np.random.default_rng(0)
    for x, y in rng.integers(18, 40, (14, 2)):
        image[y : y + 3, x : x + 12] = (220, 30, 35)
    image[20:48, 30:33] = (220, 30, 35)
    assert {d.label for d in checker.detect(image)} == {checker.UNKNOWN}


def test_an_empty_picture_has_no_objects() -> None:
    verdict = evaluate(np.full((64, 64, 3), 160, np.uint8), world.parse_prompt("a red circle and a star"))
    assert verdict.detections == () and not verdict.correct and verdict.fraction == 0.0


def test_the_most_certain_detection_decides_the_colour() -> None:
    record = world.parse_prompt("a red circle")
    sure, unsure = found("circle", "red", score=0.95), found("circle", "blue", x=40, score=0.8)
    assert judge([sure, unsure], record).correct
    assert not judge(
        [found("circle", "blue", score=0.95), found("circle", "red", x=40, score=0.8)], record
    ).correct


def test_the_fraction_counts_met_demands() -> None:
    record = world.parse_prompt("a red circle left of a blue star")
    circle, star = found("circle", "red", x=10), found("star", "blue", x=40)
    assert judge([circle, star], record).fraction == 1.0
    # Presence twice, colour twice and the relation make five demands.
    assert judge([found("circle", "red", x=50), star], record).fraction == pytest.approx(4 / 5)
    assert judge([found("circle", "pink", x=10), star], record).fraction == pytest.approx(4 / 5)
    assert judge([circle], record).fraction == pytest.approx(2 / 5)
    assert judge([], record).fraction == 0.0


def test_a_missing_reference_fails_the_relation() -> None:
    verdict = judge([found("circle")], world.parse_prompt("a circle above a star"))
    assert "no target" in verdict.reason


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="RGB uint8"):
        checker.detect(np.zeros((64, 64), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        checker.detect(np.zeros((64, 64, 3)))
