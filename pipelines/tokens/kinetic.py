"""Discrete flow matching over metric-induced paths with kinetic-optimal velocities.

Shaul et al. 2024, "Flow matching with general discrete paths: a kinetic-optimal perspective", with the metric
and the schedule of FUDOKI (Wang et al. 2025). A token is carried from a uniform draw at time 0 to its target
at time 1 by jumps towards it. Everything here is a function of tensors and given uniform numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tts_vision.errors import ConfigError
from tts_vision.tokens import draw

TABLE_SIZE = 4096  # the largest vocabulary of which all distances are kept: 64 MiB
BLOCK = 2**24  # entries of distances that are made at once, in blocks of rows


@dataclass(frozen=True)
class Schedule:
    """The schedule ``beta_t = c (t / (1 - t))^a``: how strongly a path holds to its target at time `t`.

    Attributes:
        c: Its factor.
        a: Its exponent.
    """

    c: float = 3.0
    a: float = 0.9

    def __post_init__(self) -> None:
        if not (self.c > 0 and self.a > 0):
            raise ConfigError(
                f"A schedule needs c and a above 0 but got c={self.c:g}, a={self.a:g}; FUDOKI has 3 and 0.9."
            )

    def beta(self, t: float) -> float:
        """``beta_t`` at a time in [0, 1)."""
        return self.c * (_time(t) / (1 - t)) ** self.a

    def rate(self, t: float) -> float:
        """The derivative of ``beta_t``; 0 at time 0, where it may have none."""
        if not _time(t):
            return 0.0
        return self.c * self.a * (t / (1 - t)) ** (self.a - 1) / (1 - t) ** 2


def distance(a: Tensor, b: Tensor) -> Tensor:
    """``(2 - 2 cos)^2`` of rows `a` ``(N, D)`` to rows `b` ``(V, D)``: ``(N, V)`` float32."""
    unit_a, unit_b = (torch.nn.functional.normalize(x.float(), dim=-1) for x in (a, b))
    return (2 - 2 * (unit_a @ unit_b.T).clamp(-1, 1)) ** 2


@dataclass(frozen=True, eq=False)
class Metric:
    """Distances among the tokens of a codebook; made once where the vocabulary is small.

    Attributes:
        codebook: Embeddings ``(V, D)``, compared by direction alone.
    """

    codebook: Tensor

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return len(self.codebook)

    @cached_property
    def table(self) -> Tensor | None:
        """All distances ``(V, V)``; None where they are too many to keep."""
        return distance(self.codebook, self.codebook) if self.vocabulary <= TABLE_SIZE else None

    def rows(self, ids: Tensor) -> Tensor:
        """Distances ``(N, V)`` of tokens ``(N,)`` to all tokens."""
        if self.table is not None:
            return self.table[ids]
        return distance(self.codebook[ids], self.codebook)


def device_for(network: torch.device) -> torch.device:
    """The device that paths are computed on: that of the network, or the CPU where it has no float64."""
    return torch.device("cpu") if network.type == "mps" else network


def path_probability(distances: Tensor, beta: float) -> Tensor:
    """The path ``p_t(x | x1) = softmax_x(-beta_t d(x, x1))``.

    Args:
        distances: ``(..., V)``, of each token to the target.
        beta: ``beta_t``; 0 gives the uniform distribution of time 0.
    """
    return (-beta * distances).softmax(-1)


def velocity(distances: Tensor, x: Tensor, beta: float, rate: float) -> Tensor:
    """The kinetic-optimal velocity ``u_t(x', x | x1) = p_t(x' | x1) beta'_t [d(x, x1) - d(x', x1)]_+``.

    Jumps lead nearer to the target only: the velocity towards tokens that are no nearer, such as `x` itself,
    is zero.

    Args:
        distances: ``(..., V)``, of each token to the target.
        x: ``(...)``, where the token is.
        beta: ``beta_t``.
        rate: Its derivative by time.
    """
    gain = (distances.gather(-1, x.unsqueeze(-1)) - distances).clamp_min(0)
    return path_probability(distances, beta) * (rate * gain)


def jump_probability(velocities: Tensor, h: float) -> Tensor:
    """The probability ``1 - exp(-h lambda)`` of a jump within `h`, where ``lambda`` is the sum ``(...)``."""
    return -torch.expm1(-h * velocities.sum(-1))


def sample_path(metric: Metric, x1: Tensor, t: float, schedule: Schedule, uniform: Tensor) -> Tensor:
    """Tokens ``x_t ~ p_t(. | x1)`` of targets `x1` ``(B, S)``, by `uniform` ``(B, S)``: exact re-noising.

    Raises:
        ConfigError: If `t` is outside [0, 1).
    """
    beta = schedule.beta(t)

    def drawn(targets: Tensor, numbers: Tensor) -> Tensor:
        return draw(path_probability(metric.rows(targets), beta), numbers)

    return _in_blocks(metric, drawn, x1, uniform)


def euler_step(
    metric: Metric, x: Tensor, x1: Tensor, t: float, h: float, schedule: Schedule, uniform: Tensor
) -> Tensor:
    """One step of the jump process from time `t` to ``t + h``, given the targets that were drawn for it.

    A token jumps with probability ``1 - exp(-h lambda)``, to a token that is drawn by its velocity.

    Args:
        metric: Of the codebook.
        x: Tokens ``(B, S)`` at time `t`.
        x1: Their targets ``(B, S)``.
        t: In [0, 1).
        h: The length of the step.
        schedule: Of the path.
        uniform: ``(2, B, S)``: whether a token jumps, and where to.

    Raises:
        ConfigError: If `t` is outside [0, 1).
    """
    beta, rate = schedule.beta(t), schedule.rate(t)

    def stepped(here: Tensor, targets: Tensor, jumps: Tensor, goals: Tensor) -> Tensor:
        velocities = velocity(metric.rows(targets), here, beta, rate)
        moved = jumps < jump_probability(velocities, h)
        there = here.clone()
        there[moved] = draw(velocities[moved], goals[moved])
        return there

    return _in_blocks(metric, stepped, x, x1, uniform[0], uniform[1])


def _in_blocks(metric: Metric, work: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`work` on all tokens ``(B, S)``, in blocks whose rows of distances fit into memory."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    size = max(1, BLOCK // metric.vocabulary)
    blocks = zip(*(tensor.split(size) for tensor in flat))
    return torch.cat([work(*block) for block in blocks]).view_as(tensors[0])


def _time(t: float) -> float:
    if not (0 <= t < 1 and math.isfinite(t)):
        raise ConfigError(f"The time of a path must be in [0, 1) but got {t:g}; at 1 it is at its target.")
    return t
