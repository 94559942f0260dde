"""Scale schedules of visual autoregressive models: the grids of tokens that are predicted one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from tts_vision.errors import ConfigError

Grid = tuple[int, int]

# Grids up to one megapixel of Infinity (Han et al. 2024) for heights at least as large as widths.
_TALL: dict[float, tuple[Grid, ...]] = {
    1.0: tuple((s, s) for s in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)),
    1.25: (
        *((1, 1), (2, 2), (3, 3), (5, 4), (10, 8), (15, 12), (20, 16), (25, 20), (30, 24), (35, 28)),
        *((45, 36), (55, 44), (70, 56)),
    ),
    1.333: (
        *((1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12), (20, 15), (24, 18), (28, 21), (36, 27)),
        *((48, 36), (60, 45), (72, 54)),
    ),
    1.5: (
        *((1, 1), (2, 2), (3, 2), (6, 4), (9, 6), (15, 10), (21, 14), (27, 18), (33, 22), (39, 26)),
        *((48, 32), (63, 42), (78, 52)),
    ),
    1.75: (
        *((1, 1), (2, 2), (3, 3), (7, 4), (11, 6), (14, 8), (21, 12), (28, 16), (35, 20), (42, 24)),
        *((56, 32), (70, 40), (84, 48)),
    ),
    2.0: (
        *((1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11), (30, 15), (38, 19), (46, 23)),
        *((60, 30), (74, 37), (90, 45)),
    ),
    2.5: (
        *((1, 1), (2, 2), (5, 2), (10, 4), (15, 6), (20, 8), (25, 10), (30, 12), (40, 16), (50, 20)),
        *((65, 26), (80, 32), (100, 40)),
    ),
    3.0: (
        *((1, 1), (2, 2), (6, 2), (9, 3), (15, 5), (21, 7), (27, 9), (36, 12), (45, 15), (54, 18)),
        *((72, 24), (90, 30), (111, 37)),
    ),
}
TEMPLATES: dict[float, tuple[Grid, ...]] = {
    **{
        math.floor(1000 / ratio) / 1000: tuple((w, h) for h, w in grids)
        for ratio, grids in reversed(_TALL.items())
        if ratio > 1
    },
    **_TALL,
}
_FAR = 0.25  # a ratio that is off by such a share of every template is none of theirs
SIZES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}  # scales that make an image of so many pixels


@dataclass(frozen=True)
class Schedule:
    """The grids of tokens of one image, coarse to fine.

    Attributes:
        grids: ``(h, w)`` of each scale.
        positions: Grid in whose coordinates rotary positions are given: that of the finest scale the model
            was trained for at this aspect ratio, even if `grids` stops earlier.
    """

    grids: tuple[Grid, ...]
    positions: Grid

    @property
    def final(self) -> Grid:
        """The finest grid."""
        return self.grids[-1]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(h * w for h, w in self.grids)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Tokens before each scale, and all of them at the end."""
        return tuple(sum(self.lengths[:k]) for k in range(len(self.grids) + 1))

    def __len__(self) -> int:
        return len(self.grids)


def schedule_for(aspect_ratio: float, size: str = "1M") -> Schedule:
    """Infinity's schedule for images of about an aspect ratio: that of the nearest template.

    Args:
        aspect_ratio: Height over width.
        size: About how many pixels: ``0.06M``, ``0.25M``, ``0.60M`` or ``1M``.

    Raises:
        ConfigError: If no template is near, or there is no such size.
    """
    ratio = nearest_ratio(aspect_ratio)
    if not abs(aspect_ratio / ratio - 1) < _FAR:
        raise ConfigError(
            f"aspect_ratio (height over width) must be near one of "
            f"{', '.join(f'{known:g}' for known in sorted(TEMPLATES))} but got {aspect_ratio:g}; change it."
        )
    if size not in SIZES:
        raise ConfigError(f"size must be one of {', '.join(SIZES)} (pixels) but got {size!r}; change it.")
    grids = TEMPLATES[ratio]
    return Schedule(grids[: SIZES[size]], grids[-1])


def nearest_ratio(aspect_ratio: float) -> float:
    """The template nearest to height over width."""
    return min(TEMPLATES, key=lambda known: abs(known - aspect_ratio))
