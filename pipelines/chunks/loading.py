"""Finds the adapter of a video generator that makes its clips chunk by chunk."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from tts_vision.pipelines.chunks.model import FAMILY, ChunkModel, ChunkPipeline

CHUNKED = {
    "HeliosPipeline": ("helios", "HeliosChunks"),
    "HeliosPyramidPipeline": ("helios", "HeliosPyramidChunks"),
    "AnyFlowFARPipeline": ("anyflow", "AnyFlowChunks"),
    "SkyReelsV2DiffusionForcingPipeline": ("skyreels", "SkyReelsChunks"),
    "HunyuanVideoFramepackPipeline": ("framepack", "FramepackChunks"),
    "LTXI2VLongMultiPromptPipeline": ("ltx", "LTXLongChunks"),
}
"""Pipelines of diffusers that are driven chunk by chunk, with the module and the class of their adapter."""


def is_chunked(pipe: Any) -> bool:
    """Whether a generator makes its clips chunk by chunk, in a way that is known."""
    own = isinstance(pipe, ChunkPipeline) and pipe.family == FAMILY
    return own or type(pipe).__name__ in CHUNKED


def adapted(pipe: Any, settings: Mapping[str, Any]) -> ChunkModel:
    """A generator for which `is_chunked` holds, with the settings of its call.

    Raises:
        ConfigError: If a setting is unknown or cannot be.
    """
    if type(pipe).__name__ not in CHUNKED:
        configured: ChunkModel = pipe.configured(settings)
        return configured
    module, name = CHUNKED[type(pipe).__name__]
    adapter = importlib.import_module(f"{__package__}.{module}")
    model: ChunkModel = getattr(adapter, name)(pipe, settings)
    return model
