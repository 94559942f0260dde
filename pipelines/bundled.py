"""The bundled playground as a model that the command line and `search` know by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tts_vision.config import ModelOptions
from tts_vision.errors import PipelineError
from tts_vision.registry import register

if TYPE_CHECKING:
    from diffusers import CogView4Pipeline


@register(
    "model",
    "playground",
    notes={"draws": "up to four coloured shapes on plain ground, 64x64, on a CPU in seconds"},
)
def load_playground(name: str = "playground", *, options: ModelOptions | None = None) -> CogView4Pipeline:
    """The bundled text-to-image model: a small rectified flow over coloured shapes.

    Args:
        name: What it was called.
        options: Precision and device; float32 on the CPU by default, where it is fast enough.

    Raises:
        PipelineError: If its weights are missing or damaged.
    """
    import torch

    from tts_vision.pipelines.loading import prepare
    from tts_vision.pipelines.playground import DEFAULTS, load_pipeline

    options = options or ModelOptions()
    device = options.device or "cpu"
    try:
        with _quiet():
            pipe = load_pipeline(dtype=getattr(torch, options.dtype or "float32"))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise PipelineError(
            f"The playground's weights must be whole but: {reason[0]}; reinstall tts-vision, or train them "
            "again "
            "with 'python -m tts_vision.pipelines.playground.train'."
        ) from error
    pipe.tts_vision_defaults = dict(DEFAULTS)
    return prepare(pipe, options, device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and advice, which say nothing about files that ship with the package."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, level in zip(libraries, levels):
            library.set_verbosity(level)
            library.enable_progress_bar()
