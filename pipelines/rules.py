"""The stochastic steps that the options of a sampler ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from tts_vision.config import SamplerOptions
from tts_vision.errors import ConfigError
from tts_vision.pipelines.schedule import is_flow
from tts_vision.pipelines.stochastic import Level, ddim_std, ddim_step, diffusion, euler_step


@dataclass(frozen=True)
class DDIMRule:
    """DDIM steps with noise of strength `eta`."""

    eta: float

    def __call__(
        self, x: Tensor, output: Tensor, x0: Tensor, eps: Tensor, now: Level, then: Level, noise: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        std = ddim_std(now, then, self.eta)
        prev, added = ddim_step(x0, eps, then, std, noise)
        return prev, added, std


@dataclass(frozen=True)
class EulerRule:
    """Euler-Maruyama steps of a flow model with the diffusion coefficient `g`."""

    g: Callable[[float], float]
    interpolant: str

    def __call__(
        self, x: Tensor, output: Tensor, x0: Tensor, eps: Tensor, now: Level, then: Level, noise: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        return euler_step(output, x, now.sigma, then.sigma, noise, self.g, self.interpolant)


Rule: TypeAlias = "DDIMRule | EulerRule"


def step_rule(options: SamplerOptions, scheduler: Any) -> Rule:
    """The stochastic step that `options` ask for.

    Raises:
        ConfigError: If the scheduler is not of its kind.
    """
    if options.sde == "ddim":
        return DDIMRule(options.eta)
    if not is_flow(scheduler):
        raise ConfigError(
            f"sde='euler' needs a flow model but the scheduler is {type(scheduler).__name__}; use sde='ddim'."
        )
    return EulerRule(diffusion(options.diffusion, options.diffusion_norm), options.interpolant)


def described(options: SamplerOptions) -> str:
    """The stochastic step that `options` ask for, in words."""
    if options.sde == "ddim":
        return f"ddim, eta={options.eta:g}"
    return f"euler, diffusion={options.diffusion}, diffusion_norm={options.diffusion_norm:g}"
