"""Puts images of anybody at the end of a pipeline's trajectory, in the layout of its loop's latents."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from tts_vision.condition import ORIGINAL, Condition
from tts_vision.errors import PipelineError

_EDITORS = re.compile(r"Img2Img|Pix2Pix|Kontext|Edit")
_BASE = 8  # digits that half precision holds apart
_TOLERANCE = 0.05


def original_of(condition: Condition) -> Image.Image | None:
    """The image that particles are refined from, if the condition names any."""
    asset = condition.images.get(ORIGINAL)
    return asset.value if asset is not None and isinstance(asset.value, Image.Image) else None


def encodes(pipe: Any) -> bool:
    """Whether a pipeline has an autoencoder that encodes images as well."""
    vae = getattr(pipe, "vae", None)
    has_processor = any(hasattr(pipe, name) for name in ("image_processor", "video_processor"))
    return callable(getattr(vae, "encode", None)) and has_processor


def edits_images(name: str, signature: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a pipeline starts from an image of its call, as image-to-image and edit pipelines do."""
    starts = "strength" in signature or _EDITORS.search(name) is not None
    return "image" in signature and "mask_image" not in signature and starts


class DecoderInput(Exception):
    """Ends a call of a pipeline where it decodes.

    Attributes:
        latents: The input of the decoder.
    """

    def __init__(self, latents: Tensor) -> None:
        super().__init__("the pipeline decodes")
        self.latents = latents


class StandInDecoder:
    """An autoencoder that raises its input, and is the real one in everything else; nothing moves it.

    Args:
        real: The pipeline's autoencoder.
    """

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def to(self, *args: Any, **kwargs: Any) -> StandInDecoder:
        return self

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> None:
        raise DecoderInput(z)


def encoded(pipe: Any, image: Image.Image, like: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The mode of an autoencoder's posterior of an image, cropped to the shape of the pipeline's samples.

    Args:
        pipe: The pipeline.
        image: RGB, of any size.
        like: ``(1, C, H, W)`` or ``(1, C, 1, H, W)`` input of the pipeline's decoder.

    Returns:
        Latents shaped like `like`, and width and height of the samples in pixels.

    Raises:
        PipelineError: If the autoencoder gives none of that shape.
    """
    vae, factor = pipe.vae, _factor(pipe.vae)
    size = like.shape[-1] * factor, like.shape[-2] * factor
    processor = getattr(pipe, "image_processor", None) or pipe.video_processor
    pixels = processor.preprocess(ImageOps.fit(image, size, Image.Resampling.LANCZOS))
    pixels = pixels[:, :, None] if like.ndim == 5 else pixels
    upcast = bool(vae.config.get("force_upcast")) and vae.dtype == torch.float16
    with torch.no_grad():
        if upcast:
            vae.to(torch.float32)
        try:
            found = vae.encode(pixels.to(like.device, vae.dtype))
        finally:
            if upcast:
                vae.to(torch.float16)
    dist = getattr(found, "latent_dist", None)
    z = dist.mode() if dist is not None else getattr(found, "latents", getattr(found, "latent", None))
    if not isinstance(z, Tensor) or z.shape != like.shape or not bool(z.isfinite().all()):
        raise PipelineError(
            f"An image is refined by a pipeline that encodes it to latents {tuple(like.shape)} but the "
            f"{type(vae).__name__} of {type(pipe).__name__} gives {None if z is None else tuple(z.shape)}; "
            "use an image-to-image or edit pipeline."
        )
    return z, size


def laid_out(z: Tensor, decoder_input: Callable[[Tensor], Tensor], row: Tensor, name: str) -> Tensor:
    """Latents of the loop whose decoder input is `z`.

    Between loop and decoder pipelines rescale, shift and unpack latents: each number of the decoder's input
    is an affine function of one number of the loop's. Which one is found by decoding numbered latents.

    Args:
        z: ``(1, ...)`` input of the decoder.
        decoder_input: The pipeline's own way from latents of the loop to that input.
        row: ``(1, ...)`` latents of the loop, for their shape, device and precision.
        name: Of the pipeline.

    Raises:
        PipelineError: If the pipeline does something else.
    """

    def seen(values: Tensor) -> Tensor:
        return decoder_input(values.view_as(row).to(row)).double().flatten()

    n = row.numel()
    numbers = torch.arange(n, device=row.device)
    shift = seen(torch.zeros_like(numbers))
    slope = seen(torch.ones_like(numbers)) - shift
    refusal = PipelineError(
        f"An image is refined by a pipeline that rescales, unpacks and decodes its latents, but {name} does "
        "more; use an image-to-image or edit pipeline."
    )
    if slope.numel() != n or not bool((slope.abs() > 1e-6).all()):
        raise refusal
    place, digit = torch.zeros_like(numbers), 1
    while digit < n:
        digits = ((seen(numbers // digit % _BASE) - shift) / slope).round().long()
        place, digit = place + digits * digit, digit * _BASE
    if not torch.equal(place.sort().values, numbers):
        raise refusal
    found = torch.empty(n, dtype=torch.float64, device=row.device)
    found[place] = (z.double().flatten() - shift) / slope
    again = seen(found)
    if (again - z.double().flatten()).abs().max() > _TOLERANCE * z.double().abs().max():
        raise refusal
    return found.view_as(row).to(row)


def _factor(vae: Any) -> int:
    """Pixels along an edge for each latent."""
    for name in ("spatial_compression_ratio", "scale_factor_spatial"):
        if isinstance(value := getattr(vae, name, None) or vae.config.get(name), int):
            return value
    blocks = vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels")
    if blocks is None:
        blocks = range(len(vae.config.get("temperal_downsample", ())) + 1)
    return 2 ** (len(blocks) - 1)
