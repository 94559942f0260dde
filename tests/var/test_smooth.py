"""Smooth features of VAR: the published mixtures, moves of their noise, searches that repeat themselves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_var import VAR_SCHEDULE, noise, var, vqvae

import tts_vision
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.errors import ConfigError
from tts_vision.moves import TOKEN_NOISE, TOKEN_PROBABILITY
from tts_vision.pipelines.var.class_pipeline import VARPipeline
from tts_vision.pipelines.var.smooth import SmoothNoise, gumbel_weights
from tts_vision.pipelines.var_sampler import ScaleSampler
from tts_vision.rng import row_uniform
from tts_vision.testing.contracts import SamplerContract, kill_everywhere
from tts_vision.testing.toys import TargetReward
from tts_vision.types import Prompt, State

CONDITION = Condition("3")
SMOOTH: dict[str, Any] = {"more_smooth": True, "top_k": 0, "top_p": 0.0}


def pipeline() -> VARPipeline:
    return VARPipeline(var(), vqvae(), name="tiny-var")


def sampler_of(**settings: Any) -> ScaleSampler:
    return ScaleSampler(pipeline(), options=SamplerOptions(pipeline_kwargs={**SMOOTH, **settings}))


def brightness(images: Any, prompts: Any) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


def farthest(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


class TestSmoothSampler(SamplerContract):
    @pytest.fixture
    def condition(self) -> Condition:
        return CONDITION

    @pytest.fixture
    def sampler(self) -> ScaleSampler:
        return sampler_of()


def released_weights(logits: torch.Tensor, exponentials: torch.Tensor, ratio: float) -> torch.Tensor:
    """The release's Gumbel-softmax of guided logits, which top-k and top-p have masked."""
    temperature = max(0.27 * (1 - ratio * 0.95), 0.005)
    return ((logits * (1 + ratio) - exponentials.log()) / temperature).softmax(-1)


class OfThree(ScaleSampler):
    """Draws class 3, whatever the prompt."""

    def __init__(self) -> None:
        super().__init__(pipeline(), options=SamplerOptions(pipeline_kwargs=SMOOTH))

    def condition_of(self, prompt: Prompt) -> Condition:
        return CONDITION


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_weights_are_those_of_the_release(ratio: float) -> None:
    logits = 3 * noise(2, 5, 40)
    logits[..., ::3] = -torch.inf
    uniform = torch.rand(2, 5, 40, generator=torch.Generator().manual_seed(1))
    ours = gumbel_weights(logits.softmax(-1), uniform, ratio)
    theirs = released_weights(logits, -uniform.log(), ratio)  # exponential numbers from uniform ones
    assert torch.allclose(ours, theirs, atol=2e-4)
    assert bool((ours[..., ::3] == 0).all()) and torch.allclose(ours.sum(-1), torch.ones(2, 5))


def test_uniform_numbers_of_zero_and_one_make_numbers() -> None:
    certain = torch.zeros(1, 1, 4)
    certain[..., 2] = 1.0
    for value in (0.0, 1 - 2**-25):
        weights = gumbel_weights(certain, torch.full((1, 1, 4), value), 1.0)
        assert weights.tolist() == [[[0, 0, 1, 0]]]


def test_a_scale_goes_on_from_the_mixtures_of_the_scales_before() -> None:
    """The release's loop, written out: mixtures in the sum, whose means are the next input."""
    pipe, steps, cfg = pipeline(), len(VAR_SCHEDULE), 1.5
    sampler = sampler_of(guidance_scale=cfg)
    state = sampler.advance(sampler.init(CONDITION, (0, 5), seed=2), steps)
    model, quantizer = pipe.transformer, pipe.vae.quantizer
    condition = model.condition(torch.tensor([3, 3, 10, 10]))
    total = quantizer.empty(2, VAR_SCHEDULE)
    inputs: list[torch.Tensor] = []
    for k in range(steps):
        if k:
            inputs.append(quantizer.next_input(total, VAR_SCHEDULE.grids[k]).repeat(2, 1, 1))
        rest = torch.zeros(4, VAR_SCHEDULE.starts[-1] - VAR_SCHEDULE.starts[k + 1], 8)
        logits = model(condition, torch.cat([*inputs, rest], 1))  # teacher-forced, without a cache
        logits = logits[:, VAR_SCHEDULE.starts[k] : VAR_SCHEDULE.starts[k + 1]]
        ratio = k / (steps - 1)
        guided = (1 + cfg * ratio) * logits[:2] - cfg * ratio * logits[2:]
        uniform = row_uniform(2, "step", (0, 5), k, guided)
        mixtures = released_weights(guided, -uniform.log(), ratio) @ quantizer.embedding.weight
        drawn = state.latents[:, VAR_SCHEDULE.starts[k] : VAR_SCHEDULE.starts[k + 1]]
        assert torch.allclose(drawn, mixtures, atol=1e-3)
        total = quantizer.added(total, drawn, VAR_SCHEDULE, k)
    assert torch.allclose(sampler._model.features(state.latents), total, atol=1e-5)


