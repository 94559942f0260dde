"""The settings of a tree search: checked, unit by unit, with defaults in proportion to Video-T1's."""

from __future__ import annotations

from collections.abc import Sequence

from tts_vision.algorithms._common import at_least
from tts_vision.algorithms._tree_plan import TreePlan, UnitPlan
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.pruning import Rule
from tts_vision.units import by_unit, repeated, stretched, units_of

# Of Video-T1's release, for 16 units: candidates of each unit, and the units after which it prunes.
PAPER_CANDIDATES, PAPER_STAGES = (5, 2, 2, 2, 2, *[1] * 11), (4, 9, 13)


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
    check_entries("branch", branch, max(1, units - 1))
    check_entries("candidates", candidates, units)
    check_entries("keep", keep, max(1, units - 1))
    pruned = pruned_units(prune_after, units)
    pruned = [] if rule == "none" else pruned
    judged = by_unit(prompts, units, "stage_prompts") if prompts else (None,) * units
    names = by_unit(stage_verifiers, units, "stage_verifiers") if stage_verifiers else ()
    ends = (*starts[1:], ctx.num_steps)
    branches = (1, *repeated(branch, units - 1))
    versions = repeated(candidates, units)
    judges = tuple(ctx.another_verifier(name) for name in names) or (None,) * units
    keeps = dict(zip(pruned, repeated(keep, len(pruned)))) if keep else {}
    return TreePlan(
        units=tuple(
            UnitPlan(
                start=starts[unit],
                end=ends[unit],
                branch=branches[unit],
                candidates=versions[unit],
                text=None if released else judged[unit],
                judged=judged[min(1, units - 1) if released else unit],
                judge=judges[unit],
                is_pruned=unit in pruned,
                keep=keeps.get(unit),
            )
            for unit in range(units)
        ),
        image_judge=None if image_verifier is None else ctx.another_verifier(image_verifier),
        rule=rule,
        threshold=threshold,
        best_first=best_first,
        backtracks=backtracks,
        released=released,
    )


def check_entries(name: str, values: Sequence[int] | None, most: int) -> None:
    """Checks numbers that are given for the first units, of which the last one repeats.

    Raises:
        ConfigError: If there are none or more than `most`, or one is below 1.
    """
    if values is None:
        return
    if not 1 <= len(values) <= most:
        raise ConfigError(
            f"{name} must have 1 to {most} entries, of which the last is for all further units, but got "
            f"{len(values)}: {list(values)}; add or drop some."
        )
    at_least(1, **{f"each entry of {name}": min(values)})


def pruned_units(given: Sequence[int] | None, units: int) -> list[int]:
    """The units after which nodes are pruned; by default those of the paper in proportion.

    Raises:
        ConfigError: If they do not increase, or are not before the last unit.
    """
    if given is None:
        shares = [stage / (len(PAPER_CANDIDATES) - 1) for stage in PAPER_STAGES]
        return sorted({round(share * (units - 1)) for share in shares} & set(range(units - 1)))
    if sorted(set(given)) != list(given) or any(not 0 <= unit < units - 1 for unit in given):
        raise ConfigError(
            f"prune_after must increase and lie between 0 and {units - 2}, the last unit but one, but got "
            f"{list(given)}; reorder or drop some."
        )
    return list(given)
