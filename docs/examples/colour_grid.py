"""Features: an embedding of samples, for algorithms that keep a population diverse."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tts_vision.plugins import Media, register


@register("features", "colour_grid", notes={"licence": "no model"})
class ColourGrid:
    """Mean colours of a coarse grid over the image.

    Args:
        side: Cells of the grid along each edge.
    """

    name = "colour_grid"
    accepts = frozenset({"image"})

    def __init__(self, *, side: int = 4) -> None:
        self.side = side

    def features(self, media: Sequence[Media]) -> Tensor:
        """``(B, 3 * side * side)`` float32, one row per image."""
        grids = [np.array(image.convert("RGB").resize((self.side, self.side))) for image in media]
        return torch.from_numpy(np.stack(grids)).flatten(1).float() / 255
