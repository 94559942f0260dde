"""A tree of partial samples whose nodes are at the ends of units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tts_vision.algorithms._alignment import aligned, unit_scores
from tts_vision.algorithms._tree_plan import TreePlan
from tts_vision.context import SearchContext
from tts_vision.pruning import survivors
from tts_vision.types import State


@dataclass(eq=False)
class Node:
    """A partial sample.

    Attributes:
        state: The particle, at the end of its unit.
        unit: The unit.
        parent: The node that it continues, where the tree remembers it.
        score: Of its preview, or of the finished sample; NaN if there is none.
        is_expanded: Whether it has children.
    """

    state: State
    unit: int
    parent: Node | None
    score: float = math.nan
    is_expanded: bool = False

    @property
    def uid(self) -> int:
        """The particle."""
        return self.state.uids[0]

    @property
    def path(self) -> list[Node]:
        """The nodes from the first unit to this one."""
        return [*(self.parent.path if self.parent else ()), self]


class Tree:
    """Makes and prunes the nodes of a tree.

    Args:
        ctx: The search.
        plan: What is done at each unit.

    Attributes:
        steps: Decision steps of all rows so far.
    """

    def __init__(self, ctx: SearchContext, plan: TreePlan) -> None:
        self.ctx, self.plan, self.steps = ctx, plan, 0

    def expand(self, parents: Sequence[Node], unit: int, width: int) -> list[Node]:
        """The children of some nodes, made as one batch and scored where the plan says so.

        Args:
            parents: Nodes of the unit before; none for fresh particles.
            unit: The unit of the children.
            width: Children of each parent.
        """
        ctx, plan, at = self.ctx, self.plan, self.plan.units[unit]
        state = self._begun(parents, unit, width)
        self.steps += len(state) * (at.end - at.start)
        scores: list[float] | None = None
        if plan.is_aligned(unit):
            state, scores = aligned(ctx, plan, state, unit)
        state = ctx.advance(state, at.end - state.step)
        if unit == plan.last:
            scores = ctx.score(state).tolist()
        elif scores is None and plan.is_scored(unit):
            scores = unit_scores(ctx, plan, state, unit)
        for node in parents:
            node.is_expanded = True
        each = len(state) // max(len(parents), 1)
        children = []
        for i in range(len(state)):
            parent = parents[i // each] if parents and plan.backtracks else None
            children.append(Node(state.select([i]), unit, parent, math.nan if scores is None else scores[i]))
        return children

    def pruned(self, nodes: list[Node]) -> list[Node]:
        """The nodes of one unit that go on."""
        plan, unit = self.plan, nodes[0].unit
        if not plan.units[unit].is_pruned:
            return nodes
        scores = [node.score for node in nodes]
        kept = survivors(scores, plan.rule, k=plan.kept(unit, len(nodes)), threshold=plan.threshold)
        state = self.ctx.select(State.cat([node.state for node in nodes]), kept)
        for row, i in enumerate(kept):
            nodes[i].state = state.select([row])
        return [nodes[i] for i in kept]

    def _begun(self, parents: Sequence[Node], unit: int, width: int) -> State:
        """The particles of a unit, at its first step: all candidates of `width` children of each parent."""
        ctx, at = self.ctx, self.plan.units[unit]
        if not parents:
            if not self.plan.released:
                return ctx.init(width * at.candidates, condition=at.text)
            return self._copied(ctx.init(width, condition=at.text), at.candidates)
        # a second child of the same name would be the first one again
        states = [ctx.fork(node.state) if node.is_expanded else node.state for node in parents]
        state = self._copied(State.cat(states), width * at.candidates)
        if at.text is None or at.text == self.plan.units[unit - 1].text:
            return state
        return ctx.recondition(state, at.text)

    def _copied(self, state: State, times: int) -> State:
        """Each particle so many times; the second and further ones are forks."""
        if times == 1:
            return state
        return self.ctx.select(state, [i for i in range(len(state)) for _ in range(times)])
