"""Autoregressive video pipelines: half precision, steps within chunks, and the noise of branches."""

from __future__ import annotations

import pytest
import torch
from tiny_chunks import CALLS, STEPPED, call_of, counted, finished, frames_of, model_of, sampler_of
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.pipelines.chunk_sampler import ChunkSampler

CONDITION = Condition("two red circles")
SEED = 5


@pytest.mark.parametrize("name", ["helios", "skyreels", "framepack", "ltx, image"])
def test_half_precision_is_that_of_the_call_too(name: str) -> None:
    pipe = CALLS[name][0]().to(torch.bfloat16)
    sampler = ChunkSampler(pipe, options=SamplerOptions(pipeline_kwargs=call_of(name)))
    clip = sampler.decode(finished(sampler, sampler.init(CONDITION, [0], seed=SEED)))[0]
    assert torch.equal(frames_of(clip), frames_of(sampler.plain(CONDITION, [0], seed=SEED)[0]))


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_within_a_chunk_are_those_of_the_call(name: str, dtype: torch.dtype) -> None:
    pipe = STEPPED[name][0]().to(dtype)
    settings = SamplerOptions(pipeline_kwargs=call_of(name), inner_steps=True)
    sampler = ChunkSampler(pipe, options=settings)
    assert sampler.num_steps == 3 * len(sampler.units)
    state = sampler.init(CONDITION, [0], seed=SEED)
    for step in range(sampler.num_steps):
        with counted(sampler) as rows:
            state = sampler.advance(state)
        assert sum(rows) == sampler.cost(CONDITION, step, 1).nfe
        if state.step < sampler.num_steps:
            chunks = -(-state.step // 3)  # of which the last is an estimate
            assert len(frames_of(sampler.preview(state)[0])) == model_of(sampler).pixel_frames(chunks)
    clip = sampler.decode(state)[0]
    assert torch.equal(frames_of(clip), frames_of(sampler.plain(CONDITION, [0], seed=SEED)[0]))
    parts = sampler.advance(sampler.init(CONDITION, [0], seed=SEED), 2)
    assert torch.equal(finished(sampler, parts).latents, state.latents)


def test_the_last_estimate_of_a_chunk_is_its_result() -> None:
    sampler = sampler_of("helios, Euler", inner_steps=True)
    before = sampler.advance(sampler.init(CONDITION, [0], seed=SEED), 2)
    estimate, result = before.carry["preview"], sampler.advance(before).latents
    noise = sampler.init(CONDITION, [0], seed=SEED).latents
    assert isinstance(estimate, Tensor)
    assert (estimate - result).norm() < 0.5 * (noise - result).norm()


@pytest.mark.parametrize("name", ["helios pyramid", "ltx"])
def test_forks_with_the_noise_of_their_root_differ_by_what_denoising_draws(name: str) -> None:
    sampler = sampler_of(name, branch_noise="shared_root")
    parent = sampler.advance(sampler.init(CONDITION, [0], seed=SEED))
    forks = sampler.advance(parent.select([0, 0], uids=(0, 1)))
    noise = forks.carry["chunk_noise"]
    assert isinstance(noise, Tensor) and torch.equal(noise[0], noise[1])
    assert not torch.equal(forks.latents[0], forks.latents[1])


def test_forks_with_the_noise_of_their_root_are_equal_where_denoising_draws_none() -> None:
    sampler = sampler_of("helios", branch_noise="shared_root")
    assert sampler.last_noisy_step == -1 and "stochastic" not in sampler.capabilities
    parent = sampler.advance(sampler.init(CONDITION, [0], seed=SEED))
    forks = sampler.advance(parent.select([0, 0], uids=(0, 1)))
    assert torch.equal(forks.latents[0], forks.latents[1])


def test_the_first_section_of_a_clip_that_is_made_backwards_is_its_end() -> None:
    backwards, forwards = sampler_of("framepack"), sampler_of("framepack, forwards")
    assert [backwards.unit_at(seconds) for seconds in (0.0, 24 / 30)] == [2, 0]
    assert [forwards.unit_at(seconds) for seconds in (0.0, 16 / 30)] == [0, 1]
    state = backwards.advance(backwards.init(CONDITION, [0], seed=SEED))
    other = backwards.advance(state.select([0], uids=[9]), 2)
    clips = [frames_of(backwards.decode(s)[0]).float() for s in (backwards.advance(state, 2), other)]
    change = (clips[0] - clips[1]).abs().mean((1, 2, 3))
    assert change[-1] < 0.1 * change[:8].mean()
