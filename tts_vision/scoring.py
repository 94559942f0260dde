"""Calling a verifier so that one failed sample never costs the search."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tts_vision.errors import BudgetSpent, VerifierError
from tts_vision.media import copied
from tts_vision.memory import in_halves, out_of_memory
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier


def safe_scores(
    verifier: Verifier,
    media: Sequence[Media],
    prompts: Sequence[Prompt],
    *,
    asked: Asked = ALONE,
    paid: bool = False,
) -> list[Score]:
    """Scores of `media`, one each; NaN with a reason for samples that could not be scored.

    If the verifier fails on all samples together, each is tried alone, and charged again, so that only those
    that fail alone stay unscored. If memory is full, they are scored in halves, which is not charged again.
    A value of +inf is no score, so that such a sample never wins; -inf ranks below every number.

    Args:
        verifier: The verifier.
        media: Samples.
        prompts: The prompt of each.
        asked: The circumstances; its `charge` is called before calls are made.
        paid: Whether the first attempt is charged already.

    Raises:
        VerifierError: If the verifier does not return one score per sample, or cannot score at all.
        BudgetSpent: If `asked.charge` raises it before the first call.
    """
    if not media:
        return []
    if not paid:
        asked.charge(verifier.calls(len(media)))

    def attempt(start: int, stop: int) -> list[Score]:
        some, theirs = media[start:stop], prompts[start:stop]
        try:
            return _checked(verifier, some, theirs, asked)
        except VerifierError:
            raise
        except Exception as error:
            if len(some) > 1 and out_of_memory(error):
                raise
            failure = Score.unscored(f"{verifier.name} raised {type(error).__name__}: {error}")
        if len(some) == 1:
            return [failure]
        scores: list[Score] = []
        for sample, prompt in zip(some, theirs):
            try:
                scores += safe_scores(verifier, [sample], [prompt], asked=asked)
            except BudgetSpent:
                scores.append(failure)
        return scores

    return [score for part in in_halves(len(media), len(media), attempt) for score in part]


def _checked(
    verifier: Verifier, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked
) -> list[Score]:
    # copies, so that a verifier that draws on its input changes nothing that others see or that is stored
    scores = list(verifier.score([copied(sample) for sample in media], prompts, asked))
    if len(scores) != len(media):
        raise VerifierError(
            f"Verifier {verifier.name!r} must return one score per sample, {len(media)} here, but returned "
            f"{len(scores)}; return NaN for a sample that it cannot score."
        )
    return [_number(score, verifier.name) for score in scores]


def _number(score: Score, name: str) -> Score:
    """The score; unscored with the reason where its value is no number or +inf."""
    if score.value == math.inf:
        return score.model_copy(update={"value": math.nan, "reason": f"{name} returned inf"})
    if math.isnan(score.value) and not score.reason:
        return score.model_copy(update={"reason": f"{name} returned NaN"})
    return score
