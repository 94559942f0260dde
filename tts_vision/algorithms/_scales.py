"""The scales after which TTS-VAR selects."""

from __future__ import annotations

from collections.abc import Sequence

from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError

# Of the paper, for Infinity's 13 scales.
PAPER_SCALES, PAPER_CLUSTERS, PAPER_RESAMPLINGS = 13, (2, 5), (6, 9)


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
