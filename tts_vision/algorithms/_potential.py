"""The questions of PARM: whether a preview is clear, and whether its path has potential."""

from __future__ import annotations

from tts_vision.context import SearchContext
from tts_vision.types import Cost, Score, State

CLARITY, POTENTIAL = "clarity", "potential"


def first_clear(ctx: SearchContext, paths: State, end: int) -> dict[int, Score]:
    """The answers about the potential of those paths that have become clear, by uid.

    Args:
        ctx: Of their generator.
        paths: Particles that were not clear before.
        end: The step at which a rehearsal takes them to be clear.
    """
    last = paths.step == end
    clear = [i for i, answer in enumerate(ctx.judge(paths, CLARITY, expected=last)) if answer.satisfied]
    if not clear:
        return {}
    asked = paths.select(clear)
    found = zip(asked.uids, ctx.judge(asked, POTENTIAL))
    return {uid: answer for uid, answer in found if answer.satisfied is not None}


def path_price(ctx: SearchContext, start: int) -> Cost:
    """The cost of a path from a step on that is asked at every step, and of its score."""
    price = ctx.cost(step=start) + ctx.judge_cost(ctx.num_steps, POTENTIAL)
    return sum((ctx.judge_cost(step, CLARITY) for step in range(start + 1, ctx.num_steps + 1)), price)
