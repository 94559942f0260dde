"""Base class of image rewards: one computation for scores and for gradients, texts encoded once.

Images are preprocessed in threads while the model computes, so that a batch waits only for its own, and only
preprocessed pixels are kept, never a copy at full size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tts_vision.memory import out_of_memory
from tts_vision.model_verifier import BatchedVerifier, as_image
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifiers._backbones import clip_pixels
from tts_vision.verifiers._cache import Recent
from tts_vision.verifiers._threads import preprocessing_threads
from tts_vision.verifiers._weights import processor_from


class PixelReward(BatchedVerifier):
    """A verifier that is a differentiable function of the pixels of an image.

    A subclass preprocesses images as the published code does (`_preprocess`), preprocesses tensors so that
    the gradient passes (`_fit`), and computes the rewards of the result (`_reward`) by a model whose weights
    take no gradient.

    Attributes:
        resizes_tensors: Whether the published code resizes tensors and not Pillow's images; then they are
            resized on the device of the model.
    """

    differentiable = True
    resizes_tensors = False

    @abstractmethod
    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        """RGB images as the model takes them, ``(B, 3, h, w)``; called in threads."""

    @abstractmethod
    def _fit(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in [0, 1] as the model takes them, with their gradient."""

    @abstractmethod
    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """``(B,)`` of at least float32, of pixels that are the model's own."""

    def _usable(self, sample: Media) -> Future[Tensor]:
        threads = preprocessing_threads(self.resizes_tensors)
        return threads.submit(lambda: self._preprocess([as_image(sample, self.name)]))

    def _ready(self, samples: Sequence[Future[Tensor]]) -> Tensor:
        """The preprocessed pixels of a batch, on the device of the model.

        Raises:
            UnusableSample: If one of the samples cannot be used.
        """
        return torch.cat([sample.result() for sample in samples]).to(self.device, self.dtype)

    def _score_batch(self, samples: list[Future[Tensor]], prompts: list[Prompt]) -> list[Score]:
        rewards = self._reward(self._ready(samples), [prompt.text for prompt in prompts])
        return [Score(value=value) for value in rewards.tolist()]

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Rewards that carry the gradient of `pixels`; like `score`, up to rounding and resizing.

        Args:
            pixels: ``(B, 3, H, W)`` in [0, 1], of any size, on any device.
            prompts: One per image.

        Returns:
            ``(B,)``, higher is better, on the device of `pixels`.

        Raises:
            ValueError: If the pixels have another shape, or there is not one prompt for each image.
        """
        check_pixels(pixels, prompts, self.name)
        self.load()
        wide = torch.promote_types(pixels.dtype, torch.float32)
        fitted = self._fit(pixels.to(self.device, wide)).to(self.dtype)
        return self._reward(fitted, [prompt.text for prompt in prompts]).to(pixels.device)


class TextCache:
    """Embeddings of the prompts that were used last, so that a search encodes its own once.

    Args:
        encode: Makes ``(n, ...)`` embeddings of n texts.
        capacity: Number of texts that are remembered; the least recently used is forgotten first.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], capacity: int = 256) -> None:
        self._encode = encode
        self._known: Recent[str, Tensor] = Recent(capacity)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """``(B, ...)``, without a gradient."""
        known = {text: self._known[text] for text in dict.fromkeys(texts) if text in self._known}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            made = dict(zip(new, self._encode(new).unbind()))
            known.update(made)
            self._known.update(made)
        return torch.stack([known[text] for text in texts])


def check_pixels(pixels: Tensor, prompts: Sequence[Prompt], owner: str) -> None:
    """Checks the arguments of `rewards`.

    Raises:
        ValueError: If the pixels have another shape, or there is not one prompt for each image.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point() or not pixels.numel():
        raise ValueError(
            f"The pixels that {owner!r} rewards must be floating-point numbers in [0, 1] of shape "
            f"(B, 3, H, W) but are {pixels.dtype} of shape {tuple(pixels.shape)}; convert them."
        )
    if len(prompts) != len(pixels):
        raise ValueError(
            f"There must be one prompt for each of the {len(pixels)} images that {owner!r} rewards but "
            f"there are {len(prompts)}; repeat the prompt."
        )


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row of `a` ``(B, D)`` with the same row of `b`: ``(B,)`` of at least float32."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (F.normalize(a.to(wide), dim=-1) * F.normalize(b.to(wide), dim=-1)).sum(-1)


def raw_pixels(image: Image.Image, device: torch.device | str = "cpu") -> Tensor:
    """An RGB image as ``(1, 3, H, W)`` float32 in [0, 1] on a device, where its bytes become numbers."""
    planes = torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None].contiguous()
    return planes.float().div_(255)


def fitted_on(device: torch.device, image: Image.Image, fit: Callable[[Tensor], Tensor]) -> Tensor:
    """An RGB image as `fit` makes it, computed on an accelerator if there is room, and returned on the CPU.

    Args:
        device: Where the model is.
        image: The image.
        fit: From ``(1, 3, H, W)`` in [0, 1] to ``(1, 3, h, w)``.
    """
    if device.type == "cuda":  # others lack the antialiased bicubic filter
        try:
            return fit(raw_pixels(image, device)).cpu()
        except Exception as error:
            if not out_of_memory(error):
                raise
    return fit(raw_pixels(image))


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels ``(B, 3, H, W)`` minus the mean of each channel, divided by its standard deviation."""
    shape = (1, 3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def squashed(pixels: Tensor, size: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """Pixels ``(B, 3, H, W)`` resized to `size` (height and width); the aspect ratio is not kept."""
    if pixels.shape[-2:] == size:
        return pixels
    return F.interpolate(pixels, size, mode=interpolation, antialias=True).clamp(0, 1)


def pillow_processor(family: str, checkpoint: str, owner: str) -> Any:
    """transformers' image processor of ``CLIP`` or ``Siglip``, resizing by Pillow as the published code does.

    Raises:
        VerifierError: If it cannot be loaded.
    """
    import transformers

    # before transformers 5, the class of the plain name is the one that uses Pillow
    plain = f"{family}ImageProcessor"
    kind = getattr(transformers, f"{plain}Pil", None) or getattr(transformers, plain)
    return processor_from(kind, checkpoint, owner)


def fit_clip(processor: Any, pixels: Tensor) -> Tensor:
    """Pixels ``(B, 3, H, W)`` in [0, 1] as a CLIP image processor would make them, with their gradient."""
    return clip_pixels(pixels, processor.crop_size["height"], processor.image_mean, processor.image_std)


def fit_siglip(processor: Any, pixels: Tensor) -> Tensor:
    """Pixels ``(B, 3, H, W)`` in [0, 1] as a SigLIP image processor would make them, with their gradient."""
    size = (processor.size["height"], processor.size["width"])
    return normalised(squashed(pixels, size), processor.image_mean, processor.image_std)
