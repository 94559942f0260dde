"""TTS-VAR: a batch that shrinks from scale to scale, by diversity while coarse and by reward when fine."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from tts_vision.algorithms._batches import batch_schedule_of
from tts_vision.algorithms._common import at_least
from tts_vision.algorithms._lines import auto_strength
from tts_vision.context import SearchContext
from tts_vision.diversity import representatives
from tts_vision.features import PAPER_FEATURES
from tts_vision.registry import register
from tts_vision.resampling import SCHEMES, Floats, ess, normalise
from tts_vision.types import State

Potential: TypeAlias = Literal["value", "max", "sum", "diff"]


@register(
    "algorithm",
    "tts_var",
    size="n",
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
    lam: float | Literal["auto"] = "auto",
    scheme: Literal["multinomial", "systematic", "stratified", "residual", "ssp"] = "multinomial",
) -> State:
    """TTS-VAR: candidates pruned by diversity at coarse scales, by reward at fine ones (Chen et al. 2025).

    A selection comes after its scale was generated and acts from the next one on. The batch is that of the
    paper, 8, 6, 4, 2, 1 before and after the four selections, in proportion to `n`; at other numbers of
    scales selections come at the same shares of the trajectory, and at other numbers of selections the batch
    falls along the same line.

    Args:
        n: Candidates at first; 8 without a budget.
        batch_schedule: Candidates after each scale, instead; the first number is that at the start. It
            shrinks at selections only but may grow anywhere: candidates then branch.
        clustering: Whether coarse selections are by clusters; otherwise they are by rewards too.
        cluster_scales: Scales, from 0, after which one candidate of each cluster is kept; by default as the
            paper's 2 and 5 of 13.
        resample_scales: Scales after which candidates are resampled by rewards; by default as the paper's 6
            and 9 of 13.
        features: Embeddings to cluster, such as dino_features:pool=patches_mean; by default DINOv2's
            patches reduced to one number each, or the features that the model names.
        potential: The favoured lineages: ``value`` a high reward now, ``max`` at any resampling so far,
            ``sum`` a high sum over them, ``diff`` a rise since the last one.
        lam: How sharply rewards turn into weights: a reward higher by ``1 / lam`` weighs e times more; the
            paper uses 10 for ImageReward. ``auto`` fits it to the verifier: at the first resampling the
            effective sample size is just below half of the candidates.
        scheme: Resampling scheme.
    """
    at_least(1, n=n)
    at_least(0, lam=None if lam == "auto" else lam)
    plan = batch_schedule_of(ctx, n, batch_schedule, clustering, cluster_scales, resample_scales)
    clusters = any(selection.how == "cluster" for selection in plan.selections)
    embedder = ctx.extractor(features or PAPER_FEATURES) if clusters else None

    strength = None if lam == "auto" else float(lam)
    state = ctx.init(plan.start)
    history = np.empty((0, plan.start))  # rewards of each candidate's lineage at the resamplings so far
    for selection in plan.selections:
        state = ctx.advance(state, selection.scale + 1 - state.step)
        if selection.how == "cluster" and embedder is not None:
            kept = representatives(ctx.features(state, embedder).numpy(), selection.size)
        elif selection.how == "resample":
            history = np.vstack([history, ctx.score(state).numpy()])
            if strength is None:
                strength = auto_strength(ctx, history[-1], None)
            weights = normalise(log_potential(potential, strength or 0.0, history))
            ctx.note(scale=selection.scale, ess=ess(weights))
            kept = SCHEMES[scheme](weights, selection.size, ctx.rng()).tolist()
        else:
            kept = sorted(i % len(state) for i in range(selection.size))
        state, history = ctx.select(state, kept), history[:, kept]
    state = ctx.finish(state)
    ctx.score(state)
    return state


def log_potential(potential: Potential, lam: float, history: Floats) -> Floats:
    """The log of each candidate's weight.

    A reward that is missing earlier counts as the mean of the lineage's others; a candidate that is unscored
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
