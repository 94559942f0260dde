"""The hard track: composite prompts that no training has seen and that one sample often misses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tts_vision.eval.evaluators.playground import Playground
from tts_vision.eval.playground import evaluation_prompts
from tts_vision.pipelines.playground import checker, hard, judge_data, world
from tts_vision.registry import lookup

SPECS = [world.parse_spec(record["prompt"]) for record in hard.load_hard_prompts()]


def test_the_shipped_file_is_what_its_generator_writes(tmp_path: Path) -> None:
    hard.write_hard_prompts(tmp_path / "hard.jsonl")
    shipped = Path(hard.__file__).with_name("hard.jsonl")
    assert (tmp_path / "hard.jsonl").read_bytes() == shipped.read_bytes()


def test_another_seed_makes_other_prompts() -> None:
    assert hard.make_hard_prompts(2, seed=1) != hard.make_hard_prompts(2, seed=2)


def test_prompts_are_distinct_two_groups_with_colours_counts_and_a_relation() -> None:
    assert len(set(SPECS)) == 150
    counts = Counter(tuple(group.count for group in spec.groups) for spec in SPECS)
    assert counts == dict.fromkeys(hard.COUNTS, 30)
    for spec in SPECS:
        a, b = spec.groups
        assert a.shape != b.shape and a.colour != b.colour and None not in (a.colour, b.colour)
        assert spec.relation in world.RELATIONS
    relations = Counter(spec.relation for spec in SPECS)
    assert set(relations) == set(world.RELATIONS) and min(relations.values()) >= 30


def test_no_prompt_is_in_the_training_of_any_model() -> None:
    assert all(world.is_held_out(spec) and judge_data.kept_out(spec) for spec in SPECS)
    prompts = {words for spec in SPECS for words in (world.caption(spec), world.caption(spec, prefix=False))}
    rng = np.random.default_rng(0)
    trained = {world.sample_caption(rng, world.sample_example(rng)[0]) for _ in range(1500)}
    assert not prompts & {text.replace("to the ", "") for text in trained}


def test_no_prompt_is_among_the_easy_ones() -> None:
    assert not {record["prompt"] for record in world.load_prompts()} & {world.caption(spec) for spec in SPECS}


def test_the_checker_judges_every_prompt() -> None:
    rng = np.random.default_rng(1)
    passed = refused = 0
    for prompt, spec in zip(evaluation_prompts(150, "hard"), SPECS, strict=True):
        assert {**prompt.metadata, "prompt": prompt.text} == world.metadata(spec)
        swapped = world.Spec(spec.groups[::-1], spec.relation)
        right, wrong = (world.render(world.sample_scene(rng, each)) for each in (spec, swapped))
        passed += checker.evaluate(right, prompt.metadata).correct
        refused += not checker.evaluate(wrong, prompt.metadata).correct
    assert passed >= 147 and refused == 150


def test_the_oracle_judges_the_prompts() -> None:
    rng = np.random.default_rng(2)
    images = [Image.fromarray(world.render(world.sample_scene(rng, spec))) for spec in SPECS[:2]]
    oracle = lookup("verifier", "playground_oracle").target(graded=False)
    scores = oracle.score(images, evaluation_prompts(1, "hard") * 2)
    assert [score.value for score in scores] == [1.0, 0.0]


def test_the_evaluator_has_the_track() -> None:
    evaluator = lookup("evaluator", "playground").target(track="hard")
    texts = [item.prompt.text for item in evaluator.items()]
    assert texts == [world.caption(spec) for spec in SPECS]
    assert [item.prompt.text for item in Playground().items()] != texts


@pytest.mark.slow
def test_one_plain_sample_is_right_for_30_to_60_percent() -> None:
    from tts_vision.eval.judge import draw_samples

    samples = draw_samples(evaluation_prompts(150, "hard"), 2)
    assert 0.30 <= samples.right.mean() <= 0.60
