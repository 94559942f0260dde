"""Images and clips from a browser or an HTTP client: bounded, and refused before they are decoded."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from tts_vision.errors import ConfigError
from tts_vision.media import is_animation, read_animation
from tts_vision.types import Media, Video

BYTES = 64 * 2**20
"""Bytes of an upload, at most."""
PIXELS = 32 * 10**6
"""Pixels of an image, or of a frame of a clip, at most."""
CLIP_PIXELS = 256 * 10**6
"""Pixels of all frames of a clip, at most."""
FRAMES = 1000
"""Frames of a clip, at most."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_EBML, _FTYP = b"\x1a\x45\xdf\xa3", b"ftyp"


def decode(data: bytes, name: str = "the upload") -> Media:
    """The sample in the content of a file: PNG, JPEG, WebP, GIF, MP4, MOV, WebM or Matroska.

    Args:
        data: The content.
        name: What to call it in messages.

    Raises:
        ConfigError: If it is too large, damaged, or of another format.
    """
    if len(data) > BYTES:
        raise ConfigError(
            f"An upload must have at most {BYTES // 2**20} MB but {name} has {len(data) / 2**20:.0f}; "
            "shrink it."
        )
    if data[:4] == _EBML or data[4:8] == _FTYP:
        return _decoded_clip(data, name)
    try:
        if data[:4] == b"GIF8":
            _check_gif(data, name)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_pixels(image.size, 1, name)
            _check_pixels(image.size, int(getattr(image, "n_frames", 1)), name)
            if is_animation(image):
                return read_animation(image, lambda frames: _check_pixels(image.size, frames, name))
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ConfigError(
            f"An upload must be a PNG, JPEG, WebP or GIF image, or an MP4, MOV or WebM clip, but {name} is "
            "none that can be read; convert it."
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"An upload must be whole but {name} is damaged: {error}; save it again.") from None


def read(path: Path) -> Media:
    """The sample in an uploaded file.

    Raises:
        ConfigError: As `decode`; also if it cannot be read.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= BYTES else b""
    except OSError as error:
        raise ConfigError(f"An upload must be readable but {path.name!r}: {error.strerror}.") from None
    if size > BYTES:
        raise ConfigError(
            f"An upload must have at most {BYTES // 2**20} MB but {path.name!r} has {size / 2**20:.0f}; "
            "shrink it."
        )
    return decode(content, repr(path.name))


def _check_pixels(size: tuple[int, int], frames: int, name: str) -> None:
    width, height = size
    if width * height > PIXELS:
        raise ConfigError(
            f"An image must have at most {PIXELS // 10**6} megapixels but {name} has {width}x{height}; "
            "shrink it."
        )
    if frames > FRAMES or width * height * frames > CLIP_PIXELS:
        raise ConfigError(
            f"A clip must have at most {FRAMES} frames and {CLIP_PIXELS // 10**6} megapixels in all but "
            f"{name} has {frames} frames of {width}x{height}; shorten or shrink it."
        )


def _check_gif(data: bytes, name: str) -> None:
    """Checks the frames of a GIF by its blocks alone: none leaves the screen, and there are not too many."""
    width, height = struct.unpack_from("<HH", data, 6)
    _check_pixels((width, height), 1, name)
    for frames, (right, bottom) in enumerate(_gif_frames(data), start=1):
        if right > width or bottom > height:
            raise ConfigError(
                f"Frames of a GIF must lie on its screen but {name} has one that reaches {right}x{bottom} on "
                f"{width}x{height}; save it again."
            )
        _check_pixels((width, height), frames, name)


def _gif_frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the frames of a GIF end, to the right and at the bottom, in pixels."""

    def after_blocks(at: int) -> int:
        while data[at]:
            at += 1 + data[at]
        return at + 1

    try:
        flags = data[10]
        at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        while data[at] != 0x3B:
            if data[at] == 0x21:
                at = after_blocks(at + 2)
            elif data[at] == 0x2C:
                left, top, width, height, flags = struct.unpack_from("<HHHHB", data, at + 1)
                yield left + width, top + height
                colors = 3 << (flags & 7) + 1 if flags & 0x80 else 0
                at = after_blocks(at + 10 + colors + 1)
            else:
                return
    except (IndexError, struct.error):
        return  # cut off: what Pillow reads of it has no more frames than these


def _decoded_clip(data: bytes, name: str) -> Video:
    try:
        import av
    except ImportError:
        raise ConfigError(
            f"Clips need PyAV, which is not installed on the server, but got {name}; pip install "
            "'tts-vision[video]' there."
        ) from None
    frames: list[Any] = []
    try:
        form = "matroska" if data[:4] == _EBML else "mp4"
        with av.open(io.BytesIO(data), "r", format=form) as file:
            stream = file.streams.video[0]
            _check_pixels((stream.codec_context.width, stream.codec_context.height), 1, name)
            for frame in file.decode(stream):
                _check_pixels((frame.width, frame.height), len(frames) + 1, name)
                frames.append(frame.to_ndarray(format="rgb24"))
            fps = float(stream.average_rate or 8)
        if not frames:
            raise ValueError("it has no frames")
        return Video(torch.from_numpy(np.stack(frames)), fps)
    except ConfigError:
        raise
    except (av.error.FFmpegError, ValueError, IndexError, MemoryError) as error:
        raise ConfigError(
            f"A clip must be whole but {name} cannot be read: {error}; save it again."
        ) from None
