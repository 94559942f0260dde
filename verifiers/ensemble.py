"""Several verifiers at once: their scores of the samples of one search, joined to one value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from tts_vision.errors import ConfigError
from tts_vision.registry import register
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import Asked, Verifier
from tts_vision.verifiers._members import Composite, calls_by_member

Floats = NDArray[np.float64]
WEIGHTED = ("rank", "zscore", "product", "sum")


@register(
    "verifier",
    "ensemble",
    paper="Ma et al. 2025, arXiv:2501.09732 (mean of ranks); Coste et al. 2024 (minimum); Eyring et al. 2024 "
    "(weighted sum)",
    notes={
        "licence": "those of its members",
        "weights": "those of its members",
        "gradients": "of sums, if its members have them",
    },
)
class Ensemble(Composite):
    """Several verifiers at once: ``ensemble(hpsv2.1, clip_score)``; by default the mean of their ranks.

    Except for sums, samples of one search are compared with each other, so values change as samples are
    added; previews are compared with those that are scored together with them. Where a member could not
    score a sample, its own average stands in (the middle rank, z-score 0, for ``product`` the median of its
    other values). A sample that no member scored is unscored.

    Args:
        how: ``rank``: weighted mean of ranks, from 0 (worst) to 1 (best), ties sharing the mean of theirs;
            ``zscore``: weighted mean of z-scores; ``product``: geometric mean, weights as exponents, for
            members that are never negative, such as probabilities; ``minimum``: the least z-score, so that
            every member must agree; ``pareto``: minus the number of the Pareto front (0 is undominated),
            plus the mean of ranks to order a front; ``sum``: weighted sum of the members' own values, each
            sample by itself, with gradients if all members have them. ReNO's objective is
            ``ensemble(hpsv2.1, image_reward, clip_score, pickscore):how=sum,weights=5,1,0.01,0.05``. A sample
            that one member could not score has no sum and is unscored.
        weights: One per member; all equal by default. Not for minimum and pareto. For a sum they are used as
            they are, 1 by default, and may be negative; else they are not negative, and only their ratios
            count.
    """

    def __init__(
        self,
        members: Sequence[Verifier],
        *,
        how: Literal["rank", "zscore", "product", "minimum", "pareto", "sum"] = "rank",
        weights: list[float] | None = None,
    ) -> None:
        super().__init__(members, "ensemble")
        if how not in {*WEIGHTED, "minimum", "pareto"}:
            raise ConfigError(
                f"how must be rank, zscore, product, minimum, pareto or sum but got {how!r}; change it."
            )
        if weights is not None and how not in WEIGHTED:
            raise ConfigError(
                f"weights are for {', '.join(WEIGHTED)} but got {weights} for {how}; leave them out."
            )
        if weights is not None and not _usable(weights, len(members), signed=how == "sum"):
            sign = "" if how == "sum" else ", not negative"
            raise ConfigError(
                f"weights must be one number per member, {len(members)} here{sign} and not all 0, "
                f"but got {weights}; change them."
            )
        self.how = how
        self.weights = np.array(weights or [1.0] * len(members))
        if how == "sum":  # each sample by itself, if the members score it so
            self.relative = any(member.relative for member in self.members)
            self.settles = any(member.settles for member in self.members)
            self.differentiable = all(member.differentiable for member in self.members)
        else:
            self.weights = self.weights / self.weights.sum()

    def calls(self, n: int) -> dict[str, int]:
        """Calls of the members for `n` samples, by name."""
        return calls_by_member(self.members, [n] * len(self.members))

    def _ask(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked) -> list[Score]:
        found = [self._member_scores(i, media, prompts, asked) for i in range(len(self.members))]
        scores = [self._joined(verdicts) for verdicts in zip(*found, strict=True)]
        return [self._refused(score) for score in scores] if self.how == "product" else scores

    def _refused(self, score: Score) -> Score:
        """A score with the reason why it has no product, if it has none."""
        negative = [
            f"{label} {score.parts[label]:.4g}" for label in self.labels if score.parts.get(label, 0) < 0
        ]
        if not negative:
            return score
        reason = f"a product needs members that are never negative but got {', '.join(negative)}"
        return score.model_copy(update={"reason": "; ".join(filter(None, (reason, score.reason)))})

    def settle(self, scores: Sequence[Score]) -> list[float]:
        """The values of samples that are compared with each other; NaN where no member scored."""
        if not scores:
            return []
        values = np.stack([self._values(i, scores) for i in range(len(self.members))])
        unscored = np.isnan(values).all(0)
        pooled = np.full(values.shape[1], np.nan)
        if not unscored.all():
            pooled[~unscored] = self._pool(values[:, ~unscored])
        return [float(value) for value in pooled]

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The weighted sum of the members' rewards, with the gradient of `pixels`; for ``how="sum"`` only."""
        if not self.differentiable:
            return super().rewards(pixels, prompts)
        total = torch.zeros(len(pixels), dtype=torch.float32, device=pixels.device)
        for weight, member in zip(self.weights.tolist(), self.members, strict=True):
            total = total + weight * member.rewards(pixels, prompts)
        return total

    def _pool(self, values: Floats) -> Floats:
        if self.how == "rank":
            return self.weights @ np.stack([ranks(row) for row in values])
        if self.how == "zscore":
            return self.weights @ np.stack([z_scores(row) for row in values])
        if self.how == "sum":
            return self.weights @ values
        if self.how == "product":
            with np.errstate(invalid="ignore"):  # a root of a negative value is none
                return np.prod([filled(row) ** w for row, w in zip(values, self.weights)], axis=0)
        if self.how == "minimum":
            return np.stack([z_scores(row) for row in values]).min(0)
        levels = np.stack([ranks(row) for row in values])
        return levels.mean(0) - pareto_fronts(levels)


