"""Video models whose clips are denoised as a whole: their peculiarities, step by step and in their call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny_pipelines as tiny
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.types import Video

CONDITION = Condition("two red circles")
SEED = 5


def wan_2_2() -> Any:
    """Wan 2.2: a second transformer for the times below a boundary."""
    from diffusers import WanPipeline

    parts = dict(tiny.wan().components)
    second = type(parts["transformer"]).from_config(parts["transformer"].config)
    tiny._fill(second, 77)
    second.eval().requires_grad_(False)
    pipe = WanPipeline(**{**parts, "transformer_2": second}, boundary_ratio=0.875)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cogvideox_dpm() -> Any:
    """CogVideoX with a solver whose history is a variable of the pipeline's loop."""
    from diffusers import CogVideoXDPMScheduler

    pipe = tiny.cogvideox()
    pipe.scheduler = CogVideoXDPMScheduler.from_config(pipe.scheduler.config)
    return pipe


CLIPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Wan 2.2": (wan_2_2, {**tiny.TINY["wan"].kwargs, "guidance_scale_2": 3.0}),
    "Wan, UniPC": (tiny.wan, tiny.TINY["wan"].kwargs),
    "HunyuanVideo": (tiny.hunyuan_video, tiny.TINY["hunyuan_video"].kwargs),
    "CogVideoX, DPM": (cogvideox_dpm, tiny.TINY["cogvideox"].kwargs),
    "LTX": (tiny.ltx, tiny.TINY["ltx"].kwargs),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CLIPS)
def test_steps_make_the_clip_of_the_call(name: str, dtype: torch.dtype) -> None:
    build, call = CLIPS[name]
    settings = SamplerOptions(pipeline_kwargs={**call, "num_inference_steps": 5})
    sampler = DiffusersSampler(build().to(dtype), options=settings)
    state = sampler.init(CONDITION, [0], seed=SEED)
    for _ in range(sampler.num_steps):
        state = sampler.advance(state)
    clip, plain = sampler.decode(state)[0], sampler.plain(CONDITION, [0], seed=SEED)[0]
    assert isinstance(clip, Video) and isinstance(plain, Video)
    assert torch.equal(clip.frames, plain.frames)


def test_both_transformers_of_wan_take_part() -> None:
    build, call = CLIPS["Wan 2.2"]
    pipe, calls = build(), []
    for name in ("transformer", "transformer_2"):
        getattr(pipe, name).register_forward_pre_hook(lambda module, args, name=name: calls.append(name))
    settings = SamplerOptions(pipeline_kwargs={**call, "num_inference_steps": 5})
    sampler = DiffusersSampler(pipe, options=settings)
    state = sampler.init(CONDITION, [0], seed=SEED)
    calls.clear()
    by_step = []
    for step in range(sampler.num_steps):
        state = sampler.advance(state)
        by_step.append(set(calls))
        assert len(calls) == sampler.cost(CONDITION, step, 1).nfe
        calls.clear()
    assert by_step[0] == {"transformer"} and by_step[-1] == {"transformer_2"}
    assert all(len(names) == 1 for names in by_step)
