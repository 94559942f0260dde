"""Lines of descent under resampling, and strengths that fit a verifier."""

from __future__ import annotations

import numpy as np

from tts_vision.context import SearchContext
from tts_vision.resampling import Ancestors, Floats, strength_for

_MANY = 8  # of fewer particles, one line of descent is to be expected


class Lines:
    """Which of the first particles each particle descends from.

    Args:
        n: Particles.
    """

    def __init__(self, n: int) -> None:
        self.first = np.arange(n)
        self.resamplings = 0

    def resampled(self, ancestors: Ancestors) -> None:
        """Takes note of a resampling."""
        self.first = self.first[ancestors]
        self.resamplings += 1

    def warn(self, ctx: SearchContext, strength: str) -> None:
        """Tells the user if resampling chose nothing, or left one line of descent."""
        if len(self.first) < 2:
            return
        if not self.resamplings:
            ctx.warn(
                f"The particles were never resampled at {strength}: the search was independent samples. Use "
                "a sharper value or, where there is one, 'auto', a higher ess_threshold, or more particles."
            )
        elif len(self.first) >= _MANY and len(set(self.first.tolist())) == 1:
            ctx.warn(
                f"All particles descend from one at {strength}: the search kept no diversity. Use a "
                "weaker value or, where there is one, 'auto', a lower ess_threshold, or more particles."
            )


def auto_strength(ctx: SearchContext, rewards: Floats, ess_threshold: float | None) -> float | None:
    """The strength at which rewards just make particles be resampled, recorded; None if they are alike.

    Args:
        ctx: The search.
        rewards: ``(n,)``, NaN where unscored.
        ess_threshold: Share of n below which the effective sample size makes them be resampled.
    """
    n = len(rewards)
    target = max(0.9 * n * (0.5 if ess_threshold is None else ess_threshold), 1.1)
    strength: float | None = ctx.ask("strength", strength_for, rewards, target)
    return strength
