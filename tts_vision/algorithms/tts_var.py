"""TTS-VAR: a batch that shrinks from scale to scale, by diversity while coarse and by reward when fine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, Literal, TypeAlias

import numpy as np

from tts_vision.algorithms._common import at_least, check_affordable, measured
from tts_vision.algorithms.best_of_n import best_of_n, spend_rest
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.features import PAPER_FEATURES
from tts_vision.ledger import Remaining
from tts_vision.registry import register
from tts_vision.resampling import SCHEMES, Floats, ess, normalise
from tts_vision.types import Cost, State

Potential: TypeAlias = Literal["value", "max", "sum", "diff"]

# Of the paper, for Infinity's 13 scales: the batch at first and after each selection.
PAPER_SIZES, PAPER_SCALES = (8, 6, 4, 2, 1), 13
PAPER_CLUSTERS, PAPER_RESAMPLINGS = (2, 5), (6, 9)


@dataclass(frozen=True)
class Selection:
    """What happens to the batch after a scale.

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
class Plan:
    """Candidates at first, and all selections in order."""

    start: int
    selections: tuple[Selection, ...]


@register(
    "algorithm",
    "tts_var",
    needs={"stochastic", "preview"},
    wants_stochastic=True,
    paper="Chen et al. 2025, arXiv:2507.18537",
)
def tts_var(
    ctx: SearchContext,
    *,
    n: int | None = None,
    batch_schedule: list[int] | None = None,
    clustering: bool = True,
    cluster_scales: list[int] | None = None,
    resample_scales: list[int] | None = None,
    features: str | None = None,
    potential: Potential = "value",
    lam: float = 10.0,
    scheme: Literal["multinomial", "systematic", "stratified", "residual", "ssp"] = "multinomial",
) -> State:
    """TTS-VAR: candidates pruned by diversity at coarse scales, by reward at fine ones (Chen et al. 2025).

    A selection comes after its scale was generated and acts from the next one on. Where sizes are left open,
    the batch is that of the paper, 8, 6, 4, 2, 1 before and after the four selections, as many times as the
    budget pays for; at other numbers of scales selections stand at the same shares of the way, and at other
    numbers of selections the batch falls along the same line.

    Args:
        n: Candidates at first; by default as many as the budget pays for, or 8 without a budget.
        batch_schedule: Candidates after each scale, instead; the first number is that at the start. It
            shrinks at selections only but may grow anywhere: candidates then branch.
        clustering: Whether coarse selections are by clusters; otherwise they are by rewards too.
        cluster_scales: Scales, from 0, after which one candidate of each cluster is kept; by default as the
            paper's 2 and 5 of 13.
        resample_scales: Scales after which candidates are resampled by rewards; by default as the paper's 6
            and 9 of 13.
        features: What clusters are made of, such as dino_features:pool=patches_mean; by default DINOv2's
            patches reduced to one number each, and on the playground its own features.
        potential: What resampling favours: ``value`` a high reward now, ``max`` at any resampling so far,
            ``sum`` a high sum over them, ``diff`` a rise since the last one.
        lam: How sharply rewards turn into weights: a reward higher by ``1 / lam`` weighs e times more.
        scheme: Resampling scheme.
    """
    at_least(1, n=n)
    at_least(0, lam=lam)
    clusters, resamplings = selection_scales(ctx, clustering, cluster_scales, resample_scales)
    plan: Plan | None = None
    if batch_schedule is not None:
        plan = checked_plan(ctx, n, batch_schedule, clusters, resamplings)
    elif n is not None:
        plan = scaled_plan(n, clusters, resamplings)
    embedder = ctx.extractor(features or PAPER_FEATURES) if clusters else None
    left, fill = measured(ctx), plan is None
    if plan is None:
        plan = largest_plan(ctx, left, clusters, resamplings)
    else:
        sizes = [plan.start, *(selection.size for selection in plan.selections)]
        check_affordable(left, total_cost(ctx, plan), f"a batch of {', then '.join(map(str, sizes))}")
    if plan is None:  # not even two candidates to choose from
        return best_of_n(ctx)

    state = ctx.init(plan.start)
    history = np.empty((0, plan.start))  # rewards of each candidate's lineage at the resamplings so far
    for selection in plan.selections:
        state = ctx.advance(state, selection.scale + 1 - state.step)
        if selection.how == "cluster" and embedder is not None:
            kept = representatives(ctx.features(state, embedder).numpy(), selection.size)
        elif selection.how == "resample":
            history = np.vstack([history, ctx.score(state).numpy()])
            weights = normalise(log_potential(potential, lam, history))
            ctx.note(scale=selection.scale, ess=ess(weights))
            kept = SCHEMES[scheme](weights, selection.size, ctx.rng()).tolist()
        else:
            kept = sorted(i % len(state) for i in range(selection.size))
        state, history = ctx.select(state, kept), history[:, kept]
    state = ctx.finish(state)
    ctx.score(state)
    if fill:
        spend_rest(ctx)
    return state


