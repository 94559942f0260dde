"""The playground's step verifier: its three questions, its reasons, and its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tts_vision.config import SamplerOptions
from tts_vision.pipelines.bundled import load_playground_masked
from tts_vision.pipelines.masked_sampler import MaskedSampler
from tts_vision.pipelines.playground import judge_data, train_parm, world
from tts_vision.pipelines.playground.checker import evaluate
from tts_vision.pipelines.playground.step_judge import StepJudge
from tts_vision.pipelines.playground.tokenizer import build_tokenizer
from tts_vision.pipelines.playground.train_clip import build_processor
from tts_vision.pipelines.playground.train_judge import pixels_of
from tts_vision.pipelines.playground.training import Budget
from tts_vision.types import Prompt
from tts_vision.verifiers.playground_judge import PlaygroundJudge
from tts_vision.verifiers.playground_parm import PlaygroundPARM, _reason


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step verifier with the judge's towers and fresh heads."""
    path = tmp_path_factory.mktemp("parm")
    judge = train_parm.load_judge()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = StepJudge(judge.config)
    model.load_state_dict(judge.state_dict(), strict=False)
    model.save_pretrained(path)
    build_tokenizer("right", opened=True).save_pretrained(path)
    build_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def painted() -> judge_data.Examples:
    return judge_data.paint(3, 6)


def images_of(examples: judge_data.Examples) -> list[Image.Image]:
    return [Image.fromarray(image) for image in examples.images]


def test_the_final_question_is_the_judges_where_the_weights_are_its(
    folder: Path, painted: judge_data.Examples
) -> None:
    prompts = [Prompt("two red circles left of a blue star")] * 6
    verifier, judge = PlaygroundPARM(path=folder), PlaygroundJudge()
    ours = [score.value for score in verifier.score(images_of(painted), prompts)]
    assert ours == pytest.approx([s.value for s in judge.score(images_of(painted), prompts)], abs=1e-5)


def test_each_question_is_answered_by_its_own_head(folder: Path, painted: judge_data.Examples) -> None:
    verifier = PlaygroundPARM(path=folder, batch_size=4)
    verifier.load()
    prompts = [Prompt("a photo of a red circle")] * 6
    ids = build_tokenizer("right", opened=True)(
        prompts[0].text, padding="max_length", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        wanted = train_parm.answers_to(verifier._model, pixels_of(painted), ids[None].expand(6, 1, -1))
    for question in ("clarity", "potential"):
        scores = verifier.answer(question, images_of(painted), prompts)
        values = getattr(wanted, question)[:, 0].softmax(-1)[:, 1]
        assert [s.value for s in scores] == pytest.approx(values.tolist(), abs=1e-5)
        assert [s.satisfied for s in scores] == [value > 0.5 for value in values.tolist()]


def test_a_reflection_says_yes_or_names_words_of_the_prompt(
    folder: Path, painted: judge_data.Examples
) -> None:
    prompt = Prompt("two red circles left of a blue star")
    scores = PlaygroundPARM(path=folder).reflection(images_of(painted), [prompt] * 6)
    assert any(not score.satisfied for score in scores)
    for score in scores:
        if score.satisfied:
            assert score.reason is None
        else:
            assert score.reason is not None and score.reason.startswith("not met: ")
            assert set(score.reason.removeprefix("not met: ").split(", ")) <= set(prompt.text.split()) - {
                "of"
            }


def test_a_reason_names_the_words_that_are_not_met_or_the_least_met_one() -> None:
    words = ["a", "photo", "of", "two", "red", "circles", "left", "of", "a", "blue", "star"]
    met = [0.0] * 4 + [0.9, 0.2, 0.9, 0.4, 0.0, 0.9, 0.9, 0.9] + [0.0] * 4
    assert _reason(words, met) == "not met: red, left"
    met = [0.0] * 4 + [0.9, 0.8, 0.9, 0.7, 0.0, 0.9, 0.9, 0.9] + [0.0] * 4
    assert _reason(words, met) == "not met: left"


def test_a_resumed_step_verifier_equals_an_uninterrupted_one(
    tmp_path: Path, painted: judge_data.Examples
) -> None:
    steps = train_parm.Steps(
        painted, np.arange(6, dtype=np.uint8), np.ones(6, np.int8), np.arange(6, dtype=np.int8) % 2
    )
    models = []
    for name, stops in (("whole", [None]), ("parts", [1, None])):
        (tmp_path / name).mkdir()
        for stop in stops:
            model, _ = train_parm.train_parm(
                tmp_path / name,
                steps,
                Budget(steps=3),
                train_parm.load_judge(),
                batch_size=4,
                stop_after=stop,
            )
        models.append(model)
    for (key, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_several_captions_are_judged_as_each_alone(folder: Path, painted: judge_data.Examples) -> None:
    model = StepJudge.from_pretrained(folder).eval()
    tokens = torch.from_numpy(painted.tokens).long()
    with torch.no_grad():
        together = train_parm.answers_to(model, pixels_of(painted), tokens[:, :3])
        alone = model.answers(pixels_of(painted), tokens[:, 2], tokens[:, 2] != 0)
    for a, b in zip(together, alone):
        assert torch.allclose(a[:, 2], b, atol=1e-5)


def test_objects_are_counted_by_shape_and_colour() -> None:
    rng = np.random.default_rng(0)
    spec = world.parse_spec("two red circles and a blue star")
    scene = judge_data.painted(rng, spec)
    assert sum(train_parm.objects(judge_data.found_in(scene)).values()) == len(scene.things)


def test_steps_of_evaluation_prompts_are_drawn_without_captions() -> None:
    sampler = MaskedSampler(
        load_playground_masked(), options=SamplerOptions(pipeline_kwargs={"num_inference_steps": 3})
    )
    specs = [world.parse_spec("a photo of two circles"), world.parse_spec("a photo of a red star")]
    steps = train_parm.draw_steps(sampler, specs, seed=0, each=2, captions=False)
    assert steps.step.tolist() == [1, 1, 2, 2, 3, 3] * 2
    assert steps.examples.images.shape == (12, 64, 64, 3) and steps.examples.tokens.shape == (12, 0, 16)
    assert steps.clear[steps.step == 3].all(), "an image shows its own objects"
    outcome = steps.potential.reshape(2, 3, 2)
    assert (outcome == outcome[:, -1:]).all()
    right = [
        evaluate(image, world.metadata(spec)).correct
        for image, spec in zip(steps.examples.images[4:6], specs[:1] * 2)
    ]
    assert outcome[0, -1].tolist() == right
