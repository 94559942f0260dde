import json
from pathlib import Path

import numpy as np
import pytest

from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.world import Group, Spec


def examples(n: int, seed: int = 0) -> list[tuple[Spec, world.Scene]]:
    rng = np.random.default_rng(seed)
    return [world.sample_example(rng) for _ in range(n)]


def test_a_picture_is_drawn_alike_alone_and_in_a_batch() -> None:
    scenes = [scene for _, scene in examples(20)]
    batch = world.render_batch(scenes)
    assert batch.shape == (20, 64, 64, 3) and batch.dtype == np.uint8
    np.testing.assert_array_equal(batch[7], world.render(scenes[7]))


def test_the_same_seed_gives_the_same_scenes() -> None:
    assert examples(20, seed=5) == examples(20, seed=5)
    assert examples(20, seed=5) != examples(20, seed=6)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_the_distance_is_one_pixel_a_pixel_at_the_edge(shape: str) -> None:
    # Anti-aliasing is right only if the signed distance grows by one a unit where it crosses zero.
    axis = np.linspace(-1.3, 1.3, 521)
    u, v = np.meshgrid(axis, axis)
    distance = world._distance(shape, u, v)
    slope = np.hypot(*np.gradient(distance, axis, axis))
    edge = np.abs(distance) < 0.02
    assert edge.any()
    assert np.median(slope[edge]) == pytest.approx(1.0, abs=0.02)


def test_shapes_keep_clear_of_one_another_and_of_the_frame() -> None:
    for _, scene in examples(300):
        for i, a in enumerate(scene.things):
            assert a.radius < a.x < world.SIZE - a.radius and a.radius < a.y < world.SIZE - a.radius
            for b in scene.things[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + 2


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("a photo of a circle", Spec((Group("circle"),))),
        ("three crosses", Spec((Group("cross", 3),))),
        ("A photo of an orange star.", Spec((Group("star", 1, "orange"),))),
        ("a circle and a star", Spec((Group("circle"), Group("star")))),
        ("a ring to the left of a cross", Spec((Group("ring"), Group("cross")), "left of")),
        ("a ring on the right of a cross", Spec((Group("ring"), Group("cross")), "right of")),
        ("a ring is above a cross", Spec((Group("ring"), Group("cross")), "above")),
        (
            "two red circles left of a blue star",
            Spec((Group("circle", 2, "red"), Group("star", 1, "blue")), "left of"),
        ),
        (
            "one red circle below a blue circle",
            Spec((Group("circle", 1, "red"), Group("circle", 1, "blue")), "below"),
        ),
    ],
)
def test_prompts_are_understood(text: str, spec: Spec) -> None:
    assert world.parse_spec(text) == spec


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a photo of a dog", "knows the shapes"),
        ("five circles", "knows the shapes"),
        ("", "needs a shape"),
        ("a circle and", "needs a shape"),
        ("circle red", "in that order"),
        ("a circle and a star and a ring", "at most two groups"),
        ("a circle left of a circle", "different colours"),
    ],
)
def test_other_prompts_are_refused_with_rule_and_value(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as caught:
        world.parse_spec(text)
    assert repr(text) in str(caught.value)


def test_every_caption_is_read_back() -> None:
    for spec, _ in examples(500):
        for prefix in (True, False):
            assert world.parse_spec(world.caption(spec, prefix)) == spec


def test_training_captions_tell_the_truth_and_are_not_held_out() -> None:
    rng = np.random.default_rng(3)
    for spec, _ in examples(500):
        told = world.parse_spec(world.sample_caption(rng, spec))
        assert [(g.shape, g.count) for g in told.groups] == [(g.shape, g.count) for g in spec.groups]
        assert told.relation == spec.relation and not world.is_held_out(told)
        for group, drawn in zip(told.groups, spec.groups):
            assert group.colour in (None, drawn.colour)


def test_metadata_follow_the_geneval_schema() -> None:
    assert world.parse_prompt("a photo of three crosses") == {
        "tag": "counting",
        "include": [{"class": "cross", "count": 3}],
        "exclude": [{"class": "cross", "count": 4}],
        "prompt": "a photo of three crosses",
    }
    # The reference comes first, the placed object points back at it.
    assert world.parse_prompt("a photo of a circle left of a star")["include"] == [
        {"class": "star", "count": 1},
        {"class": "circle", "count": 1, "position": ["left of", 0]},
    ]
    assert world.parse_prompt("a red circle and a blue square")["tag"] == "color_attr"
    assert "exclude" not in world.parse_prompt("a red circle and a blue square")
    assert world.parse_prompt("two red circles left of a blue star")["exclude"] == [
        {"class": "circle", "count": 3},
        {"class": "star", "count": 2},
    ]


def test_the_shipped_prompts_are_those_of_the_seed() -> None:
    assert world.load_prompts() == world.make_prompts()


def test_the_shipped_prompts_are_fifty_of_each_form_and_held_out() -> None:
    records = world.load_prompts()
    for task in world.TASKS:
        of_task = [record for record in records if record["tag"] == task]
        assert len(of_task) == 50
        for record in of_task:
            spec = world.parse_spec(record["prompt"])
            assert world.metadata(spec) == record
            assert world.is_held_out(spec) or task in ("single_object", "counting")


def test_training_never_draws_a_held_out_prompt() -> None:
    assert not any(world.is_held_out(spec) for spec, _ in examples(1000))


def test_prompts_are_written_one_record_a_line(tmp_path: Path) -> None:
    world.write_prompts(tmp_path / "prompts.jsonl")
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == world.load_prompts()


def test_direction_of_relation_by_hand() -> None:
    # Centres 20 apart, sizes 10 and 10: r = 20 - 0.1 * 20 = 18, u = 18 / 20.
    direction = world.relation_offset((0, 0, 10, 10), (20, 0, 30, 10))
    assert direction == pytest.approx((-0.9, 0.0))
    assert world.holds("left of", direction) and not world.holds("right of", direction)
    # Offset (30, 40), reduced to (28, 38) over 50: right of and below at once.
    direction = world.relation_offset((30, 40, 40, 50), (0, 0, 10, 10))
    assert direction == pytest.approx((0.56, 0.76))
    assert world.holds("right of", direction) and world.holds("below", direction)
    assert world.relation_offset((0, 0, 10, 10), (1, 1, 11, 11)) == (0.0, 0.0)
