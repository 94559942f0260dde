"""DAS: sequential Monte Carlo with tempered targets, and proposals twisted by the gradient of the reward."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from tts_vision.algorithms._common import at_least, fraction
from tts_vision.algorithms._lines import Lines
from tts_vision.algorithms._twist import Twist
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.registry import register
from tts_vision.resampling import SCHEMES, ess, log_mean_exp, normalise
from tts_vision.tempering import Tempering, adaptive, tempered, weighed
from tts_vision.types import State


@register(
    "algorithm",
    "das",
    size="n",
    needs={"stochastic", "step_noise", "preview", "differentiable"},
    wants_stochastic=True,
    paper="Kim et al. 2025, arXiv:2501.05803",
)
def das(
    ctx: SearchContext,
    *,
    n: int = 4,
    alpha: float = 0.01,
    tempering: Tempering = "exp",
    gamma: float | None = None,
    power: float = 1.0,
    ess_threshold: float = 0.5,
    scheme: Literal["systematic", "stratified", "residual", "ssp", "multinomial"] = "ssp",
) -> State:
    """DAS: SMC from the model to ``p(x) exp(r(x) / alpha)``, guided by gradients (Kim et al. 2025).

    At each step the particles are weighed by the rise of the tempered reward of their previews, resampled
    when the effective sample size is low, and moved by the model's step shifted along the gradient of that
    reward; the weights correct for the shift. By their weights (`Result.weights`) the particles follow the
    target.

    Args:
        n: Particles.
        alpha: Temperature of the target, in units of the reward; the paper's are 0.005 for the aesthetic
            score, 0.01 for 20 times the CLIP cosine and 0.0001 for PickScore. It cannot be fitted to a
            verifier on the way, because the first gradients are already scaled by it.
        tempering: How the share of the reward that counts rises to 1: ``exp`` as ``(1 + gamma)^i - 1``,
            ``polynomial`` as ``(gamma i)^power``, ``adaptive`` as far as the effective sample size stays at
            the threshold.
        gamma: Speed of the rise; by default it is complete after 87 % of the steps, as in the paper.
        power: Exponent of the polynomial.
        ess_threshold: Resample where the effective sample size is below this share of n.
        scheme: Resampling scheme.
    """
    at_least(1, n=n)
    at_least(0, gamma=gamma, power=power)
    fraction(ess_threshold=ess_threshold)
    if not alpha > 0:
        raise ConfigError(f"alpha must be positive but got {alpha:g}; the paper uses 0.0001 to 0.01.")
    steps = next((s for s in range(ctx.num_steps) if not ctx.can_fork_at(s)), ctx.num_steps)
    x = ctx.init(n)
    log_w, log_ratio, psi, lam = np.zeros(n), np.zeros(n), np.zeros(n), 0.0
    log_z, lines = 0.0, Lines(n)
    for i in range(steps):
        ahead, rewards = ctx.gradient(x)
        r = rewards.numpy() / alpha
        if tempering == "adaptive":
            lam = next_lam = adaptive(log_w + log_ratio - psi, r, lam, ess_threshold)
        else:
            lam, next_lam = (tempered(tempering, at, ctx.num_steps, gamma, power) for at in (i, i + 1))
        log_w, psi = weighed(log_w, log_ratio, lam * r, psi)
        weights = normalise(log_w)
        ctx.note(step=x.step, ess=ess(weights), temperature=lam)
        ancestors = np.arange(n)
        if ess(weights) < ess_threshold * n:
            ancestors = SCHEMES[scheme](weights, n, ctx.rng())
            lines.resampled(ancestors)
            log_w, psi, log_z = np.zeros(n), psi[ancestors], log_z + log_mean_exp(log_w)
        x = ctx.mutate(ahead, Twist(next_lam / alpha), ancestors.tolist())
        log_ratio = ctx.measure(x, "log_ratio").numpy()
    x = ctx.finish(x)
    log_w, _ = weighed(log_w, log_ratio, ctx.score(x).numpy() / alpha, psi)
    ctx.weigh(x, log_w, log_z + log_mean_exp(log_w))
    lines.warn(ctx, f"alpha={alpha:g}")
    return replace(x, carry={**x.carry, "log_weight": torch.from_numpy(log_w)})
