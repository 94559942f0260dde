"""Tiny autoregressive video pipelines with random weights, built as those in `tiny_pipelines`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

import tiny_pipelines as tiny
from tts_vision.config import SamplerOptions
from tts_vision.pipelines.chunk_sampler import ChunkSampler
from tts_vision.pipelines.chunks.pipeline import PipelineChunks
from tts_vision.types import State, Video

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def _wan_parts() -> dict[str, Any]:
    tokenizer = tiny._t5_tokenizer()
    encoder = tiny._t5_text(tokenizer, multilingual=True)
    return {"tokenizer": tokenizer, "text_encoder": encoder, "vae": tiny._wan_vae()}


_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 16,
    "ffn_dim": 32,
}


def helios(solver: str = "unipc") -> DiffusionPipeline:
    from diffusers import HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel

    with tiny._seeded():
        return tiny._finish(
            HeliosPipeline(
                **_wan_parts(),
                scheduler=HeliosScheduler(
                    stage_range=[0, 1], stages=1, use_dynamic_shifting=True, scheduler_type=solver
                ),
                transformer=HeliosTransformer3DModel(
                    **_WAN, num_layers=2, rope_dim=(4, 4, 4), has_multi_term_memory_patch=True
                ),
            )
        )


def anyflow() -> DiffusionPipeline:
    from diffusers import AnyFlowFARPipeline, AnyFlowFARTransformer3DModel, FlowMapEulerDiscreteScheduler

    with tiny._seeded():
        return tiny._finish(
            AnyFlowFARPipeline(
                **_wan_parts(),
                scheduler=FlowMapEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0),
                transformer=AnyFlowFARTransformer3DModel(
                    **_WAN,
                    num_layers=1,
                    compressed_patch_size=(1, 4, 4),
                    full_chunk_limit=3,
                    rope_max_seq_len=32,
                    gate_value=0.25,
                    deltatime_type="r",
                ),
            )
        )


def skyreels(told_rate: bool = True) -> DiffusionPipeline:
    from diffusers import (
        SkyReelsV2DiffusionForcingPipeline,
        SkyReelsV2Transformer3DModel,
        UniPCMultistepScheduler,
    )

    with tiny._seeded():
        return tiny._finish(
            SkyReelsV2DiffusionForcingPipeline(
                **_wan_parts(),
                scheduler=UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True),
                transformer=SkyReelsV2Transformer3DModel(
                    **_WAN, num_layers=2, rope_max_seq_len=32, inject_sample_info=told_rate
                ),
            )
        )


def helios_pyramid(distilled: bool = False) -> DiffusionPipeline:
    """Two sizes; a gamma with which the noise between them can be drawn on a CPU."""
    from diffusers import (
        HeliosDMDScheduler,
        HeliosPyramidPipeline,
        HeliosScheduler,
        HeliosTransformer3DModel,
    )

    scheduler: Any = HeliosDMDScheduler if distilled else HeliosScheduler
    with tiny._seeded():
        return tiny._finish(
            HeliosPyramidPipeline(
                **_wan_parts(),
                is_distilled=distilled,
                scheduler=scheduler(
                    stages=2, stage_range=[0, 1 / 2, 1], gamma=0.33, use_dynamic_shifting=True
                ),
                transformer=HeliosTransformer3DModel(
                    **_WAN, num_layers=2, rope_dim=(4, 4, 4), has_multi_term_memory_patch=True
                ),
            )
        )


def framepack() -> DiffusionPipeline:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoFramepackPipeline,
        HunyuanVideoFramepackTransformer3DModel,
    )
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    with tiny._seeded():
        config = SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
        parts = dict(tiny.hunyuan_video().components)
        parts |= {
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
            "image_encoder": SiglipVisionModel(config),
            "feature_extractor": SiglipImageProcessor(size={"height": 16, "width": 16}),
            "transformer": HunyuanVideoFramepackTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=12,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                patch_size=2,
                text_embed_dim=16,
                pooled_projection_dim=16,
                rope_axes_dim=(4, 4, 4),
                has_image_proj=True,
                image_proj_dim=16,
                has_clean_x_embedder=True,
            ),
        }
        return tiny._finish(HunyuanVideoFramepackPipeline(**parts))


def ltx_long(noisy_decoder: bool = False) -> DiffusionPipeline:
    from diffusers import (
        AutoencoderKLLTXVideo,
        LTXEulerAncestralRFScheduler,
        LTXI2VLongMultiPromptPipeline,
    )

    with tiny._seeded():
        parts = dict(tiny.ltx().components)
        parts["scheduler"] = LTXEulerAncestralRFScheduler()
        if noisy_decoder:
            config = {k: v for k, v in parts["vae"].config.items() if not k.startswith("_")}
            parts["vae"] = AutoencoderKLLTXVideo(**{**config, "timestep_conditioning": True})
        return tiny._finish(LTXI2VLongMultiPromptPipeline(**parts))


def colour(red: int = 200, side: int = 16) -> Image.Image:
    return Image.new("RGB", (side, side), (red, 30, 60))


CALLS: dict[str, tuple[Callable[[], DiffusionPipeline], dict[str, Any]]] = {
    "helios": (
        helios,
        {"num_frames": 18, "num_latent_frames_per_chunk": 3, "num_inference_steps": 2, "guidance_scale": 3.0},
    ),
    "helios pyramid": (
        helios_pyramid,
        {
            "num_frames": 18,
            "num_latent_frames_per_chunk": 3,
            "pyramid_num_inference_steps_list": [1, 2],
            "guidance_scale": 1.0,
            "height": 32,
            "width": 32,
        },
    ),
    "helios distilled": (
        partial(helios_pyramid, distilled=True),
        {
            "num_frames": 18,
            "num_latent_frames_per_chunk": 3,
            "pyramid_num_inference_steps_list": [1, 1],
            "guidance_scale": 1.0,
            "is_amplify_first_chunk": True,
            "height": 32,
            "width": 32,
        },
    ),
    "anyflow": (
        anyflow,
        {"num_frames": 13, "chunk_partition": [1, 2, 1], "num_inference_steps": 1, "height": 32, "width": 32},
    ),
    "skyreels": (
        skyreels,
        {"num_frames": 21, "base_num_frames": 9, "overlap_history": 5, "num_inference_steps": 2},
    ),
    "skyreels, noisy": (
        skyreels,
        {
            "num_frames": 17,
            "base_num_frames": 9,
            "overlap_history": 5,
            "num_inference_steps": 2,
            "addnoise_condition": 20,
            "guidance_scale": 1.0,
        },
    ),
    "skyreels, blocks": (
        partial(skyreels, told_rate=False),
        {
            "num_frames": 21,
            "base_num_frames": 13,
            "overlap_history": 5,
            "num_inference_steps": 2,
            "causal_block_size": 2,
            "ar_step": 1,
        },
    ),
    "framepack": (
        framepack,
        {"num_frames": 15, "latent_window_size": 2, "num_inference_steps": 2, "image": colour()},
    ),
    "framepack, forwards": (
        framepack,
        {
            "num_frames": 10,
            "latent_window_size": 2,
            "num_inference_steps": 2,
            "image": colour(),
            "sampling_type": "vanilla",
        },
    ),
    "framepack, last image": (
        framepack,
        {
            "num_frames": 10,
            "latent_window_size": 2,
            "num_inference_steps": 2,
            "image": colour(),
            "last_image": colour(20),
            "true_cfg_scale": 2.0,
            "negative_prompt": "blue",
        },
    ),
    "ltx": (
        ltx_long,
        {
            "num_frames": 25,
            "temporal_tile_size": 20,
            "temporal_overlap": 12,
            "sigmas": [1.0, 0.6, 0.3, 0.0],
            "height": 32,
            "width": 32,
            "decode_horizontal_tiles": 1,
            "decode_vertical_tiles": 1,
        },
    ),
    "ltx, image": (
        partial(ltx_long, noisy_decoder=True),
        {
            "num_frames": 25,
            "temporal_tile_size": 16,
            "temporal_overlap": 8,
            "num_inference_steps": 3,
            "guidance_scale": 3.0,
            "negative_prompt": "blue",
            "cond_image": colour(),
            "height": 32,
            "width": 32,
            "decode_horizontal_tiles": 1,
            "decode_vertical_tiles": 2,
        },
    ),
}
"""Each pipeline in the ways that its loop can run, with a call of three chunks or two."""


STEPPED: dict[str, tuple[Callable[[], DiffusionPipeline], dict[str, Any]]] = {
    "helios, Euler": (partial(helios, solver="euler"), {**CALLS["helios"][1], "num_inference_steps": 3}),
    "framepack": (framepack, {**CALLS["framepack"][1], "num_inference_steps": 3}),
    "ltx": CALLS["ltx"],
    "ltx, image": (CALLS["ltx, image"][0], {**CALLS["ltx, image"][1], "num_inference_steps": 4}),
}
"""Those whose chunks can be stopped after each denoising step."""


def call_of(name: str) -> dict[str, Any]:
    own = {**CALLS, **STEPPED}[name][1]
    return {"height": 16, "width": 16, "max_sequence_length": 16, **own}


def sampler_of(name: str, **options: Any) -> ChunkSampler:
    """The sampler of a tiny pipeline."""
    call = {**call_of(name), **options.pop("call", {})}
    return ChunkSampler(
        {**CALLS, **STEPPED}[name][0](), options=SamplerOptions(pipeline_kwargs=call, **options)
    )


def model_of(sampler: ChunkSampler) -> PipelineChunks:
    assert isinstance(sampler._model, PipelineChunks)
    return sampler._model


def finished(sampler: ChunkSampler, state: State) -> State:
    return sampler.advance(state, sampler.num_steps - state.step)


def frames_of(clip: Any) -> Tensor:
    assert isinstance(clip, Video)
    return clip.frames


@contextmanager
def counted(sampler: ChunkSampler) -> Iterator[list[int]]:
    """Rows that went through the transformer, call by call."""
    rows: list[int] = []
    hook = model_of(sampler).pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        hook.remove()
