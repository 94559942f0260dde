"""What a tree search does at each unit of a sample."""

from __future__ import annotations

from dataclasses import dataclass

from tts_vision.pruning import Rule
from tts_vision.verifier import Verifier


@dataclass(frozen=True)
class UnitPlan:
    """What a tree search does at one unit.

    Attributes:
        start: The first step of the unit.
        end: The step after its last one.
        branch: Children of each node of the unit before; 1 at the first unit.
        candidates: Versions of each child, of which image-level alignment keeps one.
        text: Prompt that the unit is generated for; None for that of the user.
        judged: Prompt that its nodes are judged by; None for that of the user.
        judge: Verifier of its nodes; None for that of the search.
        is_pruned: Whether nodes are pruned after it.
        keep: Nodes that ``top_k`` keeps then; None for half of them.
    """

    start: int
    end: int
    branch: int
    candidates: int
    text: str | None
    judged: str | None
    judge: Verifier | None
    is_pruned: bool
    keep: int | None

    @property
    def steps(self) -> int:
        """Decision steps of one child, in all of its versions."""
        return self.candidates * (self.end - self.start)


@dataclass(frozen=True)
class TreePlan:
    """What a tree search does.

    Attributes:
        units: At each unit.
        image_judge: Verifier of candidates; None for that of the nodes of their unit.
        rule: How nodes are pruned.
        threshold: See `tts_vision.pruning.survivors`.
        best_first: Whether the node with the best score is expanded next.
        backtracks: Whether nodes remember their parents, to be gone back to.
        released: Whether image-level alignment asks the questions of the released code.
    """

    units: tuple[UnitPlan, ...]
    image_judge: Verifier | None
    rule: Rule
    threshold: float
    best_first: bool
    backtracks: bool
    released: bool

    @property
    def last(self) -> int:
        """The last unit."""
        return len(self.units) - 1

    def is_scored(self, unit: int) -> bool:
        """Whether the nodes of a unit before the last one are scored."""
        return self.best_first or self.backtracks or self.units[unit].is_pruned

    def is_aligned(self, unit: int) -> bool:
        """Whether image-level alignment keeps one of several candidates; at the last unit scores decide."""
        return self.units[unit].candidates > 1 and (unit < self.last or self.released)

    def kept(self, unit: int, nodes: int) -> int:
        """How many of so many nodes go on after a unit, at most."""
        at = self.units[unit]
        if not at.is_pruned or self.rule != "top_k":
            return nodes
        return min(-(-nodes // 2) if at.keep is None else at.keep, nodes)

    def steps(self, width: int, unit: int = 0) -> int:
        """Decision steps, of all rows, of a tree with `width` branches at `unit`, at most."""
        total, nodes = 0, 1
        for number, at in enumerate(self.units[unit:], start=unit):
            children = nodes * (width if number == unit else at.branch)
            total += children * at.steps
            nodes = self.kept(number, children)
        return total

    def steps_of_path(self, unit: int) -> int:
        """Decision steps of a tree from `unit` on of which one node of each unit is expanded."""
        return sum(at.branch * at.steps for at in self.units[unit:])
