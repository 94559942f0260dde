"""Previews as forecasts: the score of a preview becomes the score to expect of the finished sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from tts_vision.calibration import RAW, preview_pairs, spearman
from tts_vision.errors import ConfigError
from tts_vision.registry import register
from tts_vision.scoring import calls_of, free, safe_scores, warm_up
from tts_vision.trace import read_trace
from tts_vision.types import (
    Anchor,
    Charge,
    Media,
    Modality,
    PooledVerifier,
    PreviewVerifier,
    Prompt,
    Score,
    Verifier,
)

Pairs: TypeAlias = Sequence[tuple[float, float]]
Forecast: TypeAlias = Callable[[float], float]


@register("verifier", "calibrated", notes={"licence": "that of its member", "weights": "those of its member"})
class Calibrated:
    """Scores previews by what to expect of the finished sample: ``calibrated(clip_score)``.

    For each step it learns, while a search runs, how scores of previews go with those of the finished
    samples that came of them. The less a preview says, the closer its forecast lies to the mean. The trace
    has the rank correlation at each step beside every scoring of previews. Finished samples are scored as
    the member does. Before enough is known at a step, a preview keeps its own score.

    Args:
        how: ``isotonic``: rises wherever the data let it, by any shape; ``linear``: a straight line, which
            needs less data. Neither ever ranks a worse preview above a better one.
        least: Pairs of a preview and its outcome that are needed at a step.
        searches: Result folders of earlier searches with the same member, to learn from besides; a search
            that scores previews once, such as FK steering, has nothing else to learn from.
    """

    def __init__(
        self,
        members: Sequence[Verifier],
        *,
        how: Literal["isotonic", "linear"] = "isotonic",
        least: int = 5,
        searches: list[str] | None = None,
    ) -> None:
        if len(members) != 1:
            names = ", ".join(member.name for member in members) or "none"
            raise ConfigError(
                f"calibrated is made of one verifier but got {names}; name one: 'calibrated(clip_score)'."
            )
        if how not in {"isotonic", "linear"}:
            raise ConfigError(f"how must be isotonic or linear but got {how!r}; change it.")
        if least < 2:
            raise ConfigError(f"least must be at least 2 but got {least}; raise it.")
        (self.member,) = members
        if isinstance(self.member, (PooledVerifier, PreviewVerifier)):
            raise ConfigError(
                f"The member of calibrated must score each sample by itself but {self.member.name!r} does "
                "not; name a single verifier."
            )
        self.how, self.least = how, least
        self.name = f"calibrated({self.member.name})"
        self.accepts: frozenset[Modality] = self.member.accepts
        self._earlier = {Path(folder): _pairs_of(Path(folder)) for folder in searches or []}
        self._pairs: dict[int, Pairs] = {}
        self._forecasts: dict[int, Forecast] = {}
        self.fit({})

    def load(self) -> None:
        """Loads the member."""
        warm_up(self.member)

    def calls(self, n: int) -> dict[str, int]:
        """Calls of the member for `n` samples, by name."""
        return calls_of(self.member, n)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        """The member's scores."""
        return self.score_by_members(media, prompts, charge=free, anchor=None)

    def score_by_members(
        self, media: Sequence[Media], prompts: Sequence[Prompt], *, charge: Charge, anchor: Anchor | None
    ) -> list[Score]:
        """The member's scores, for a caller who has paid for `calls`."""
        return safe_scores(self.member, media, prompts, charge=charge, anchor=anchor, paid=True)

    def fit(self, pairs: Mapping[int, Pairs]) -> None:
        """Learns from pairs of a preview's score and its finished sample's, by step; forgets those before."""
        known: dict[int, list[tuple[float, float]]] = {}
        for source in (*self._earlier.values(), pairs):
            for step, found in source.items():
                known.setdefault(step, []).extend(found)
        rule = linear if self.how == "linear" else isotonic
        self._pairs = {step: found for step, found in known.items() if len(found) >= self.least}
        self._forecasts = {step: rule(found) for step, found in self._pairs.items()}

    def expected(self, score: Score, step: int) -> Score:
        """The score to expect of the finished sample, from that of its preview at `step`.

        What the member said of the preview becomes the part ``preview``; beside a forecast stand the number
        of ``pairs`` that it rests on and, where it is defined, their rank correlation, ``trust``.
        """
        parts = {**score.parts, RAW: score.value}
        if math.isnan(score.value):
            return score
        if step not in self._forecasts:
            return score.model_copy(update={"parts": parts})
        parts["pairs"] = float(len(self._pairs[step]))
        if (trust := spearman(self._pairs[step])) is not None:
            parts["trust"] = trust
        return Score(value=self._forecasts[step](score.value), parts=parts, reason=score.reason)


def linear(pairs: Pairs) -> Forecast:
    """The least-squares line through pairs; level where it would fall."""
    x, y = np.array(pairs, dtype=np.float64).T
    spread = np.square(x - x.mean()).sum()
    slope = max(float(((x - x.mean()) * (y - y.mean())).sum() / spread), 0.0) if spread else 0.0
    middle, level = float(x.mean()), float(y.mean())
    return lambda value: level + slope * (value - middle)


def isotonic(pairs: Pairs) -> Forecast:
    """The least-squares rising curve through pairs, level outside them.

    Levels of the usual isotonic regression are joined by straight lines between their centres (Oron and
    Flournoy 2017), so that previews that differ are told apart wherever the data say that they differ.
    """
    from sklearn.isotonic import IsotonicRegression

    x, y = np.array(pairs, dtype=np.float64).T
    levels = IsotonicRegression().fit_transform(x, y)
    heights = np.unique(levels)
    centres = [x[levels == height].mean() for height in heights]
    return lambda value: float(np.interp(value, centres, heights))


def _pairs_of(folder: Path) -> dict[int, list[tuple[float, float]]]:
    """What the previews of an earlier search came to."""
    trace = folder / "trace.jsonl"
    if not trace.is_file():
        raise ConfigError(
            f"searches must be result folders but {str(folder)!r} has no trace.jsonl; check the path."
        )
    return preview_pairs(read_trace(trace))
