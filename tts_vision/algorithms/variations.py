"""Variations of one result, of another search or of anybody: more like this, refined under other words."""

from __future__ import annotations

from tts_vision.algorithms._common import at_least, fraction
from tts_vision.algorithms._lineages import adopt, chain_of, relive
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.registry import register
from tts_vision.steering import ORIGINAL
from tts_vision.types import State


@register("algorithm", "variations", size="n")
def variations(
    ctx: SearchContext,
    *,
    lineage: str = "",
    image: str = "",
    made_for: str = "",
    n: int = 8,
    strength: float | None = None,
) -> State:
    """Variations: samples around one particle of another search of the same seed, or around an image.

    The original is a candidate like the variations. A particle is made again from its lineage; an image is
    encoded. It is sent back part of the way with fresh noise, once for each variation, and goes on under the
    prompt of this search (SDEdit, Meng et al. 2022). Where the sampler cannot go back, the initial noise is
    changed; an image-to-image or edit pipeline starts from the image by itself.

    Args:
        lineage: How the particle came to be: the ancestors as JSON, as in ``lineage`` of a result.json.
        image: In its place a file with an image, which is cropped to the shape of the samples.
        made_for: The prompt of the other search, if it was another one; by default that of this search.
        n: Variations.
        strength: How far variations may go from the original, from 0 to 1; by default 0.5. An image-to-image
            pipeline has a setting of its own for it.

    Raises:
        ConfigError: If there is not one original, or it cannot be made again here.
        CapabilityError: If the sampler has no way to vary it.
    """
    at_least(1, n=n)
    fraction(strength=strength)
    if strength == 0:
        raise ConfigError("strength must be positive but got 0, which changes nothing; raise it.")
    if bool(lineage) == bool(image):
        got = "both" if image else "neither"
        raise ConfigError(
            f"Variations are of a particle or of an image but got {got}; give lineage or image."
        )
    begin, original = adopt(ctx, image) if image else relive(ctx, chain_of(lineage), made_for)
    original = ctx.finish(original)
    ctx.score(original)
    ctx.note(**{ORIGINAL: original.uids[0]})
    if image and "edits" in ctx.capabilities:
        if strength is not None:
            ctx.warn(
                f"{ctx.sampler.name} starts from an image by itself, so that strength={strength:g} is not "
                "used; set pipeline.strength where its call has one."
            )
        children = ctx.init(n, begin.conditions[0])
    else:
        changed = bool(made_for) and made_for != ctx.prompt.text
        children = _varied(ctx, begin, original, n, 0.5 if strength is None else strength, changed)
    children = ctx.finish(children)
    ctx.score(children)
    return children


def _varied(
    ctx: SearchContext, begin: State, original: State, n: int, strength: float, changed: bool
) -> State:
    """Children of the original with part of its randomness drawn anew; under another prompt if it changed."""

    def asked(state: State) -> State:
        return ctx.recondition(state, ctx.prompt.text) if changed else state

    if "renoise" in ctx.capabilities:
        back = min(ctx.num_steps - 1, round(ctx.num_steps * (1 - strength)))
        return ctx.renoise(asked(original), back, [0] * n)
    if (move := ctx.mutation(0, strength)) is not None:
        return ctx.mutate(asked(begin), move, [0] * n)
    raise CapabilityError(
        f"Variations need a sampler that can renoise or mutate but {ctx.sampler.name!r} can do neither; "
        "use another model."
    )
