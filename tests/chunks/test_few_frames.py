"""Previews of clips that a model makes as a whole, with few frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_pipelines as tiny
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.errors import ConfigError
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.pipelines.few_frames import FewFrames, spaced
from tts_vision.types import Video

CONDITION = Condition("two red circles")
CALL = {"num_inference_steps": 3, "height": 16, "width": 16, "num_frames": 13, "max_sequence_length": 16}


def sampler_of(frames: int | None) -> DiffusersSampler:
    return DiffusersSampler(tiny.wan(), options=SamplerOptions(pipeline_kwargs=CALL, preview_frames=frames))


@pytest.mark.parametrize(
    ("total", "count", "chosen"), [(4, 2, [1, 3]), (5, 2, [1, 4]), (9, 4, [1, 3, 5, 8]), (3, 4, [0, 1, 2])]
)
def test_frames_are_spaced_evenly_with_the_last_one(total: int, count: int, chosen: list[int]) -> None:
    assert list(spaced(total, count)) == chosen


def test_a_preview_decodes_some_latent_frames_alone() -> None:
    few, sampler = sampler_of(2), sampler_of(None)
    state = sampler.advance(sampler.init(CONDITION, [0, 1], seed=5))
    seen: list[int] = []
    vae = few._driver.pipe.vae
    decode = vae.decode

    def decoding(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(z.shape[2])
        return decode(z, *args, **kwargs)

    vae.decode = decoding
    clips = few.preview(few.advance(few.init(CONDITION, [0, 1], seed=5)))
    whole = sampler.preview(state)
    assert seen == [1, 1]  # of four latent frames
    for clip, full in zip(clips, whole):
        assert isinstance(clip, Video) and isinstance(full, Video)
        assert (len(full.frames), len(clip.frames)) == (13, 2)
        assert len(clip.frames) / clip.fps == pytest.approx(len(full.frames) / full.fps)
    estimate = state.carry["preview"]
    assert isinstance(estimate, Tensor)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        alone = decode(estimate[:1, :, [3]] * std + mean, return_dict=False)[0][0, :, 0]
    shown = clips[0].frames[-1].float() / 255  # type: ignore[union-attr]
    assert (shown - (alone / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)).abs().max() < 0.003
    finished = few.advance(few.init(CONDITION, [0], seed=5), few.num_steps)
    assert len(few.decode(finished)[0].frames) == 13  # type: ignore[union-attr]


def test_frames_that_are_decoded_as_images_are_chosen_afterwards() -> None:
    vae = FewFrames(tiny.wan(), None, 2)
    shown = vae.shown(Video(torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 1, 3), 6.0))
    assert shown.frames[:, 0, 0, 0].tolist() == [2, 5] and shown.fps == 2.0


def test_images_have_no_frames() -> None:
    with pytest.raises(ConfigError, match="preview_frames needs a model of clips but got 2"):
        DiffusersSampler(tiny.stable_diffusion(), options=SamplerOptions(preview_frames=2))
