"""Few frames of a clip for previews: latent frames that are decoded as images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tts_vision.types import Video

_STRIDES = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
_TOGETHER = {"AllegroPipeline"}  # its autoencoder decodes no single frame


class FewFrames:
    """An autoencoder of clips that decodes some latent frames alone, and is the real one in everything else.

    Each is decoded as the first frame of a clip, so it is an approximation: the frames before, which an
    autoencoder of clips may look at, are missing. Latents without an axis of time, of models that decode the
    frames of a clip as images, are decoded as they are.

    Args:
        pipe: The pipeline.
        real: Its autoencoder, or one in its place.
        count: How many frames.
    """

    def __init__(self, pipe: Any, real: Any, count: int) -> None:
        self._real, self._count = real, count
        self._alone = type(pipe).__name__ not in _TOGETHER
        self._stride = next((value for name in _STRIDES if (value := getattr(pipe, name, None))), None)
        self._total = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def to(self, *args: Any, **kwargs: Any) -> FewFrames:
        return self

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The autoencoder's output for latents ``(B, C, T, h, w)``, with a frame for each that is chosen."""
        self._total = 0
        if z.ndim != 5 or not self._alone:
            return self._real.decode(z, *args, **kwargs)
        self._total = (z.shape[2] - 1) * self._stride + 1 if self._stride else 0
        chosen = spaced(z.shape[2], self._count)
        outputs = [self._real.decode(z[:, :, i : i + 1], *args, **kwargs) for i in chosen]
        first = outputs[0]
        pixels = [output[0] if isinstance(output, tuple) else output.sample for output in outputs]
        joined = torch.cat([frames[:, :, :1] for frames in pixels], 2)
        return (joined,) if isinstance(first, tuple) else type(first)(sample=joined)

    def shown(self, clip: Video) -> Video:
        """The clip that was just decoded with no more frames than are wanted, as long as the whole one."""
        chosen = spaced(len(clip.frames), self._count)
        total = max(self._total, len(clip.frames))
        return Video(clip.frames[list(chosen)], clip.fps * len(chosen) / total)


def spaced(total: int, count: int) -> Sequence[int]:
    """`count` of `total` frames, evenly spaced, with the last one; all if there are no more."""
    return [(i + 1) * total // count - 1 for i in range(count)] if count < total else range(total)
