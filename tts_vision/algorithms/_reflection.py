"""Reflection: attempts are judged, and correctors begin new samples from them and the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from tts_vision.algorithms._attempts import Attempt
from tts_vision.context import SearchContext
from tts_vision.correcting import Begun, CannotCorrect, Corrector, Rejected
from tts_vision.critics import ChatCritic
from tts_vision.errors import CapabilityError
from tts_vision.reflections import CORRECTION, REFLECTION
from tts_vision.rewriting import Rewriter
from tts_vision.types import Region, Score

QUESTION = "reflection"


Rejections: TypeAlias = list[tuple[Attempt, Rejected | None]]


def reflect(
    ctx: SearchContext, attempts: Sequence[Attempt], *, critic: ChatCritic | None, holds: float | None
) -> Rejections:
    """The attempts, each with the reason why it is rejected, in order; with None where it holds.

    The verifier judges it: by its question ``reflection`` if it answers that, else by its score. It holds if
    the verdict says so, or, without a verdict, if the score is at least `holds`.

    Args:
        ctx: Of the search's own generator.
        attempts: Finished samples.
        critic: States the reasons instead of the verifier.
        holds: The score from which on a sample holds; None if no score is enough.
    """
    asks = QUESTION in ctx.verifier.questions
    verdicts = [
        each.context.judge(each.state, QUESTION, expected=False)[0] if asks else each.score
        for each in attempts
    ]
    held = held_by(ctx, verdicts, holds)
    rejected = [i for i, good in enumerate(held) if not good]
    reasons = [verdict.reason or "" for verdict in verdicts]
    if critic is not None and rejected:
        told = ctx.ask(
            critic.name,
            lambda: critic.reasons(
                ctx.prompt.text,
                [attempts[i].rejected().image for i in rejected],
                [verdicts[i] for i in rejected],
            ),
            cost={critic.name: len(rejected)},
            expected=[""] * len(rejected),
        )
        for i, reason in zip(rejected, told, strict=True):
            reasons[i] = reason or reasons[i]
    stated = zip(attempts, held, reasons, verdicts, strict=True)
    return [(each, state_reason(ctx, each, good, why, v.regions)) for each, good, why, v in stated]


def held_by(ctx: SearchContext, verdicts: Sequence[Score], holds: float | None) -> list[bool]:
    """For each verdict whether the sample holds."""

    def found() -> list[bool]:
        enough = [holds is not None and verdict.value >= holds for verdict in verdicts]
        return [e if v.satisfied is None else v.satisfied for v, e in zip(verdicts, enough)]

    held: list[bool] = ctx.ask("holds", found, expected=[False] * len(verdicts))
    return held


def state_reason(
    ctx: SearchContext, attempt: Attempt, held: bool, reason: str, regions: Sequence[Region] = ()
) -> Rejected | None:
    """Records whether an attempt holds, and if not, why; None if it does."""
    said = {"holds": held, "reason": "" if held else reason, "regions": [] if held else list(regions)}
    ctx.ask(REFLECTION, lambda: said, about=attempt.state)
    return None if held else attempt.rejected(reason, tuple(regions))


def correct(ctx: SearchContext, corrector: Corrector, rejected: Rejected, n: int) -> Begun:
    """`n` particles that a corrector begins; fresh ones, and a warning, where it cannot."""
    try:
        begun = corrector.correct(ctx, rejected, n)
    except (CannotCorrect, CapabilityError) as error:
        ctx.warn(
            f"Corrector {corrector.name!r} cannot correct particle {rejected.uid} ({error}); fresh samples "
            "take the place of the corrected ones."
        )
        begun = ctx, ctx.init(n)
    ctx.ask(
        CORRECTION,
        lambda: {"corrector": corrector.name, "rejected": rejected.uid},
        about=begun[1],
    )
    return begun


def refined(ctx: SearchContext, rewriter: Rewriter, rejections: Rejections) -> Rejections:
    """The rejections with prompts in other words, asked for in order; as they were where there are none."""
    found: Rejections = []
    for parent, rejected in rejections:
        if rejected is not None:
            texts = ctx.ask(
                "refine",
                lambda text=rejected.prompt: rewriter.rewrite(text, 1),
                cost={rewriter.name: rewriter.calls} if rewriter.calls else None,
                about=rejected.state,
                expected=[],
            )
            rejected = replace(rejected, prompt=texts[0] if texts else rejected.prompt)
        found.append((parent, rejected))
    return found
