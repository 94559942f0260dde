"""Finds the adapter of a video generator that makes its clips chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tts_vision.pipelines.chunks.model import FAMILY, ChunkModel, ChunkPipeline


def is_chunked(pipe: Any) -> bool:
    """Whether a generator makes its clips chunk by chunk, in a way that is known."""
    return isinstance(pipe, ChunkPipeline) and pipe.family == FAMILY


def adapted(pipe: Any, settings: Mapping[str, Any]) -> ChunkModel:
    """A generator for which `is_chunked` holds, with the settings of its call.

    Raises:
        ConfigError: If a setting is unknown or cannot be.
    """
    return pipe.configured(settings)
