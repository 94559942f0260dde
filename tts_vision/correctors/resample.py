"""Fresh samples of the prompt, which take nothing from the rejected one."""

from __future__ import annotations

from tts_vision.context import SearchContext
from tts_vision.correcting import Rejected, drawable
from tts_vision.registry import register
from tts_vision.types import State


@register("corrector", "resample")
def resample(ctx: SearchContext, rejected: Rejected, n: int) -> State:
    """Fresh samples of the prompt; nothing is taken from the rejected one."""
    with drawable(rejected.prompt):
        return ctx.init(n, rejected.prompt)
