"""A corrector: begins again from the noise of the rejected sample, under a prompt that asks for light."""

from tts_vision import SearchContext
from tts_vision.plugins import Rejected, State, register


@register("corrector", "brighter")
def brighter(ctx: SearchContext, rejected: Rejected, n: int) -> State:
    """The rejected sample sent back half-way, under a prompt that asks for more light."""
    text = f"{rejected.prompt}, bright, {rejected.reason}"
    if "renoise" not in ctx.capabilities:
        return ctx.init(n, text)
    children = ctx.renoise(rejected.state, ctx.num_steps // 2, [0] * n)
    return ctx.recondition(children, text)
