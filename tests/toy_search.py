"""Search contexts on the closed-form toy, and a verifier that says what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tts_vision.context import SearchContext
from tts_vision.journal import Journal
from tts_vision.ledger import Budget
from tts_vision.registry import entry_of
from tts_vision.runner import conduct
from tts_vision.sampler import Sampler
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Event
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier


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


def run(algorithm: Callable[..., Any], context: SearchContext, **params: Any) -> Any:
    """Runs an algorithm as a search does: at the size that its budget pays for, unless that is given."""
    return conduct(context, algorithm, params, entry_of("algorithm", algorithm).size)


def events(context: SearchContext, what: str) -> list[Any]:
    """The events of one operation; ``move`` stands for all births but those by init and select."""
    if what == "move":
        return [e for e in context.events if e.kind == "birth" and e.what not in {"init", "select"}]
    return [event for event in context.events if event.what == what]


class Scripted(Verifier):
    """A verifier that returns given values in the order in which it is asked."""

    name = "scripted"
    accepts = TargetReward.accepts

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        taken, self.values = self.values[: len(media)], self.values[len(media) :]
        return [Score(value=value) for value in taken]
