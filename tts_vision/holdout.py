"""Detection of reward hacking: a second verifier scores finished samples and never guides the search."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tts_vision.calibration import spearman
from tts_vision.errors import VerifierError
from tts_vision.journal import Journal
from tts_vision.scoring import safe_scores
from tts_vision.trace import Answer, Event, answers
from tts_vision.types import Prompt, Score
from tts_vision.verifier import Verifier

if TYPE_CHECKING:
    from tts_vision.candidates import Candidate
    from tts_vision.figures import Point

WHAT = "heldout"

_BATCH = 64  # samples held in memory at once


@dataclass(frozen=True)
class HeldOutReport:
    """The scores of a holdout, compared with those of the guide.

    Attributes:
        first: The holdout's score of the first sample that was scored.
        best: Its score of the winner.
        spearman: Rank correlation of guide and holdout over all samples; None where it is undefined.
        unscored: Samples that it was asked about and could not score.
        calls: Samples that it was called for.
        seconds: Wall-clock time of these calls, outside the budget.
        guide_gain: How far the guide's score rose from the first sample to the winner.
    """

    first: float
    best: float
    spearman: float | None
    unscored: int
    calls: int
    seconds: float
    guide_gain: float

    @property
    def fell(self) -> bool:
        """Whether the guide rose while the holdout fell."""
        return self.guide_gain > 0 and self.best < self.first

    def warning(self, guide: str, holdout: str) -> str:
        """The warning for a holdout that fell."""
        return (
            f"{guide} rose by {self.guide_gain:.4g} from the first sample to the best one, but {holdout}, "
            f"which never guided it, fell from {self.first:.4g} to {self.best:.4g}: the search may have "
            "fitted the verifier rather than the prompt; look at the samples, or guide by an ensemble."
        )

    def as_json(self) -> dict[str, Any]:
        """The report without the fields that differ between identical runs."""
        return {
            "first": _number(self.first),
            "best": _number(self.best),
            "spearman": self.spearman,
            "unscored": self.unscored,
            "calls": self.calls,
            "fell": self.fell,
        }


def judge(
    verifier: Verifier, candidates: Sequence[Candidate], prompt: Prompt, journal: Journal, op: int
) -> None:
    """Scores all finished samples by a verifier that did not guide the search, and records it once.

    Args:
        verifier: The holdout.
        candidates: The samples, in the order they were made.
        prompt: The prompt of the user.
        journal: Records the scores; nothing is done if it has them already.
        op: Number of the last operation.
    """
    if any(answers(journal.events, WHAT)):
        return
    since = time.perf_counter()
    compares = verifier.relative or verifier.settles
    valid = [candidate for candidate in candidates if not candidate.score.is_invalid]
    scores: dict[int, Score] = {}
    size = len(valid) if compares else _BATCH
    for at in range(0, len(valid), max(size, 1)):
        some = valid[at : at + size]
        try:
            found = safe_scores(verifier, [candidate.load() for candidate in some], [prompt] * len(some))
        except VerifierError as error:  # earlier scores must not be lost
            found = [Score.unscored(str(error))] * len(some)
        scores |= {candidate.uid: score for candidate, score in zip(some, found)}
    journal.append(
        Answer(
            op=op,
            what=WHAT,
            uids=tuple(candidate.uid for candidate in candidates),
            # an invalid sample stays one: nobody is asked about it
            scores=tuple(scores.get(candidate.uid, candidate.score) for candidate in candidates),
            value={"seconds": round(time.perf_counter() - since, 6)},
            spent=journal.events[-1].spent,
        )
    )


def held_out(events: Iterable[Event]) -> dict[int, float]:
    """The holdout's scores by uid; empty without a holdout."""
    return {uid: value for event in answers(events, WHAT) for uid, value in zip(event.uids, event.values)}


def holdout_report(events: Sequence[Event], curve: Sequence[Point]) -> HeldOutReport | None:
    """The report on a search; None without a holdout.

    Args:
        events: The trace.
        curve: How the guide's best score grew.
    """
    event = next(answers(events, WHAT), None)
    if event is None or not curve:
        return None
    verdicts = held_out(events)
    guide = {point.uid: point.value for point in curve}
    asked = [score for score in event.scores if not score.is_invalid]
    pairs = [(value, verdicts.get(uid, math.nan)) for uid, value in guide.items()]
    return HeldOutReport(
        first=verdicts.get(curve[0].uid, math.nan),
        best=verdicts.get(curve[-1].best_uid, math.nan),
        spearman=spearman([pair for pair in pairs if not any(map(math.isnan, pair))]),
        unscored=sum(math.isnan(score.value) for score in asked),
        calls=len(asked),
        seconds=event.value["seconds"],
        guide_gain=curve[-1].best - curve[0].best,
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
