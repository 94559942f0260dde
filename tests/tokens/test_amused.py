"""aMUSEd by the sampler of masked-token models: token for token its own call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_amused
from tiny_amused import CODES, MASK, tiny_amused
from torch import Tensor

from tts_vision import search
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.pipelines.masked_sampler import MaskedSampler
from tts_vision.pipelines.tokens.amused import AmusedTokens
from tts_vision.pipelines.tokens.masked import spread, step_noise
from tts_vision.testing.contracts import SamplerContract
from tts_vision.tokens import draw

PROMPT = "two red circles"


def sampler_of(pipe: Any, **call: Any) -> MaskedSampler:
    return MaskedSampler(pipe, options=SamplerOptions(pipeline_kwargs=call))


class TestAmused(SamplerContract):
    @pytest.fixture
    def sampler(self) -> MaskedSampler:
        return sampler_of(tiny_amused(), num_inference_steps=4, guidance_scale=1.2)


def own_call(pipe: Any, seed: int, n: int, monkeypatch: pytest.MonkeyPatch, **call: Any) -> Any:
    """The pipeline's call, given the random numbers of a sampler."""
    steps = iter(range(10**6))
    tokens, uniform = 16, torch.empty(0)

    def multinomial(probabilities: Tensor, count: int, generator: Any = None) -> Tensor:
        nonlocal uniform
        uniform = spread(step_noise(seed, range(n), next(steps), tokens))
        return draw(probabilities, uniform[:, 0].flatten())[:, None]

    def noise(like: Tensor, generator: Any = None) -> Tensor:
        return -torch.log((-torch.log(uniform[:, 1].clamp(1e-20))).clamp(1e-20))

    with monkeypatch.context() as patch:
        patch.setattr(scheduling_amused.torch, "multinomial", multinomial)
        patch.setattr(scheduling_amused, "gumbel_noise", noise)
        return pipe(PROMPT, num_images_per_prompt=n, **call).images


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"num_inference_steps": 5, "guidance_scale": 1.0},
        {"num_inference_steps": 7, "negative_prompt": "a blue star", "temperature": (3, 1)},
        {"num_inference_steps": 3, "micro_conditioning_aesthetic_score": 3},
    ],
)
def test_token_for_token_its_own_call(call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_amused()
    codes = own_call(pipe, 5, 3, monkeypatch, output_type="latent", **call)
    images = own_call(pipe, 5, 3, monkeypatch, **call)
    sampler = sampler_of(pipe, **call)
    assert sampler.num_steps == call.get("num_inference_steps", 12)
    state = sampler.advance(sampler.init(Condition(PROMPT), (0, 1, 2), seed=5), sampler.num_steps)
    assert torch.equal(state.latents, codes.flatten(1))
    assert len({tuple(row.tolist()) for row in state.latents}) == 3
    for ours, plain, theirs in zip(
        sampler.decode(state), sampler.plain(Condition(PROMPT), (0, 1, 2), seed=5), images
    ):
        assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1
        assert np.array_equal(np.asarray(ours), np.asarray(plain))


def test_the_prompt_and_the_size_matter() -> None:
    def drawn(text: str, **call: Any) -> Tensor:
        sampler = sampler_of(tiny_amused(), num_inference_steps=3, **call)
        return sampler.advance(sampler.init(Condition(text), (0,), seed=0), 3).latents

    assert not torch.equal(drawn("two red circles"), drawn("a blue star on the left"))
    assert drawn("x", height=16, width=8).shape == (1, 8 * 4)
    assert int(drawn("x").max()) < CODES < MASK


def test_an_image_has_codes() -> None:
    network = AmusedTokens(tiny_amused()).configured({})
    codes = torch.arange(16)[None]
    again = network.image_codes(network.pixels(codes))
    assert again.shape == (1, 16) and again.dtype == torch.int64 and int(again.max()) < CODES
    assert network.codebook().shape == (CODES, 4)


def test_it_is_driven_by_this_sampler_alone() -> None:
    pipe = tiny_amused()
    assert MaskedSampler.accepts(pipe) and not DiffusersSampler.accepts(pipe)
    result = search(
        pipe,
        PROMPT,
        verifier=lambda images, prompts: [float(np.asarray(i).mean()) for i in images],
        algorithm="fk_steering",
        budget="3x",
        pipeline_kwargs={"num_inference_steps": 4},
    )
    assert result.spent.nfe <= 3 * 4 * 2 and result.best.score.value > 0


def test_what_it_cannot_take() -> None:
    with pytest.raises(
        ConfigError, match="height and width of AmusedPipeline must be multiples of 2 but got 7"
    ):
        sampler_of(tiny_amused(), height=7)
    with pytest.raises(
        ConfigError, match=r"A setting of AmusedPipeline must be one of .* but got 'strength'"
    ):
        sampler_of(tiny_amused(), strength=0.5)
    with pytest.raises(ConfigError, match="must have at most 77 tokens for AmusedPipeline but has"):
        sampler_of(tiny_amused()).init(Condition("red " * 90), (0,), seed=0)
    pipe = tiny_amused()
    pipe.vqvae.register_to_config(num_vq_embeddings=64)
    with pytest.raises(PipelineError, match=r"must look up the 32 codes .* but has 64"):
        MaskedSampler(pipe)
    pipe = tiny_amused()
    pipe.text_encoder = None
    with pytest.raises(PipelineError, match="lacks text_encoder"):
        MaskedSampler(pipe)
