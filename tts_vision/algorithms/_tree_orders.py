"""The orders in which the nodes of a tree are expanded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tts_vision.algorithms._tree import Node, Tree


def breadth_first(tree: Tree, parents: Sequence[Node], unit: int, width: int) -> list[Node]:
    """Finished samples by breadth-first search: the nodes of a unit are made, judged and pruned together.

    Args:
        tree: The tree.
        parents: Nodes of the unit before; none if `unit` is the first one.
        unit: The unit to go on with.
        width: Children of each parent there.
    """
    nodes = tree.expand(parents, unit, width)
    for following in range(unit + 1, tree.plan.last + 1):
        nodes = tree.expand(tree.pruned(nodes), following, tree.plan.units[following].branch)
    return nodes


def best_first(tree: Tree, width: int) -> list[Node]:
    """Finished samples by best-first search, in as many steps as breadth-first search may take.

    The node with the best score is expanded, of all from which the steps left still reach the end.

    Args:
        tree: The tree.
        width: Nodes of the first unit.
    """
    plan, allowance = tree.plan, tree.plan.steps(width)
    nodes, finished = tree.expand([], 0, width), []
    while True:
        if nodes and nodes[-1].unit == plan.last:
            finished.append(nodes.pop())
            continue
        left = allowance - tree.steps
        able = [node for node in nodes if plan.steps_of_path(node.unit + 1) <= left]
        if not able:
            return finished
        best = max(able, key=lambda node: (not math.isnan(node.score), node.score, node.unit))
        nodes.remove(best)
        nodes += tree.expand([best], best.unit + 1, plan.units[best.unit + 1].branch)
