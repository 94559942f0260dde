"""The stand-ins for VBench's object dimensions, on given detections and on a tiny detector."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_detectors
import torch
from PIL import Image
from tiny_backbones import tiny_clip

from samples import clips
from tts_vision.eval.vbench.judges import Judges
from tts_vision.eval.vbench.proxies import (
    SIDES,
    Colour,
    Frames,
    Objects,
    Side,
    best_pair,
    coloured_noun,
    intersection_over_union,
    side_score,
)
from tts_vision.model_verifier import UnusableSample
from tts_vision.types import Prompt, Video
from tts_vision.verifiers._detections import Box, Detection
from tts_vision.verifiers._predicates import Group

LEFT, RIGHT, ABOVE = (0.0, 0.0, 10.0, 10.0), (20.0, 2.0, 30.0, 12.0), (1.0, -30.0, 11.0, -20.0)


def prompt(text: str, dimension: str, label: Any) -> Prompt:
    return Prompt(text, {"dimension": [dimension], "auxiliary_info": {dimension: label}})


CAT = prompt("a cat", "object_class", {"object": "cat"})
BOTH = prompt("a cat and a dog", "multiple_objects", {"object": "cat and dog"})
RED = prompt("a red cat", "color", {"color": "red"})


def beside(relation: str, a: str = "cat", b: str = "dog") -> Prompt:
    label = {"spatial_relationship": {"object_a": a, "object_b": b, "relationship": relation}}
    return prompt("a cat and a dog", "spatial_relationship", label)


class Given:
    """A detector that finds given objects in frames by their grey level."""

    def __init__(self, by_level: dict[int, dict[str, list[Box]]]) -> None:
        self.by_level, self.looked = by_level, 0

    def load(self) -> None:
        pass

    def knows(self, noun: str) -> bool:
        return noun != "unicorn"

    def detect(
        self, images: Sequence[Image.Image], nouns: Sequence[Sequence[str]], thresholds: Sequence[float]
    ) -> list[list[Detection]]:
        assert set(thresholds) == {0.3}
        self.looked += len(images)
        found = []
        for image, wanted in zip(images, nouns, strict=True):
            boxes = self.by_level.get(image.getpixel((0, 0))[0], {})  # type: ignore[index]
            found.append([Detection(noun, 0.9, box) for noun in wanted for box in boxes.get(noun, [])])
        return found


class Named:
    """Names the colour of a detection by the left edge of its box."""

    def load(self) -> None:
        pass

    def name(self, image: Image.Image, detection: Detection, group: Group) -> str:
        assert group == Group("cat", colour="red")
        return "red" if detection.box[0] == 0 else "blue"


def frames(by_level: dict[int, dict[str, list[Box]]]) -> Frames:
    return Frames(Given(by_level), 0.3)  # type: ignore[arg-type]


def levels(*values: int) -> Video:
    return Video(torch.stack([torch.full((8, 8, 3), value, dtype=torch.uint8) for value in values]))


def test_boxes() -> None:
    assert intersection_over_union(LEFT, RIGHT) == 0 and intersection_over_union(LEFT, LEFT) == 1
    assert intersection_over_union((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert intersection_over_union((3, 3, 3, 3), (3, 3, 3, 3)) == 0


def test_vbench_does_not_look_at_the_side() -> None:
    for relation in ("on the left of", "on the right of"):
        assert side_score(LEFT, relation, RIGHT, directed=False) == 1
        assert side_score(LEFT, relation, ABOVE, directed=False) == 0
    assert side_score(ABOVE, "on the bottom of", LEFT, directed=False) == 1
    assert side_score(LEFT, "on the left of", RIGHT, directed=True) == 1
    assert side_score(LEFT, "on the right of", RIGHT, directed=True) == 0
    assert side_score(ABOVE, "on the top of", LEFT, directed=True) == 1
    assert side_score(ABOVE, "on the bottom of", LEFT, directed=True) == 0


def test_overlapping_objects_score_less() -> None:
    near: Box = (5.0, 0.0, 15.0, 10.0)
    for directed in (False, True):
        assert side_score(LEFT, "on the left of", near, directed=directed) == pytest.approx(0.1 / (50 / 150))
    apart: Box = (9.5, 0.0, 19.5, 10.0)
    assert side_score(LEFT, "on the left of", apart, directed=False) == 1
    diagonal: Box = (20.0, 20.0, 30.0, 30.0)
    assert all(side_score(LEFT, relation, diagonal, directed=False) == 0 for relation in SIDES)


def test_two_of_a_kind_satisfy_vbench_only() -> None:
    demand = {"object_a": "cat", "object_b": "dog", "relationship": "on the left of"}
    cats = [Detection("cat", 0.9, LEFT), Detection("cat", 0.8, RIGHT)]
    assert best_pair(cats, demand, directed=False) == 1 and best_pair(cats, demand, directed=True) == 0
    pair = [Detection("dog", 0.9, RIGHT), Detection("cat", 0.8, LEFT)]
    assert best_pair(pair, demand, directed=True) == 1
    assert best_pair(pair[:1], demand, directed=False) == best_pair([], demand, directed=True) == 0


def test_objects_are_counted_over_sixteen_frames() -> None:
    found = frames({1: {"cat": [LEFT]}, 2: {"cat": [LEFT], "dog": [RIGHT]}, 3: {"dog": [RIGHT]}})
    video = levels(*[1] * 4, *[2] * 8, *[3] * 12, *[0] * 8)
    cat = Objects(found, "object_class").measure(video, CAT)
    assert (cat.value, cat.weight) == (6 / 16, 16)
    assert Objects(found, "multiple_objects").measure(video, BOTH).value == 4 / 16


def test_frames_of_a_short_clip_repeat_and_are_looked_at_once() -> None:
    found = frames({1: {"cat": [LEFT]}})
    assert Objects(found, "object_class").measure(levels(0, 0, 1), CAT).value == 14 / 16
    assert found.detector.looked == 3  # type: ignore[attr-defined]


def test_colour_is_a_share_of_frames_that_show_the_object() -> None:
    found = frames({1: {"cat": [LEFT]}, 2: {"cat": [RIGHT]}, 3: {"cat": [RIGHT, LEFT]}})
    video = levels(*[1] * 4, *[2] * 4, *[3] * 4, *[0] * 4)
    for keep in (False, True):
        measured = Colour(found, Named(), keep=keep).measure(video, RED)  # type: ignore[arg-type]
        assert measured.value == 8 / 12 and measured.details == {"shown": 12, "right": 8}
    never = levels(0, 0)
    assert Colour(found, Named(), keep=True).measure(never, RED).value == 0  # type: ignore[arg-type]
    with pytest.raises(UnusableSample, match="drops such clips"):
        Colour(found, Named(), keep=False).measure(never, RED)  # type: ignore[arg-type]


def test_sides_are_means_over_frames() -> None:
    found = frames({1: {"cat": [LEFT], "dog": [RIGHT]}, 2: {"cat": [RIGHT], "dog": [LEFT]}})
    video = levels(*[1] * 4, *[2] * 4, *[0] * 8)
    blind, directed = (Side(found, directed=each) for each in (False, True))
    assert blind.measure(video, beside("on the left of")).value == 0.5
    assert directed.measure(video, beside("on the left of")).value == 0.25
    assert directed.measure(video, beside("on the top of")).value == 0
    with pytest.raises(UnusableSample, match="'behind'"):
        blind.measure(video, beside("behind"))
    with pytest.raises(UnusableSample, match="does not know 'unicorn'"):
        blind.measure(video, beside("on the left of", "unicorn"))


def test_nouns_of_colour_prompts() -> None:
    assert coloured_noun("a red car", "red") == "car"
    assert coloured_noun("an orange teddy bear", "orange") == "teddy bear"
    assert coloured_noun("a black banana", "black") == "banana"


def test_a_real_detector_answers(tmp_path: Path) -> None:
    weights = {
        "detector": str(tiny_detectors.mask2former(tmp_path / "detector")),
        "clip_l14": str(tiny_clip(tmp_path / "clip")),
    }
    made = Judges(weights, device="cpu", dtype="float32", batch_size=4, strict=False, static_filter=False)
    video = clips(1, frames=3, size=(64, 64))[0]
    star = prompt("a red star", "color", {"color": "red"}).metadata["auxiliary_info"]
    labels = star | {
        "object_class": {"object": "star"},
        "multiple_objects": {"object": "star and person"},
        "spatial_relationship": beside("on the left of", "star", "person").metadata["auxiliary_info"][
            "spatial_relationship"
        ],
    }
    asked = Prompt("a red star", {"auxiliary_info": labels})
    for name in ("object_class", "multiple_objects", "color", "spatial_relationship"):
        suffixes = {"color": "proxy_all"}.get(name, "proxy")
        found = made.make(f"{name}_{suffixes}").measure(video, asked)
        assert 0 <= found.value <= 1
    unknown = Prompt("a cat", CAT.metadata)
    with pytest.raises(UnusableSample, match="does not know 'cat'"):
        made.make("object_class_proxy").measure(video, unknown)
