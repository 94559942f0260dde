"""The settings of a tree search, unit by unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tts_vision.algorithms._common import at_least
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.pruning import Rule
from tts_vision.rewriting import load_rewriter
from tts_vision.units import STAGES, by_unit, repeated, stretched, units_of
from tts_vision.verifier import Verifier

# Of Video-T1's release, for 16 units: candidates of each unit, and the units after which it prunes.
PAPER_CANDIDATES, PAPER_STAGES = (5, 2, 2, 2, 2, *[1] * 11), (4, 9, 13)


@dataclass(frozen=True)
class TreePlan:
    """What a tree search does at each unit.

    Attributes:
        starts: The first step of each unit.
        ends: The step after its last one.
        branch: Children of each node of the unit before; 1 at the first unit.
        candidates: Versions of each child, of which image-level alignment keeps one.
        texts: Prompt that a unit is generated for; None for that of the user.
        judged: Prompt that its nodes are judged by; None for that of the user.
        judges: Verifier of its nodes; None for that of the search.
        image_judge: Verifier of its candidates; None for the same.
        rule: How nodes are pruned.
        keep: Nodes that ``top_k`` keeps at each pruning, the last number for all further ones; half of them
            if empty.
        threshold: See `tts_vision.pruning.survivors`.
        prune_after: Units after which nodes are pruned.
        best_first: Whether the node with the best score is expanded next.
        backtracks: Whether nodes remember their parents, to be gone back to.
        released: Whether image-level alignment asks the questions of the released code.
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    branch: tuple[int, ...]
    candidates: tuple[int, ...]
    texts: tuple[str | None, ...]
    judged: tuple[str | None, ...]
    judges: tuple[Verifier | None, ...]
    image_judge: Verifier | None
    rule: Rule
    keep: tuple[int, ...]
    threshold: float
    prune_after: tuple[int, ...]
    best_first: bool = False
    backtracks: bool = False
    released: bool = False

    @property
    def scores_all(self) -> bool:
        """Whether nodes of all units are scored."""
        return self.best_first or self.backtracks

    @property
    def last(self) -> int:
        """The last unit."""
        return len(self.starts) - 1

    def kept(self, unit: int, nodes: int) -> int:
        """How many of so many nodes go on after a unit, at most."""
        if unit not in self.prune_after or self.rule != "top_k":
            return nodes
        k = self.keep[min(self.prune_after.index(unit), len(self.keep) - 1)] if self.keep else -(-nodes // 2)
        return min(k, nodes)

    def steps(self, width: int, unit: int = 0) -> int:
        """Decision steps, of all rows, of a tree with `width` branches at `unit`, at most."""
        total, nodes = 0, 1
        for at in range(unit, self.last + 1):
            children = nodes * (width if at == unit else self.branch[at])
            total += children * self.candidates[at] * (self.ends[at] - self.starts[at])
            nodes = self.kept(at, children)
        return total

    def steps_of_path(self, unit: int) -> int:
        """Decision steps of a tree from `unit` on of which one node of each unit is expanded."""
        return sum(
            self.branch[at] * self.candidates[at] * (self.ends[at] - self.starts[at])
            for at in range(unit, self.last + 1)
        )


def tree_plan(
    ctx: SearchContext,
    *,
    branch: Sequence[int],
    candidates: Sequence[int] | None,
    rule: Rule,
    keep: Sequence[int] | None,
    threshold: float,
    prune_after: Sequence[int] | None,
    prompts: Sequence[str] | None,
    stage_verifiers: Sequence[str] | None,
    image_verifier: str | None,
    best_first: bool,
    backtracks: bool,
    released: bool,
) -> TreePlan:
    """The plan of a search, of settings that are those of `tree_of_frames`.

    Raises:
        ConfigError: If they do not fit the units of the sampler.
    """
    starts = units_of(ctx.sampler)
    units = len(starts)
    if candidates is None:  # restarts take the place of candidates
        candidates = [1] if backtracks else stretched(PAPER_CANDIDATES, units)
    later = max(1, units - 1)
    for name, values, most in (
        ("branch", branch, later),
        ("candidates", candidates, units),
        ("keep", keep, later),
    ):
        if values is not None and not 1 <= len(values) <= most:
            raise ConfigError(
                f"{name} must have 1 to {most} entries, of which the last is for all further units, but got "
                f"{len(values)}: {list(values)}; add or drop some."
            )
        at_least(1, **{f"each entry of {name}": min(values, default=1)} if values is not None else {})
    if prune_after is None:
        shares = [stage / (len(PAPER_CANDIDATES) - 1) for stage in PAPER_STAGES]
        prune_after = sorted({round(share * (units - 1)) for share in shares} & set(range(units - 1)))
    if sorted(set(prune_after)) != list(prune_after) or any(not 0 <= u < units - 1 for u in prune_after):
        raise ConfigError(
            f"prune_after must increase and lie between 0 and {units - 2}, the last unit but one, but got "
            f"{list(prune_after)}; reorder or drop some."
        )
    judged = by_unit(prompts, units, "stage_prompts") if prompts else (None,) * units
    names = by_unit(stage_verifiers, units, "stage_verifiers") if stage_verifiers else ()
    return TreePlan(
        starts=starts,
        ends=(*starts[1:], ctx.num_steps),
        branch=(1, *repeated(branch, units - 1)),
        candidates=repeated(candidates, units),
        texts=(None,) * units if released else judged,
        judged=(judged[min(1, units - 1)],) * units if released else judged,
        judges=tuple(ctx.another_verifier(name) for name in names) or (None,) * units,
        image_judge=None if image_verifier is None else ctx.another_verifier(image_verifier),
        rule=rule,
        keep=tuple(keep or ()),
        threshold=threshold,
        prune_after=() if rule == "none" else tuple(prune_after),
        best_first=best_first,
        backtracks=backtracks,
        released=released,
    )


def check_released(
    ctx: SearchContext,
    *,
    prune: Rule,
    keep: Sequence[int] | None,
    order: str,
    backtrack: bool,
    judge: str | None,
) -> None:
    """Checks that nothing else is asked for than the released code of Video-T1 does.

    Raises:
        ConfigError: If it is, or forks have noise of their own.
    """
    others = {"prune": prune not in ("top_k", "median"), "keep": keep is not None}
    others |= {"order": order != "breadth", "backtrack": backtrack, "image_verifier": judge is not None}
    if chosen := [name for name, differs in others.items() if differs]:
        raise ConfigError(
            "strict_reference prunes by the median, breadth first, and asks the verifier itself for clarity "
            f"and potential, but {' and '.join(chosen)} say otherwise; leave them out."
        )
    if ctx.sampler.branch_noise != "shared_root":
        raise ConfigError(
            "In the released code siblings begin with the noise of their root but those of "
            f"{ctx.sampler.name!r} have their own; set branch_noise='shared_root' (--set "
            "sampler.branch_noise=shared_root), of a model that draws noise within a chunk, or leave out "
            "strict_reference."
        )


def prompts_of_stages(
    ctx: SearchContext, prompts: list[str] | None, rewriter: str | None
) -> list[str] | None:
    """The prompts of the stages: those that are given, or of a rewriter; None without either.

    Raises:
        ConfigError: If both are given, or the rewriter gives other than three.
    """
    if prompts is not None and rewriter is not None:
        raise ConfigError(
            f"Prompts of stages are given or come from a rewriter but got both, stage_prompts={prompts} and "
            f"rewriter={rewriter!r}; drop one."
        )
    if rewriter is None:
        return prompts
    text, by = ctx.prompt.text, load_rewriter(rewriter)
    cost = {by.name: by.calls} if by.calls else None
    found = ctx.ask("stages", by.rewrite, text, len(STAGES), cost=cost, expected=[text] * len(STAGES))
    if len(found) != len(STAGES):
        raise ConfigError(
            f"A rewriter must split a prompt into {len(STAGES)} stages, {', '.join(STAGES)}, but "
            f"{rewriter!r} gave {len(found)}: {found}; give the prompts yourself, or use another one."
        )
    return list(found)
