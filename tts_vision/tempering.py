"""Tempered rewards: the share of a reward that counts at each step of a trajectory. Pure functions."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from tts_vision.resampling import Floats, ess, fill_unscored, normalise

Tempering: TypeAlias = Literal["exp", "polynomial", "adaptive"]
# the paper's 0.008 for 100 steps reaches the full target after this share of them
_HEATED = 0.87


def tempered(tempering: Tempering, i: int, num_steps: int, gamma: float | None, power: float) -> float:
    """The share of the reward that counts at step `i`, from 0 at the first to 1."""
    if tempering == "exp":
        rate = 2 ** (1 / (_HEATED * num_steps)) - 1 if gamma is None else gamma
        return min((1 + rate) ** i - 1, 1.0)
    rate = 1 / (_HEATED * num_steps) if gamma is None else gamma
    return min(rate * i, 1.0) ** power if i else 0.0


def adaptive(log_w: Floats, r: Floats, floor: float, ess_threshold: float) -> float:
    """The largest share of the rewards `r`, from `floor` to 1, that keeps the effective sample size.

    Found by bisection; `floor` where even that is too much.

    Args:
        log_w: ``(n,)`` log-weights without the rewards.
        r: ``(n,)`` rewards over the temperature; NaN where there is none.
        floor: The share so far.
        ess_threshold: The effective sample size to keep, as a share of n.
    """

    def enough(lam: float) -> bool:
        return ess(normalise(log_w + lam * r)) >= ess_threshold * len(r)

    if enough(1.0):
        return 1.0
    if not enough(floor):
        return floor
    low, high = floor, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


def weighed(log_w: Floats, log_ratio: Floats, tempered_reward: Floats, psi: Floats) -> tuple[Floats, Floats]:
    """The log-weights after a step, and the tempered rewards that they account for.

    A particle without a reward gets the mean weight of the others, and that is accounted for: its next reward
    corrects it, so that a failed preview biases no row for good.

    Args:
        log_w: ``(n,)`` log-weights before.
        log_ratio: ``(n,)`` log of the model's kernel over the proposal's at the drawn step.
        tempered_reward: ``(n,)``; NaN where there is none.
        psi: ``(n,)`` tempered rewards that `log_w` accounts for.
    """
    gain = fill_unscored(log_ratio + tempered_reward - psi)
    accounted = np.where(np.isnan(tempered_reward), psi + gain - log_ratio, tempered_reward)
    return log_w + gain, accounted
