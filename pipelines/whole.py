"""Pipelines whose loop cannot be continued from the middle, with the reason."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from tts_vision.errors import PipelineError
from tts_vision.pipelines.caches import CARRIED
from tts_vision.pipelines.chunks.loading import CHUNKED
from tts_vision.pipelines.driven import DENOISERS, modules

WHOLE = {
    "LatentConsistencyModelPipeline": "it decodes a variable of its loop instead of its latents; loaded as "
    "StableDiffusionPipeline with LCMScheduler the checkpoint is driven step by step",
    "LatentConsistencyModelImg2ImgPipeline": "it decodes a variable of its loop instead of its latents",
    "SanaSprintPipeline": "it decodes a variable of its loop instead of its latents",
    "SanaSprintImg2ImgPipeline": "it decodes a variable of its loop instead of its latents",
    "AnyFlowPipeline": "its loop lays out its latents otherwise than they are prepared",
    "TextToVideoSDPipeline": "its scheduler sees frames in the place of samples",
    "VideoToVideoSDPipeline": "its scheduler sees frames in the place of samples",
    "LTXConditionPipeline": "its loop blends with a copy of the latents that it started from",
    "LTX2Pipeline": "its loop denoises sound beside the picture, by a second scheduler",
    "LTX2ImageToVideoPipeline": "its loop denoises sound beside the picture, by a second scheduler",
    "LTX2ConditionPipeline": "its loop denoises sound beside the picture, by a second scheduler",
}

_CHUNKS = "makes a video chunk by chunk, in a loop around the one over its scheduler's steps"
_SOUND = "makes sound"

UNDRIVABLE = {
    "StableDiffusionLDM3DPipeline": "makes an image and a map of its depth",
    "QwenImageLayeredPipeline": "makes several layers of an image",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": _CHUNKS,
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": _CHUNKS,
    "WanAnimatePipeline": _CHUNKS,
    "StableAudioPipeline": _SOUND,
    "StableAudio3Pipeline": _SOUND,
    "AudioLDM2Pipeline": _SOUND,
    "AceStepPipeline": _SOUND,
    "LongCatAudioDiTPipeline": _SOUND,
    "StableDiffusionPanoramaPipeline": "exchanges the state of its scheduler between the views of an image",
}
"""Pipelines that cannot be driven at all, with the reason."""


def check_drivable(pipe: Any, *, is_pipeline: bool) -> None:
    """Refuses what a scheduler proxy cannot drive.

    Args:
        pipe: What was given.
        is_pipeline: Whether it looks like a diffusers pipeline.

    Raises:
        PipelineError: With the reason.
    """
    name = type(pipe).__name__
    scheduler = getattr(pipe, "scheduler", None)
    rule = "A pipeline must denoise with its scheduler's step, from latents it prepares, with one denoiser"
    if not is_pipeline:
        raise PipelineError(
            f"{rule} but {name} is no diffusers pipeline; pass a DiffusionPipeline or a Sampler."
        )
    if name in CHUNKED:
        raise PipelineError(
            f"{rule} but {name} {_CHUNKS}; it is driven by the sampler 'chunks', which tts_vision.search "
            "chooses for it."
        )
    if name in UNDRIVABLE:
        raise PipelineError(f"{rule} but {name} {UNDRIVABLE[name]}; use another class for the checkpoint.")
    if any(cls.__name__ == "ModularPipeline" for cls in type(pipe).__mro__):
        raise PipelineError(
            f"{rule} but {name} is made of blocks that are called by one state; load the checkpoint by "
            "DiffusionPipeline instead."
        )
    if scheduler is None or not hasattr(scheduler, "step") or not hasattr(scheduler, "set_timesteps"):
        raise PipelineError(f"{rule} but {name} has no such scheduler; it cannot be driven step by step.")
    if not modules(pipe, DENOISERS):
        raise PipelineError(
            f"{rule} but {name} has components {sorted(pipe.components)}; it cannot be driven step by step."
        )
    if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
        raise PipelineError(
            f"A pipeline must take a prompt but {name} takes none; use a text-to-image or text-to-video "
            "pipeline."
        )


def reason_to_drive_whole(pipe: Any, denoisers: list[nn.Module], settings: Mapping[str, Any]) -> str | None:
    """Why a pipeline is driven whole, from noise to sample in one step; None if it need not be.

    Args:
        pipe: The pipeline.
        denoisers: Its denoisers.
        settings: Arguments of its call.
    """
    name = type(pipe).__name__
    if name in WHOLE:
        return WHOLE[name]
    if not hasattr(pipe, "prepare_latents"):
        return "it has no prepare_latents where a loop could be continued"
    cache = next((found for module in denoisers if (found := cache_of(module))), None)
    if cache is not None and cache not in CARRIED:
        return f"{cache} keeps activations from step to step, which a new call resets"
    momentum = getattr(getattr(pipe, "guider", None), "adaptive_projected_guidance_momentum", None)
    if momentum is not None:
        return f"{type(pipe.guider).__name__} keeps a running average from step to step"
    if settings.get("callback") is not None:
        return "its callback is called by step numbers that skipped steps would have too"
    return None


def cache_of(module: nn.Module) -> str | None:
    """The cache of activations on a denoiser, by name, if there is one."""
    config = getattr(module, "_cache_config", None)
    if config is not None:
        return type(config).__name__.removesuffix("Config")
    if getattr(module, "_is_cached", False):
        return "cache-dit"
    for part in module.modules():
        hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
        found = next(
            (key for key in hooks if any(mark in key for mark in ("cache", "fbc", "broadcast"))), None
        )
        if found is not None:
            return found
    return None
