"""Greedy search over scales or steps."""

from __future__ import annotations

from tts_vision.algorithms._common import at_least, check_affordable, measured
from tts_vision.algorithms.beam_search import beams, chosen_scales, expected_cost, widest
from tts_vision.algorithms.best_of_n import best_of_n, spend_rest
from tts_vision.context import SearchContext
from tts_vision.registry import register
from tts_vision.types import State


@register(
    "algorithm",
    "greedy",
    needs={"stochastic", "preview"},
    wants_stochastic=True,
    paper="greedy token search in Riise et al. 2025, arXiv:2510.16751",
)
def greedy(
    ctx: SearchContext, *, runs: int | None = None, branch: int = 4, scales: list[int] | None = None
) -> State:
    """Greedy search: each chosen scale is drawn several times, and the best goes on (Riise et al. 2025).

    Args:
        runs: Independent searches, of which the best is kept; by default as many as the budget pays for, or 1
            without a budget.
        branch: Versions of a chosen scale that are drawn. Models that predict tokens compute their
            probabilities once for all of them.
        scales: Scales (or steps), from 0, that are drawn several times; by default all, or ten evenly spaced
            where there are more than 16.
    """
    at_least(1, runs=runs, branch=branch)
    chosen = chosen_scales(ctx, scales)
    left = measured(ctx)
    if runs is not None:
        check_affordable(
            left, expected_cost(ctx, 1, branch, chosen) * runs, f"runs={runs} with branch={branch}"
        )
        return State.cat([beams(ctx, 1, branch, chosen) for _ in range(runs)])
    plan = widest(ctx, left, branch, chosen, most=1)
    if plan is None:  # not even one search with two branches
        return best_of_n(ctx)
    done = [beams(ctx, *plan, chosen)]
    while ctx.affordable(expected_cost(ctx, *plan, chosen)):
        done.append(beams(ctx, *plan, chosen))
    spend_rest(ctx)
    return State.cat(done)
