"""The world of clips: its drawings, its captions, and the prompts that training never sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tts_vision.pipelines.playground import motion, video_bank, video_judge_data, world
from tts_vision.pipelines.playground.motion import CHUNK, CHUNKS, FRAMES, MOTIONS, Actor, Clip, MotionSpec


def examples(n: int, seed: int = 0) -> list[tuple[MotionSpec, Clip]]:
    rng = np.random.default_rng(seed)
    specs = [motion.sample_training_spec(rng) for _ in range(n)]
    return [(spec, motion.sample_clip(rng, spec)) for spec in specs]


def track(clip: Clip, k: int) -> np.ndarray:
    """Centre and radius of an object by frame, `(16, 3)`."""
    return np.array([(s.things[k].x, s.things[k].y, s.things[k].radius) for s in clip.scenes])


def test_a_clip_is_drawn_alike_alone_and_in_a_batch() -> None:
    clips = [clip for _, clip in examples(4)]
    batch = motion.render_batch(clips)
    assert batch.shape == (4, FRAMES, 64, 64, 3) and batch.dtype == np.uint8
    np.testing.assert_array_equal(batch[2], motion.render(clips[2]))


def test_the_same_seed_gives_the_same_clips() -> None:
    assert examples(5, seed=5) == examples(5, seed=5)
    assert examples(5, seed=5) != examples(5, seed=6)


def test_objects_move_as_their_spec_says() -> None:
    seen = set()
    for spec, clip in examples(120):
        for k, actor in enumerate(spec.actors):
            steps = np.diff(track(clip, k), axis=0)
            dx, dy, dr = steps.T
            aim = {
                "left": (-1, 0, 0),
                "right": (1, 0, 0),
                "up": (0, -1, 0),
                "down": (0, 1, 0),
                "grow": (0, 0, 1),
                "shrink": (0, 0, -1),
                "still": (0, 0, 0),
            }[actor.motion or ""]
            for values, sign in zip((dx, dy, dr), aim):
                assert (values * sign > 0).all() if sign else np.allclose(values, 0)
            seen.add(actor.motion)
    assert seen == set(MOTIONS)


def test_the_pace_is_drawn_anew_for_each_chunk() -> None:
    rng = np.random.default_rng(0)
    clip = motion.sample_clip(rng, motion.parse_spec("a red circle moving left"))
    pace = np.diff(track(clip, 0)[:, 0])
    of_chunks = [pace[max(0, k * CHUNK - 1) : (k + 1) * CHUNK - 1] for k in range(CHUNKS)]
    assert all(np.allclose(each, each[0]) for each in of_chunks)
    assert len({round(float(each[0]), 6) for each in of_chunks}) == CHUNKS


def test_objects_stay_inside_the_frame_and_clear_of_one_another() -> None:
    for _, clip in examples(150):
        for scene in clip.scenes:
            for i, a in enumerate(scene.things):
                assert a.radius < a.x < world.SIZE - a.radius and a.radius < a.y < world.SIZE - a.radius
                for b in scene.things[:i]:
                    assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + 3


def test_a_clip_can_change_its_motions_between_chunks() -> None:
    first, later = motion.parse_spec("a red circle moving left"), motion.parse_spec("a red circle growing")
    clip = motion.sample_changing_clip(np.random.default_rng(0), [first, first, later, later])
    steps = np.diff(track(clip, 0), axis=0)
    assert (steps[:7, 0] < 0).all() and np.allclose(steps[:7, 2], 0)
    assert np.allclose(steps[7:, 0], 0) and (steps[7:, 2] > 0).all()


LEFT, GROW = Actor("circle", "red", "left"), Actor("star", "blue", "grow")


@pytest.mark.parametrize(
    ("text", "actors"),
    [
        ("a red circle moving left", (LEFT,)),
        ("A video of a red circle that moves left.", (LEFT,)),
        ("a clip of a red circle moving to the left and a blue star that grows", (LEFT, GROW)),
        ("a red circle is moving left and a blue star is growing", (LEFT, GROW)),
        ("a red circle moves left and a blue star grows", (LEFT, GROW)),
        ("an orange ring standing still", (Actor("ring", "orange", "still"),)),
        ("a red circle and a blue star growing", (Actor("circle", "red"), GROW)),
    ],
)
def test_prompts_are_understood(text: str, actors: tuple[Actor, ...]) -> None:
    assert motion.parse_spec(text).actors == actors


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a red circle jumping", "a motion is one of"),
        ("a red dog moving left", "an object is a colour"),
        ("a circle moving left", "an object is a colour"),
        ("", "an object is a colour"),
        ("a red circle and a blue star and a green ring", "at most two objects"),
        ("a red circle moving left and a red circle growing", "differ in shape or colour"),
    ],
)
def test_other_prompts_are_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"(?i){reason}"):
        motion.parse_spec(text)


def test_every_wording_means_what_it_says() -> None:
    rng = np.random.default_rng(0)
    texts, silent = set(), 0
    for _ in range(300):
        spec = motion.sample_training_spec(rng)
        text = motion.sample_caption(rng, spec)
        meant, still = set(motion.parse_spec(text).actors), {replace(a, motion=None) for a in spec.actors}
        if meant == still:
            silent += 1
        else:
            assert meant == set(spec.actors), text
        texts.add(text)
        assert motion.spec_of(motion.metadata(spec)) == spec
    assert 5 < silent < 60, "a few leave out all motions"
    for wordings in motion.WORDINGS.values():
        for words in wordings:
            assert any(words in text for text in texts), words


def test_the_bundled_prompts_are_those_of_the_script(tmp_path: Path) -> None:
    motion.write_prompts(tmp_path / "motion.jsonl")
    bundled = Path(motion.__file__).with_name("motion.jsonl")
    assert (tmp_path / "motion.jsonl").read_text() == bundled.read_text()


def test_evaluation_prompts_are_distinct_and_of_all_motions() -> None:
    records = motion.load_prompts()
    assert len({record["prompt"] for record in records}) == len(records) == 120
    assert [record["tag"] for record in records].count("one_object") == 60
    assert {actor["motion"] for record in records for actor in record["actors"]} == set(MOTIONS)
    for record in records:
        assert motion.parse_spec(record["prompt"]) == motion.spec_of(record)


def test_training_never_sees_an_evaluation_prompt() -> None:
    specs = [motion.spec_of(record) for record in motion.load_prompts()]
    kept_out = {frozenset(spec.actors) for spec in specs}
    assert all(motion.is_held_out(spec) for spec in specs)
    assert all(motion.is_held_out(MotionSpec(spec.actors[::-1])) for spec in specs)
    rng = np.random.default_rng(1)
    drawn = [motion.sample_training_spec(rng) for _ in range(2000)]
    drawn += [video_judge_data.altered(rng, spec) for spec in drawn[:500]]
    drawn += [spec for each in drawn[:500] for spec in video_bank.changing_specs(rng, each)]
    assert not kept_out & {frozenset(spec.actors) for spec in drawn}
    _, captions = video_bank.drawn_clips(0, 20)
    asked = [motion.caption(spec) for spec in drawn[:20]]
    found, _ = video_judge_data.labelled(0, np.zeros((20, 16, 64, 64, 3), np.uint8), asked)
    texts = [text for each in found for text in each]
    assert not kept_out & {frozenset(motion.parse_spec(text).actors) for text in [*captions, *texts]}
