"""Two verifiers in sequence: a cheap one scores all samples, an expensive one the best of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tts_vision.errors import ConfigError
from tts_vision.ranking import top_k
from tts_vision.registry import register
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import Asked, Verifier
from tts_vision.verifiers._members import Composite, calls_by_member


@register(
    "verifier",
    "cascade",
    paper="Viola and Jones 2001 (the idea)",
    notes={"licence": "those of its members", "weights": "those of its members"},
)
class Cascade(Composite):
    """A cheap verifier on all samples, an expensive one on the best: ``cascade(clip_score, vqa_score)``.

    The best samples of each scored batch, at least one, go to the second member and keep its value. All
    others rank below those, in the order of the first member, in equal steps below the lowest value: a sample
    that the second member never examined cannot win. Their values change as samples are added.

    A sample that the first member could not score counts as the median of its batch. One that the second
    could not score is ranked by the first. A sample that neither scored is unscored.

    Args:
        fraction: Share of each batch that the second member scores, rounded up.
    """

    def __init__(self, members: Sequence[Verifier], *, fraction: float = 0.25) -> None:
        if len(members) != 2:
            names = ", ".join(member.name for member in members) or "none"
            raise ConfigError(
                f"A cascade is made of two verifiers, the cheap one first, but got {names}; for more stages, "
                "let a member be a cascade."
            )
        if not 0 < fraction <= 1:
            raise ConfigError(f"fraction must be above 0 and at most 1 but got {fraction:g}; change it.")
        super().__init__(members, "cascade")
        self.fraction = fraction

    def calls(self, n: int) -> dict[str, int]:
        """Calls of both members for `n` samples of one prompt, by name."""
        return calls_by_member(self.members, [n, self._examined(n)])

    def _examined(self, n: int) -> int:
        """Number of samples, out of `n`, that the second member scores."""
        return min(n, math.ceil(self.fraction * n - 1e-9))

    def _ask(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked) -> list[Score]:
        first = self._member_scores(0, media, prompts, asked)
        values = np.array([s.value if math.isfinite(s.value) else math.nan for s in first])
        if not np.isnan(values).all():
            values = np.where(np.isnan(values), np.nanmedian(values), values)
        chosen = top_k(values.tolist(), self._examined(len(media)))
        examined = self._member_scores(1, [media[i] for i in chosen], [prompts[i] for i in chosen], asked)
        second = dict(zip(chosen, examined, strict=True))
        return [self._joined([score, second.get(i)]) for i, score in enumerate(first)]

    def settle(self, scores: Sequence[Score]) -> list[float]:
        """The values of samples that are compared with each other; NaN where neither member scored."""
        if not scores:
            return []
        cheap, values = self._values(0, scores), self._values(1, scores)
        examined = values[~np.isnan(values)]
        lowest, step = (examined.min(), np.ptp(examined) / len(examined)) if len(examined) else (0.0, 1.0)
        rest = np.isnan(values) & ~np.isnan(cheap)
        levels = np.unique(cheap[rest])  # ascending
        places = len(levels) - np.searchsorted(levels, cheap[rest])
        values[rest] = lowest - (step or 1.0) * places
        return [float(value) for value in values]
