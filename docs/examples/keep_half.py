"""An algorithm: half of the particles are dropped by their previews, half-way."""

from tts_vision import SearchContext
from tts_vision.plugins import State, register
from tts_vision.ranking import top_k


@register("algorithm", "keep_half", needs={"preview"}, size="n")
def keep_half(ctx: SearchContext, *, n: int = 8) -> State:
    """Keeps the better half of the previews half-way, and finishes it.

    Args:
        n: Particles at the start.
    """
    state = ctx.advance(ctx.init(n), ctx.num_steps // 2)
    if n > 1 and state.step:
        state = ctx.select(state, top_k(ctx.score(state), (n + 1) // 2))
    state = ctx.finish(state)
    ctx.score(state)
    return state
