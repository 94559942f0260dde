"""Greedy search over scales or steps."""

from __future__ import annotations

from tts_vision.algorithms._common import at_least
from tts_vision.algorithms.beam_search import beam_search
from tts_vision.context import SearchContext
from tts_vision.registry import register
from tts_vision.types import State


@register(
    "algorithm",
    "greedy",
    size="runs",
    needs={"stochastic", "preview"},
    wants_stochastic=True,
    paper="greedy token search in Riise et al. 2025, arXiv:2510.16751",
)
def greedy(ctx: SearchContext, *, runs: int = 1, branch: int = 4, scales: list[int] | None = None) -> State:
    """Greedy search: each chosen scale is drawn several times, and the best goes on (Riise et al. 2025).

    Args:
        runs: Independent searches, of which the best is kept.
        branch: Versions of a chosen scale that are drawn. Models that predict tokens compute their
            probabilities once for all of them.
        scales: Scales (or steps), from 0, that are drawn several times; by default all, or ten evenly spaced
            where there are more than 16.
    """
    at_least(1, runs=runs)
    return State.cat([beam_search(ctx, width=1, branch=branch, scales=scales) for _ in range(runs)])
