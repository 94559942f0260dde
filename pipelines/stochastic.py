"""Stochastic steps for generators whose own solver is deterministic.

All formulas are in the coordinates of a marginal ``x = alpha x0 + sigma eps``. `ddim_step` keeps the
marginals exactly for an exact model; `euler_step` is an Euler-Maruyama step of the reverse SDE with a
free diffusion coefficient ``g(t)``, on the generator's own linear interpolant or, converted, on the
variance-preserving one.

Sources: Song et al. 2021 (DDIM); Kim et al. 2025, "Inference-time scaling for flow models via stochastic
generation and rollover budget forcing".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tts_vision.errors import ConfigError

BETA_MIN, BETA_MAX = 0.1, 20.0


@dataclass(frozen=True)
class Level:
    """A noise level: ``x = alpha x0 + sigma eps``."""

    alpha: float
    sigma: float


def ddim_std(now: Level, then: Level, eta: float) -> float:
    """Standard deviation of the noise that a DDIM step adds (Song et al. 2021, eq. 16)."""
    if not then.sigma:
        return 0.0
    kept = now.alpha / then.alpha * then.sigma if then.alpha else 0.0
    return eta * then.sigma / now.sigma * math.sqrt(max(now.sigma**2 - kept**2, 0.0))


def ddim_step(x0: Tensor, eps: Tensor, then: Level, std: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A DDIM step to level `then`: its result and the noise it added.

    Args:
        x0: ``(B, ...)`` prediction of the finished sample.
        eps: ``(B, ...)`` prediction of the noise.
        then: Level to go to.
        std: From `ddim_std`.
        noise: ``(B, ...)`` standard normal.
    """
    added = std * noise
    return then.alpha * x0 + math.sqrt(max(then.sigma**2 - std**2, 0.0)) * eps + added, added


def guidance_gain(now: Level, then: Level, std: float) -> float:
    """How far a DDIM step moves when the score at its start moves by one (Bansal et al. 2023).

    The score enters through ``eps = -sigma score`` and ``x0 = (x - sigma eps) / alpha``. At pure noise,
    where the estimate of the finished sample says nothing yet, it is 0.

    Args:
        now: Level that the step starts from.
        then: Level to go to.
        std: Standard deviation of the noise that it adds.
    """
    if now.alpha < 1e-6:
        return 0.0
    kept = math.sqrt(max(then.sigma**2 - std**2, 0.0))
    return now.sigma * (then.alpha * now.sigma / now.alpha - kept)


def renoise(x: Tensor, now: Level, earlier: Level, noise: Tensor) -> Tensor:
    """`x` sent back to the noisier level `earlier` by the exact forward kernel."""
    kept = earlier.alpha / now.alpha
    return kept * x + math.sqrt(max(earlier.sigma**2 - (kept * now.sigma) ** 2, 0.0)) * noise


@dataclass(frozen=True)
class Interpolant:
    """A path ``x_r = alpha x0 + sigma eps`` and its time derivatives at one ``r`` in (0, 1]; 1 is noise."""

    alpha: float
    sigma: float
    d_alpha: float
    d_sigma: float


def linear(t: float) -> Interpolant:
    """The rectified-flow path: ``alpha = 1 - t``, ``sigma = t``."""
    return Interpolant(1 - t, t, -1.0, 1.0)


def variance_preserving(r: float) -> Interpolant:
    """The VP path: ``alpha = exp(-B/2)``, ``sigma^2 = 1 - exp(-B)``, ``B = r^2 (20 - 0.1) / 2 + 0.1 r``."""
    integral = 0.5 * r * r * (BETA_MAX - BETA_MIN) + BETA_MIN * r
    rate = r * (BETA_MAX - BETA_MIN) + BETA_MIN
    alpha, sigma = math.exp(-integral / 2), math.sqrt(-math.expm1(-integral))
    return Interpolant(alpha, sigma, -0.5 * rate * alpha, 0.5 * rate * math.exp(-integral) / sigma)


def linear_time(path: Interpolant) -> float:
    """The time on the linear path with the same signal-to-noise ratio."""
    return path.sigma / (path.alpha + path.sigma)


def variance_preserving_time(t: float) -> float:
    """The ``r`` at which the VP path has the signal-to-noise ratio of the linear path at `t`."""
    if t >= 1:
        return 1.0
    integral = math.log1p((t / (1 - t)) ** 2)
    slope = BETA_MAX - BETA_MIN
    return min(1.0, (-BETA_MIN + math.sqrt(BETA_MIN**2 + 2 * slope * integral)) / slope)


