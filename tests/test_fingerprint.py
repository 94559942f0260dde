"""Fingerprints: a search is continued with the live objects that it began with."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from tiny_pipelines import TINY
from toy_plugins import first_coordinate
from tts_vision import Result, RunConfig, search
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.fingerprint import check_fingerprint, fingerprint
from tts_vision.resolve import Live
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Event
from tts_vision.types import Media, Modality, Score
from tts_vision.verifier import ALONE, Asked, Verifier

CALL: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 4.0}


def build() -> Any:
    pipe = TINY["stable_diffusion"].build()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def brightness(images: list[Media], prompts: list[str]) -> list[float]:
    return [float(torch.tensor(image.tobytes()[0])) for image in images]  # type: ignore[union-attr]


def begin(pipe: Any, output: Path, **options: Any) -> Result:
    settings: dict[str, Any] = {"verifier": brightness, "budget": "2x", "pipeline_kwargs": CALL, **options}
    return search(pipe, "two red circles", output=output, **settings)


def facts(pipe: Any = None, verifier: Any = None, **options: Any) -> dict[str, Any]:
    config = RunConfig(
        prompt="a",
        model="<pipe>" if pipe is not None else "playground",
        verifier="<v>" if verifier is not None else "v",
        **options,
    )
    return fingerprint(config, Live(pipe=pipe, verifier=verifier))


class Stopped(Exception):
    """Ends a search in a test."""


def stop(context: SearchContext, event: Event) -> None:
    if event.what == "advance":
        raise Stopped


def scaled(part: str, by: float = 0.5) -> Callable[[Any], None]:
    def change(pipe: Any) -> None:
        with torch.no_grad():
            for weight in getattr(pipe, part).parameters():
                weight.mul_(by)

    return change


def other_scheduler(pipe: Any) -> None:
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)


def other_spacing(pipe: Any) -> None:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")


def half_precision(pipe: Any) -> None:
    pipe.vae.to(torch.bfloat16)


def one_more_token(pipe: Any) -> None:
    pipe.tokenizer.add_tokens(["<style>"])


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (scaled("unet"), "model.unet.weights differs"),
    (scaled("text_encoder"), "model.text_encoder.weights differs"),
    (scaled("vae"), "model.vae.weights differs"),
    (half_precision, "model.vae.tensors differs"),
    (other_scheduler, "model.scheduler.class is 'EulerDiscreteScheduler' and was 'DDIMScheduler'"),
    (other_spacing, "model.scheduler.config.timestep_spacing is 'trailing' and was 'leading'"),
    (one_more_token, "model.tokenizer.length is 615 and was 614"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_changed_pipeline_is_told(change: Callable[[Any], None], message: str) -> None:
    pipe = build()
    before = facts(pipe)
    change(pipe)
    with pytest.raises(ConfigError, match=f"same live objects but .*{message}.*; pass those that it be"):
        check_fingerprint(before, facts(pipe))


@pytest.mark.parametrize("finished", [True, False])
def test_a_search_is_continued_with_the_same_pipeline(finished: bool, tmp_path: Path) -> None:
    if finished:
        begin(build(), tmp_path)
    else:
        with pytest.raises(Stopped):
            begin(build(), tmp_path, progress=stop)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for change, message in (CHANGES[0], CHANGES[4]):
        pipe = build()
        change(pipe)
        with pytest.raises(ConfigError, match=message):
            begin(pipe, tmp_path, resume=True)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    begin(build(), tmp_path, resume=True)
    used = build()
    used("a", **CALL)
    begin(used, tmp_path, resume=True)


def test_adapters_are_told() -> None:
    pytest.importorskip("peft")
    from peft import LoraConfig

    pipe = build()
    before = facts(pipe)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    with_style = facts(pipe)
    assert with_style["model.unet.adapters"] == ["style"]
    with pytest.raises(ConfigError, match=r"model.unet.tensors differs"):
        check_fingerprint(before, with_style)
    pipe.unet.set_adapters(["style"], [0.5])
    with pytest.raises(ConfigError, match=r"model.unet.adapter_scales differs"):
        check_fingerprint(with_style, facts(pipe))
    pipe.unet.disable_adapters()
    with pytest.raises(ConfigError, match=r"model.unet.adapters is \[\] and was \['style'\]"):
        check_fingerprint(with_style, facts(pipe))


def test_the_place_and_layout_of_weights_do_not_matter() -> None:
    pipe = build()
    before = facts(pipe)
    pipe.unet.to(memory_format=torch.channels_last)
    assert facts(pipe) == before
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert facts(pipe) == before


def test_weights_that_are_not_in_memory_are_not_read() -> None:
    pipe = build()
    before = facts(pipe)
    pipe.unet.to("meta")
    offloaded = facts(pipe)
    assert "model.unet.weights" not in offloaded
    check_fingerprint(before, offloaded)
    check_fingerprint(offloaded, before)


class Scorer(Verifier):
    """A verifier that loads a network when it is first used, and counts."""

    name = "scorer"
    accepts: frozenset[Modality] = frozenset({"image"})

    def __init__(self, weight: float = 1.0, device: str = "cpu") -> None:
        self.weight, self.device, self.seen = weight, device, 0
        self.network: nn.Module | None = None

    def load(self) -> None:
        if self.network is None:
            torch.manual_seed(0)
            self.network = nn.Linear(3, 1)

    def score(self, media: Any, prompts: Any, asked: Asked = ALONE) -> list[Score]:
        self.load()
        self.seen += len(media)
        return [Score(value=self.weight * image.getpixel((0, 0))[0]) for image in media]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is looked up, which might load something")


def test_verifiers_and_samplers_are_told_by_their_values_and_networks(tmp_path: Path) -> None:
    fresh = facts(verifier=Scorer())
    assert fresh == {"verifier.class": "Scorer", "verifier.weight": 1.0}
    loaded = Scorer(device="cuda")
    loaded.load()
    loaded.seen = 9
    check_fingerprint(fresh, facts(verifier=loaded))
    assert {"verifier.network.tensors", "verifier.network.weights"} < set(facts(verifier=loaded))
    with pytest.raises(ConfigError, match=r"verifier.weight is 2.0 and was 1.0"):
        check_fingerprint(fresh, facts(verifier=Scorer(2.0)))
    changed = Scorer()
    changed.load()
    assert changed.network is not None
    nn.init.zeros_(changed.network.weight)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"verifier.network.weights differs"):
        check_fingerprint(facts(verifier=loaded), facts(verifier=changed))
    sampler = GaussianMixtureSampler(num_steps=4)
    search(sampler, "a", verifier=TargetReward(), budget="2x", output=tmp_path)
    for pipe, reward, message in (
        (GaussianMixtureSampler(num_steps=4, eta=0.5), TargetReward(), "model.eta is 0.5 and was 1.0"),
        (GaussianMixtureSampler(num_steps=4), TargetReward((0, 0)), "verifier.target differs"),
    ):
        with pytest.raises(ConfigError, match=message):
            search(pipe, "a", verifier=reward, budget="2x", output=tmp_path, resume=True)
    search(
        GaussianMixtureSampler(num_steps=4),
        "a",
        verifier=TargetReward(),
        budget="2x",
        output=tmp_path,
        resume=True,
    )


def test_a_sampler_is_told_by_the_pipeline_inside() -> None:
    from tts_vision.config import SamplerOptions
    from tts_vision.pipelines.diffusers_sampler import DiffusersSampler

    pipe = build()
    sampler = DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=CALL))
    before = facts(sampler)
    scaled("unet")(pipe)
    with pytest.raises(ConfigError, match=r"unet.weights differs"):
        check_fingerprint(before, facts(sampler))


def test_tensors_among_the_arguments_are_told() -> None:
    def with_embeds(value: float) -> dict[str, Any]:
        call = {**CALL, "prompt_embeds": torch.full((1, 4), value), "more": [torch.ones(2), 3]}
        return facts(GaussianMixtureSampler(), sampler_options={"pipeline_kwargs": call})

    assert with_embeds(1.0) == with_embeds(1.0)
    with pytest.raises(ConfigError, match=r"pipeline_kwargs.prompt_embeds differs"):
        check_fingerprint(with_embeds(1.0), with_embeds(2.0))


def test_what_a_name_stands_for_has_none(tmp_path: Path) -> None:
    from toy_plugins import MODEL

    result = search(MODEL, "a", verifier=first_coordinate, budget="2x", output=tmp_path)
    assert result.trace[0].kind == "began" and result.trace[0].fingerprint == {}
    assert fingerprint(result.config, None) == {}


def test_it_is_cheap() -> None:
    layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(400)))  # 26 million weights, 800 tensors
    facts(verifier=layers)
    since = time.perf_counter()
    facts(verifier=layers)
    assert time.perf_counter() - since < 0.5
