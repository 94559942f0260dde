"""Image-level alignment: of the candidates of each node, which differ in their last unit alone, the best."""

from __future__ import annotations

from tts_vision.algorithms._released_tree import potentials
from tts_vision.algorithms._tree_plan import TreePlan
from tts_vision.context import SearchContext
from tts_vision.ranking import argmax
from tts_vision.types import State
from tts_vision.verifier import Verifier


def aligned(ctx: SearchContext, plan: TreePlan, state: State, unit: int) -> tuple[State, list[float] | None]:
    """The best of each group of candidates, and their scores, None if candidates are not judged like nodes.

    Args:
        ctx: The search.
        plan: How many candidates a group has, and how they are judged.
        state: Candidates at the first step of a unit, group by group.
        unit: The unit.
    """
    at = plan.units[unit]
    if plan.released:
        state, values = potentials(ctx, state, at.end)
    else:
        state = ctx.advance(state, at.end - state.step)
        values = unit_scores(ctx, plan, state, unit, by=plan.image_judge)
    best = [i + argmax(values[i : i + at.candidates]) for i in range(0, len(state), at.candidates)]
    like_nodes = not plan.released and plan.image_judge in (None, at.judge)
    return ctx.select(state, best), [values[i] for i in best] if like_nodes else None


def unit_scores(
    ctx: SearchContext, plan: TreePlan, state: State, unit: int, *, by: Verifier | None = None
) -> list[float]:
    """Scores of previews by the prompt of their unit, and by its verifier or another one."""
    at = plan.units[unit]
    scores: list[float] = ctx.score(state, at.judged, by=at.judge if by is None else by).tolist()
    return scores
