from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogView4Pipeline

from tts_vision.pipelines import playground
from tts_vision.pipelines.playground import measure, world
from tts_vision.pipelines.playground.checker import evaluate

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def pipe() -> CogView4Pipeline:
    return playground.load_pipeline()


def test_the_weights_are_small() -> None:
    for part, limit in (("flow", 20), ("clip", 8)):
        files = playground.weights_path(part).rglob("*.safetensors")
        assert sum(file.stat().st_size for file in files) <= limit * MEGABYTE


def test_the_pipeline_draws_what_is_asked_more_often_than_not(pipe: CogView4Pipeline) -> None:
    prompts = [
        f"a photo of a {colour} {shape}" for colour in ("red", "blue", "white") for shape in world.SHAPES[:4]
    ]
    images = measure.draw(pipe, prompts, range(len(prompts)), **STEPS)
    right = [evaluate(image, world.parse_prompt(text)).correct for image, text in zip(images, prompts)]
    assert np.mean(right) > 0.5


def test_a_seed_gives_the_same_image_again(pipe: CogView4Pipeline) -> None:
    first, second = (measure.draw(pipe, ["a star"], [7], **STEPS) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_schedule_is_the_one_of_training(pipe: CogView4Pipeline) -> None:
    # Training feeds the time as 1000 sigma; a shifted schedule would break that.
    measure.draw(pipe, ["a star"], [0], steps=5, guidance=1.0)
    assert torch.allclose(pipe.scheduler.timesteps, 1000 * pipe.scheduler.sigmas[:-1])


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(playground.WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="flow weights must lie in"):
        playground.weights_path()


STEPS = {
    "steps": playground.DEFAULTS["num_inference_steps"],
    "guidance": playground.DEFAULTS["guidance_scale"],
}
