"""Settings of autoregressive video pipelines that cannot be, or would be ignored, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_chunks import CALLS, call_of, colour, sampler_of

from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.chunk_sampler import ChunkSampler
from tts_vision.pipelines.chunks.loading import CHUNKED
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler

MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    # numbers of frames
    ("helios", {"num_frames": 20}, "num_frames of HeliosPipeline must be a multiple of 9, .* use 18 or 27"),
    ("helios", {"num_frames": 5}, "a multiple of 9, the frames of a chunk, .* got 5; use 9 or 18"),
    ("anyflow", {"num_frames": 14}, "one more than a multiple of 4, .* got 14; use 13 or 17"),
    ("skyreels", {"num_frames": 20}, "num_frames of .* got 20; use 17 or 21"),
    ("skyreels", {"base_num_frames": 10}, "base_num_frames of .* got 10; use 9 or 13"),
    ("skyreels", {"overlap_history": None}, "overlap_history of .* got None; use 1 or 5"),
    ("framepack", {"num_frames": 0}, "num_frames .* must be a whole number from 1"),
    ("ltx", {"num_frames": 26}, "one more than a multiple of 4, .* use 25 or 29"),
    ("helios", {"height": 24}, "height of HeliosPipeline must be a multiple of 16 but got 24"),
    ("helios pyramid", {"width": 16}, "width of HeliosPyramidPipeline must be a multiple of 32 but got 16"),
    # partitions
    ("anyflow", {"chunk_partition": [1, 2, 2]}, r"add up to 4, .* got \[1, 2, 2\], which add up to 5"),
    ("anyflow", {"chunk_partition": [2, 2, 0]}, "must be positive numbers that add up to 4"),
    (
        "skyreels",
        {"overlap_history": 9},
        "overlap_history .* must be less than base_num_frames, 9, but got 9",
    ),
    ("skyreels, blocks", {"overlap_history": 1}, "whole causal blocks of 2 latent frames"),
    # arguments that would be ignored, or with which a loop fails
    ("helios", {"latents": torch.zeros(1)}, "latents is set by the search"),
    ("helios", {"num_videos_per_prompt": 2}, "num_videos_per_prompt is set by the search"),
    ("helios", {"video_latents": torch.zeros(1)}, "the search gives the finished chunks of a clip by it"),
    ("helios", {"image": colour()}, "clips that start from an image or a clip are not driven chunk by chunk"),
    ("helios", {"keep_first_frame": False}, "with which its loop fails"),
    ("helios", {"sigmas": [1.0, 0.5]}, "its scheduler takes no list of them"),
    ("helios", {"callback_on_step_end": print}, "takes the callback for itself"),
    (
        "helios",
        {"guidance_scale": 1.0, "negative_prompt": "blue"},
        "guidance_scale must be above 1 but is 1.0",
    ),
    (
        "anyflow",
        {"negative_prompt_embeds": torch.zeros(1, 4, 32)},
        "negative_prompt_embeds of AnyFlowFARPipeline takes part in guidance",
    ),
    ("anyflow", {"use_kv_cache": False}, "with which its loop fails"),
    ("anyflow", {"num_inference_step": 4}, "did you mean 'num_inference_steps'"),
    ("framepack", {"prompt_2": "red"}, "gives both encoders the first prompt"),
    ("framepack", {"image_latents": torch.zeros(1)}, "reads the image also where its latents are given"),
    ("framepack", {"negative_prompt": "blue"}, "true_cfg_scale must be above 1"),
    ("ltx", {"sigmas": [0.0]}, "must take a denoising step but its loop"),
    ("ltx", {"seed": 3}, "the search seeds each particle"),
    ("ltx", {"prompt_segments": [{"text": "x"}]}, "prompts of windows are conditions of the search"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), MISTAKES)
def test_settings_that_cannot_be(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of(name, call=wrong)


@pytest.mark.parametrize(
    ("name", "call", "condition", "message"),
    [
        ("framepack", {"image": None}, Condition("red"), "makes a clip from an image but got none"),
        ("framepack", {"true_cfg_scale": 2.0}, Condition("red"), "without which it is ignored"),
        ("helios", {}, Condition("red", overrides={"guidance_scale": 2.0}), "set them in pipeline_kwargs"),
        ("helios", {}, Condition("red", images={"image": colour()}), "must be among none but got image"),
        ("helios", {"guidance_scale": 1.0}, Condition("red", "blue"), "takes part in guidance"),
        ("ltx", {}, Condition("red", embeddings={"prompt_embeds": torch.zeros(1, 4, 32)}), "prompt_embeds"),
        ("helios", {}, Condition("red " * 40), "at most 16 tokens"),
    ],
)
def test_conditions_that_cannot_be(
    name: str, call: dict[str, Any], condition: Condition, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of(name, call=call).init(condition, [0], seed=0)


def test_an_image_of_the_condition_is_that_of_the_call() -> None:
    sampler, given = sampler_of("framepack"), sampler_of("framepack", call={"image": None})
    clips = [
        s.advance(s.init(condition, [0], seed=3), s.num_steps).latents
        for s, condition in (
            (sampler, Condition("red")),
            (given, Condition("red", images={"image": colour()})),
        )
    ]
    assert torch.equal(*clips)


def test_embeddings_stand_for_a_prompt() -> None:
    sampler = sampler_of("helios")
    encoded = sampler._model.encode(Condition("red"))
    given = Condition("", embeddings={"prompt_embeds": encoded["prompt_embeds"]})
    a, b = (sampler.advance(sampler.init(c, [0], seed=3)).latents for c in (Condition("red"), given))
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["helios", "ltx"])
def test_the_sampler_is_chosen_for_its_pipelines_alone(name: str) -> None:
    pipe = CALLS[name][0]()
    assert ChunkSampler.accepts(pipe) and type(pipe).__name__ in CHUNKED
    assert not ChunkSampler.accepts(object())
    with pytest.raises(PipelineError, match="driven by the sampler 'chunks'"):
        DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=call_of(name)))


def test_a_pipeline_has_no_steps_within_chunks() -> None:
    with pytest.raises(ConfigError, match="makes each in one go"):
        sampler_of("helios", inner_steps=True)
