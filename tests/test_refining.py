"""Refine: a chosen sample or an image, with candidates around it, and the best of all kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tts_vision
from tiny_pipelines import TINY
from tts_vision.algorithms.variations import variations
from tts_vision.cli import app
from tts_vision.config import RunConfig, SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.media import write_media
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.refining import original, refine
from tts_vision.results import Result, load_result
from tts_vision.runner import run
from tts_vision.testing.contracts import AlgorithmContract, Killed, kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Event
from tts_vision.types import State, Video

PROMPT, OTHER = "two red circles", "two blue circles"
SEED_0 = json.dumps([{"uid": 0, "step": 0, "origin": "init"}])


class TestVariationsOfAParticle(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return variations

    @pytest.fixture
    def params(self) -> dict[str, Any]:
        return {"lineage": SEED_0}

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"lineage": SEED_0, "n": 3}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search on the playground whose population has bred samples too."""
    folder = tmp_path_factory.mktemp("first") / "search"
    tts_vision.search(
        "playground",
        PROMPT,
        algorithm="evosearch",
        budget="4x",
        seed=3,
        output=folder,
        pipeline_kwargs=SHORT,
    )
    return folder


SHORT = {"num_inference_steps": 6}


def redness(images: Any, prompts: Any) -> list[float]:
    return [float(np.asarray(image)[..., 0].mean()) for image in images]


def image_of(result: Result, uid: int) -> np.ndarray:
    (sample,) = (each for each in result.population if each.uid == uid)
    return np.asarray(sample.load(), np.int16)


def test_the_original_is_a_candidate_with_its_own_pixels_and_score(first: Path, tmp_path: Path) -> None:
    source = load_result(first)
    bred = next(c.uid for c in source.population if len(source.lineage(c.uid)) > 1)
    result = refine(first, bred, n=3, strength=0.5, output=tmp_path / "refined")
    kept = original(result)
    assert kept is not None and kept.uid == bred and len(result.population) == 4
    assert np.abs(image_of(result, bred) - image_of(source, bred)).max() <= 1, "batches round differently"
    assert kept.score.value == pytest.approx(
        next(c.score.value for c in source.population if c.uid == bred), abs=1e-3
    )
    assert result.best.score.value == max(c.score.value for c in result.population)
    assert result.config.prompt == PROMPT and result.config.model == source.config.model
    assert tts_vision.replay(tmp_path / "refined").max_difference <= 1
    best = refine(first, n=1)
    assert original(best).uid == source.best.uid  # type: ignore[union-attr]


def test_a_sample_of_noisy_steps_is_made_again_with_noisy_steps(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"algorithm": "fk_steering", "budget": "4x", "pipeline_kwargs": SHORT}
    source = tts_vision.search("playground", PROMPT, **settings, output=tmp_path / "steered")
    result = refine(tmp_path / "steered", n=1)
    assert np.abs(image_of(result, source.best.uid) - image_of(source, source.best.uid)).max() <= 1


def test_under_another_prompt_candidates_are_made_and_judged_for_it(first: Path, tmp_path: Path) -> None:
    source = load_result(first)
    result = refine(first, 0, prompt=OTHER, n=4, strength=0.9, output=tmp_path / "a")
    assert result.config.prompt == OTHER
    kept = original(result)
    assert kept is not None and np.abs(image_of(result, 0) - image_of(source, 0)).max() <= 1
    assert kept.score.value < next(c.score.value for c in source.population if c.uid == 0), (
        "judged by the new"
    )
    assert result.best.uid != kept.uid and result.best.score.value > kept.score.value + 0.1
    assert tts_vision.replay(tmp_path / "a").max_difference <= 1
    # a refined sample can be refined again, back to the words before
    again = refine(tmp_path / "a", result.best.uid, prompt=PROMPT, n=2, strength=0.9, output=tmp_path / "b")
    assert np.abs(image_of(again, result.best.uid) - image_of(result, result.best.uid)).max() <= 1
    assert again.config.prompt == PROMPT and tts_vision.replay(tmp_path / "b").max_difference <= 1


def test_a_low_strength_stays_closer(first: Path) -> None:
    def spread(strength: float) -> float:
        result = refine(first, 0, prompt=OTHER, n=3, strength=strength)
        others = [c.uid for c in result.population if c.uid != 0]
        return float(np.mean([np.abs(image_of(result, u) - image_of(result, 0)).mean() for u in others]))

    assert spread(0.2) < spread(0.5) < spread(1.0)


