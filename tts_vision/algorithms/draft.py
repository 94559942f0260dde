"""Drafts: many trajectories are begun, and only those that a person picks are finished."""

from __future__ import annotations

from dataclasses import replace

from tts_vision.algorithms._common import at_least
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.registry import register
from tts_vision.steering import PICKS, picked
from tts_vision.types import State


@register("algorithm", "draft")
def draft(ctx: SearchContext, *, n: int = 64, steps_done: int | None = None) -> State:
    """Drafts: the first steps of many samples; the search then waits until some are picked to be finished.

    A picked draft goes on from exactly where it stands, and becomes the sample that ``best_of_n`` makes of
    the same particle. See `tts_vision.draft` and `tts_vision.finish`.

    Args:
        n: Drafts.
        steps_done: Steps of each draft; by default a quarter of the trajectory.

    Raises:
        ConfigError: If the steps do not lie inside the trajectory, or the budget does not pay for the drafts.
    """
    at_least(1, n=n)
    steps = max(1, round(ctx.num_steps / 4)) if steps_done is None else steps_done
    if not 1 <= steps < ctx.num_steps:
        raise ConfigError(
            f"Drafts must end inside the trajectory, after 1 to {ctx.num_steps - 1} steps, but got "
            f"steps_done={steps}; change it, or raise the number of inference steps."
        )
    most = replace(ctx.ledger.remaining(), seconds=None).times(ctx.cost(steps))  # time is only a forecast
    if most is not None and most < n:
        raise ConfigError(
            f"A budget must pay for all {n} drafts of {steps} steps but pays for {most}; lower n or "
            "steps_done, or raise the budget."
        )
    drafts = ctx.advance(ctx.init(n), steps)
    ctx.score(drafts)
    while picks := ctx.ask(PICKS, picked, expected=[]):
        rows = [i for i, uid in enumerate(drafts.uids) if uid in picks and uid not in ctx.candidates]
        if rows:
            ctx.score(ctx.finish(ctx.select(drafts, rows)))
    return drafts