def convert_velocity(velocity: Tensor, x: Tensor, path: Interpolant) -> Tensor:
    """The velocity on `path` of a model trained on the linear path.

    ``u(x, r) = s'/s x + t' s u_base(x / s, t)`` with ``s = sigma_r / t`` and
    ``t = sigma_r / (alpha_r + sigma_r)``.

    Args:
        velocity: ``(B, ...)`` the model's output at ``(x / s, t)``.
        x: ``(B, ...)`` the sample on `path`.
        path: `variance_preserving` at the time wanted.
    """
    scale, d_scale, d_time = _change_of_path(path)
    return d_scale / scale * x + d_time * scale * velocity


def tweedie(velocity: Tensor, x: Tensor, path: Interpolant) -> Tensor:
    """The expected finished sample: ``(sigma u - sigma' x) / (alpha' sigma - sigma' alpha)``."""
    return (path.sigma * velocity - path.d_sigma * x) / (
        path.d_alpha * path.sigma - path.d_sigma * path.alpha
    )


def score(velocity: Tensor, x: Tensor, path: Interpolant) -> Tensor:
    """Gradient of the log-density: ``((alpha/alpha') u - x) / (sigma^2 - (alpha/alpha') sigma' sigma)``."""
    ratio = path.alpha / path.d_alpha
    return (ratio * velocity - x) / (path.sigma**2 - ratio * path.d_sigma * path.sigma)


DIFFUSIONS: dict[str, Callable[[float], float]] = {
    "constant": lambda r: 1.0,
    "sigma": math.sqrt,
    "linear": lambda r: r,
    "square": lambda r: r * r,
    "sin": lambda r: math.sin(math.pi * r / 2),
    "exp": lambda r: math.expm1(r) / math.expm1(1.0),
}


def diffusion(name: str, norm: float) -> Callable[[float], float]:
    """``g(r) = norm * shape(r)``, with every shape 1 at ``r = 1``.

    Raises:
        ConfigError: If there is no such shape.
    """
    if name not in DIFFUSIONS:
        raise ConfigError(f"A diffusion coefficient must be one of {', '.join(DIFFUSIONS)} but got {name!r}.")
    shape = DIFFUSIONS[name]
    return lambda r: norm * shape(r)


def euler_step(
    velocity: Tensor,
    x: Tensor,
    t: float,
    t_next: float,
    noise: Tensor,
    g: Callable[[float], float],
    interpolant: str = "linear",
) -> tuple[Tensor, Tensor, float]:
    """An Euler-Maruyama step of the reverse SDE, in the coordinates of the linear path.

    ``x <- x + (-u + g^2/2 score) dt + g sqrt(dt) eps``, ``dt > 0`` towards the data. The step that ends
    at 0 is the noiseless one, which is the Tweedie estimate.

    Args:
        velocity: ``(B, ...)`` the model's output at ``(x, t)``.
        x: ``(B, ...)`` the sample.
        t: Time on the linear path, in (0, 1].
        t_next: Time to go to, less than `t`.
        noise: ``(B, ...)`` standard normal.
        g: Diffusion coefficient as a function of the interpolant's own time.
        interpolant: ``"linear"`` or ``"vp"``.

    Returns:
        The next sample, the noise that was added, and the standard deviation of that noise.
    """
    if t_next <= 0:
        return x - t * velocity, x.new_zeros(()).expand_as(x), 0.0
    if interpolant == "linear":
        r, r_next, scale, scale_next = t, t_next, 1.0, 1.0
        path = linear(t)
        u, y = velocity, x
    else:
        r, r_next = variance_preserving_time(t), variance_preserving_time(t_next)
        path, path_next = variance_preserving(r), variance_preserving(r_next)
        scale, scale_next = path.alpha + path.sigma, path_next.alpha + path_next.sigma
        y = scale * x
        u = convert_velocity(velocity, y, path)
    dt = r - r_next
    drift = -u + 0.5 * g(r) ** 2 * score(u, y, path)
    std = g(r) * math.sqrt(dt) / scale_next
    added = std * noise
    return (y + drift * dt) / scale_next + added, added, std


def _change_of_path(path: Interpolant) -> tuple[float, float, float]:
    """Scale ``s``, ``ds/dr`` and ``dt/dr`` of the change from the linear path."""
    time = linear_time(path)
    base = linear(time)
    scale = path.sigma / base.sigma
    d_time = (
        base.sigma**2
        * (path.sigma * path.d_alpha - path.alpha * path.d_sigma)
        / (path.sigma**2 * (base.sigma * base.d_alpha - base.alpha * base.d_sigma))
    )
    d_scale = (base.sigma * path.d_sigma - path.sigma * base.d_sigma * d_time) / base.sigma**2
    return scale, d_scale, d_time
