"""Fusion: the best parts of the best samples are named, and a corrector composes the next one."""

from __future__ import annotations

from collections.abc import Sequence

from tts_vision.algorithms._attempts import Attempt, drawn
from tts_vision.algorithms._common import at_least
from tts_vision.algorithms._refinement import refine
from tts_vision.algorithms._reflection import Rejections, held_by, state_reason
from tts_vision.context import SearchContext
from tts_vision.correcting import load_corrector
from tts_vision.critics import load_critic
from tts_vision.registry import register
from tts_vision.types import Score, State


@register("algorithm", "fusion", size="rounds")
def fusion(
    ctx: SearchContext,
    *,
    rounds: int = 4,
    n: int = 4,
    top: int = 3,
    children: int = 1,
    corrector: str | None = None,
    critic: str = "verifier",
    holds: float | None = None,
    patience: int = 2,
) -> State:
    """Fusion: rounds in which the best parts of the best samples are named and a corrector joins them.

    A vision-language model sees the `top` best samples together and describes the image that joins their best
    parts; the corrector begins from the best of them and this description. Without a model, the parts of the
    verifier's scores say which sample is best in which respect.

    Args:
        rounds: Rounds of composition.
        n: Plain samples to begin with.
        top: Samples whose parts are joined.
        children: Samples that are composed in each round.
        corrector: As in `parm_pp`.
        critic: Names the best parts: ``verifier``, or ``chat:base_url=URL,model=NAME``.
        holds: As in `reflection_flow`.
        patience: Rounds without progress after which the best sample is dropped.
    """
    at_least(1, n=n, top=top, children=children, patience=patience)
    at_least(0, rounds=rounds)
    fix, reader = load_corrector(corrector, ctx), load_critic(critic)

    def judged(attempts: Sequence[Attempt]) -> Rejections:
        scores = [each.score for each in attempts]
        described = best_parts(scores)
        (held,) = held_by(ctx, scores[:1], holds)
        if reader is not None and not held:
            told = ctx.ask(
                reader.name,
                lambda: reader.best_parts(ctx.prompt.text, [each.rejected().image for each in attempts]),
                cost={reader.name: 1},
                expected="",
            )
            described = told or described
        return [(attempts[0], state_reason(ctx, attempts[0], held, described))]

    return refine(
        ctx, drawn(ctx, n), judged, [fix], rounds=rounds, parents=top, children=children, patience=patience
    )


def best_parts(scores: Sequence[Score]) -> str:
    """The parts in which another sample is better than the first one, which is the best."""
    first, *others = scores
    better = [
        name for name, value in first.parts.items() if any(o.parts.get(name, value) > value for o in others)
    ]
    return (
        f"{first.reason + '; ' if first.reason else ''}with {', '.join(better)}"
        if better
        else first.reason or ""
    )
