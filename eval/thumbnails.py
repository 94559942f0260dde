"""Small images for pages."""

from __future__ import annotations

import io
from pathlib import Path

from tts_vision.media import open_media, still

SIDE = 160
"""Longest side in pixels."""


def thumbnail(path: Path) -> tuple[bytes, int, int]:
    """A small WebP image of a sample, its width and its height; of a clip the middle frame.

    Raises:
        OSError: If the file is missing or cannot be read.
    """
    image = still(open_media(path)).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82)
    return buffer.getvalue(), image.width, image.height