def test_the_own_call_gives_the_same_and_not_the_decode_of_tokens() -> None:
    sampler = sampler_of()
    state = sampler.init(CONDITION, (0, 1), seed=2)
    for _ in range(sampler.num_steps):
        state = sampler.advance(state)
    smooth = pipeline()(3, seed=2, n=2, **SMOOTH)
    for stepwise, image in zip(sampler.decode(state), smooth):
        assert farthest(stepwise, image) <= 1
    codes = pipeline()(3, seed=2, n=2, output_type="tokens", **SMOOTH)
    assert torch.allclose(codes, state.latents, atol=1e-5)  # batches round differently
    sharp = pipeline()(3, seed=2, n=2, **{**SMOOTH, "more_smooth": False})
    assert farthest(sharp[0], smooth[0]) > 4
    nearest = torch.cdist(state.latents, vqvae().quantizer.embedding.weight[None]).amin(-1)
    first, last = nearest[:, :1].mean(), nearest[:, VAR_SCHEDULE.starts[-2] :].mean()
    assert first > 1e-3 and last < first, "mixtures, which sharpen from scale to scale"


def test_a_move_draws_a_share_of_the_noise_again() -> None:
    sampler = sampler_of()
    assert isinstance(sampler.move(2, 0.5), SmoothNoise) and sampler.move(0, 0.5) is None
    parents = sampler.advance(sampler.init(CONDITION, range(50), seed=0), 3)
    children = State(
        parents.latents, 3, tuple(range(100, 150)), parents.conditions, 0, parents.carry, parents.shared
    )
    same, some, fresh = (sampler.apply(SmoothNoise(share), children) for share in (0.0, 0.1, 1.0))
    assert torch.equal(same.latents, parents.latents)
    start, end = VAR_SCHEDULE.starts[2:4]
    assert torch.equal(fresh.latents[:, :start], parents.latents[:, :start])
    # where the model is sure, a fresh mixture is the same token
    assert (fresh.latents[:, start:end] != parents.latents[:, start:end]).any(-1).float().mean() > 0.9
    moved = (some.latents[:, start:] - parents.latents[:, start:]).norm(dim=-1)
    far = (fresh.latents[:, start:] - parents.latents[:, start:]).norm(dim=-1)
    assert 0 < moved.mean() < 0.5 * far.mean()
    for child in (some, fresh):
        again = sampler.drawn(parents.carry[TOKEN_PROBABILITY], child.carry[TOKEN_NOISE], 2)  # type: ignore
        assert torch.allclose(again, child.latents[:, start:], atol=1e-6), "the noise is that of the latents"
    share = (some.carry[TOKEN_NOISE] != parents.carry[TOKEN_NOISE]).float().mean()  # type: ignore
    assert float(share) == pytest.approx(0.1, abs=0.01)


def test_forks_carry_the_mixtures_that_they_come_from() -> None:
    sampler = sampler_of()
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 2)
    forks = sampler.advance(state.select([1, 1], uids=(1, 7)), 1)
    given = VAR_SCHEDULE.starts[2]
    assert torch.equal(forks.latents[:, :given], state.latents[[1, 1]])
    assert not torch.equal(forks.latents[0, given:], forks.latents[1, given:])
    assert torch.allclose(forks.latents[:1], sampler.advance(state, 1).latents[1:], atol=1e-5)


@pytest.mark.parametrize("preview", ["decode", "expected", "complete"])
def test_previews(preview: str) -> None:
    sampler = ScaleSampler(pipeline(), options=SamplerOptions(pipeline_kwargs=SMOOTH, preview=preview))  # type: ignore
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 2)
    assert len({np.asarray(image).tobytes() for image in sampler.preview(state)}) == 2


def test_killed_searches_go_on_and_replays_are_exact(tmp_path: Path) -> None:
    search = partial(evosearch, evolution_schedule=[2], population_schedule=[2, 2], elites=1)
    kill_everywhere(search, OfThree, TargetReward(), tmp_path / "kills", most=8)
    result = tts_vision.search(
        pipeline(),
        "3",
        algorithm="evosearch",
        verifier=brightness,
        budget="6x",
        pipeline_kwargs=SMOOTH,
        output=tmp_path / "run",
    )
    assert any(event.what == "smooth_noise" for event in result.trace)
    assert tts_vision.replay(tmp_path / "run", pipe=pipeline()).max_difference == 0


def test_given_scales_are_embedded() -> None:
    from PIL import Image

    image = Image.new("RGB", (24, 24), (200, 30, 90))
    ids = ScaleSampler(
        pipeline(), options=SamplerOptions(pipeline_kwargs={"gt_leak": 2, "image": image})
    ).init(CONDITION, (0,), seed=0)
    smooth = sampler_of(gt_leak=2, image=image).init(CONDITION, (0,), seed=0)
    assert torch.equal(smooth.latents, vqvae().quantizer.embedding(ids.latents))


def test_only_true_or_false() -> None:
    with pytest.raises(ConfigError, match="more_smooth must be true or false but got 'yes'"):
        pipeline().configured({"more_smooth": "yes"})
