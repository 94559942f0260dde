"""Calling a verifier so that one failed sample never costs the search."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tts_vision.errors import BudgetSpent, VerifierError
from tts_vision.types import (
    Anchor,
    AnchoredVerifier,
    Charge,
    CompositeVerifier,
    Media,
    Modality,
    Prompt,
    Score,
    Verifier,
)

ScoreFunction = Callable[[list[Media], list[str]], Sequence[float]]
_Scorer = Callable[[Sequence[Media], Sequence[Prompt]], Sequence[Score]]


class FunctionVerifier:
    """A plain function ``f(media, prompts) -> floats`` as a verifier."""

    accepts: frozenset[Modality] = frozenset({"image", "video"})

    def __init__(self, function: ScoreFunction) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        values = self.function(list(media), [prompt.text for prompt in prompts])
        return [Score(value=float(value)) for value in values]


def warm_up(verifier: Verifier) -> None:
    """Loads what a verifier would load on first use, if it has anything to load.

    Raises:
        VerifierError: If it cannot be loaded.
    """
    load = getattr(verifier, "load", None)
    if load is not None:
        load()


def calls_of(verifier: Verifier, n: int) -> dict[str, int]:
    """How many calls of which verifier scoring `n` samples takes; a composite says it for its members."""
    calls = getattr(verifier, "calls", None)
    return calls(n) if callable(calls) else {verifier.name: n}


def free(calls: Mapping[str, int]) -> None:
    """Charges nothing: the ledger of a verifier that belongs to no search."""


def safe_scores(
    verifier: Verifier,
    media: Sequence[Media],
    prompts: Sequence[Prompt],
    *,
    charge: Charge = free,
    anchor: Anchor | None = None,
    paid: bool = False,
) -> list[Score]:
    """Scores of `media`, one each, NaN with a reason where there is none.

    When the whole list fails, each sample is tried alone, so that only those which really fail stay
    unscored.

    Args:
        verifier: What scores.
        media: What is scored.
        prompts: What each was generated for.
        charge: Called with the number of calls of each verifier before they are made.
        anchor: The best sample so far, for a verifier that compares samples by looking at them.
        paid: Whether the first try is charged already.

    Raises:
        VerifierError: If the verifier does not return one score per sample, or cannot score at all.
        BudgetSpent: If `charge` raises it before the first call.
    """
    if not media:
        return []
    if not paid:
        charge(calls_of(verifier, len(media)))
    try:
        return _checked(verifier, media, prompts, _scorer(verifier, charge, anchor))
    except VerifierError:
        raise
    except Exception as error:
        failure = Score.unscored(f"{verifier.name} raised {type(error).__name__}: {error}")
    if len(media) == 1:
        return [failure]
    scores: list[Score] = []
    for sample, prompt in zip(media, prompts):
        try:
            scores += safe_scores(verifier, [sample], [prompt], charge=charge, anchor=anchor)
        except BudgetSpent:
            scores.append(failure)
    return scores


def _scorer(verifier: Verifier, charge: Charge, anchor: Anchor | None) -> _Scorer:
    """How a verifier scores: by its members, beside the best so far, or simply."""
    if isinstance(verifier, CompositeVerifier):
        return partial(verifier.score_by_members, charge=charge, anchor=anchor)
    if anchor is not None and isinstance(verifier, AnchoredVerifier):
        return partial(verifier.score_beside, best=anchor.load(), best_score=anchor.score)
    return verifier.score


def _checked(
    verifier: Verifier, media: Sequence[Media], prompts: Sequence[Prompt], score: _Scorer
) -> list[Score]:
    scores = list(score(media, prompts))
    if len(scores) != len(media):
        raise VerifierError(
            f"Verifier {verifier.name!r} must return one score per sample, {len(media)} here, but returned "
            f"{len(scores)}; return NaN for a sample that it cannot score."
        )
    return [
        s
        if not math.isnan(s.value) or s.reason
        else Score(value=s.value, parts=s.parts, reason=f"{verifier.name} returned NaN")
        for s in scores
    ]