def log_potential(potential: Potential, lam: float, history: Floats) -> Floats:
    """The log of each candidate's weight.

    What was unscored earlier counts as the mean of the lineage's other rewards; a candidate that is unscored
    now has NaN, for the mean weight of the others.

    Args:
        potential: Which.
        lam: Strength.
        history: ``(K, B)`` rewards of each lineage at the resamplings so far, the last one now; NaN where
            unscored.
    """
    now, before = history[-1], history[:-1]
    scored = ~np.isnan(history)
    if potential == "value" or not len(before):
        reward = now
    elif potential == "max":
        reward = np.where(scored, history, -np.inf).max(0)
    elif potential == "sum":
        counts = np.maximum(scored.sum(0), 1)
        reward = np.where(scored, history, 0.0).sum(0) * (len(history) / counts)
    else:
        reward = now - _last_scored(before)
    return np.where(np.isnan(now), np.nan, lam * reward)


def _last_scored(history: Floats) -> Floats:
    """The last number of each column; NaN where there is none."""
    last = np.full(history.shape[1], np.nan)
    for row in history:
        last = np.where(np.isnan(row), last, row)
    return last


def representatives(features: Any, k: int) -> list[int]:
    """`k` rows that stand for all: of each k-means cluster the one nearest to the centroid, in order.

    Where fewer than `k` rows differ, equal ones fill up.

    Args:
        features: ``(B, D)``.
        k: At most B.
    """
    from sklearn.cluster import KMeans

    rows = np.asarray(features, dtype=np.float64)
    clusters = min(k, len(np.unique(rows, axis=0)))
    means = KMeans(n_clusters=clusters, random_state=0, n_init=10).fit(rows)
    distance = np.linalg.norm(rows - means.cluster_centers_[means.labels_], axis=1)
    nearest: dict[int, int] = {}
    for i in np.argsort(distance, kind="stable").tolist():
        nearest.setdefault(int(means.labels_[i]), i)
    chosen = list(nearest.values())
    others = [i for i in range(len(rows)) if i not in chosen]
    return sorted(chosen + others[: k - len(chosen)])


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


def checked_plan(
    ctx: SearchContext, n: int | None, sizes: list[int], clusters: list[int], resamplings: list[int]
) -> Plan:
    """The plan of a batch schedule.

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
    return Plan(sizes[0], tuple(selections))


def scaled_plan(start: int, clusters: list[int], resamplings: list[int]) -> Plan:
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
    return Plan(start, tuple(selections))


def largest_plan(
    ctx: SearchContext, left: Remaining, clusters: list[int], resamplings: list[int]
) -> Plan | None:
    """The largest scaled plan that can be paid for, that of the paper without a budget; None if there is no
    choice to make.
    """
    if not clusters and not resamplings:
        return None
    if left.times(ctx.cost()) is None:
        return scaled_plan(PAPER_SIZES[0], clusters, resamplings)
    most = left.times(ctx.cost(min([*clusters, *resamplings]) + 1, scored=False))
    fitting = None
    for start in count(2) if most is None else range(2, most + 1):
        larger = scaled_plan(start, clusters, resamplings)
        if not left.affords(total_cost(ctx, larger)):
            break
        fitting = larger
    return fitting


def total_cost(ctx: SearchContext, plan: Plan) -> Cost:
    """What a plan costs at most: every candidate as far as it gets, what is decoded for selections, final
    scores.
    """
    cost, size, step = Cost(), plan.start, 0
    look = {"cluster": Cost(decodes=1), "resample": ctx.score_cost, "branch": Cost()}
    for selection in plan.selections:
        there = selection.scale + 1
        cost += (ctx.cost(there - step, step=step, scored=False) + look[selection.how]) * size
        size, step = selection.size, there
    return cost + ctx.cost(step=step) * size
