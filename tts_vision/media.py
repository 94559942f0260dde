"""Samples as files: pictures as PNG, clips as MP4 or, without PyAV, as animated PNG."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tts_vision.errors import ConfigError
from tts_vision.types import Media, Video

_CRF = "12"  # of x264: visually lossless


def suffix_of(media: Media) -> str:
    """The file name suffix of a stored sample."""
    return ".mp4" if isinstance(media, Video) and _has_av() else ".png"


def write_media(media: Media, path: Path, text: Mapping[str, str]) -> None:
    """Writes a sample; the same sample and text give the same bytes.

    Args:
        media: Picture or clip.
        path: Its suffix decides the format: ``.mp4`` for clips, ``.png`` for both, anything that
            Pillow writes for pictures.
        text: Kept in the file as text metadata, by PNG and MP4.

    Raises:
        ConfigError: If a clip is to be an MP4 and PyAV is not installed.
        OSError: If the file cannot be written.
    """
    if path.suffix == ".mp4":
        _write_mp4(media, path, text)
        return
    pictures = _pictures(media)
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
        options |= {"save_all": True, "append_images": pictures[1:], "duration": 1000 / media.fps, "loop": 0}
    pictures[0].save(path, **options)


def read_media(path: Path) -> Media:
    """The sample in a file that `write_media` wrote.

    Raises:
        ConfigError: If it is an MP4 and PyAV is not installed.
        OSError: If the file cannot be read.
    """
    if path.suffix == ".mp4":
        return _read_mp4(path)
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


def still(media: Media) -> Image.Image:
    """The picture, or the middle frame of a clip."""
    pictures = _pictures(media)
    return pictures[len(pictures) // 2]


def pixels(media: Media) -> np.ndarray:
    """``(T, H, W, 3)`` uint8 values; ``T`` is 1 for a picture."""
    return np.stack([np.asarray(picture.convert("RGB")) for picture in _pictures(media)])


def _pictures(media: Media) -> list[Image.Image]:
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


def _read_mp4(path: Path) -> Video:
    _require_av(path)
    import av

    with av.open(str(path)) as file:
        fps = float(file.streams.video[0].average_rate or 8)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return Video(torch.from_numpy(np.stack(frames)), fps)
