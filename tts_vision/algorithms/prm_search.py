"""Search by a process reward: the best step goes on and branches."""

from __future__ import annotations

from tts_vision.algorithms.beam_search import beam_search
from tts_vision.context import SearchContext
from tts_vision.registry import register
from tts_vision.types import State


@register(
    "algorithm",
    "prm_search",
    size="n",
    needs={"stochastic", "preview"},
    wants_stochastic=True,
    paper="Guo et al. 2025, arXiv:2501.13926, figure 3",
)
def prm_search(ctx: SearchContext, *, n: int = 20) -> State:
    """PRM: at each step the best of n previews goes on, as n versions of the next step (Guo et al. 2025).

    `beam_search` with one beam, at every step that can branch.

    Args:
        n: Versions of each step.
    """
    steps = [step for step in range(ctx.num_steps) if ctx.can_fork_at(step)]
    return beam_search(ctx, width=1, branch=n, scales=steps)