def test_an_image_of_anybody(tmp_path: Path) -> None:
    photo = Image.new("RGB", (96, 64), (60, 60, 60))
    photo.paste((220, 30, 30), (40, 20, 64, 44))
    photo.save(tmp_path / "photo.png")
    settings: dict[str, Any] = {"prompt": PROMPT, "model": "playground", "n": 2, "pipeline_kwargs": SHORT}
    result = refine(tmp_path / "photo.png", **settings, strength=0.5, output=tmp_path / "refined")
    kept = original(result)
    assert kept is not None, "the original is a candidate"
    cropped = np.asarray(photo.crop((16, 0, 80, 64)), np.int16)
    assert (image_of(result, kept.uid) == cropped).all(), "as it is, cropped to the shape of the samples"
    assert len(result.population) == 3 and result.spent.nfe == 2 * 3 * 2
    (tmp_path / "photo.png").unlink()
    assert tts_vision.replay(tmp_path / "refined").max_difference == 0, "the folder has all that it needs"
    live = refine(photo, **settings, strength=0.5)
    assert [(c.uid, c.score) for c in live.population] == [(c.uid, c.score) for c in result.population]


@pytest.mark.parametrize("how", ["lineage", "image"])
def test_a_kill_anywhere_changes_nothing(how: str, tmp_path: Path) -> None:
    entry = TINY["stable_diffusion"]
    call = {"num_inference_steps": 4, **entry.settings}
    Image.new("RGB", (16, 16), (90, 20, 200)).save(tmp_path / "photo.png")
    source = (
        {"lineage": SEED_0, "made_for": "y"} if how == "lineage" else {"image": str(tmp_path / "photo.png")}
    )
    kill_everywhere(
        partial(variations, **source, n=2, strength=0.5),
        lambda: DiffusersSampler(entry.build(), options=SamplerOptions(pipeline_kwargs=call)),
        TargetReward(),
        tmp_path / "kills",
        most=6,
    )


