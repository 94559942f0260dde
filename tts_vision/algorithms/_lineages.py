"""Originals of variations: a particle of another search made again from its lineage, or an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from pydantic import ValidationError

from tts_vision.condition import ORIGINAL, Asset, Condition
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.moves import Adopt, Move, Select, from_description
from tts_vision.trace import Ancestor
from tts_vision.types import State


def adopt(ctx: SearchContext, path: str) -> tuple[State, State]:
    """The image in a file as a particle.

    Returns:
        A particle at step 0 whose condition has the image, and the image as a finished particle.

    Raises:
        ConfigError: If the file holds no still image.
        CapabilityError: If the sampler starts from no image.
    """
    ctx.sampler.requires("adopt", "refining an image")
    image = ctx.image(path)
    own = ctx.sampler.condition_of(ctx.prompt)
    images = {ORIGINAL: image, **({"image": image} if "edits" in ctx.capabilities else {})}
    begin = ctx.init(1, replace(own, images=images))
    return begin, ctx.mutate(begin, Adopt(ctx.num_steps))


def relive(ctx: SearchContext, chain: Sequence[Ancestor], made_for: str = "") -> tuple[State, State]:
    """A particle of another search of the same seed, made again from its lineage.

    Args:
        ctx: A search that has made no particles yet, on the same generator and prompt.
        chain: The lineage, from the seed on.
        made_for: The prompt of that search; by default that of this one.

    Returns:
        The particle that it began as, at step 0, and the particle itself where it was born.

    Raises:
        ConfigError: If the lineage has what cannot be made again here: gradients, images or embeddings of
            conditions, another generator.
    """
    first = chain[0]
    ctx.number_from(first.uid)
    default = ctx.sampler.condition_of(replace(ctx.prompt, text=made_for)) if made_for else None
    state = begin = ctx.init(1, _condition(first) or default)
    for child in chain[1:]:
        move = _move(child)
        if child.sampler or move.gradient_steps:
            raise ConfigError(
                f"A particle that is varied must be made by its own generator without gradients but particle "
                f"{child.uid} was made by {child.origin!r}; choose another one."
            )
        start = child.step if child.parent_step is None else child.parent_step
        if start > state.step:
            state = ctx.advance(state, start - state.step)
        ctx.number_from(child.uid)
        condition = _condition(child)
        if condition is not None:
            state = ctx.recondition(state, condition)
        elif isinstance(move, Select):
            state = ctx.fork(state)
        else:
            state = ctx.mutate(state, move)
    return begin, state


def chain_of(text: str) -> list[Ancestor]:
    """The ancestors of a particle, from the seed on, as JSON has them.

    Raises:
        ConfigError: If it is something else.
    """
    try:
        chain = [Ancestor(**each) for each in json.loads(text)]
        uids = [each.uid for each in chain]
        links = all(b.parent == a.uid for a, b in pairwise(chain))
        if not chain or chain[0].parent is not None or not links or uids != sorted(set(uids)) or uids[0] < 0:
            raise ValueError("it does not begin with a seed, or a link is missing")
        return chain
    except (ValidationError, ValueError, TypeError) as error:
        raise ConfigError(
            f"A lineage must be the ancestors of a particle, as JSON, but got {text[:80]!r} "
            f"({str(error).splitlines()[0]}); take it from a result.json."
        ) from None


def _move(ancestor: Ancestor) -> Move:
    try:
        return from_description(ancestor.move or {"name": ancestor.origin})
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"A lineage must name moves with their values but particle {ancestor.uid} cannot be made with "
            f"{ancestor.move!r} ({error}); take it from a result.json."
        ) from None


def _condition(ancestor: Ancestor) -> Condition | None:
    if ancestor.condition is None:
        return None

    def refuse(name: str) -> Asset:
        raise ConfigError(
            f"A particle that is varied must have no images or embeddings of its own but particle "
            f"{ancestor.uid} has; choose another one."
        )

    return Condition.from_description(ancestor.condition, refuse)
