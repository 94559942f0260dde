"""Variations of one particle of another search: more like this."""

from __future__ import annotations

from tts_vision.algorithms._common import at_least, fraction
from tts_vision.algorithms._lineages import chain_of, relive
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.registry import register
from tts_vision.types import State


@register("algorithm", "variations", size="n")
def variations(ctx: SearchContext, *, lineage: str, n: int = 8, strength: float = 0.5) -> State:
    """Variations: samples around one particle of another search of the same seed.

    The particle is made again from its lineage, finished and scored, then sent back part of the way with
    fresh noise, once for each variation; where the sampler cannot go back, the initial noise is changed.

    Args:
        lineage: How the particle came to be: the ancestors as JSON, as in ``lineage`` of a result.json.
        n: Variations.
        strength: How far variations may go from the particle, from 0 to 1.

    Raises:
        ConfigError: If the lineage is none of a particle that can be made again here.
        CapabilityError: If the sampler has no way to vary a particle.
    """
    at_least(1, n=n)
    fraction(strength=strength)
    if strength == 0:
        raise ConfigError("strength must be positive but got 0, which changes nothing; raise it.")
    begin, particle = relive(ctx, chain_of(lineage))
    original = ctx.finish(particle)
    ctx.score(original)
    move = None if "renoise" in ctx.capabilities else ctx.mutation(0, strength)
    if "renoise" in ctx.capabilities:
        back = min(ctx.num_steps - 1, round(ctx.num_steps * (1 - strength)))
        children = ctx.renoise(original, back, [0] * n)
    elif move is not None:
        children = ctx.mutate(begin, move, [0] * n)
    else:
        raise CapabilityError(
            f"Variations need a sampler that can renoise or mutate but {ctx.sampler.name!r} can do neither; "
            "use another model."
        )
    children = ctx.finish(children)
    ctx.score(children)
    return children
