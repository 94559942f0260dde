"""Calling a verifier so that one failed sample never costs the search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tts_vision.errors import BudgetSpent, VerifierError
from tts_vision.types import Media, Modality, Prompt, Score, Verifier

ScoreFunction = Callable[[list[Media], list[str]], Sequence[float]]


class FunctionVerifier:
    """A plain function ``f(media, prompts) -> floats`` as a verifier."""

    accepts: frozenset[Modality] = frozenset({"image", "video"})

    def __init__(self, function: ScoreFunction) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        values = self.function(list(media), [prompt.text for prompt in prompts])
        return [Score(value=float(value)) for value in values]


def safe_scores(
    verifier: Verifier, media: Sequence[Media], prompt: Prompt, charge: Callable[[int], None]
) -> list[Score]:
    """Scores of `media`, one each, NaN with a reason where there is none.

    When the whole list fails, each sample is tried alone, so that only those which really fail stay
    unscored.

    Args:
        verifier: What scores.
        media: What is scored.
        prompt: What all of it was generated for.
        charge: Called with the number of verifier calls before they are made.

    Raises:
        VerifierError: If the verifier does not return one score per sample.
        BudgetSpent: If `charge` raises it before the first call.
    """
    if not media:
        return []
    charge(len(media))
    try:
        return _checked(verifier, media, prompt)
    except VerifierError:
        raise
    except Exception as error:
        failure = Score.unscored(f"{verifier.name} raised {type(error).__name__}: {error}")
    if len(media) == 1:
        return [failure]
    scores: list[Score] = []
    for sample in media:
        try:
            scores += safe_scores(verifier, [sample], prompt, charge)
        except BudgetSpent:
            scores.append(failure)
    return scores


def _checked(verifier: Verifier, media: Sequence[Media], prompt: Prompt) -> list[Score]:
    scores = list(verifier.score(media, [prompt] * len(media)))
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
