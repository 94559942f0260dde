"""Gradient guidance: samples moved by the gradient of the reward of their previews."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from torch import Tensor

from tts_vision.algorithms._common import at_least, fraction
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.gradients import gradient_by_step, per_row
from tts_vision.moves import Move, carried, register_move, with_latents
from tts_vision.registry import register
from tts_vision.sampler import Sampler
from tts_vision.types import State

Rule: TypeAlias = Literal["relative", "score", "plain"]
_SCALES: dict[Rule, float] = {"relative": 0.2, "score": 10.0, "plain": 1.0}


@register(
    "algorithm",
    "gradient_guidance",
    size="n",
    needs={"preview", "differentiable"},
    paper="universal guidance (Bansal et al. 2023, arXiv:2302.07121), DPS (Chung et al. 2023, "
    "arXiv:2209.14687), FreeDoM (Yu et al. 2023, arXiv:2303.09833)",
)
def gradient_guidance(
    ctx: SearchContext,
    *,
    n: int = 4,
    rule: Rule = "relative",
    scale: float | None = None,
    start: float = 0.0,
    end: float = 1.0,
    every: int = 1,
    repeats: int = 1,
) -> State:
    """Gradient guidance: steps shifted along the gradient of the preview's reward (Bansal et al. 2023).

    Independent samples, on deterministic samplers too; the best is kept. The last step, which ends in the
    finished sample, is never shifted.

    Args:
        n: Samples.
        rule: How long a shift is: ``relative`` to the step itself (FreeDoM), as the ``score`` of the reward
            demands (universal guidance), or ``plain``, a multiple of the gradient (DPS).
        scale: With ``relative`` the length of the shift over that of the step, 0.2 by default; with ``score``
            the weight of the reward against the model's log-density, 10 by default; with ``plain`` the
            multiple, 1 by default.
        start: Share of the trajectory that is done at the first shift.
        end: Share of the trajectory at which shifts end.
        every: Steps from one shift to the next.
        repeats: Times that each shifted step is made, going back by noise between (FreeDoM's time travel).
    """
    at_least(1, n=n, every=every, repeats=repeats)
    at_least(0, scale=scale)
    shift = Shift(rule, _SCALES[rule] if scale is None else scale)
    steps = guided_steps(ctx.num_steps, start, end, every)
    x = ctx.init(n)
    for step in steps:
        x = ctx.advance(x, step - x.step)
        # from pure noise there is nothing to go back to
        for again in range(repeats if step else 1):
            x = ctx.renoise(x, step) if again else x
            ahead, rewards = ctx.gradient(x)
            ctx.note(step=step, reward=float(rewards.nanmean()))
            x = ctx.mutate(ahead, shift)
    x = ctx.finish(x)
    ctx.score(x)
    return x


@register_move
@dataclass(frozen=True)
class Shift(Move):
    """Moves the end of a step along the gradient of the reward at its start; see `gradient_guidance`."""

    rule: Rule
    scale: float
    name: ClassVar[str] = "shift"
    needs: ClassVar[str] = "differentiable"
    gradient_steps: ClassVar[int] = 1

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        gradient = gradient_by_step(state)
        if self.rule == "relative":
            start = carried(state, "origin").float() * per_row(carried(state, "gradient_scale"), gradient)
            gradient = gradient * per_row(_rms(state.latents.float() - start) / _rms(gradient), gradient)
        elif self.rule == "score":
            gradient = gradient * per_row(carried(state, "guidance_gain"), gradient)
        latents = (state.latents.float() + self.scale * gradient).to(state.latents.dtype)
        return with_latents(state, latents)


def _rms(x: Tensor) -> Tensor:
    """Root mean square of each row, never quite 0."""
    return x.flatten(1).square().mean(1).sqrt().clamp_min(1e-12)


def guided_steps(num_steps: int, start: float, end: float, every: int) -> list[int]:
    """The steps that are shifted: each `every`-th from share `start` on and before share `end`, but the last.

    Raises:
        ConfigError: If there is none.
    """
    fraction(start=start, end=end)
    stop = min(round(end * num_steps), num_steps - 1)
    steps = list(range(round(start * num_steps), stop, every))
    if not steps:
        raise ConfigError(
            f"Gradient guidance must shift at least one of {num_steps} steps, the last apart, but "
            f"start={start:g} and end={end:g} leave none; widen them, use more steps, or use 'reno' for "
            "one-step models."
        )
    return steps
