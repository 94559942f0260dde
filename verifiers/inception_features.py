"""Embeddings by Inception v3: the pooled features of an ImageNet classifier."""

from __future__ import annotations

from PIL import Image
from torch import Tensor, nn

from tts_vision.registry import register
from tts_vision.verifiers._backbones import INCEPTION_WEIGHTS, inception_pixels, load_inception
from tts_vision.verifiers._features import ImageFeatures


@register(
    "features",
    "inception_features",
    paper="Inception v3 (Szegedy et al. 2016)",
    notes={"licence": "BSD-3-Clause", "weights": INCEPTION_WEIGHTS},
)
class InceptionFeatures(ImageFeatures):
    """The 2048 globally pooled features of Inception v3 before its classifier, not normalised.

    The weights are torchvision's, and so is the preprocessing: 342 on the shorter edge, 299 cropped from the
    centre. FID is defined by other weights of nearly the same network (TensorFlow's ``inception-2015-12-05``
    with 1008 classes), on images squeezed to 299 x 299: these features serve diversity and clustering, and
    a distance computed from them is not FID.

    Args:
        checkpoint: File of torchvision's Inception v3, or its address.
    """

    name = "inception_features"
    size = 2048

    def __init__(
        self,
        *,
        checkpoint: str = INCEPTION_WEIGHTS,
        frames: int = 8,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(frames=frames, device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint = checkpoint

    def _load(self) -> None:
        self._model = load_inception(self.checkpoint, self.name)
        self._model.fc = nn.Identity()
        self._model.to(self.device, self.dtype)

    def _embed(self, images: list[Image.Image]) -> Tensor:
        return self._model(inception_pixels(images).to(self.device, self.dtype))
