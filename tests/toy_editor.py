"""A model that edits: a tiny image-to-image pipeline, found as ``tests/toy_editor.py@tiny_editor``."""

from __future__ import annotations

from typing import Any

from tiny_pipelines import TINY
from tts_vision import ModelOptions


def tiny_editor(name: str = "tiny_editor", *, options: ModelOptions | None = None) -> Any:
    """A tiny Stable Diffusion that starts from an image."""
    pipe = TINY["stable_diffusion_img2img"].build()
    pipe.tts_vision_defaults = {"num_inference_steps": 4, "guidance_scale": 2.0}
    return pipe
