"""Pipelines whose loop cannot be continued from the middle, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tts_vision.pipelines.callbacks import CALLBACK, inputs_of

WHOLE = {
    "LatentConsistencyModelPipeline": "it decodes a variable of its loop instead of its latents; loaded as "
    "StableDiffusionPipeline with LCMScheduler the checkpoint is driven step by step",
    "LatentConsistencyModelImg2ImgPipeline": "it decodes a variable of its loop instead of its latents",
    "TextToVideoSDPipeline": "its scheduler sees frames in the place of samples",
    "VideoToVideoSDPipeline": "its scheduler sees frames in the place of samples",
    "LTXConditionPipeline": "its loop blends with a copy of the latents that it started from",
    "LTX2Pipeline": "its loop denoises sound beside the picture, by a second scheduler",
    "LTX2ImageToVideoPipeline": "its loop denoises sound beside the picture, by a second scheduler",
    "LTX2ConditionPipeline": "its loop denoises sound beside the picture, by a second scheduler",
}

UNDRIVABLE = {
    "StableDiffusionPanoramaPipeline": "exchanges the state of its scheduler between the views of an image",
}
"""Pipelines that cannot be driven at all, with the reason."""


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
    if cache is not None:
        return f"{cache} keeps activations from step to step, which a new call resets"
    if getattr(getattr(pipe, "guider", None), "momentum_buffer", _MISSING) is not _MISSING:
        return f"{type(pipe.guider).__name__} keeps a running average from step to step"
    if settings.get(CALLBACK) is not None and set(inputs_of(settings)) - {"latents"}:
        return "its callback edits tensors of the loop beside the latents"
    if settings.get("callback") is not None:
        return "its callback is called by step numbers that skipped steps would have too"
    return None


_MISSING = object()


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