def _usable(weights: Sequence[float], n: int, *, signed: bool) -> bool:
    """Whether weights are `n` finite numbers that are not all 0, and none is negative unless `signed`."""
    return (
        len(weights) == n
        and all(math.isfinite(weight) for weight in weights)
        and any(weights)
        and (signed or min(weights) >= 0)
    )


def ranks(values: Floats) -> Floats:
    """Share of the other samples that each one beats, a tie being half: 0 is worst, 1 is best.

    Args:
        values: ``(n,)``; NaN, where there is none, gets 0.5 and is left out for all others.
    """
    found = np.full(len(values), 0.5)
    known = ~np.isnan(values)
    if known.sum() > 1:
        found[known] = (rankdata(values[known]) - 1) / (known.sum() - 1)
    return found


def z_scores(values: Floats) -> Floats:
    """Distance from the mean in standard deviations; 0 where there is no value, and if all are equal.

    Args:
        values: ``(n,)``, NaN where there is none.
    """
    known = values[~np.isnan(values)]
    if not len(known) or np.ptp(known) == 0:
        return np.zeros(len(values))
    return np.nan_to_num((values - known.mean()) / known.std(), nan=0.0)


def filled(values: Floats) -> Floats:
    """The values, with the median of all in the place of those that are missing; 1 if all are.

    Args:
        values: ``(n,)``, NaN where there is none.
    """
    if np.isnan(values).all():
        return np.ones(len(values))
    return np.where(np.isnan(values), np.nanmedian(values), values)


def pareto_fronts(values: Floats) -> NDArray[np.int64]:
    """The front that each sample is on: 0 is dominated by none, 1 only by those on front 0, and so on.

    One sample dominates another if it is nowhere worse and somewhere better.

    Args:
        values: ``(members, n)``.
    """
    at_least = (values[:, :, None] >= values[:, None, :]).all(0)
    above = (values[:, :, None] > values[:, None, :]).any(0)
    dominates = at_least & above
    fronts = np.full(values.shape[1], -1)
    front = 0
    while (left := fronts < 0).any():
        fronts[left & ~(dominates & left[:, None]).any(0)] = front
        front += 1
    return fronts
