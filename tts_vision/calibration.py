"""How far the score of a preview can be trusted, learnt from the events of a search."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tts_vision.trace import Event, Family

RAW = "preview"  # the part of a calibrated score that holds the verifier's own score of the preview
Pairs: TypeAlias = Sequence[tuple[float, float]]


class History:
    """Scores of previews, and of the finished samples that came of them, kept while events come in."""

    def __init__(self) -> None:
        self.family = Family()
        self._previews: dict[int, dict[int, float]] = defaultdict(dict)  # by step and uid
        self._finals: dict[int, float] = {}
        # for each particle its finished descendants, and the last step at which they were still one
        self._descendants: dict[int, list[tuple[int, float]]] = defaultdict(list)
        # by step and uid of a preview: the sum of its outcomes and their number
        self._outcomes: dict[int, dict[int, tuple[float, int]]] = defaultdict(dict)
        self.changes = 0

    def add(self, event: Event) -> None:
        """Takes note of an event."""
        self.family.add(event)
        if event.kind != "answer" or event.what != "score":
            return
        self.changes += 1
        for uid, score in zip(event.uids, event.scores):
            if event.preview:
                self._previews[event.step][uid] = score.parts.get(RAW, score.value)
                self._outcomes[event.step].pop(uid, None)
                for end, last in self._descendants.get(uid, ()):
                    if event.step <= last:
                        self._add_outcome(event.step, uid, self._finals[end])
                continue
            self._finals[uid] = score.value
            ancestor: int | None = uid
            last = math.inf  # of an ancestor, only states before the branch became this sample
            while ancestor is not None:
                self._descendants[ancestor].append((uid, last))
                for step, previews in self._previews.items():
                    if step <= last and ancestor in previews:
                        self._add_outcome(step, ancestor, score.value)
                born = self.family.born[ancestor]
                last = min(last, born.step)
                ancestor = born.parent

    def _add_outcome(self, step: int, uid: int, outcome: float) -> None:
        total, count = self._outcomes[step].get(uid, (0, 0))
        self._outcomes[step][uid] = (total + outcome, count + 1)

    @property
    def steps(self) -> list[int]:
        """Steps at which previews were scored, in order."""
        return sorted(self._previews)

    def pairs(self, step: int, final: Mapping[int, float] | None = None) -> list[tuple[float, float]]:
        """Pairs of a preview's score at `step` and the mean score of the finished samples that came of it.

        Args:
            step: Of the previews.
            final: Scores of finished samples as they are at the end, by uid, where those recorded differ.
        """
        previews = self._previews.get(step, {})
        outcomes: Mapping[int, tuple[float, int]] = self._outcomes.get(step, {})
        if final is not None:
            scores = {**self._finals, **final}
            known = {uid: self._descendants.get(uid, ()) for uid in previews}
            ends = {uid: [scores[end] for end, last in own if step <= last] for uid, own in known.items()}
            outcomes = {uid: (sum(own), len(own)) for uid, own in ends.items() if own}
        found = []
        for uid, preview in previews.items():
            total, count = outcomes.get(uid, (math.nan, 1))
            if not math.isnan(outcome := total / count) and not math.isnan(preview):
                found.append((preview, outcome))
        return found


NO_HISTORY = History()
"""The history of a verifier that belongs to no search."""


def preview_pairs(
    events: Iterable[Event], final: Mapping[int, float] | None = None
) -> dict[int, list[tuple[float, float]]]:
    """Pairs of a preview's score and the mean score of the finished samples that came of it.

    Args:
        events: A trace, or the beginning of one.
        final: Scores of finished samples as they are at the end, by uid, where those in the trace differ.

    Returns:
        Pairs by the step of the preview; steps in order.
    """
    history = History()
    for event in events:
        history.add(event)
    pairs = {step: history.pairs(step, final) for step in history.steps}
    return {step: found for step, found in pairs.items() if found}


@dataclass(frozen=True)
class PreviewTrust:
    """How well previews at one step ranked the samples that came of them.

    Attributes:
        step: Step of the previews.
        n: Previews whose finished samples are known.
        spearman: Rank correlation with their mean score; None where it is undefined.
    """

    step: int
    n: int
    spearman: float | None


def preview_trust(events: Iterable[Event], final: Mapping[int, float] | None = None) -> list[PreviewTrust]:
    """How well the previews of a search ranked their finished samples, by step; see `preview_pairs`."""
    pairs = preview_pairs(events, final)
    return [PreviewTrust(step, len(found), spearman(found)) for step, found in pairs.items()]


def spearman(pairs: Pairs) -> float | None:
    """Spearman's rank correlation; None where fewer than three pairs, or equal ones, leave it undefined."""
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs)):
        return None
    from scipy.stats import rankdata

    return float(np.corrcoef([rankdata(side) for side in zip(*pairs)])[0, 1])
