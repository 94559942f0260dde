"""The batch of TTS-VAR: which scales select, how, and how many candidates go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from tts_vision.algorithms._common import at_least
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError

# Of the paper, for Infinity's 13 scales: the batch at first and after each selection.
PAPER_SIZES, PAPER_SCALES = (8, 6, 4, 2, 1), 13
PAPER_CLUSTERS, PAPER_RESAMPLINGS = (2, 5), (6, 9)


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


def selection_scales(
    ctx: SearchContext, clustering: bool, clusters: Sequence[int] | None, resamplings: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """The scales of both kinds of selection.

    Raises:
        ConfigError: If they are not between the first and the last scale, in increasing order and distinct,
            or copies made there could not differ.
    """
    last = ctx.num_steps - 2  # after the last scale there is nothing to select for
    forks = [scale for scale in range(1, last + 1) if ctx.can_fork_at(scale + 1)]
    paper = [scale / (PAPER_SCALES - 1) for scale in (*PAPER_CLUSTERS, *PAPER_RESAMPLINGS)]
    usual = spread(paper, ctx.num_steps, max(forks, default=0))
    early, late = usual[: -len(PAPER_RESAMPLINGS)], usual[-len(PAPER_RESAMPLINGS) :]
    if clusters is None:
        clusters = [scale for scale in early if scale not in (resamplings or [])]
    if resamplings is None:
        resamplings = [scale for scale in late if scale not in clusters]
    clusters, resamplings = list(clusters), list(resamplings)
    for name, scales in (("cluster_scales", clusters), ("resample_scales", resamplings)):
        if sorted(set(scales)) != scales or any(not 1 <= scale <= last for scale in scales):
            raise ConfigError(
                f"{name} must increase and lie between 1 and {last}, the last scale but one, but got "
                f"{scales}; reorder or drop some."
            )
    if both := sorted(set(clusters) & set(resamplings)):
        raise ConfigError(
            "A selection is by clusters or by rewards but cluster_scales and resample_scales both have "
            f"{both}; drop one."
        )
    if not clustering:
        clusters, resamplings = [], sorted([*clusters, *resamplings])
    for scale in resamplings:
        if not ctx.can_fork_at(scale + 1):
            raise ConfigError(
                f"Resampling makes copies, which must be able to differ, but no step after scale {scale} "
                "adds noise; choose earlier resample_scales or a stochastic sampler."
            )
    return clusters, resamplings


def spread(shares: Sequence[float], num_steps: int, last: int) -> list[int]:
    """Distinct increasing scales from 1 to `last` at about these shares of the way; the late ones if all do
    not fit.
    """
    scales: list[int] = []
    for share in shares[-last:] if last > 0 else []:
        scales.append(max(round(share * (num_steps - 1)), 1, *(scale + 1 for scale in scales[-1:])))
    for back, i in enumerate(reversed(range(len(scales)))):
        scales[i] = min(scales[i], last - back)
    return scales


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
