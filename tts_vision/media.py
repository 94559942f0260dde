"""Samples as files: images as PNG; clips as FFV1 (lossless), MP4, GIF or, without PyAV, as animated PNG."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from tts_vision.errors import ConfigError, PipelineError
from tts_vision.trust import check_allowed
from tts_vision.types import Decoded, Invalid, Media, Video

_CRF = "12"  # of x264: visually lossless
_BT709, _LIMITED = 1, 1  # as H.264 numbers them
_CLIPS = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv"})
_H264 = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov"}
_STORED_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})  # as PNG gives them back
_WITH_EXIF = frozenset({"JPEG", "MPO", "WEBP", "TIFF", "AVIF"})
_ANIMATED = frozenset({"PNG", "GIF", "WEBP", "TIFF", "AVIF"})
_WITHOUT_ALPHA = frozenset({"JPEG", "MPO", "BMP"})
_DATA = "data:image/png;base64,"
_MOST_EXIF = 65_000  # bytes that a JPEG has room for
_GIF_FPS = 50.0  # browsers slow down animations that are faster
_GIF_SAMPLE = 512  # side of the mosaic that a palette is fitted to
_DESCRIPTION, _SOFTWARE, _EXIF_IFD, _USER_COMMENT = 0x010E, 0x0131, 0x8769, 0x9286


# Pixels


def still(media: Media) -> Image.Image:
    """The image, or the middle frame of a clip."""
    images = _images(media)
    return images[len(images) // 2]


def pixels(media: Media) -> np.ndarray:
    """``(T, H, W, 3)`` uint8 values; ``T`` is 1 for an image."""
    return np.stack([np.asarray(image.convert("RGB")) for image in _images(media)])


def all_valid(samples: Sequence[Decoded], name: str) -> list[Media]:
    """The samples that a sampler decoded, none of which may be invalid.

    Args:
        samples: From `Sampler.decode` or `Sampler.preview`.
        name: Of the sampler, for the message.

    Raises:
        PipelineError: If one is.
    """
    for sample in samples:
        if isinstance(sample, Invalid):
            raise PipelineError(
                f"Samples must be valid here but {name} gives an invalid one: {sample.reason}; run the "
                "pipeline by itself, with the versions and on the device of the search if there was one."
            )
    return [sample for sample in samples if not isinstance(sample, Invalid)]


def copied(media: Media) -> Media:
    """A copy that may be drawn on, resized or closed without a trace in the original."""
    if isinstance(media, Video):
        return Video(media.frames.clone(), media.fps)
    return media.copy() if isinstance(media, Image.Image) else media


def storable(media: Media) -> Media:
    """The sample with the pixels that its file will have, so that what is judged is what is stored."""
    if isinstance(media, Image.Image) and media.mode not in _STORED_MODES:
        return media.convert("RGB")
    return media


def is_constant(media: Media) -> bool:
    """Whether all pixels, of all frames, are equal."""
    if isinstance(media, Video):
        if not media.frames.numel():
            return False
        first = media.frames[0, 0, 0]
        # most clips differ at once, and comparing all of a long one takes a while
        some = media.frames[:: max(1, len(media.frames) // 2), ::97, ::89]
        return bool((some == first).all()) and bool((media.frames == first).all())
    if not isinstance(media, Image.Image):
        return False
    width, height = media.size
    if not (width and height):
        return False
    probes = [(x, y) for x in (0, width // 2, width - 1) for y in (0, height // 3, height - 1)]
    if len({media.getpixel(probe) for probe in probes}) > 1:
        return False
    extrema: Any = media.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in bands)


def finite_rows(tensor: Tensor) -> list[bool]:
    """For each row of ``(B, ...)`` whether all its numbers are finite."""
    if not tensor.is_floating_point():
        return [True] * len(tensor)
    flat = tensor.detach().flatten(1)
    # a sum takes a hundredth of the time of looking at each number, and is finite if all of them are
    finite = flat.sum(1, dtype=torch.promote_types(tensor.dtype, torch.float32)).isfinite().tolist()
    return [ok or bool(row.isfinite().all()) for ok, row in zip(finite, flat)]


def shrunk(media: Media, side: int) -> Media:
    """The sample with sides of at most `side` pixels; itself where it is as small."""
    width, height = _size(media)
    factor = side / max(width, height)
    if factor >= 1:
        return media
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    images = [image.resize(size, Image.Resampling.LANCZOS) for image in _images(media)]
    if not isinstance(media, Video):
        return images[0]
    return Video(torch.from_numpy(np.stack([np.asarray(image) for image in images])), media.fps)


def facts_of(media: Media) -> dict[str, str]:
    """Size, and of a clip the number of its frames and their rate."""
    width, height = _size(media)
    if isinstance(media, Video):
        return {"size": f"{width}x{height}", "frames": str(len(media.frames)), "fps": repr(media.fps)}
    return {"size": f"{width}x{height}"}


def _size(media: Media) -> tuple[int, int]:
    """Width and height."""
    if isinstance(media, Video):
        height, width = media.frames.shape[1:3]
        return width, height
    return media.size


# Files


def suffix_of(media: Media) -> str:
    """The file name suffix of a stored sample, whose file has its exact pixels."""
    return ".mkv" if isinstance(media, Video) and _has_av() else ".png"


def write_media(media: Media, path: Path, text: Mapping[str, str]) -> None:
    """Writes a sample; the same sample and text give the same bytes.

    Args:
        media: Image or clip.
        path: Its suffix, in upper or lower case, decides the format: for clips ``.mkv`` (FFV1, lossless),
            ``.mp4`` (H.264, odd sides made even) or ``.gif`` (256 colours for all frames, at most 50 frames
            a second); for images and clips ``.png`` or anything else that Pillow writes.
        text: Facts about the sample, kept in the file: as text of a PNG, as JSON in the EXIF description of
            a JPEG, WebP, TIFF or AVIF file (with ``parameters``, or else the prompt, as user comment), as
            JSON in the comment of a GIF or a video (with the prompt as title). Other formats have no room
            for it, which is warned of.

    Raises:
        ConfigError: If the format is unknown, or takes PyAV, which is not installed.
        OSError: If the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".mkv":
        _write_lossless(media, path, text)
    elif suffix in _H264:
        _write_h264(media, path, text)
    elif suffix == ".gif":
        _write_gif(media, path, text)
    else:
        _write_image(media, path, text, _format_of(path, media))


