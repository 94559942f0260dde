"""How far the score of a preview can be trusted, learnt from a trace."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tts_vision.trace import Event, ancestry

RAW = "preview"  # the part of a calibrated score that holds what the verifier said


@dataclass(frozen=True)
class PreviewTrust:
    """How well previews at one step ranked what came of them.

    Attributes:
        step: Step of the previews.
        n: Previews whose finished samples are known.
        spearman: Rank correlation with their mean score; None where it is undefined.
    """

    step: int
    n: int
    spearman: float | None


def preview_trust(events: Iterable[Event], final: Mapping[int, float] | None = None) -> list[PreviewTrust]:
    """How well the previews of a search ranked what came of them, by step; arguments of `preview_pairs`."""
    pairs = preview_pairs(events, final)
    return [PreviewTrust(step, len(found), spearman(found)) for step, found in pairs.items()]


def preview_pairs(
    events: Iterable[Event], final: Mapping[int, float] | None = None
) -> dict[int, list[tuple[float, float]]]:
    """Pairs of a preview's score and the mean score of the finished samples that came of it.

    Args:
        events: A trace, or the beginning of one.
        final: Scores of finished samples as they stand at the end, by uid, where those in the trace differ.

    Returns:
        Pairs by the step of the preview; steps in order.
    """
    events = list(events)
    born = ancestry(events)
    previews: dict[int, dict[int, float]] = defaultdict(dict)
    finals: dict[int, float] = {}
    for event in events:
        if event.kind != "score":
            continue
        for uid, value, parts in zip(event.uids, event.values, event.parts):
            if event.preview:
                previews[uid][event.step] = parts.get(RAW, value)
            else:
                finals[uid] = value if final is None else final.get(uid, value)
    outcomes: dict[tuple[int, int], list[float]] = defaultdict(list)
    for uid, value in finals.items():
        ancestor: int | None = uid
        last = math.inf  # of an ancestor, only states before the branch became this sample
        while ancestor is not None:
            for step in previews.get(ancestor, ()):
                if step <= last:
                    outcomes[ancestor, step].append(value)
            last = min(last, born[ancestor].step)
            ancestor = born[ancestor].parent
    pairs: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for (uid, step), values in outcomes.items():
        pair = (previews[uid][step], float(np.mean(values)))
        if not any(map(math.isnan, pair)):
            pairs[step].append(pair)
    return {step: pairs[step] for step in sorted(pairs)}


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation; None where fewer than three pairs, or equal ones, leave it undefined."""
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs)):
        return None
    from scipy.stats import spearmanr

    first, second = zip(*pairs)
    return float(spearmanr(first, second).statistic)
