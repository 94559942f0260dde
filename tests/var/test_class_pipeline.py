"""Images of a class by VAR, and the published models by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_var import BSQ, INFINITY, VAR_CONFIG, VQ, bsq_vae, infinity, save_t5, var, vqvae

import tts_vision
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.var import infinity as infinity_module
from tts_vision.pipelines.var import var as var_module
from tts_vision.pipelines.var.bsq_vae import VAES
from tts_vision.pipelines.var.class_pipeline import VARPipeline
from tts_vision.pipelines.var_sampler import ScaleSampler
from tts_vision.testing.contracts import SamplerContract
from tts_vision.types import Prompt


def tiny_pipeline() -> VARPipeline:
    return VARPipeline(var(), vqvae(), name="tiny-var")


def brightness(images: Any, prompts: Any) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


class TestClassSampler(SamplerContract):
    @pytest.fixture
    def condition(self) -> Condition:
        return Condition("a fish", overrides={"class_id": 3})

    @pytest.fixture
    def sampler(self) -> ScaleSampler:
        return ScaleSampler(
            tiny_pipeline(), options=SamplerOptions(pipeline_kwargs={"top_k": 0, "top_p": 0.0})
        )


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_stepwise_equals_whole(guidance: float) -> None:
    settings = {"guidance_scale": guidance, "top_k": 20}
    sampler = ScaleSampler(tiny_pipeline(), options=SamplerOptions(pipeline_kwargs=settings))
    state = sampler.init(Condition("7"), (0, 1), seed=2)
    for _ in range(sampler.num_steps):
        state = sampler.advance(state)
    assert state.latents.dtype == torch.int64 and int(state.latents.max()) < VAR_CONFIG.vocabulary
    for stepwise, image in zip(sampler.decode(state), tiny_pipeline()(7, seed=2, n=2, **settings)):
        assert np.array_equal(np.asarray(stepwise), np.asarray(image))
    assert sampler.cost(Condition("7"), 0, 1).nfe == (2 if guidance else 1)


def test_the_class_in_a_prompts_metadata_becomes_an_override() -> None:
    sampler = ScaleSampler(tiny_pipeline())
    condition = sampler.condition_of(Prompt("a fish", {"class_id": 3, "tag": "counting"}))
    assert condition == Condition("a fish", overrides={"class_id": 3})
    by_id, by_text = (sampler.init(c, (0, 1), seed=2) for c in (condition, Condition("3")))
    assert torch.equal(sampler.advance(by_id, 3).latents, sampler.advance(by_text, 3).latents)
    assert sampler.condition_of(Prompt("7")) == Condition("7")
    with pytest.raises(ConfigError, match="must be among class_id but got tau"):
        ScaleSampler(VARPipeline(var(), vqvae())).init(Condition("3", overrides={"tau": 2}), (0,), seed=0)


def test_the_class_matters() -> None:
    one, other = (np.asarray(tiny_pipeline()(label, seed=0)[0]) for label in (1, 2))
    assert not np.array_equal(one, other)


def test_a_search(tmp_path: Path) -> None:
    result = tts_vision.search(
        tiny_pipeline(), "3", algorithm="best_of_n", verifier=brightness, budget="4x", output=tmp_path / "out"
    )
    assert len(result.population) == 4
    assert result.best.score.value == max(c.score.value for c in result.population)


def test_no_class() -> None:
    with pytest.raises(ConfigError, match="A class of ImageNet must be a number from 0 to 999"):
        tiny_pipeline()("two red circles")
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        tiny_pipeline()(3, topk=5)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with tiny models in the place of the real ones, under their published names."""
    monkeypatch.setitem(infinity_module.SIZES, "2b", INFINITY)
    monkeypatch.setitem(VAES, "2b", BSQ)
    monkeypatch.setitem(var_module.SIZES, "d16", VAR_CONFIG)
    monkeypatch.setattr("tts_vision.pipelines.var.vqvae.VQVAEConfig", lambda: VQ)
    torch.save(infinity().state_dict(), tmp_path / "infinity_2b_reg.pth")
    torch.save({"vae": bsq_vae().state_dict()}, tmp_path / "infinity_vae_d32reg.pth")
    save_t5(tmp_path / "flan-t5-xl")
    torch.save(var().state_dict(), tmp_path / "var_d16.pth")
    torch.save(vqvae().state_dict(), tmp_path / "vae_ch160v4096z32.pth")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "infinity-2b:{0}",
        "infinity-2b:checkpoint={0}/infinity_2b_reg.pth,vae={0},text_encoder={0}/flan-t5-xl",
        "var-d16:{0}",
        "var-d16:checkpoint={0}/var_d16.pth,vae={0}/vae_ch160v4096z32.pth",
    ],
)
def test_published_models_by_name(published: Path, name: str) -> None:
    prompt, kwargs = ("two red", {"size": "0.06M", "aspect_ratio": 2.0}) if "inf" in name else ("5", {})
    result = tts_vision.search(
        name.format(published), prompt, verifier=brightness, budget="2x", pipeline_kwargs=kwargs
    )
    height, width = np.asarray(result.best.load()).shape[:2]
    assert (height, width) == ((22 * 4, 11 * 4) if "inf" in name else (24, 24))


def test_a_checkpoint_of_another_size(published: Path) -> None:
    wide = replace(INFINITY, width=96, heads=4)
    torch.save(infinity(wide).state_dict(), published / "infinity_2b_reg.pth")
    with pytest.raises(PipelineError, match=r"infinity-2b.*96"):
        tts_vision.search(f"infinity-2b:{published}", "a", verifier=brightness)


def test_parts_and_options_that_are_none(published: Path) -> None:
    with pytest.raises(ConfigError, match="A part of var-d16 must be one of checkpoint, vae but got 'text'"):
        tts_vision.search(f"var-d16:text={published}", "3", verifier=brightness)
    with pytest.raises(ConfigError, match="takes the options dtype and device but got scheduler"):
        tts_vision.search(
            f"var-d16:{published}", "3", verifier=brightness, model_options={"scheduler": "DDIMScheduler"}
        )
