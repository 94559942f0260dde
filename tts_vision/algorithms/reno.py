"""ReNO: the initial noise is optimised by the gradient of the reward."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from tts_vision.algorithms._common import at_least, fraction
from tts_vision.context import SearchContext
from tts_vision.gradients import OWN, clipped, norm_penalty_gradient
from tts_vision.moves import Move, carried, register_move
from tts_vision.registry import register
from tts_vision.sampler import Sampler
from tts_vision.types import State


@register(
    "algorithm",
    "reno",
    size="iterations",
    needs={"noise", "differentiable"},
    paper="Eyring et al. 2024, arXiv:2406.04312",
)
def reno(
    ctx: SearchContext,
    *,
    n: int = 1,
    iterations: int = 50,
    reward_weight: float = 1.0,
    regularisation: float = 0.01,
    lr: float = 5.0,
    momentum: float = 0.9,
    clip: float = 0.1,
    patience: int | None = None,
) -> State:
    """ReNO: gradient ascent of the reward in the initial noise, of few-step models (Eyring et al. 2024).

    ``min_e  -reward_weight * r(G(e)) + regularisation * (|e|^2 / 2 - (d - 1) log |e|)`` by SGD with Nesterov
    momentum; the penalty keeps the noise at the norm that Gaussian noise has. Every iterate is a candidate.

    Args:
        n: Noises optimised side by side.
        iterations: Samples of each, one more than steps of the optimiser; the paper's 50.
        reward_weight: Weight of the reward. The paper sums HPSv2 * 5, ImageReward * 1, and CLIP * 0.01 and
            PickScore * 0.05 on their scales of about 30 and 20.
        regularisation: Weight of the penalty on the noise.
        lr: Step size; the paper's, for one-step models.
        momentum: Nesterov momentum.
        clip: Largest norm of a gradient.
        patience: Stop after this many iterations in which no noise got a better score; never by default.
    """
    at_least(1, n=n, iterations=iterations, patience=patience)
    at_least(0, reward_weight=reward_weight, regularisation=regularisation, lr=lr, clip=clip)
    fraction(momentum=momentum)
    ascent = NoiseAscent(reward_weight, regularisation, lr, momentum, clip, back=ctx.num_steps)

    noise = ctx.init(n)
    best, stale = -math.inf, 0
    for i in range(iterations - 1):
        samples, rewards = ctx.gradient(noise, ctx.num_steps)
        scores = ctx.score(samples)
        top = float(scores.nan_to_num(-math.inf).max())
        ctx.note(iteration=i, reward=float(rewards.nanmean()))
        best, stale = (top, 0) if top > best else (best, stale + 1)
        if patience is not None and stale >= patience:
            return samples
        noise = ctx.mutate(samples, ascent)
    samples = ctx.finish(noise)
    ctx.score(samples)
    return samples


@register_move
@dataclass(frozen=True)
class NoiseAscent(Move):
    """A step of the optimiser: from the sample and its gradient back to a better noise.

    Attributes:
        reward_weight, regularisation, lr, momentum, clip: As in `reno`.
        back: Steps between the noise and its sample.
    """

    reward_weight: float
    regularisation: float
    lr: float
    momentum: float
    clip: float
    back: int
    name: ClassVar[str] = "noise_ascent"
    needs: ClassVar[str] = "differentiable"

    @property
    def gradient_steps(self) -> int:
        return self.back

    def target(self, step: int) -> int:
        return step - self.back

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        # steps may be smaller than half precision tells apart, so the noise itself is kept in float32
        origin = carried(state, "origin")
        x = state.carry.get(f"{OWN}noise", origin)
        assert isinstance(x, Tensor)
        x = x.float()
        loss = -self.reward_weight * carried(state, "gradient")
        loss = clipped(loss + self.regularisation * norm_penalty_gradient(x), self.clip)
        before = state.carry.get(f"{OWN}velocity")
        velocity = self.momentum * before + loss if isinstance(before, Tensor) else loss
        x = x - self.lr * (loss + self.momentum * velocity)
        carry = {f"{OWN}noise": x, f"{OWN}velocity": velocity}
        return replace(state, latents=x.to(origin.dtype), step=state.step - self.back, carry=carry, shared={})
