"""Zero-order search in the space of initial noise."""

from __future__ import annotations

import math

from tts_vision.algorithms._common import at_least
from tts_vision.context import SearchContext
from tts_vision.moves import Neighbour
from tts_vision.ranking import argmax
from tts_vision.registry import register
from tts_vision.types import State


@register("algorithm", "zero_order", size="n", needs={"noise"}, paper="Ma et al. 2025, arXiv:2501.09732")
def zero_order(
    ctx: SearchContext, *, n: int = 16, starts: int = 8, neighbours: int = 4, tau: float = 0.95
) -> State:
    """Zero-order search: round by round to the best neighbour of the best noise (Ma et al. 2025).

    The pivot stays until a neighbour is better; the last round may be smaller to fit.

    Args:
        n: Samples in all.
        starts: Random noises whose best is the first pivot; the paper's one may lie far from anything good.
        neighbours: Neighbours of the pivot in each round.
        tau: Cosine between the noise of the pivot and of a neighbour, which have equal norm.
    """
    at_least(1, n=n, starts=starts, neighbours=neighbours)
    step = Neighbour(tau)
    pivot = around = ctx.init(min(starts, n))
    done: list[State] = []
    while True:
        done.append(ctx.finish(around))
        scores = ctx.score(done[-1])
        nearest = argmax(scores)
        best = math.nan if around is pivot else float(ctx.current_scores(pivot)[0])
        if scores[nearest] > best or math.isnan(best):
            pivot = ctx.select(around, [nearest])
        left = n - sum(map(len, done))
        if not left:
            return State.cat(done)
        around = ctx.mutate(pivot, step, [0] * min(neighbours, left))
