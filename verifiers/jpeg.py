"""How well an image compresses as JPEG: cheap, exact rewards without a model."""

from __future__ import annotations

import io

from PIL import Image

from tts_vision.model_verifier import BatchedVerifier, UnusableSample
from tts_vision.registry import register
from tts_vision.types import Prompt, Score


def jpeg_kilobytes(image: Image.Image) -> float:
    """Size of an RGB image as JPEG of quality 95, in kB (1000 bytes).

    Raises:
        UnusableSample: If JPEG cannot hold it (more than 65535 pixels on a side).
    """
    buffer = io.BytesIO()
    try:
        image.save(buffer, format="JPEG", quality=95)
    except OSError as error:
        raise UnusableSample(f"the image cannot be a JPEG: {error}") from error
    return buffer.tell() / 1000


class _Jpeg(BatchedVerifier):
    sign: float

    def __init__(self) -> None:
        super().__init__(device="cpu")

    def _load(self) -> None:
        pass

    def _score_batch(self, samples: list[Image.Image], prompts: list[Prompt]) -> list[Score]:
        return [Score(value=self.sign * jpeg_kilobytes(sample)) for sample in samples]


@register(
    "verifier",
    "jpeg_compressibility",
    paper="DDPO (Black et al. 2023)",
    notes={"licence": "no model", "weights": "none"},
)
class JpegCompressibility(_Jpeg):
    """Minus the size of an image as JPEG of quality 95, in kB; the prompt is not read."""

    name = "jpeg_compressibility"
    sign = -1.0


@register(
    "verifier",
    "jpeg_incompressibility",
    paper="DDPO (Black et al. 2023)",
    notes={"licence": "no model", "weights": "none"},
)
class JpegIncompressibility(_Jpeg):
    """The size of an image as JPEG of quality 95, in kB; the prompt is not read."""

    name = "jpeg_incompressibility"
    sign = 1.0
