"""Feynman-Kac steering: particles that are resampled by potentials of their intermediate rewards."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import torch

from tts_vision.algorithms._common import at_least, check_steps, fraction, resampling_steps
from tts_vision.algorithms._lines import Lines, auto_strength
from tts_vision.context import SearchContext
from tts_vision.registry import register
from tts_vision.resampling import SCHEMES, Floats, ess, fill_unscored, log_mean_exp, normalise
from tts_vision.types import State

Potential: TypeAlias = Literal["max", "diff", "add", "rt"]


@register(
    "algorithm",
    "fk_steering",
    size="n",
    needs={"stochastic", "preview"},
    wants_stochastic=True,
    paper="Singhal et al. 2025, arXiv:2501.06848",
)
def fk_steering(
    ctx: SearchContext,
    *,
    n: int = 4,
    potential: Potential = "max",
    lam: float | Literal["auto"] = "auto",
    start: float = 0.2,
    every: float = 0.2,
    end: float = 0.8,
    resample_steps: list[int] | None = None,
    ess_threshold: float | None = 0.5,
    scheme: Literal["systematic", "stratified", "residual", "ssp", "multinomial"] = "systematic",
) -> State:
    """FK steering: particles resampled by their rewards on the way (Singhal et al. 2025).

    By their weights (`Result.weights`) the final particles follow the model's distribution tilted by
    ``exp(lam * reward)``. For draws from that law use ``potential="diff"``, whose error is smallest.

    Args:
        n: Particles.
        potential: The favoured lineages: ``max`` a high reward at any step so far, ``diff`` a rise,
            ``add`` a high sum, ``rt`` a high reward now.
        lam: How sharply rewards turn into weights: a reward higher by ``1 / lam`` weighs e times more.
            ``auto`` fits it to the verifier: at the first resampling the effective sample size is just low
            enough to resample. The paper uses 10 for ImageReward.
        start: Share of the trajectory done at the first resampling.
        every: Share of the trajectory between resamplings.
        end: Share of the trajectory done at the last resampling.
        resample_steps: Steps done at each resampling, instead of `start`, `every`, `end`.
        ess_threshold: Resample only where the effective sample size is below this share of n and keep
            the weights otherwise; none resamples each time.
        scheme: Resampling scheme.
    """
    at_least(1, n=n)
    at_least(0, lam=None if lam == "auto" else lam)
    fraction(ess_threshold=ess_threshold)
    planned = resampling_steps(ctx.num_steps, start, every, end) if resample_steps is None else resample_steps
    steps = [step for step in check_steps(planned, ctx.num_steps) if ctx.can_fork_at(step)]

    strength = None if lam == "auto" else float(lam)
    state = ctx.init(n)
    history = np.full(n, -np.inf if potential == "max" else 0.0)
    log_product, log_weight, log_z, lines = np.zeros(n), np.zeros(n), 0.0, Lines(n)
    for step in steps:
        state = ctx.advance(state, step - state.step)
        rewards = ctx.score(state).numpy()
        if strength is None and (strength := auto_strength(ctx, rewards, ess_threshold)) is None:
            continue  # nothing to choose by yet
        log_g, history = log_potential(potential, strength, rewards, history, log_product)
        log_product, log_weight = log_product + log_g, log_weight + log_g
        weights = normalise(log_weight)
        ctx.note(step=step, ess=ess(weights))
        if ess_threshold is None or ess(weights) < ess_threshold * n:
            ancestors = SCHEMES[scheme](weights, n, ctx.rng())
            lines.resampled(ancestors)
            state, log_z = ctx.select(state, ancestors.tolist()), log_z + log_mean_exp(log_weight)
            history, log_product, log_weight = history[ancestors], log_product[ancestors], np.zeros(n)
    state = ctx.finish(state)
    rewards = ctx.score(state).numpy()
    strength = auto_strength(ctx, rewards, ess_threshold) or 0.0 if strength is None else strength
    log_weight = log_weight + log_terminal(strength, rewards, log_product)
    ctx.weigh(state, log_weight, log_z + log_mean_exp(log_weight))
    lines.warn(ctx, f"lam={strength:g}")
    return replace(state, carry={**state.carry, "log_weight": torch.from_numpy(log_weight)})


def log_potential(
    potential: Potential, lam: float, rewards: Floats, history: Floats, log_product: Floats
) -> tuple[Floats, Floats]:
    """The log of each particle's potential before the end, and its new reward history.

    ``diff`` is ``exp(lam r) / product``: the rise since the last reward, because the product of the
    potentials before is ``exp(lam * last reward)``. An unscored particle gets the mean potential.

    Args:
        potential: Which.
        lam: Strength.
        rewards: ``(n,)`` rewards now; NaN where unscored.
        history: ``(n,)`` highest (``max``), summed (``add``) or last (``diff``, ``rt``) reward so far.
        log_product: ``(n,)`` sum of the log-potentials of each particle's lineage.
    """
    unscored = np.isnan(rewards)
    now = {"max": np.maximum(rewards, history), "add": rewards + history, "diff": rewards, "rt": rewards}[
        potential
    ]
    log_g = lam * now - (log_product if potential == "diff" else 0.0)
    return fill_unscored(log_g), np.where(unscored, history, now)


def log_terminal(lam: float, rewards: Floats, log_product: Floats) -> Floats:
    """The log-potential at the end, ``lam r - log product``: with it all multiply to ``exp(lam r)``."""
    return fill_unscored(lam * rewards - log_product)
