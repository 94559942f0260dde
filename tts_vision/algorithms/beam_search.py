"""Beam search over scales or steps."""

from __future__ import annotations

import math

from tts_vision.algorithms._common import at_least, check_affordable, measured
from tts_vision.algorithms.best_of_n import best_of_n, spend_rest
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.ledger import Remaining
from tts_vision.ranking import top_k
from tts_vision.registry import register
from tts_vision.types import Cost, State

MOST_SCALES, EVENLY = 16, 10  # of more steps than that, so many are chosen by default


@register(
    "algorithm",
    "beam_search",
    needs={"stochastic", "preview"},
    wants_stochastic=True,
    paper="Riise et al. 2025, arXiv:2510.16751",
)
def beam_search(
    ctx: SearchContext,
    *,
    width: int | None = None,
    branch: int = 4,
    scales: list[int] | None = None,
) -> State:
    """Beam search: at each chosen scale every beam branches, and the best branches go on (Riise et al. 2025).

    Args:
        width: Beams; by default as many as the budget pays for, or 4 without a budget.
        branch: Versions of a chosen scale that are drawn for each beam. Models that predict tokens compute
            their probabilities once for all of them.
        scales: Scales (or steps), from 0, that are drawn several times; by default all, or ten evenly spaced
            where there are more than 16.
    """
    at_least(1, width=width, branch=branch)
    chosen = chosen_scales(ctx, scales)
    left = measured(ctx)
    if width is not None:
        check_affordable(left, expected_cost(ctx, width, branch, chosen), f"width={width}, branch={branch}")
        return beams(ctx, width, branch, chosen)
    plan = widest(ctx, left, branch, chosen)
    if plan is None:  # not even one beam with two branches
        return best_of_n(ctx)
    state = beams(ctx, *plan, chosen)
    spend_rest(ctx)
    return state


def beams(ctx: SearchContext, width: int, branch: int, scales: list[int]) -> State:
    """One beam search; returns all that were finished, scored."""
    state = ctx.init(width * branch if 0 in scales else width)
    for scale in scales:
        state = ctx.advance(state, scale - state.step)
        if scale:
            state = ctx.select(state, [i for i in range(len(state)) for _ in range(branch)])
        state = ctx.advance(state, 1)
        if state.step < ctx.num_steps:
            state = ctx.select(state, top_k(ctx.score(state), width))
    state = ctx.finish(state)
    ctx.score(state)
    return state


def chosen_scales(ctx: SearchContext, scales: list[int] | None) -> list[int]:
    """The scales at which beams branch.

    Raises:
        ConfigError: If they are none of the sampler's, in increasing order, or branches could not differ.
    """
    steps = ctx.num_steps
    if scales is None:
        count = steps if steps <= MOST_SCALES else EVENLY
        even = [round(i * (steps - 1) / max(count - 1, 1)) for i in range(count)]
        return [scale for scale in even if ctx.can_fork_at(scale)]
    if not scales or sorted(set(scales)) != scales or not 0 <= scales[0] <= scales[-1] < steps:
        raise ConfigError(
            f"scales must increase and lie between 0 and {steps - 1} but got {scales}; reorder or drop some."
        )
    for scale in scales:
        if scale and not ctx.can_fork_at(scale):
            raise ConfigError(
                f"Branches must be able to differ but no step from {scale} on adds noise; choose earlier "
                "scales or a stochastic sampler."
            )
    return scales


def widest(
    ctx: SearchContext, left: Remaining, branch: int, scales: list[int], *, most: int | None = None
) -> tuple[int, int] | None:
    """The width that can be paid for, and the branches, fewer if that is less than one beam; None if even
    two are too many.
    """
    paid = left.times(expected_cost(ctx, 1, branch, scales))
    if paid is None:
        return most or 4, branch
    width = max(1, paid if most is None else min(paid, most))
    while not left.affords(expected_cost(ctx, width, branch, scales)):
        if width == 1 and branch <= 2:
            return None
        width, branch = (width - 1, branch) if width > 1 else (1, branch - 1)
    return width, branch


def expected_cost(ctx: SearchContext, width: int, branch: int, scales: list[int]) -> Cost:
    """What a beam search costs: forwards, what is scored on the way, final scores."""
    computed = width * branch
    if "tokens" in ctx.capabilities:
        # branches of one beam are drawn from one forward, unless they come to be in different micro-batches
        computed = min(computed, width + math.ceil(computed / ctx.chunk) - 1)
    last = ctx.num_steps - 1
    total = ctx.score_cost * (width * branch if last in scales else width)
    for step in range(ctx.num_steps):
        total += ctx.cost(1, step=step, scored=False) * (computed if step in scales else width)
        if step in scales and step < last:
            total += ctx.score_cost * (width * branch)
    return total