def read_media(path: Path) -> Media:
    """The sample in a file that `write_media` wrote.

    Raises:
        ConfigError: If it is a video file and PyAV is not installed.
        OSError: If the file cannot be read.
    """
    if path.suffix.lower() in _CLIPS:
        return _read_video(path)
    with Image.open(path) as image:
        if is_animation(image):
            return read_animation(image)
        return image.copy() if image.mode in _STORED_MODES else image.convert("RGB")


def read_text(path: Path) -> dict[str, str]:
    """The facts that `write_media` kept in a file; empty where it has none or cannot be read."""
    try:
        if path.suffix.lower() in _CLIPS:
            return _json_text(_tags(path).get("comment"))
        with Image.open(path) as image:
            return _facts_in(image)
    except (OSError, ValueError, SyntaxError, ConfigError, Image.DecompressionBombError):
        return {}


def open_media(path: Path | io.BytesIO) -> Media:
    """The sample in any image or video file.

    Args:
        path: The file, or its content: anything that Pillow reads, which keeps its mode, turned as its camera
            says; several frames are a clip. Or a video that PyAV decodes, with one of the usual suffixes.

    Raises:
        ConfigError: If it is a video and PyAV is not installed.
        OSError: If it cannot be read; the message says why.
    """
    if isinstance(path, Path) and path.suffix.lower() in _CLIPS:
        return _read_video(path)
    try:
        with Image.open(path) as image:
            if is_animation(image):
                return read_animation(image)
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise OSError("it is no image that Pillow can read") from None
    except (ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise OSError(f"the image is damaged: {error}") from error


def is_animation(image: Image.Image) -> bool:
    """Whether an opened image file is a clip: of several frames, or of frames that are all equal."""
    if getattr(image, "n_frames", 1) > 1:
        return True
    return image.format in _ANIMATED and "fps" in _facts_in(image)


def read_animation(image: Image.Image, check: Callable[[int], None] = lambda frames: None) -> Video:
    """The clip in an opened image file: as `write_media` wrote it, or else with equal times for all frames.

    Args:
        image: The file.
        check: Called with the number of frames so far before each one is kept; may raise.
    """
    facts = _facts_in(image)
    fps, stated = _number(facts, "fps"), _number(facts, "frames")
    frames: list[np.ndarray] = []
    durations = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        durations.append(float(image.info.get("duration", 0)))
        # Pillow joins equal frames into one that lasts longer
        times = max(1, round(durations[-1] * fps / 1000)) if fps else 1
        check(len(frames) + times)
        frames += [np.asarray(image.convert("RGB"))] * times
    if fps and stated and len(frames) == 1:  # all were equal, and then there may be no duration
        check(int(stated))
        frames *= int(stated)
    lasts = sorted(durations)[len(durations) // 2]
    return Video(torch.from_numpy(np.stack(frames)), fps or (1000 / lasts if lasts else 8.0))


def data_url(image: Image.Image) -> str:
    """An image as text: a data URL of a PNG file."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return _DATA + base64.b64encode(buffer.getvalue()).decode()


def is_data_url(text: str) -> bool:
    """Whether a text is one that `data_url` wrote, rather than a path."""
    return text.startswith(_DATA)


def open_image(source: str) -> Image.Image:
    """The still image in a file, or in text that `data_url` wrote, as RGB.

    Raises:
        ConfigError: If it is none, or a configuration that is not trusted names a file.
    """
    is_text = is_data_url(source)
    name = "a data URL" if is_text else repr(source)
    if not is_text:
        check_allowed(source, "read")
    try:
        content = io.BytesIO(base64.b64decode(source[len(_DATA) :], validate=True)) if is_text else None
        media = open_media(Path(source).expanduser() if content is None else content)
    except (OSError, ValueError) as error:
        raise ConfigError(f"An image must be readable but {name}: {error}; name another file.") from None
    if isinstance(media, Video):
        raise ConfigError(f"An image must be a still one but {name} is a clip; save one of its frames.")
    return media.convert("RGB")


def _facts_in(image: Image.Image) -> dict[str, str]:
    """The facts that `write_media` kept in an opened image file; empty where it has none."""
    if image.format == "PNG":  # of which Pillow reads all pixels to look for EXIF
        return {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    if image.format == "GIF":
        return _json_text(image.info.get("comment"))
    return _json_text(image.getexif().get(_DESCRIPTION))


def _number(facts: Mapping[str, str], name: str) -> float:
    """A positive number among the facts in a file, which somebody else may have written; else 0."""
    try:
        value = float(facts[name])
    except (KeyError, ValueError):
        return 0.0
    return value if 0 < value < 1e6 else 0.0


def _images(media: Media) -> list[Image.Image]:
    if isinstance(media, Video):
        return [Image.fromarray(frame) for frame in media.frames.numpy()]
    return [media]


# Image files


def _format_of(path: Path, media: Media) -> str:
    """Pillow's name of a file's format.

    Raises:
        ConfigError: If Pillow does not write it, or not for clips.
    """
    suffix = path.suffix.lower()
    name = Image.registered_extensions().get(suffix, "")
    writers = Image.SAVE_ALL if isinstance(media, Video) else Image.SAVE
    if name.upper() in writers and (name in _ANIMATED or not isinstance(media, Video)):
        return name
    kind, known = "an image", ".png, .jpg, .webp, .tiff or .bmp"
    if isinstance(media, Video):
        kind, known = "a clip", ".mkv, .mp4, .gif, .png or .webp"
    raise ConfigError(f"The file of {kind} must end in {known} but got {path.name!r}; change its suffix.")


def _write_image(media: Media, path: Path, text: Mapping[str, str], name: str) -> None:
    images = _images(media)
    options: dict[str, Any] = {}
    if isinstance(media, Video):
        if not _has_av() and name == "PNG":
            warnings.warn(
                "PyAV is not installed, so clips are stored as animated PNG; "
                "pip install 'tts-vision[video]' for MP4.",
                stacklevel=4,
            )
        text = {**text, "fps": repr(media.fps), "frames": str(len(media.frames))}
        options |= {"save_all": True, "append_images": images[1:], "duration": 1000 / media.fps, "loop": 0}
    if name == "PNG":
        options["pnginfo"] = info = PngInfo()
        for key, value in text.items():
            info.add_text(key, value)
    elif name in _WITH_EXIF:
        options["exif"] = _exif(text, name)
    elif text:
        warnings.warn(
            f"A {name} file has no room for the facts about its sample, so {path.name!r} does not say how it "
            "was made; save it as PNG, JPEG or WebP.",
            stacklevel=4,
        )
    first = images[0]
    if name in _WITHOUT_ALPHA and first.mode not in {"1", "L", "RGB"}:
        first = first.convert("RGB")
    first.save(path, format=name, **options)


def _write_gif(media: Media, path: Path, text: Mapping[str, str]) -> None:
    """A GIF with one palette for all frames, so that it is small and its colours do not flicker."""
    options: dict[str, Any] = {}
    if isinstance(media, Video):
        step = math.ceil(media.fps / _GIF_FPS - 1e-9)
        shown = Video(media.frames[::step], media.fps / step)
        text = {**text, "fps": repr(shown.fps), "frames": str(len(shown.frames))}
        # times are in hundredths of a second: rounded so that the whole is as long as the clip
        ends = [round(100 * i / shown.fps) for i in range(len(shown.frames) + 1)]
        options |= {"save_all": True, "loop": 0, "duration": [10 * (b - a) for a, b in pairwise(ends)]}
        media = shown
    images = [image.convert("RGB") for image in _images(media)]
    palette = _mosaic(images).quantize(256, Image.Quantize.MEDIANCUT)
    paletted = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    if text:
        options["comment"] = json.dumps(dict(text)).encode()
    if len(paletted) > 1:
        options["append_images"] = paletted[1:]
    paletted[0].save(path, "GIF", optimize=False, **options)


def _mosaic(images: Sequence[Image.Image]) -> Image.Image:
    """Up to 16 of the images, evenly spread, small and side by side."""
    chosen = [images[i * len(images) // 16] for i in range(16)] if len(images) > 16 else images
    columns = math.ceil(math.sqrt(len(chosen)))
    side = _GIF_SAMPLE // columns
    small = [image.copy() for image in chosen]
    for image in small:
        image.thumbnail((side, side), Image.Resampling.NEAREST)
    width, height = small[0].size
    mosaic = Image.new("RGB", (columns * width, math.ceil(len(small) / columns) * height))
    for i in range(columns * math.ceil(len(small) / columns)):
        at = (i % columns * width, i // columns * height)
        mosaic.paste(small[min(i, len(small) - 1)], at)
    return mosaic


def _exif(text: Mapping[str, str], name: str) -> bytes:
    """The facts as EXIF: all of them as JSON, and the line that web UIs read, where there is one."""
    left_out: list[str] = []
    while True:
        exif = Image.Exif()
        exif[_DESCRIPTION] = json.dumps(dict(text))
        exif[_SOFTWARE] = "tts-vision"
        comment = text.get("parameters") or text.get("prompt", "")
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + comment.encode("utf-16-be", "surrogatepass")
        data = exif.tobytes()
        if len(data) <= _MOST_EXIF or name not in {"JPEG", "MPO"} or not text:
            break
        longest = max(text, key=lambda key: len(text[key]))
        left_out.append(longest)
        text = {key: value for key, value in text.items() if key != longest}
    if left_out:
        warnings.warn(
            f"A JPEG file has room for 64 KB of facts about its sample, so {', '.join(left_out)} is left "
            "out; save it as PNG to keep all.",
            stacklevel=5,
        )
    return data


def _json_text(value: Any) -> dict[str, str]:
    try:
        found = json.loads(value) if isinstance(value, str | bytes) else {}
    except ValueError:  # somebody's comment
        found = {}
    return {str(key): str(item) for key, item in found.items()} if isinstance(found, dict) else {}


# Video files


def _has_av() -> bool:
    return importlib.util.find_spec("av") is not None


def _require_av(path: Path) -> None:
    if not _has_av():
        raise ConfigError(
            f"{path.suffix[1:].upper()} files need PyAV, which is not installed, but got {path.name!r}; "
            "pip install 'tts-vision[video]' or use a name that ends in .png."
        )


def _write_lossless(media: Media, path: Path, text: Mapping[str, str]) -> None:
    """FFV1 in Matroska: every frame as it is."""
    frames = pixels(media)
    slices = 4 if min(frames.shape[1:3]) >= 64 else 1  # of which several can be read at once
    options = {"level": "3", "slices": str(slices), "slicecrc": "1", "threads": "1"}
    _encode(media, frames, path, text, "matroska", "ffv1", "bgr0", options, {"fflags": "+bitexact"})


def _write_h264(media: Media, path: Path, text: Mapping[str, str]) -> None:
    frames = pixels(media)
    odd_height, odd_width = frames.shape[1] % 2, frames.shape[2] % 2  # the codec wants even sides
    even = np.pad(frames, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)), mode="edge")
    options = {"crf": _CRF, "threads": "1"}
    flags = {"movflags": "use_metadata_tags+faststart"}  # plays before all of it has arrived
    _encode(media, even, path, text, _H264[path.suffix.lower()], "libx264", "yuv420p", options, flags)


def _encode(
    media: Media,
    frames: np.ndarray,
    path: Path,
    text: Mapping[str, str],
    container: str,
    codec: str,
    pix_fmt: str,
    options: dict[str, str],
    container_options: dict[str, str],
) -> None:
    _require_av(path)
    import av

    fps = media.fps if isinstance(media, Video) else 1.0
    with av.open(str(path), "w", format=container, options=container_options) as file:
        file.metadata["comment"] = json.dumps(dict(text), ensure_ascii=False)
        file.metadata["fps"] = repr(fps)
        if "prompt" in text:
            file.metadata["title"] = text["prompt"]
        rate = Fraction(fps).limit_denominator(1001)
        stream: Any = file.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        if pix_fmt == "yuv420p":  # else players guess the matrix by the size
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
        for pixels_of in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_of), format="rgb24")
            if pix_fmt == "yuv420p":
                frame = frame.reformat(format=pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def _read_video(path: Path) -> Video:
    _require_av(path)
    import av

    try:
        with av.open(str(path)) as file:
            if not file.streams.video:
                raise ValueError("it has no video")
            stream = file.streams.video[0]
            stream.thread_type = "AUTO"
            fps = _rate(_lower(file.metadata), float(stream.average_rate or 8))
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        if not frames:
            raise ValueError("it has no frames")
        return Video(torch.from_numpy(np.stack(frames)), fps)
    except (av.FFmpegError, IndexError, ValueError) as error:
        if isinstance(error, OSError):
            raise
        raise OSError(f"the clip cannot be decoded: {error}") from error


def _tags(path: Path) -> dict[str, str]:
    """The tags of a video file, by their names in lower case."""
    _require_av(path)
    import av

    try:
        with av.open(str(path)) as file:
            return _lower(file.metadata)
    except av.FFmpegError as error:
        raise OSError(str(error)) from error


def _lower(tags: Mapping[str, str]) -> dict[str, str]:
    return {key.lower(): value for key, value in tags.items()}


def _rate(tags: Mapping[str, str], average: float) -> float:
    """Frames per second: as written where that agrees with the file, which rounds it."""
    try:
        written = float(tags["fps"])
    except (KeyError, ValueError):
        return average
    return written if abs(written - average) < 0.01 * average else average
