"""Temporal backtracking: clips are begun again at the unit in which they fail."""

from __future__ import annotations

import math
from itertools import pairwise

from tts_vision.algorithms._tree import Node, Tree
from tts_vision.algorithms._tree_orders import best_first, breadth_first
from tts_vision.context import SearchContext
from tts_vision.types import FAILS_AT

PATIENCE = 4  # times that a unit is made again before the one before is


def backtracked(ctx: SearchContext, tree: Tree, width: int) -> list[Node]:
    """Finished samples of a tree that grows on from the nodes before the failures of its best samples.

    Half of its roots are grown first. Then, while steps are left, the best sample that does not meet all
    demands is begun again at the unit in which it fails. A sample whose branches did not become better is
    taken back by one more unit each time. A sample that meets all demands ends the search.

    Args:
        ctx: The search.
        tree: A tree that links its nodes.
        width: Roots of a tree without backtracking that may take as many steps.
    """
    allowance = tree.plan.steps(width)
    finished = _grown(tree, [], 0, width - width // 2, allowance)
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
        finished += _grown(tree, best.path[unit - 1 : unit] if unit else [], unit, branches, allowance)
    ctx.conclude()
    return finished


def _grown(tree: Tree, parents: list[Node], unit: int, width: int, allowance: int) -> list[Node]:
    """Finished samples from a unit on: of all nodes, or where there is a threshold of those that reach it."""
    if tree.plan.rule == "threshold":
        return _retried(tree, parents, unit, allowance)
    if tree.plan.best_first and not parents:
        return best_first(tree, width)
    return breadth_first(tree, parents, unit, width)


def _retried(tree: Tree, parents: list[Node], start: int, allowance: int) -> list[Node]:
    """The finished samples of one node of each unit, each made again until its score reaches the threshold.

    A unit that failed `PATIENCE` times is left, and the one before is made again. Where the steps left pay
    for no further attempt, the best node goes on.

    Args:
        tree: The tree.
        parents: The node before the first unit; none if that is the first one of all.
        start: The first unit.
        allowance: Steps of the whole search.
    """
    plan, before = tree.plan, [parents]
    made: list[list[Node]] = [[]]  # of each unit from the node before
    while True:
        unit = start + len(before) - 1
        made[-1] += tree.expand(before[-1], unit, plan.units[unit].branch)
        if unit == plan.last:
            return made[-1]
        fresh = [node for node in made[-1] if not node.is_expanded]
        best = max(fresh, key=lambda node: (not math.isnan(node.score), node.score))
        back = unit > start and len(made[-1]) >= PATIENCE * plan.units[unit].branch
        is_paid = plan.steps_of_path(unit - back) <= allowance - tree.steps
        if best.score >= plan.threshold or not is_paid:
            before.append([best])
            made.append([])
        elif back:
            before.pop()
            made.pop()


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
