"""The batch of TTS-VAR: which scales select, how, and how many candidates go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from tts_vision.algorithms._common import at_least
from tts_vision.algorithms._scales import selection_scales
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError

PAPER_SIZES = (8, 6, 4, 2, 1)  # the batch at first and after each selection


@dataclass(frozen=True)
class Selection:
    """A selection of the batch after a scale.

    Attributes:
        scale: The scale, from 0.
        how: ``cluster`` keeps one of each cluster of features, ``resample`` draws by potentials of rewards,
            ``branch`` copies all equally often.
        size: The batch that goes on.
    """

    scale: int
    how: Literal["cluster", "resample", "branch"]
    size: int


@dataclass(frozen=True)
class BatchSchedule:
    """Candidates at first, and all selections in order."""

    start: int
    selections: tuple[Selection, ...]


def batch_schedule_of(
    ctx: SearchContext,
    n: int | None,
    sizes: list[int] | None,
    clustering: bool,
    cluster_scales: Sequence[int] | None,
    resample_scales: Sequence[int] | None,
) -> BatchSchedule:
    """The schedule of a search: the sizes that are asked for, or the paper's in proportion to `n`.

    Raises:
        ConfigError: If they do not fit the scales.
    """
    clusters, resamplings = selection_scales(ctx, clustering, cluster_scales, resample_scales)
    if sizes is not None:
        return checked_schedule(ctx, n, sizes, clusters, resamplings)
    return scaled_schedule(n or PAPER_SIZES[0], clusters, resamplings)


def checked_schedule(
    ctx: SearchContext, n: int | None, sizes: list[int], clusters: list[int], resamplings: list[int]
) -> BatchSchedule:
    """The schedule that is asked for as one size for each scale.

    Raises:
        ConfigError: If it does not fit the scales, or changes where it cannot.
    """
    scales = ctx.num_steps
    if n is not None:
        raise ConfigError(
            f"A batch_schedule says how many candidates there are but n={n} does so too; drop one."
        )
    if len(sizes) != scales:
        raise ConfigError(
            f"batch_schedule must have one size for each of {scales} scales but got {len(sizes)}: {sizes}; "
            "add or drop some."
        )
    at_least(1, **{"each size of batch_schedule": min(sizes)})
    selections = []
    for scale, (before, size) in enumerate(pairwise(sizes), start=1):
        if size > before and scale in clusters:
            raise ConfigError(
                "Clusters must not be more than the candidates they are made of but batch_schedule goes "
                f"from {before} to {size} at scale {scale} of cluster_scales; lower it, or grow elsewhere."
            )
        if size > before and (scale == scales - 1 or not ctx.can_fork_at(scale + 1)):
            raise ConfigError(
                "A batch can grow only where copies can still differ, but batch_schedule goes from "
                f"{before} to {size} at scale {scale} and no step after it adds noise; grow earlier or not "
                "at all."
            )
        if scale in resamplings and max(before, size) > 1:
            selections.append(Selection(scale, "resample", size))
        elif size < before and scale in clusters:
            selections.append(Selection(scale, "cluster", size))
        elif size < before:
            raise ConfigError(
                f"A batch can shrink only at a selection but batch_schedule goes from {before} to {size} at "
                f"scale {scale}, and selections are at cluster_scales {clusters} and resample_scales "
                f"{resamplings}; add the scale to one of them, or keep the size."
            )
        elif size > before:
            selections.append(Selection(scale, "branch", size))
    return BatchSchedule(sizes[0], tuple(selections))


def scaled_schedule(start: int, clusters: list[int], resamplings: list[int]) -> BatchSchedule:
    """The paper's batch in proportion, along the same line at any number of selections.

    Clusters leave at least two candidates, for rewards to choose from.
    """
    scales = sorted([*clusters, *resamplings])
    at = np.linspace(0, len(PAPER_SIZES) - 1, len(scales) + 1)[1:]
    shares = np.interp(at, range(len(PAPER_SIZES)), PAPER_SIZES) / PAPER_SIZES[0]
    selections, before = [], start
    for scale, share in zip(scales, shares):
        size = max(1, int(start * share + 0.5))
        if scale in clusters:
            size = min(before, max(size, 2))
            selections += [Selection(scale, "cluster", size)] if size < before else []
        elif before > 1:
            selections.append(Selection(scale, "resample", size))
        before = size
    return BatchSchedule(start, tuple(selections))
