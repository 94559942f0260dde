"""PARM: paths are judged as soon as they are clear, and the best of those with potential is kept."""

from __future__ import annotations

from functools import partial

from tts_vision.algorithms._common import at_least
from tts_vision.algorithms._paths import best_of_paths, fresh_paths
from tts_vision.context import SearchContext
from tts_vision.registry import register
from tts_vision.types import State


@register(
    "algorithm",
    "parm",
    size="n",
    needs={"preview"},
    asks={"clarity", "potential"},
    paper="Guo et al. 2025, arXiv:2501.13926",
)
def parm(ctx: SearchContext, *, n: int = 20, refill: bool = True, reference_mode: bool = False) -> State:
    """PARM: paths stop at their first clear step unless they have potential (Guo et al. 2025).

    At each step the verifier is asked whether the preview of a path is clear, until it is; then, once,
    whether the path has potential. Of the finished paths with potential the final question, which is the
    verifier's score, picks the best. If no path has potential, the one that comes nearest to it is finished.

    Args:
        n: Paths that run at a time, as one batch.
        refill: Whether fresh paths take the places of stopped ones, paid for by what stopping saved, until
            `n` have potential. Without it that part of the budget is not spent.
        reference_mode: Run all paths to the end, as the released code does, also those without potential;
            none is refilled. Its sampled verdicts are an option of the verifier, ``reference_sampling``.
    """
    at_least(1, n=n)
    begin = partial(fresh_paths, ctx)
    found = best_of_paths(begin, n, refill=refill, reference_mode=reference_mode)
    if not refill:
        ctx.conclude()
    return State.cat([state for _, state in found])
