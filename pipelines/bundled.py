"""The bundled playground as a model that the command line and `search` know by name."""

from __future__ import annotations

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
    from tts_vision.pipelines.playground.quiet import quietly

    options = options or ModelOptions()
    device = options.device or "cpu"
    try:
        with quietly():
            pipe = load_pipeline(dtype=getattr(torch, options.dtype or "float32"))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise PipelineError(
            f"The playground's weights must be whole but: {reason[0]}; reinstall tts-vision, or train them "
            "again with 'python -m tts_vision.pipelines.playground.train'."
        ) from error
    pipe.tts_vision_defaults = dict(DEFAULTS)
    return prepare(pipe, options, device)
