"""Phrasings: wordings of a prompt by fixed rules."""

from __future__ import annotations

from tts_vision.registry import register

TEMPLATES = (
    "a photo of {prompt}",
    "{prompt}, exactly",
    "an image that shows {prompt}",
    "{prompt}, clearly visible on a plain background",
    "{prompt}, sharp focus, high detail",
    "a close-up of {prompt}",
    "{prompt}, nothing else",
    "a simple drawing of {prompt}",
)


@register("rewriter", "phrasings")
def phrasings(text: str, n: int) -> list[str]:
    """Fixed phrases around the prompt, such as "a photo of {prompt}"."""
    return [template.replace("{prompt}", text) for template in TEMPLATES[:n]]
