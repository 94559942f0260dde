"""Recognises samples of a diffusers pipeline that must not be judged, while the pipeline decodes them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from tts_vision.media import finite_rows

_AUTOENCODERS = ("vae", "movq", "vqgan", "vqvae")
_FLAGS = ("nsfw_content_detected", "nsfw_detected", "watermark_detected")
NOT_FINITE = "that are no finite numbers (NaN or infinity)"
FLAGGED = "blacked out by the pipeline's own safety checker"


class DecodeWatch:
    """Watches one decoding: are the pixels numbers, and did the safety checker flag a sample?

    It reads the autoencoder's output before the pipeline turns it into 8-bit pixels, and changes nothing.
    """

    def __init__(self) -> None:
        self._finite: list[bool] = []
        self._flagged: list[bool] = []

    @staticmethod
    def has_checker(pipe: Any) -> bool:
        """Whether a pipeline looks at its samples and may flag some, which its output object says."""
        return getattr(pipe, "safety_checker", None) is not None

    @staticmethod
    def autoencoders(pipe: Any) -> list[tuple[str, Any]]:
        """The components of a pipeline that decode latents, by name."""
        found = [(name, getattr(pipe, name, None)) for name in _AUTOENCODERS]
        return [pair for pair in found if callable(getattr(pair[1], "decode", None))]

    def watching(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        """An autoencoder's `decode` that notes which rows of its output are finite."""

        @functools.wraps(decode)
        def watched(*args: Any, **kwargs: Any) -> Any:
            output = decode(*args, **kwargs)
            pixels = getattr(output, "sample", output)
            pixels = pixels[0] if isinstance(pixels, (tuple, list)) else pixels
            if isinstance(pixels, Tensor) and pixels.ndim:
                self._finite += finite_rows(pixels)
            return output

        return watched

    def read(self, output: Any) -> None:
        """Takes note of the flags in a pipeline's output object."""
        found = [flags for name in _FLAGS if (flags := getattr(output, name, None)) is not None]
        rows = [[flags] if isinstance(flags, bool) else [bool(flag) for flag in flags] for flags in found]
        self._flagged = [any(flags) for flags in zip(*rows)]

    def reasons(self, latents: Tensor) -> list[str | None] | None:
        """For each row of the latents that were decoded, why it is invalid; None for valid rows.

        None in all if some row is invalid but its number is unknown, because the autoencoder decoded other
        batches than the pipeline; rows must then be decoded alone.
        """
        whole = finite_rows(latents)
        n = len(whole)
        if all(whole) and all(self._finite) and not any(self._flagged):
            return [None] * n
        finite, flagged = _by_row(self._finite, n, all), _by_row(self._flagged, n, any)
        if finite is None or flagged is None:
            return None
        return [
            f"latents {NOT_FINITE}"
            if not whole[i]
            else f"pixels {NOT_FINITE}"
            if finite and not finite[i]
            else FLAGGED
            if flagged and flagged[i]
            else None
            for i in range(n)
        ]


def _by_row(found: Sequence[bool], n: int, joined: Callable[[Sequence[bool]], bool]) -> Sequence[bool] | None:
    """Findings for each of `n` rows, empty if there are none; None if they cannot be told apart."""
    if len(found) in {0, n}:
        return found
    return [joined(found)] if n == 1 else None
