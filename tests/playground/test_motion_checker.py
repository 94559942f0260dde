"""The exact motion checker on drawn clips, on clips that go wrong, and as a verifier and an evaluator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from tts_vision import Prompt, Video
from tts_vision.errors import ConfigError
from tts_vision.eval.evaluators.playground_motion import PlaygroundMotion as Evaluator
from tts_vision.pipelines.playground import motion, motion_checker, video_judge_data, world
from tts_vision.pipelines.playground.motion import CHUNK, CHUNKS, FPS, MOTIONS, Actor, MotionSpec
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import FAILS_AT
from tts_vision.verifier import Verifier


@pytest.fixture(scope="module")
def drawn() -> list[tuple[MotionSpec, np.ndarray]]:
    rng = np.random.default_rng(2)
    specs = [motion.sample_spec(rng, motion.FORMS[i % 2]) for i in range(120)]
    frames = motion.render_batch([motion.sample_clip(rng, spec) for spec in specs])
    return list(zip(specs, frames))


@pytest.fixture(scope="module")
def seen(drawn: list[tuple[MotionSpec, np.ndarray]]) -> list[list[tuple[motion_checker.Sight, ...]]]:
    return [motion_checker.observe(frames) for _, frames in drawn]


def clip_of(text: str, seed: int = 0) -> np.ndarray:
    return motion.render(motion.sample_clip(np.random.default_rng(seed), motion.parse_spec(text)))


def changing(*texts: str, seed: int = 0) -> np.ndarray:
    specs = [motion.parse_spec(text) for text in texts]
    return motion.render(motion.sample_changing_clip(np.random.default_rng(seed), specs))


def test_drawn_clips_are_judged_right(drawn: list, seen: list) -> None:
    right = [motion_checker.judge(each, spec).correct for (spec, _), each in zip(drawn, seen)]
    assert np.mean(right) >= 0.99


def exchanged(kind: str) -> Callable[[np.random.Generator, Actor], Actor]:
    pools = {"motion": MOTIONS, "shape": world.SHAPES, "colour": tuple(world.COLOURS)}

    def change(rng: np.random.Generator, actor: Actor) -> Actor:
        others = [each for each in pools[kind] if each != getattr(actor, kind)]
        return replace(actor, **{kind: others[rng.integers(len(others))]})

    return change


@pytest.mark.parametrize("kind", ["motion", "shape", "colour"])
def test_no_clip_is_right_for_a_prompt_with_one_thing_exchanged(drawn: list, seen: list, kind: str) -> None:
    rng = np.random.default_rng(3)
    for (spec, _), each in zip(drawn, seen):
        k = int(rng.integers(len(spec.actors)))
        actors = list(spec.actors)
        actors[k] = exchanged(kind)(rng, actors[k])
        verdict = motion_checker.judge(each, MotionSpec(tuple(actors)))
        assert not verdict.correct and verdict.reason and verdict.fraction < 1
        assert verdict.chunk == 0, verdict.reason


def test_no_clip_is_right_when_it_is_played_backwards(drawn: list, seen: list) -> None:
    for (spec, _), each in zip(drawn, seen):
        if any(actor.motion != "still" for actor in spec.actors):
            assert not motion_checker.judge(each[::-1], spec).correct


def test_soft_and_noisy_clips_are_judged_right(drawn: list) -> None:
    rng = np.random.default_rng(0)
    right = []
    for spec, frames in drawn[:40]:
        soft = gaussian_filter(frames.astype(float), (0, 0.8, 0.8, 0)) + rng.normal(0, 3, frames.shape)
        right.append(motion_checker.evaluate(np.clip(soft, 0, 255).astype(np.uint8), spec).correct)
    assert np.mean(right) >= 0.95


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize(
    "later", ["a red circle moving up", "a blue circle moving left", "a red star moving left"]
)
def test_it_says_in_which_chunk_a_clip_first_fails(turn: int, later: str) -> None:
    first = "a red circle moving left"
    frames = changing(*[first] * turn, *[later] * (CHUNKS - turn), seed=turn)
    spec = motion.parse_spec(first)
    verdict = motion_checker.evaluate(frames, spec)
    assert verdict.chunk == turn and verdict.fails_at is not None and verdict.fails_at // CHUNK == turn
    assert [verdict.holds_until(chunk) for chunk in range(CHUNKS)] == [c < turn for c in range(CHUNKS)]
    # prefixes are judged on what they show
    for chunks in range(1, CHUNKS + 1):
        prefix = motion_checker.evaluate(frames[: chunks * CHUNK], spec)
        assert prefix.correct == (chunks <= turn)
        if not prefix.correct:
            assert prefix.fails_at == verdict.fails_at


def test_a_frame_without_the_object_is_the_failing_one() -> None:
    frames = clip_of("a red circle moving left").copy()
    frames[9] = frames[9, 0, 0]
    verdict = motion_checker.evaluate(frames, motion.parse_spec("a red circle moving left"))
    assert (verdict.fails_at, verdict.chunk) == (9, 2) and verdict.reason == "no red circle in frame 10"
    assert verdict.fraction == pytest.approx(1 - 1 / 20)


def test_another_object_and_a_jump_are_faults() -> None:
    spec = motion.parse_spec("a red circle standing still")
    two = clip_of("a red circle standing still and a blue star standing still")
    assert "2 objects in frame 1" in motion_checker.evaluate(two, spec).reason
    here, there = world.Thing("circle", "red", 24, 32, 9), world.Thing("circle", "red", 36, 32, 9)
    frames = world.render_batch([world.Scene((thing,), 128) for thing in [here] * 8 + [there] * 8])
    verdict = motion_checker.evaluate(frames, spec)
    assert "jumps in chunk 3" in verdict.reason and verdict.chunk == 2


def test_a_prompt_without_motion_asks_for_the_objects_alone() -> None:
    spec = motion.parse_spec("a red circle and a blue star")
    for seed, way in enumerate(("moving left", "growing")):
        frames = clip_of(f"a red circle {way} and a blue star standing still", seed)
        assert motion_checker.evaluate(frames, spec).correct
    assert not motion_checker.evaluate(clip_of("a red circle moving left"), spec).correct


def test_few_frames_at_a_lower_rate_stand_for_the_clip() -> None:
    spec = motion.parse_spec("a red circle moving left")
    frames, wrong = clip_of("a red circle moving left"), clip_of("a red circle moving right")
    for few in ([3, 7, 11, 15], [5, 10, 15], [7, 15]):
        fps = FPS * len(few) / 16
        assert motion_checker.evaluate(frames[few], spec, fps).correct
        assert not motion_checker.evaluate(wrong[few], spec, fps).correct
    with pytest.raises(ValueError, match="at most 8 a second"):
        motion_checker.evaluate(frames, spec, 24.0)


def test_labels_of_the_judge_are_the_verdicts_of_the_checker() -> None:
    """Of drawn clips, half of which change at the beginning of a chunk, whose truth is known."""
    rng = np.random.default_rng(4)
    first = [motion.sample_training_spec(rng) for _ in range(12)]
    later = [video_judge_data.altered(rng, spec) if i % 2 else spec for i, spec in enumerate(first)]
    clips = [motion.sample_changing_clip(rng, [a, a, b, b]) for a, b in zip(first, later)]
    texts, right = video_judge_data.labelled(
        0, motion.render_batch(clips), [motion.caption(a) for a in first]
    )
    assert right.shape == (12, video_judge_data.TEXTS_PER_CLIP, CHUNKS)
    for i, (a, b) in enumerate(zip(first, later)):
        found = [motion.parse_spec(text) for text in texts[i]]
        assert found[:2] == [a, a.objects] and all(set(spec.actors) != set(a.actors) for spec in found[2:])
        assert right[i, 0].tolist() == [True, True, a == b, a == b]
        assert right[i, 1, :2].all() and not right[i, 2:].any()


# ------------------------------------------------------------------------------------------ as a plugin


class TestVerifier(VerifierContract):
    @pytest.fixture
    def verifier(self) -> Verifier:
        return lookup("verifier", "playground_motion").target()

    @pytest.fixture
    def prompt(self) -> Prompt:
        return Prompt("a red circle moving left")

    @pytest.fixture
    def media(self) -> list[Video]:
        texts = ("a red circle moving left", "a red circle moving up", "a blue star growing")
        return [Video(torch.from_numpy(clip_of(text)), FPS) for text in texts]


def test_scores_say_when_a_clip_fails_in_seconds() -> None:
    verifier = lookup("verifier", "playground_motion").target()
    first, later = "a red circle moving left", "a red circle growing"
    frames = torch.from_numpy(changing(first, first, later, later))
    right, prefix, whole, few = verifier.score(
        [
            Video(torch.from_numpy(clip_of(first)), FPS),
            Video(frames[:8], FPS),
            Video(frames, FPS),
            Video(frames[[3, 7, 11, 15]], FPS / 4),
        ],
        [Prompt(first)] * 4,
    )
    assert right.value == prefix.value == 1.0 and right.satisfied and right.reason is None
    assert FAILS_AT not in right.parts and FAILS_AT not in prefix.parts
    assert whole.satisfied is False and 0 < whole.value < 1 and "in chunk 3" in (whole.reason or "")
    assert 8 / FPS <= whole.parts[FAILS_AT] < 12 / FPS
    assert few.parts[FAILS_AT] == pytest.approx(8 / FPS)
    strict = lookup("verifier", "playground_motion").target(graded=False)
    assert strict.score([Video(frames, FPS)], [Prompt(first)])[0].value == 0.0


def test_the_record_of_a_prompt_takes_precedence() -> None:
    verifier = lookup("verifier", "playground_motion").target()
    record = motion.metadata(motion.parse_spec("a blue star growing"))
    clip = Video(torch.from_numpy(clip_of("a blue star growing")), FPS)
    assert verifier.score([clip], [Prompt("whatever", record)])[0].value == 1.0
    with pytest.raises(ConfigError, match="An object is a colour"):
        verifier.score([clip], [Prompt("a dog that runs")])


def test_what_is_no_clip_is_unscored_with_the_reason() -> None:
    verifier = lookup("verifier", "playground_motion").target()
    fast = Video(torch.from_numpy(clip_of("a red circle growing")), 24.0)
    image, clip = verifier.score([Image.new("RGB", (64, 64)), fast], [Prompt("a red circle growing")] * 2)
    assert np.isnan(image.value) and "scores clips" in (image.reason or "")
    assert np.isnan(clip.value) and "at most 8 a second" in (clip.reason or "")


def test_the_evaluator_has_the_bundled_prompts_and_tests_itself() -> None:
    evaluator = Evaluator()
    items = evaluator.items()
    assert len(items) == 120 and [item.tags for item in items[:2]] == [("one_object",), ("two_objects",)]
    assert "drawn clips" in evaluator.self_test()
