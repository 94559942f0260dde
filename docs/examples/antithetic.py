"""A move, and an algorithm that uses it: noises in pairs of opposite sign."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tts_vision import SearchContext
from tts_vision.moves import InitialNoiseMove, with_latents
from tts_vision.plugins import Sampler, State, register, register_move


@register_move
@dataclass(frozen=True)
class Negate(InitialNoiseMove):
    """The initial noise with the opposite sign: as likely as its parent, and as far from it as can be."""

    name: ClassVar[str] = "negate"
    draws_noise: ClassVar[bool] = False

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        return with_latents(state, -state.latents)


@register("algorithm", "antithetic", needs={"noise"}, size="pairs")
def antithetic(ctx: SearchContext, *, pairs: int = 4) -> State:
    """Antithetic sampling: every noise and its negative; the best sample is kept.

    Args:
        pairs: Pairs of noises.
    """
    noise = ctx.init(pairs)
    state = ctx.finish(State.cat([noise, ctx.mutate(noise, Negate())]))
    ctx.score(state)
    return state