def test_a_killed_refinement_goes_on_without_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (60, 60, 60)).save(tmp_path / "photo.png")
    settings: dict[str, Any] = {"prompt": PROMPT, "model": "playground", "n": 2, "pipeline_kwargs": SHORT}
    whole = refine(tmp_path / "photo.png", **settings, output=tmp_path / "whole")

    def die(context: SearchContext, event: Event) -> None:
        if event.what == "note":
            raise Killed

    with pytest.raises(Killed):
        refine(tmp_path / "photo.png", **settings, output=tmp_path / "killed", progress=die)
    (tmp_path / "photo.png").unlink()
    resumed = tts_vision.resume(tmp_path / "killed")
    one, two = (json.loads((r.folder / "result.json").read_text()) for r in (whole, resumed))  # type: ignore[operator]
    del one["timing"], two["timing"]
    assert one == two
    for name in ("best.png", "contact_sheet.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_a_sample_of_an_unfinished_search_is_refined(tmp_path: Path) -> None:
    drafts = tts_vision.draft("playground", PROMPT, 3, output=tmp_path / "drafts", pipeline_kwargs=SHORT)
    assert not drafts.population
    result = refine(tmp_path / "drafts", 2, n=1)
    done = tts_vision.finish(tmp_path / "drafts", [2])
    assert np.abs(image_of(result, 2) - image_of(done, 2)).max() <= 1


def test_what_cannot_be_made_again_is_refined_from_its_stored_image(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (60, 60, 60)).save(tmp_path / "photo.png")
    settings: dict[str, Any] = {"n": 1, "strength": 0.9, "pipeline_kwargs": SHORT}
    one = refine(
        tmp_path / "photo.png", prompt=PROMPT, model="playground", **settings, output=tmp_path / "one"
    )
    child = next(c.uid for c in one.population if c.uid != original(one).uid)  # type: ignore[union-attr]
    two = refine(tmp_path / "one", child, n=1, strength=0.5)
    assert two.config.algorithm_params["image"] and not two.config.algorithm_params["lineage"]
    assert (image_of(two, original(two).uid) == image_of(one, child)).all()  # type: ignore[union-attr]


def test_another_model_refines_the_stored_image(first: Path) -> None:
    entry = TINY["stable_diffusion_img2img"]
    pipe = entry.build()
    call = {k: v for k, v in entry.settings.items() if k not in ("strength", "num_inference_steps")}
    result = refine(
        first,
        0,
        n=2,
        strength=0.5,
        model=pipe,
        verifier=redness,
        pipeline_kwargs={**call, "num_inference_steps": 8},
    )
    kept = original(result)
    assert kept is not None and (image_of(result, kept.uid) == image_of(load_result(first), 0)).all()
    assert result.config.sampler_options.pipeline_kwargs["strength"] == 0.5
    assert not any("strength" in warning for warning in result.warnings)
    plain = DiffusersSampler(pipe, options=result.config.sampler_options)
    assert plain.num_steps == 4, "half of 8"


def test_other_settings_of_the_model_refine_the_stored_image(first: Path, tmp_path: Path) -> None:
    result = refine(first, 0, n=1, pipeline_kwargs={"guidance_scale": 3.0})
    assert result.config.sampler_options.pipeline_kwargs == {**SHORT, "guidance_scale": 3.0}
    kept = original(result)
    assert kept is not None and result.config.algorithm_params["lineage"] == ""
    assert (image_of(result, kept.uid) == image_of(load_result(first), 0)).all()
    tts_vision.draft("playground", PROMPT, 1, output=tmp_path / "drafts", pipeline_kwargs=SHORT)
    with pytest.raises(ConfigError, match=r"0 has no stored image and its search had other settings"):
        refine(tmp_path / "drafts", 0, n=1, pipeline_kwargs={"guidance_scale": 3.0})


def test_what_cannot_be_refined_is_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is refined but 99 is none of its particles"):
        refine(first, 99)
    with pytest.raises(ConfigError, match=r"A refined image needs a prompt but got none"):
        refine(Image.new("RGB", (8, 8)), model="playground")
    with pytest.raises(ConfigError, match=r"an image has none, and got 3"):
        refine(Image.new("RGB", (8, 8)), 3, prompt="x", model="playground")
    with pytest.raises(ConfigError, match=r"An image must be readable but .*nothing.png"):
        refine(tmp_path / "nothing.png", prompt="x", model="playground", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CapabilityError, match=r"efining an image needs a sampler with 'adopt' but"):
        refine(Image.new("RGB", (8, 8)), prompt="x", model=GaussianMixtureSampler(), verifier=TargetReward())
    with pytest.raises(CapabilityError, match=r"efining an image needs a sampler with 'adopt' but"):
        refine(Image.new("RGB", (8, 8)), prompt="x", model="playground-var")
    for given in ({}, {"lineage": SEED_0, "image": "a.png"}):
        config = RunConfig(prompt="x", algorithm="variations", algorithm_params=given)  # type: ignore[call-arg]
        with pytest.raises(ConfigError, match=r"of a particle or of an image but got (both|neither)"):
            run(config)


def test_a_strangers_settings_read_no_file(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "private.png")
    settings: dict[str, Any] = {"prompt": PROMPT, "model": "playground", "n": 1, "pipeline_kwargs": SHORT}

    def die(context: SearchContext, event: Event) -> None:
        if event.what == "began" or event.what == "image":
            raise Killed

    with pytest.raises(Killed):
        refine(tmp_path / "private.png", **settings, output=tmp_path / "mine", progress=die)
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    trace = (tmp_path / "theirs" / "trace.jsonl").read_text().splitlines()
    (tmp_path / "theirs" / "trace.jsonl").write_text(trace[0] + "\n")
    with pytest.raises(ConfigError, match=r"would read .*private.png; read it, and if you trust it"):
        tts_vision.resume(tmp_path / "theirs")
    assert len(tts_vision.resume(tmp_path / "mine").population) == 2


def test_the_command(first: Path, tmp_path: Path) -> None:
    call = CliRunner().invoke
    folder = tmp_path / "refined"
    done = call(
        app, ["refine", str(first), "0", "--prompt", OTHER, "-n", "2", "--strength", "0.9", "-o", str(folder)]
    )
    assert done.exit_code == 0, done.output
    result = load_result(folder)
    kept = original(result)
    assert kept is not None and kept.uid == 0 and len(result.population) == 3
    assert f"original  #0 {kept.path}  {kept.score.value:.4f}" in done.output
    assert f"{folder}/best.png" in done.output
    image = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), (60, 60, 60)).save(image)
    made = call(
        app, ["refine", str(image), "a red circle", "-n", "1", "--steps", "6", "-o", str(tmp_path / "image")]
    )
    assert made.exit_code == 0, made.output
    assert load_result(tmp_path / "image").config.prompt == "a red circle"
    again = call(
        app,
        ["refine", f"{tmp_path}/image/best.png", "-n", "1", "--steps", "6", "-o", str(tmp_path / "again")],
    )
    assert again.exit_code == 0, again.output
    assert load_result(tmp_path / "again").config.prompt == "a red circle"
    clip = Video(torch.zeros(3, 16, 16, 3, dtype=torch.uint8))
    for name in ("clip.gif", "clip.mkv"):
        write_media(clip, tmp_path / name, {"prompt": "a red circle"})
        wrong = call(app, ["refine", str(tmp_path / name), "-o", str(tmp_path / "clip")])
        assert wrong.exit_code == 2 and "is a clip; save one of its frames" in " ".join(wrong.output.split())
    wrong = call(app, ["refine", str(first), "many"])
    assert wrong.exit_code == 2 and "number of a sample but got 'many'" in wrong.output
    wrong = call(app, ["refine", str(image)])
    assert wrong.exit_code == 2 and "A refined image needs a prompt" in wrong.output
