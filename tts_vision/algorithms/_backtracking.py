"""Temporal backtracking: finished clips are begun again at the unit in which they fail."""

from __future__ import annotations

import math
from itertools import pairwise

from tts_vision.algorithms._tree import Node, Tree
from tts_vision.context import SearchContext
from tts_vision.types import FAILS_AT


def backtracked(ctx: SearchContext, tree: Tree, finished: list[Node], width: int) -> list[Node]:
    """Grows branches from the nodes before the failures of the best samples, while steps are left.

    The best sample that does not meet all demands is verified, the unit in which it first fails is found, and
    the tree grows on from the unit before. A sample whose branches did not become better is taken back by one
    more unit each time. A sample that meets all demands ends the search.

    Args:
        ctx: The search.
        tree: A tree that links its nodes.
        finished: Its finished samples.
        width: Roots of a tree that may take as many steps.
    """
    allowance, finished = tree.plan.steps(width), list(finished)
    fails: dict[int, int] = {}  # the unit to begin again at, by sample
    while not (ctx.best is not None and ctx.best.score.satisfied):
        left = allowance - tree.steps
        for node in finished:
            fails.setdefault(node.uid, failing_unit(ctx, node))
        affordable = [node for node in finished if tree.plan.steps(1, fails[node.uid]) <= left]
        if not affordable:
            return finished
        best = max(affordable, key=lambda node: _rank(ctx, node))
        unit = fails[best.uid]
        fails[best.uid] = max(0, unit - 1)
        widths = range(1, max(1, width // 4) + 1)
        branches = max(n for n in widths if tree.plan.steps(n, unit) <= left)
        ctx.note(restarted=best.uid, unit=unit)
        finished += tree.grow(best.path[unit - 1 : unit] if unit else [], unit, branches)
    ctx.conclude()
    return finished


def failing_unit(ctx: SearchContext, node: Node) -> int:
    """The unit in which a finished sample first fails.

    It is the one at the time that its verifier tells (`FAILS_AT`), or else the one at which the score of what
    was made by then drops most; the last one where it never drops.
    """
    last, path = node.unit, node.path
    at = ctx.candidates[node.uid].score.parts.get(FAILS_AT)
    unit = None if at is None or math.isnan(at) else ctx.sampler.unit_at(at)
    if unit is not None:
        return min(unit, last)
    drops = [before.score - after.score for before, after in pairwise(path)]
    worst = max(range(len(drops)), key=lambda i: -math.inf if math.isnan(drops[i]) else drops[i], default=0)
    return worst + 1 if drops and drops[worst] > 0 else last


def _rank(ctx: SearchContext, node: Node) -> tuple[bool, float]:
    score = ctx.candidates[node.uid].score.value
    return not math.isnan(score), score
