"""Technical quality of an image (MUSIQ and others) by pyiqa, an optional package for non-commercial use."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.model_verifier import BatchedVerifier, UnusableSample
from tts_vision.registry import register
from tts_vision.types import Prompt, Score


def vbench_pixels(image: Image.Image, longest: int) -> Tensor:
    """An image as VBench gives it to MUSIQ: its longer side at most `longest`, bilinear and unfiltered.

    Returns:
        ``(1, 3, H, W)`` in [0, 1].
    """
    from torchvision.transforms import functional as TF

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    height, width = pixels.shape[-2:]
    if max(height, width) > longest:
        scale = longest / max(height, width)
        size = [max(1, int(height * scale)), max(1, int(width * scale))]
        pixels = TF.resize(pixels, size, antialias=False)
    return pixels / 255


@register(
    "verifier",
    "imaging_quality",
    paper="MUSIQ (Ke et al. 2021), as VBench (Huang et al. 2024) uses it",
    notes={
        "licence": "PolyForm-Noncommercial-1.0.0 (pyiqa)",
        "weights": "those of the metric, which pyiqa downloads",
        "install": "pip install 'tts-vision[quality]'",
    },
)
class ImagingQuality(BatchedVerifier):
    """Technical quality of an image by a no-reference metric of pyiqa; by default VBench's imaging quality.

    pyiqa is not installed with this project and may be used for non-commercial purposes only. MUSIQ's values
    lie around 0 to 100; divided by 100, as VBench does. Metrics where lower is better are negated. The
    prompt is not read. Clips: ``frame_mean(imaging_quality)``.

    Args:
        metric: Name of a no-reference metric of pyiqa.
        checkpoint: File of its weights; by default pyiqa downloads them.
        longest: Larger images are reduced to this many pixels on the longer side.
        scale: Divisor of the metric.
    """

    name = "imaging_quality"

    def __init__(
        self,
        *,
        metric: str = "musiq-spaq",
        checkpoint: str | None = None,
        longest: int = 512,
        scale: float = 100.0,
        device: str | None = None,
    ) -> None:
        super().__init__(device=device, batch_size=1)
        if longest < 1:
            raise ConfigError(f"longest must be at least 1 but got {longest}; raise it.")
        if not scale > 0:
            raise ConfigError(f"scale must be positive but got {scale}; raise it.")
        self.metric, self.checkpoint, self.longest, self.scale = metric, checkpoint, longest, scale
        warnings.warn(
            "imaging_quality uses pyiqa, whose licence (PolyForm-Noncommercial-1.0.0) does not allow "
            "commercial use.",
            stacklevel=2,
        )

    def _load(self) -> None:
        try:
            import pyiqa
        except ImportError as error:
            raise VerifierError(
                f"{self.name!r} needs the package pyiqa, which cannot be imported ({error}); "
                "pip install 'tts-vision[quality]', if its non-commercial licence allows your use."
            ) from error
        settings: dict[str, Any] = (
            {} if self.checkpoint is None else {"pretrained_model_path": self.checkpoint}
        )
        try:
            self._model = pyiqa.create_metric(self.metric, device=self.device, **settings)
        except Exception as error:  # an unknown name is an AssertionError there
            raise VerifierError(
                f"Metric {self.metric!r} of {self.name!r} must load but: {type(error).__name__}: {error}; "
                "check its name (pyiqa.list_models()) and the network, or give checkpoint."
            ) from error
        if self._model.metric_mode != "NR":
            raise ConfigError(
                f"The metric of {self.name!r} must need no reference image but {self.metric!r} compares "
                "with one; choose one of pyiqa.list_models(metric_mode='NR')."
            )

    def _score_batch(self, samples: list[Image.Image], prompts: list[Prompt]) -> list[Score]:
        sign = -1 if self._model.lower_better else 1
        return [Score(value=sign * self._quality(sample) / self.scale) for sample in samples]

    def _quality(self, sample: Image.Image) -> float:
        pixels = vbench_pixels(sample, self.longest).to(self.device)
        try:
            return float(self._model(pixels))
        except Exception as error:  # metrics refuse tiny images with errors of their own
            raise UnusableSample(
                f"{self.metric} cannot take an image of {sample.width}x{sample.height}: "
                f"{type(error).__name__}: {error}"
            ) from error
