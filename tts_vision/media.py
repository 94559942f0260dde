"""Samples as files: images as PNG, clips as MP4 or, without PyAV, as animated PNG."""

from __future__ import annotations

import importlib.util
import json
import struct
import warnings
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from tts_vision.errors import ConfigError
from tts_vision.types import Media, Video

_CRF = "12"  # of x264: visually lossless
_CLIPS = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv"})


def suffix_of(media: Media) -> str:
    """The file name suffix of a stored sample."""
    return ".mp4" if isinstance(media, Video) and _has_av() else ".png"


def write_media(media: Media, path: Path, text: Mapping[str, str]) -> None:
    """Writes a sample; the same sample and text give the same bytes.

    Args:
        media: Image or clip.
        path: Its suffix decides the format: ``.mp4`` for clips, ``.png`` for both, anything that
            Pillow writes for images.
        text: Kept in the file as text metadata, by PNG and MP4.

    Raises:
        ConfigError: If a clip is to be an MP4 and PyAV is not installed.
        OSError: If the file cannot be written.
    """
    if path.suffix == ".mp4":
        _write_mp4(media, path, text)
        return
    images = _images(media)
    options: dict[str, Any] = {}
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    if path.suffix == ".png":
        options["pnginfo"] = info
    if isinstance(media, Video):
        if not _has_av():
            warnings.warn(
                "PyAV is not installed, so clips are stored as animated PNG; "
                "pip install 'tts-vision[video]' for MP4.",
                stacklevel=2,
            )
        info.add_text("fps", repr(media.fps))
        options |= {"save_all": True, "append_images": images[1:], "duration": 1000 / media.fps, "loop": 0}
    images[0].save(path, **options)


def read_media(path: Path) -> Media:
    """The sample in a file that `write_media` wrote.

    Raises:
        ConfigError: If it is an MP4 and PyAV is not installed.
        OSError: If the file cannot be read.
    """
    if path.suffix == ".mp4":
        return _read_video(path)
    with Image.open(path) as image:
        if getattr(image, "n_frames", 1) == 1 and "fps" not in image.info:
            return image.convert("RGB")
        fps = float(image.info["fps"])
        frames = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frame = np.asarray(image.convert("RGB"))
            # Pillow joins equal frames into one that lasts longer
            frames += [frame] * max(1, round(image.info.get("duration", 1000 / fps) * fps / 1000))
    return Video(torch.from_numpy(np.stack(frames)), fps)


def open_media(path: Path) -> Media:
    """The sample in any image or video file.

    Args:
        path: Anything that Pillow reads, which keeps its mode, turned as its camera says; several frames
            are a clip. Or a video that PyAV decodes, with one of the usual suffixes.

    Raises:
        ConfigError: If it is a video and PyAV is not installed.
        OSError: If it cannot be read; the message says why.
    """
    if path.suffix.lower() in _CLIPS:
        return _read_video(path)
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                return _read_animation(image)
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise OSError("it is no image that Pillow can read") from None
    except (ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise OSError(f"the image is damaged: {error}") from error


def still(media: Media) -> Image.Image:
    """The image, or the middle frame of a clip."""
    images = _images(media)
    return images[len(images) // 2]


def pixels(media: Media) -> np.ndarray:
    """``(T, H, W, 3)`` uint8 values; ``T`` is 1 for an image."""
    return np.stack([np.asarray(image.convert("RGB")) for image in _images(media)])


def _images(media: Media) -> list[Image.Image]:
    if isinstance(media, Video):
        return [Image.fromarray(frame) for frame in media.frames.numpy()]
    return [media]


def _has_av() -> bool:
    return importlib.util.find_spec("av") is not None


def _require_av(path: Path) -> None:
    if not _has_av():
        raise ConfigError(
            f"MP4 files need PyAV, which is not installed, but got {path.name!r}; "
            "pip install 'tts-vision[video]' or use a name that ends in .png."
        )


def _write_mp4(media: Media, path: Path, text: Mapping[str, str]) -> None:
    _require_av(path)
    import av

    frames = pixels(media)
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2  # the codec wants even sides
    rate = Fraction(media.fps if isinstance(media, Video) else 1).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "use_metadata_tags"}) as file:
        file.metadata["comment"] = json.dumps(dict(text), ensure_ascii=False)
        stream = file.add_stream("libx264", rate=rate, options={"crf": _CRF, "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            packets = stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width])))
            file.mux(packets)
        file.mux(stream.encode())


def _read_animation(image: Image.Image) -> Video:
    """The frames of an image file that has several; each lasts as long as most of them do."""
    frames, durations = [], []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        frames.append(np.asarray(image.convert("RGB")))
        durations.append(float(image.info.get("duration", 0)))
    duration = sorted(durations)[len(durations) // 2]
    return Video(torch.from_numpy(np.stack(frames)), 1000 / duration if duration else 8.0)


def _read_video(path: Path) -> Video:
    _require_av(path)
    import av

    try:
        with av.open(str(path)) as file:
            fps = float(file.streams.video[0].average_rate or 8)
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        return Video(torch.from_numpy(np.stack(frames)), fps)
    except (av.FFmpegError, IndexError, ValueError) as error:
        if isinstance(error, OSError):
            raise
        raise OSError(f"the clip cannot be decoded: {error}") from error
