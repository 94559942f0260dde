"""RAISE: demands that an image fails decide what is done about it; several actions compete."""

from __future__ import annotations

from functools import partial

from tts_vision.algorithms._attempts import drawn
from tts_vision.algorithms._common import at_least
from tts_vision.algorithms._refinement import refine
from tts_vision.algorithms._reflection import reflect
from tts_vision.context import SearchContext
from tts_vision.correcting import load_corrector
from tts_vision.critics import load_critic
from tts_vision.errors import ConfigError
from tts_vision.registry import register
from tts_vision.types import State


@register("algorithm", "raise_search", size="rounds", paper="Jiang et al. 2026, arXiv:2603.00483")
def raise_search(
    ctx: SearchContext,
    *,
    rounds: int = 4,
    n: int = 4,
    children: int = 1,
    actions: list[str] | None = None,
    critic: str = "verifier",
    patience: int = 2,
) -> State:
    """RAISE: rewriting, resampling and editing compete to meet failed demands (Jiang et al. 2026).

    The verifier checks the demands of the prompt one by one and names those that failed. Every action begins
    new samples from the best one and this reason, and the best of all goes on. The search ends when all
    demands are met.

    Args:
        rounds: Rounds of correction.
        n: Plain samples to begin with.
        children: Samples that each action begins in a round.
        actions: Correctors, as in `parm_pp`; by default ``prompt``, ``resample``, and ``edit`` where the
            generator can go back. On a command line a JSON list.
        critic: States the reasons: ``verifier``, or ``chat:base_url=URL,model=NAME``.
        patience: Rounds without progress after which a sample is dropped.

    Raises:
        ConfigError: If the verifier checks no demands.
    """
    at_least(1, n=n, children=children, patience=patience)
    at_least(0, rounds=rounds)
    if not ctx.verifier.checks_demands:
        raise ConfigError(
            f"raise_search needs a verifier that checks demands but {ctx.verifier.name!r} gives scores "
            "alone; use checklist, detector or another one that does."
        )
    if actions is None:
        actions = ["prompt", "resample", *(["edit"] if "renoise" in ctx.capabilities else [])]
    if not actions:
        raise ConfigError(
            "raise_search needs at least one action but got none; 'tts-vision list correctors'."
        )
    judged = partial(reflect, ctx, critic=load_critic(critic), holds=None)
    correctors = [load_corrector(action, ctx) for action in actions]
    return refine(
        ctx, drawn(ctx, n), judged, correctors, rounds=rounds, parents=1, children=children, patience=patience
    )
