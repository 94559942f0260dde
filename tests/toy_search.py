"""Search contexts on the closed-form toy, and a verifier that says what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tts_vision.context import SearchContext
from tts_vision.journal import Journal
from tts_vision.ledger import Budget
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Event
from tts_vision.types import Media, Prompt, Sampler, Score, Verifier


def toy_context(
    sampler: Sampler | None = None,
    verifier: Verifier | None = None,
    *,
    seed: int = 3,
    max_batch: int | None = None,
    journal: Journal | None = None,
    observer: Callable[[SearchContext, Event], None] | None = None,
    **limits: Any,
) -> SearchContext:
    """A context on a five-step toy, with the limits of a `Budget`."""
    context = SearchContext(
        sampler or GaussianMixtureSampler(num_steps=5),
        verifier or TargetReward(),
        Prompt("x"),
        seed=seed,
        max_batch=max_batch,
        journal=journal,
        observer=observer,
    )
    context.ledger.budget = Budget(**limits).resolve(context.cost())
    return context


def events(context: SearchContext, kind: str) -> list[Any]:
    """What a search recorded of one kind."""
    return [event for event in context._journal.events if event.kind == kind]


class Scripted:
    """A verifier that returns given values in the order in which it is asked."""

    name = "scripted"
    accepts = TargetReward.accepts

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        taken, self.values = self.values[: len(media)], self.values[len(media) :]
        return [Score(value=value) for value in taken]
