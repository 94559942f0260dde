"""Backbones that plugins share, each with the preprocessing it was evaluated with: DINO, CLIP, Inception."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tts_vision.errors import VerifierError
from tts_vision.verifiers._threads import preprocessing_threads
from tts_vision.verifiers._weights import (
    find_file,
    from_pretrained,
    load_strictly,
    processor_from,
    read_state,
)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_WEIGHTS = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
DINO_FAMILIES = {
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}


def standard_pixels(
    images: Sequence[Image.Image],
    *,
    resize: int,
    crop: int,
    interpolation: str = "bicubic",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Images as backbones are evaluated: shorter edge to `resize` by Pillow, centre crop, normalised.

    Returns:
        ``(B, 3, crop, crop)`` float32.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    def one(image: Image.Image) -> Tensor:
        resized = TF.resize(image, [resize], InterpolationMode(interpolation))
        return TF.normalize(TF.to_tensor(TF.center_crop(resized, [crop])), list(mean), list(std))

    if len(images) == 1:  # perhaps in one of the threads already
        return one(images[0])[None]
    return torch.stack(list(preprocessing_threads().map(one, images)))


def clip_pixels(
    pixels: Tensor,
    size: int = 224,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    interpolation: str = "bicubic",
) -> Tensor:
    """Pixels as CLIP takes them, with their gradient: shorter edge to `size`, centre crop, normalised.

    Args:
        pixels: ``(B, 3, H, W)`` in [0, 1].
        size: Side of the result.
        mean: Of each channel.
        std: Of each channel.
        interpolation: ``bicubic`` or ``bilinear``.

    Returns:
        ``(B, 3, size, size)``.
    """
    height, width = pixels.shape[-2:]
    short = min(height, width)
    target = (size * height // short, size * width // short)
    if target != (height, width):
        pixels = F.interpolate(pixels, target, mode=interpolation, antialias=True).clamp(0, 1)
    top, left = (round((edge - size) / 2) for edge in target)
    pixels = pixels[..., top : top + size, left : left + size]
    shape = (1, 3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def load_dino(checkpoint: str, owner: str, dtype: torch.dtype) -> Any:
    """A DINO (v1), DINOv2 or DINOv2-with-registers backbone of transformers, for pixels of any size.

    Raises:
        VerifierError: If it cannot be loaded, is of another family, or does not fit key by key.
    """
    import transformers

    config = processor_from(transformers.AutoConfig, checkpoint, owner)
    if config.model_type not in DINO_FAMILIES:
        raise VerifierError(
            f"The backbone of {owner!r} must be one of {', '.join(DINO_FAMILIES)} but {checkpoint!r} is "
            f"{config.model_type}; give a DINO or DINOv2 checkpoint."
        )
    model_class = getattr(transformers, DINO_FAMILIES[config.model_type])
    if config.model_type != "vit":
        return from_pretrained(model_class, checkpoint, owner, dtype=dtype)
    # transformers' port of DINO says 1e-12 and has no pooler; the authors' code says 1e-6
    config.layer_norm_eps = 1e-6
    model = from_pretrained(
        model_class, checkpoint, owner, dtype=dtype, config=config, add_pooling_layer=False
    )
    size = config.patch_size
    model.embeddings.interpolate_pos_encoding = lambda tokens, height, width: dino_positions(
        model.embeddings.position_embeddings, height // size, width // size
    )
    return model


def dino_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """DINO's position embeddings for another grid of patches (Caron et al. 2021).

    They are scaled by a tenth of a patch more than the grid, as the authors' code does against rounding;
    transformers scales by the grid itself, which gives other values.

    Args:
        positions: ``(1, 1 + N * N, D)``, the class token first.
        rows: Of the new grid.
        columns: Of the new grid.

    Returns:
        ``(1, 1 + rows * columns, D)``.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if rows == columns == side:
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / side, (columns + 0.1) / side)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat((positions[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)


def dino_tokens(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The normalised last tokens of `load_dino`'s model: class ``(B, D)`` and patches ``(B, N, D)``."""
    settings = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    tokens = model(pixels.to(model.device, model.dtype), **settings).last_hidden_state
    return tokens[:, 0], tokens[:, 1 + getattr(model.config, "num_register_tokens", 0) :]


def load_clip(checkpoint: str, owner: str, dtype: torch.dtype) -> Any:
    """A CLIP of transformers.

    Raises:
        VerifierError: If it cannot be loaded or does not fit key by key.
    """
    from transformers import CLIPModel

    return from_pretrained(CLIPModel, checkpoint, owner, dtype=dtype)


def clip_embeddings(model: Any, pixels: Tensor) -> Tensor:
    """CLIP's projected embeddings of pixels that are already its own, not normalised: ``(B, D)``."""
    return model.get_image_features(pixels.to(model.device, model.dtype)).pooler_output


def clip_standard_pixels(model: Any, images: Sequence[Image.Image]) -> Tensor:
    """Images as CLIP was evaluated, at the resolution of `model`."""
    size = model.config.vision_config.image_size
    return standard_pixels(images, resize=size, crop=size, mean=CLIP_MEAN, std=CLIP_STD)


def load_torchvision(
    build: Callable[..., nn.Module], checkpoint: str, published: str, owner: str, **settings: Any
) -> Any:
    """A torchvision model in evaluation mode without gradients, loaded strictly.

    Args:
        build: One of torchvision's builders; called without weights.
        checkpoint: A file, a folder, or an address.
        published: Address of the published weights; a folder is searched for the file of that name.
        owner: The plugin, for messages.
        settings: Further arguments of `build`.

    Raises:
        VerifierError: If the weights cannot be found or do not fit key by key.
    """
    state = read_state(find_file(checkpoint, published.rsplit("/", 1)[-1], owner), owner)
    model = build(weights=None, **settings)
    # these count training batches; old files have none, and evaluation does not read them
    counters = [key for key in model.state_dict() if key.endswith("num_batches_tracked")]
    load_strictly(model, state, owner, ignore=counters)
    return model.eval().requires_grad_(False)


def load_inception(checkpoint: str, owner: str) -> Any:
    """torchvision's Inception v3 with its ImageNet classifier and auxiliary head.

    Raises:
        VerifierError: As `load_torchvision`.
    """
    from torchvision.models import inception_v3

    return load_torchvision(
        inception_v3,
        checkpoint,
        INCEPTION_WEIGHTS,
        owner,
        aux_logits=True,
        transform_input=True,
        init_weights=False,
    )


def inception_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Images as torchvision evaluates its Inception v3: ``(B, 3, 299, 299)``."""
    return standard_pixels(images, resize=342, crop=299, interpolation="bilinear")
