"""The move of DAS: a step drawn from a kernel that is twisted along the gradient of the reward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from tts_vision.gradients import gradient_by_step
from tts_vision.moves import STEP_NOISE, Move, register_move, step_noise
from tts_vision.sampler import Sampler
from tts_vision.types import State


@register_move
@dataclass(frozen=True)
class Twist(Move):
    """Draws the step anew from the twisted kernel ``N(mu + s^2 g, s^2)``, where ``g = scale * gradient``.

    The children carry ``log_ratio``, the log of the model's kernel over the twisted one at what was drawn.
    """

    scale: float
    name: ClassVar[str] = "twist"
    needs: ClassVar[str] = "step_noise"
    gradient_steps: ClassVar[int] = 1

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        injected, std = step_noise(state)
        mean = state.latents.float() - injected.float()
        g, std = self.scale * gradient_by_step(state), std.float()
        drawn = std * noise.float()
        latents = (mean + drawn + std.square() * g).to(state.latents.dtype)
        # log N(x; mu, s^2) - log N(x; mu + s^2 g, s^2) at x = mu + drawn + s^2 g
        log_ratio = -(drawn * g + std.square() * g.square() / 2).double().flatten(1).sum(1)
        carry = {**state.carry, STEP_NOISE: drawn.to(injected.dtype), "log_ratio": log_ratio}
        return replace(state, latents=latents, carry=carry)
