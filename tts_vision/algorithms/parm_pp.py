"""PARM++: the winner of PARM is judged, and corrected by the reason why it was rejected."""

from __future__ import annotations

from functools import partial

from tts_vision.algorithms._attempts import Attempt
from tts_vision.algorithms._begun import winner
from tts_vision.algorithms._common import at_least
from tts_vision.algorithms._paths import Begin, best_of_paths, fresh_paths
from tts_vision.algorithms._potential import path_price
from tts_vision.algorithms._refinement import pays_for
from tts_vision.algorithms._reflection import correct, reflect
from tts_vision.context import SearchContext
from tts_vision.correcting import load_corrector
from tts_vision.critics import load_critic
from tts_vision.registry import register
from tts_vision.types import State


@register(
    "algorithm",
    "parm_pp",
    size="n",
    needs={"preview"},
    asks={"clarity", "potential"},
    paper="Guo et al. 2025, arXiv:2501.13926",
)
def parm_pp(
    ctx: SearchContext,
    *,
    n: int = 20,
    max_reflections: int = 3,
    corrector: str | None = None,
    critic: str = "verifier",
    holds: float = 0.5,
    patience: int = 1,
    refill: bool = True,
    reference_mode: bool = False,
) -> State:
    """PARM++: PARM's winner is judged, and corrected while it does not hold (Guo et al. 2025).

    The corrector gets the user's prompt, the rejected image and the reason, and begins `n` new paths, which
    are judged like those before. A new winner that is no better is dropped; after `patience` such attempts
    so is the rejected image, for fresh paths. The result is the best image of all attempts.

    Args:
        n: Paths of each attempt, as in `parm`.
        max_reflections: Most attempts after the first one.
        corrector: Begins new paths: ``prompt``, ``edit``, ``remask``, with parameters as
            ``edit:strength=0.5``, or your function ``file.py@name``. By default ``remask`` on masked-token
            models, ``edit`` where the generator can go back, else ``prompt``.
        critic: States the reasons: ``verifier``, or ``chat:base_url=URL,model=NAME``.
        holds: Score from which on a winner holds, where the verifier gives no verdict on it.
        patience: Attempts to correct one image that may fail.
        refill: As in `parm`.
        reference_mode: As in `parm`.
    """
    at_least(1, n=n, patience=patience)
    at_least(0, max_reflections=max_reflections)
    fix, reader = load_corrector(corrector, ctx), load_critic(critic)
    fresh: Begin = partial(fresh_paths, ctx)
    best: Attempt | None = None
    attempt, begin = best, fresh
    for _ in range(max_reflections + 1):
        if best is not None and attempt is None and not pays_for(ctx, path_price(ctx, 0) * n):
            break  # corrected paths, which begin half-way, may be cheaper than fresh ones
        paths = best_of_paths(begin, n, refill=refill, reference_mode=reference_mode)
        found = Attempt(*winner(paths), ctx.prompt.text)
        best = found if best is None or found.beats(best) else best
        if attempt is None or found.beats(attempt):
            attempt = found
        elif attempt.fails(patience):
            attempt, begin = None, fresh
            continue
        ((_, rejected),) = reflect(ctx, [attempt], critic=reader, holds=holds)
        if rejected is None:
            ctx.conclude()
            break
        begin = partial(correct, ctx, fix, rejected)
    assert best is not None
    return best.state
