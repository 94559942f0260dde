"""Beam search over scales or steps."""

from __future__ import annotations

from tts_vision.algorithms._common import at_least
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.ranking import top_k
from tts_vision.registry import register
from tts_vision.types import State

MOST_SCALES, EVENLY = 16, 10  # of more steps than that, so many are chosen by default


@register(
    "algorithm",
    "beam_search",
    size="width",
    needs={"stochastic", "preview"},
    wants_stochastic=True,
    paper="Riise et al. 2025, arXiv:2510.16751",
)
def beam_search(
    ctx: SearchContext,
    *,
    width: int = 4,
    branch: int = 4,
    scales: list[int] | None = None,
) -> State:
    """Beam search: at each chosen scale every beam branches, and the best branches go on (Riise et al. 2025).

    Args:
        width: Beams.
        branch: Versions of a chosen scale that are drawn for each beam. Models that predict tokens compute
            their probabilities once for all of them.
        scales: Scales (or steps), from 0, that are drawn several times; by default all, or ten evenly spaced
            where there are more than 16.
    """
    at_least(1, width=width, branch=branch)
    chosen = chosen_scales(ctx, scales)
    state = ctx.init(width * branch if 0 in chosen else width)
    for scale in chosen:
        if scale < state.step:
            continue
        state = ctx.advance(state, scale - state.step)
        state = branches(ctx, state, branch) if scale else ctx.advance(state, 1)
        if state.step < ctx.num_steps:
            state = ctx.select(state, top_k(ctx.score(state), width))
    state = ctx.finish(state)
    ctx.score(state)
    return state


def branches(ctx: SearchContext, state: State, branch: int) -> State:
    """Versions of each particle, advanced until their previews differ.

    Where previews show the randomness of their own step, as those of tokens do, copies draw the next step.
    An x0 estimate is made before the noise of its step is added: there the noise of the last step is drawn
    again, which costs nothing, and the next step shows the difference; otherwise copies take two steps.
    """
    copies = [i for i in range(len(state)) for _ in range(branch)]
    if ctx.sampler.preview_shows_step:
        return ctx.advance(ctx.select(state, copies), 1)
    move = ctx.mutation(state.step, 1.0)
    if move is not None and move.target(state.step) == state.step:
        others = [i for i in range(len(state)) for _ in range(branch - 1)]
        versions = State.cat([state, ctx.mutate(state, move, others)]) if others else state
        return ctx.advance(versions, 1)
    return ctx.advance(ctx.select(state, copies), min(2, ctx.num_steps - state.step))


def chosen_scales(ctx: SearchContext, scales: list[int] | None) -> list[int]:
    """The scales at which beams branch.

    Raises:
        ConfigError: If they are none of the sampler's, in increasing order, or branches could not differ.
    """
    steps = ctx.num_steps
    if scales is None:
        count = steps if steps <= MOST_SCALES else EVENLY
        even = [round(i * (steps - 1) / max(count - 1, 1)) for i in range(count)]
        return [scale for scale in even if ctx.can_fork_at(scale)]
    if not scales or sorted(set(scales)) != scales or not 0 <= scales[0] <= scales[-1] < steps:
        raise ConfigError(
            f"scales must increase and lie between 0 and {steps - 1} but got {scales}; reorder or drop some."
        )
    for scale in scales:
        if scale and not ctx.can_fork_at(scale):
            raise ConfigError(
                f"Branches must be able to differ but no step from {scale} on adds noise; choose earlier "
                "scales or a stochastic sampler."
            )
    return scales
