"""Attempts: finished and scored samples that may be corrected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tts_vision.algorithms._begun import by_context
from tts_vision.context import SearchContext
from tts_vision.correcting import Begun, Rejected
from tts_vision.types import Region, Score, State


@dataclass(eq=False)
class Attempt:
    """A finished and scored sample that may be corrected.

    Attributes:
        context: Of its generator.
        state: The particle, one row.
        prompt: The prompt that a correction starts from.
        failures: Corrections of it that were no better.
    """

    context: SearchContext
    state: State
    prompt: str
    failures: int = 0

    @property
    def score(self) -> Score:
        """The verifier's score."""
        return self.context.candidates[self.state.uids[0]].score

    @property
    def value(self) -> float:
        """The value of the score by now, NaN without one."""
        return self.context.current_scores(self.state).item()

    def rejected(self, reason: str = "", regions: tuple[Region, ...] = ()) -> Rejected:
        """The sample as a corrector gets it."""
        return Rejected(self.context, self.state, self.prompt, reason, regions)

    def fails(self, patience: int) -> bool:
        """Counts a correction that was no better; whether there are as many as `patience` now."""
        self.failures += 1
        return self.failures >= patience

    def beats(self, other: Attempt) -> bool:
        """Whether it is better; a sample without a score never is."""
        return not math.isnan(self.value) and not self.value <= other.value


def finished(begun: Sequence[tuple[Begun, str]]) -> list[list[Attempt]]:
    """The attempts that begun particles become, by their prompts; those of one generator run together."""
    done: dict[int, Attempt] = {}
    prompts = {uid: prompt for (_, state), prompt in begun for uid in state.uids}
    for ctx, state in by_context([each for each, _ in begun]):
        state = ctx.finish(state)
        ctx.score(state)
        done |= {uid: Attempt(ctx, state.select([i]), prompts[uid]) for i, uid in enumerate(state.uids)}
    return [[done[uid] for uid in state.uids] for (_, state), _ in begun]


def drawn(ctx: SearchContext, n: int) -> list[Attempt]:
    """Fresh attempts by the user's prompt."""
    return finished([((ctx, ctx.init(n)), ctx.prompt.text)])[0]
