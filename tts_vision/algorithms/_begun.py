"""Particles of several generators."""

from __future__ import annotations

from collections.abc import Sequence

from tts_vision.correcting import Begun
from tts_vision.ranking import argmax
from tts_vision.types import State


def by_context(begun: Sequence[Begun]) -> list[Begun]:
    """The particles of each generator that are at one step, together."""
    groups: dict[tuple[str, int, tuple[int, ...]], list[Begun]] = {}
    for ctx, state in begun:
        key = ctx.sampler.name, state.step, tuple(state.latents.shape[1:])
        groups.setdefault(key, []).append((ctx, state))
    return [(group[0][0], State.cat([state for _, state in group])) for group in groups.values()]


def winner(begun: Sequence[Begun]) -> Begun:
    """The scored particle with the highest score; the first one where none could be scored."""
    rows = [(ctx, state.select([i])) for ctx, state in begun for i in range(len(state))]
    return rows[argmax([ctx.current_scores(row).item() for ctx, row in rows])]
