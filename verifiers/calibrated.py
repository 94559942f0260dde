"""Previews as forecasts: the score of a preview becomes the expected score of the finished sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from torch import Tensor

from tts_vision.calibration import RAW, Pairs, preview_pairs, spearman
from tts_vision.errors import ConfigError
from tts_vision.registry import register
from tts_vision.scoring import safe_scores
from tts_vision.trace import read_trace
from tts_vision.types import Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier, as_verifier

Forecast: TypeAlias = Callable[[float], float]


@dataclass(frozen=True)
class Fitted:
    """A forecast at one step.

    Attributes:
        pairs: The pairs that it was fitted to.
        forecast: From the score of a preview to the expected score of the finished sample.
        trust: Spearman's rank correlation of the pairs; None where it is undefined.
    """

    pairs: Pairs
    forecast: Forecast
    trust: float | None


@register("verifier", "calibrated", notes={"licence": "that of its member", "weights": "those of its member"})
class Calibrated(Verifier):
    """Scores previews by the expected score of the finished sample: ``calibrated(clip_score)``.

    For each step it learns, while a search runs, how scores of previews relate to those of the finished
    samples that came of them. The less informative previews are, the closer forecasts are to the mean. The
    score of a preview has the parts ``preview`` (the member's score) and, once there is a forecast, ``pairs``
    (number of pairs it was fitted to) and ``trust`` (their rank correlation, where it is defined). Finished
    samples are scored as the member does. Before enough is known at a step, a preview keeps its own score.
    Gradients are those of the member: a forecast only rises, so it does not change their direction.

    Args:
        how: ``isotonic``: monotone, of any shape; ``linear``: a straight line, which needs less data. Neither
            ever ranks a worse preview above a better one.
        least: Pairs of a preview and its outcome that are needed at a step.
        searches: Result folders of earlier searches with the same member, whose pairs are used too; a search
            that scores previews once, such as FK steering, has no others to learn from.
    """

    learns = True

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
        self.member = as_verifier(members[0])
        if self.member.settles or self.member.learns:
            raise ConfigError(
                f"The member of calibrated must score each sample by itself but {self.member.name!r} does "
                "not; name a single verifier."
            )
        self.how, self.least = how, least
        self.name = f"calibrated({self.member.name})"
        self.accepts: frozenset[Modality] = self.member.accepts
        self.relative = self.member.relative
        self.checks_demands = self.member.checks_demands
        self.differentiable = self.member.differentiable
        self._earlier: dict[int, list[tuple[float, float]]] = {}
        for folder in dict.fromkeys(map(Path, searches or [])):
            for step, pairs in _pairs_of(folder).items():
                self._earlier.setdefault(step, []).extend(pairs)
        self._fitted: dict[int, Fitted] = {}

    def load(self) -> None:
        """Loads the member."""
        self.member.load()

    def calls(self, n: int) -> dict[str, int]:
        """Calls of the member for `n` samples, by name."""
        return self.member.calls(n)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        """The member's scores; for previews, the scores to expect of the finished samples."""
        scores = safe_scores(self.member, media, prompts, asked=asked, paid=True)
        if asked.step is None:
            return scores
        pairs = [*self._earlier.get(asked.step, ()), *asked.history.pairs(asked.step)]
        fitted = self._fit(asked.step, pairs) if len(pairs) >= self.least else None
        return [_expected(score, fitted) for score in scores]

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The member's rewards, with the gradient of `pixels`, if it has them."""
        return self.member.rewards(pixels, prompts)

    def _fit(self, step: int, pairs: Pairs) -> Fitted:
        """The forecast from `pairs`; kept until the pairs at this step change."""
        fitted = self._fitted.get(step)
        if fitted is None or fitted.pairs != pairs:
            rule = linear if self.how == "linear" else isotonic
            fitted = self._fitted[step] = Fitted(pairs, rule(pairs), spearman(pairs))
        return fitted


def _expected(score: Score, fitted: Fitted | None) -> Score:
    """The expected score of the finished sample, from that of its preview."""
    if math.isnan(score.value):
        return score
    parts = {**score.parts, RAW: score.value}
    if fitted is None:
        return score.model_copy(update={"parts": parts})
    parts["pairs"] = float(len(fitted.pairs))
    if fitted.trust is not None:
        parts["trust"] = fitted.trust
    return score.model_copy(update={"value": fitted.forecast(score.value), "parts": parts})


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
    Flournoy 2017), so that different previews get different forecasts wherever the data support it.
    """
    from sklearn.isotonic import isotonic_regression

    x, y = np.array(pairs, dtype=np.float64).T
    # equal previews are one point, with the mean of their outcomes and the weight of all
    _, place = np.unique(x, return_inverse=True)
    counts = np.bincount(place)
    levels = isotonic_regression(np.bincount(place, y) / counts, sample_weight=counts)[place]
    heights, level = np.unique(levels, return_inverse=True)
    centres = np.bincount(level, x) / np.bincount(level)
    return lambda value: float(np.interp(value, centres, heights))


def _pairs_of(folder: Path) -> dict[int, list[tuple[float, float]]]:
    """Pairs of previews and outcomes in the trace of an earlier search, by step."""
    trace = folder / "trace.jsonl"
    if not trace.is_file():
        raise ConfigError(
            f"searches must be result folders but {str(folder)!r} has no trace.jsonl; check the path."
        )
    return preview_pairs(read_trace(trace))
