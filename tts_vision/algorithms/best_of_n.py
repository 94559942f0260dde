"""Best of n, also called random search."""

from __future__ import annotations

from tts_vision.algorithms._common import at_least
from tts_vision.context import SearchContext
from tts_vision.registry import register
from tts_vision.types import State


@register("algorithm", "best_of_n", size="n", paper="random search in Ma et al. 2025, arXiv:2501.09732")
def best_of_n(ctx: SearchContext, *, n: int = 16) -> State:
    """Best of n: independent samples, of which the best is kept (random search, Ma et al. 2025).

    Args:
        n: Samples in all.
    """
    at_least(1, n=n)
    done: list[State] = []
    made = 0
    while made < n:
        done.append(ctx.finish(ctx.init(min(ctx.chunk, n - made))))
        made += len(done[-1])
        ctx.score(done[-1])
    return State.cat(done)
