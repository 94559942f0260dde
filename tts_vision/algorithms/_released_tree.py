"""Tree-of-Frames as released, where Video-T1's code differs from its paper."""

from __future__ import annotations

from collections.abc import Sequence

from tts_vision.algorithms._potential import first_clear
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.pruning import Rule
from tts_vision.types import State


def check_released(
    ctx: SearchContext,
    *,
    prune: Rule,
    keep: Sequence[int] | None,
    order: str,
    backtrack: bool,
    judge: str | None,
) -> None:
    """Checks that nothing else is asked for than the released code does.

    Raises:
        ConfigError: If it is, or forks have noise of their own.
    """
    others = {"prune": prune not in ("top_k", "median"), "keep": keep is not None}
    others |= {"order": order != "breadth", "backtrack": backtrack, "image_verifier": judge is not None}
    if chosen := [name for name, differs in others.items() if differs]:
        raise ConfigError(
            "strict_reference prunes by the median, breadth first, and asks the verifier itself for clarity "
            f"and potential, but {' and '.join(chosen)} say otherwise; leave them out."
        )
    if ctx.sampler.branch_noise != "shared_root":
        raise ConfigError(
            "In the released code siblings begin with the noise of their root but those of "
            f"{ctx.sampler.name!r} have their own; set branch_noise='shared_root' (--set "
            "sampler.branch_noise=shared_root), of a model that draws noise within a chunk, or leave out "
            "strict_reference."
        )


def potentials(ctx: SearchContext, state: State, end: int) -> tuple[State, list[float]]:
    """Particles at step `end`, and the potential of each at its first clear step; 0 if none was clear."""
    found: dict[int, float] = {}
    while state.step < end:
        state = ctx.advance(state, 1)
        unclear = [i for i, uid in enumerate(state.uids) if uid not in found]
        if unclear:
            answers = first_clear(ctx, state.select(unclear), end)
            found |= {uid: answer.value for uid, answer in answers.items()}
    return state, [found.get(uid, 0.0) for uid in state.uids]
