"""A tree of partial samples whose nodes are at the ends of units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tts_vision.algorithms._paths import CLARITY, POTENTIAL
from tts_vision.algorithms._tree_plan import TreePlan
from tts_vision.context import SearchContext
from tts_vision.pruning import survivors
from tts_vision.ranking import argmax
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
    """Grows a tree.

    Args:
        ctx: The search.
        plan: What is done at each unit.

    Attributes:
        steps: Decision steps of all rows so far.
    """

    def __init__(self, ctx: SearchContext, plan: TreePlan) -> None:
        self.ctx, self.plan, self.steps = ctx, plan, 0

    def grow(self, parents: Sequence[Node], unit: int, width: int) -> list[Node]:
        """Finished samples by breadth-first search: the nodes of a unit are made, judged and pruned together.

        Args:
            parents: Nodes of the unit before; none if `unit` is the first one.
            unit: The unit to go on with.
            width: Children of each parent there.
        """
        nodes = self.expand(parents, unit, width)
        for following in range(unit + 1, self.plan.last + 1):
            nodes = self.expand(self.pruned(nodes), following, self.plan.branch[following])
        return nodes

    def best_first(self, width: int) -> list[Node]:
        """Finished samples by best-first search, in as many steps as breadth-first search may take.

        The node with the best score is expanded, of all from which the steps left still reach the end.

        Args:
            width: Nodes of the first unit.
        """
        allowance, last = self.plan.steps(width), self.plan.last
        nodes, finished = self.expand([], 0, width), []
        while True:
            if nodes and nodes[-1].unit == last:
                finished.append(nodes.pop())
                continue
            left = allowance - self.steps
            able = [node for node in nodes if self.plan.steps_of_path(node.unit + 1) <= left]
            if not able:
                return finished
            best = max(able, key=lambda node: (not math.isnan(node.score), node.score, node.unit))
            nodes.remove(best)
            nodes += self.expand([best], best.unit + 1, self.plan.branch[best.unit + 1])

    def expand(self, parents: Sequence[Node], unit: int, width: int) -> list[Node]:
        """The children of some nodes, made as one batch and scored where the plan says so.

        Args:
            parents: Nodes of the unit before; none for fresh particles.
            unit: The unit of the children.
            width: Children of each parent.
        """
        plan, tries = self.plan, self.plan.candidates[unit]
        state = self._begun(parents, unit, width, tries)
        self.steps += len(state) * (plan.ends[unit] - plan.starts[unit])
        scores: list[float] | None = None
        if tries > 1 and (unit < plan.last or plan.released):
            state, values = self._judged_as_images(state, unit)
            best = [i + argmax(values[i : i + tries]) for i in range(0, len(state), tries)]
            state = self.ctx.select(state, best)
            if not plan.released and plan.image_judge in (None, plan.judges[unit]):
                scores = [values[i] for i in best]
        state = self.ctx.advance(state, plan.ends[unit] - state.step)
        if unit == plan.last:
            scores = self.ctx.score(state).tolist()
        elif scores is None and (plan.scores_all or unit in plan.prune_after):
            scores = self._scores(state, unit)
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
        if unit not in plan.prune_after:
            return nodes
        scores = [node.score for node in nodes]
        kept = survivors(scores, plan.rule, k=plan.kept(unit, len(nodes)), threshold=plan.threshold)
        state = self.ctx.select(State.cat([node.state for node in nodes]), kept)
        for row, i in enumerate(kept):
            nodes[i].state = state.select([row])
        return [nodes[i] for i in kept]

    def _begun(self, parents: Sequence[Node], unit: int, width: int, tries: int) -> State:
        """The particles of a unit, at its first step: `width` times `tries` of each parent."""
        ctx, texts = self.ctx, self.plan.texts
        if not parents:
            if not self.plan.released:
                return ctx.init(width * tries, condition=texts[unit])
            roots = ctx.init(width, condition=texts[unit])
            return ctx.select(roots, _copies(width, tries)) if tries > 1 else roots
        # a second child of the same name would be the first one again
        states = [ctx.fork(node.state) if node.is_expanded else node.state for node in parents]
        state = State.cat(states)
        if width * tries > 1:
            state = ctx.select(state, _copies(len(parents), width * tries))
        text = texts[unit]
        return state if text is None or text == texts[unit - 1] else ctx.recondition(state, text)

    def _judged_as_images(self, state: State, unit: int) -> tuple[State, list[float]]:
        """Image-level alignment: the candidates of a unit further on, and their scores."""
        ctx, end = self.ctx, self.plan.ends[unit]
        if not self.plan.released:
            state = ctx.advance(state, end - state.step)
            return state, self._scores(state, unit, images=True)
        potential: dict[int, float] = {}
        while state.step < end:
            state = ctx.advance(state, 1)
            asked = state.select([i for i, uid in enumerate(state.uids) if uid not in potential])
            answers = ctx.judge(asked, CLARITY, expected=state.step == end) if len(asked) else []
            if clear := [i for i, answer in enumerate(answers) if answer.satisfied]:
                asked = asked.select(clear)
                found = zip(asked.uids, ctx.judge(asked, POTENTIAL))
                potential |= {uid: answer.value for uid, answer in found if answer.satisfied is not None}
        return state, [potential.get(uid, 0.0) for uid in state.uids]

    def _scores(self, state: State, unit: int, *, images: bool = False) -> list[float]:
        """Scores of previews by the prompt and the verifier of their unit."""
        text = self.plan.judged[unit]
        by = self.plan.judges[unit]
        if images and self.plan.image_judge is not None:
            by = self.plan.image_judge
        scores: list[float] = self.ctx.score(state, text, by=by).tolist()
        return scores


def _copies(rows: int, each: int) -> list[int]:
    return [i for i in range(rows) for _ in range(each)]
