"""Best of n, also called random search."""

from __future__ import annotations

from tts_vision.algorithms._common import at_least
from tts_vision.context import SearchContext
from tts_vision.errors import BudgetSpent
from tts_vision.registry import register
from tts_vision.types import State


@register("algorithm", "best_of_n", paper="random search in Ma et al. 2025, arXiv:2501.09732")
def best_of_n(ctx: SearchContext, *, n: int | None = None) -> State:
    """Best of n: independent samples, of which the best is kept (random search, Ma et al. 2025).

    Args:
        n: Samples in all; by default as many as the budget pays for, or 16 without a budget.
    """
    at_least(1, n=n)
    done: list[State] = []
    while count := next_chunk(ctx, n, made=sum(map(len, done)), chunk=ctx.chunk):
        done.append(ctx.finish(ctx.init(count)))
        ctx.score(done[-1])
    return State.cat(done)


def next_chunk(ctx: SearchContext, n: int | None, *, made: int, chunk: int) -> int:
    """How many samples to make next: at most `chunk`, of `n` in all, and no more than can be paid for.

    Raises:
        BudgetSpent: If some are left to make and none can be paid for.
    """
    paid = ctx.affordable(ctx.cost())
    wanted = n if n is not None else 16 if paid is None else made + paid
    count = min(chunk, wanted - made) if paid is None else min(chunk, wanted - made, paid)
    if not count and (made < wanted or not made):
        raise BudgetSpent
    return count


def spend_rest(ctx: SearchContext) -> None:
    """Independent samples for what a budget has left, as candidates beside those of the search itself."""
    if ctx.affordable(ctx.cost()):
        best_of_n(ctx)
