"""What verifiers that are made of others share: labels, member scores as parts, failures apart."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tts_vision.errors import ConfigError
from tts_vision.scoring import calls_of, free, safe_scores, warm_up
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


class Composite(ABC):
    """A verifier of several members whose values compare samples of one prompt with each other.

    The scores of a member become parts: its value under its label, its own parts under ``label/part``. A
    member that raises or returns no finite value leaves the sample unscored by that member alone, with the
    reason; what that means for the value is up to `pool`.
    """

    def __init__(self, members: Sequence[Verifier], kind: str) -> None:
        for member in members:
            if isinstance(member, PreviewVerifier):
                raise ConfigError(
                    f"A member of {kind} must score each sample by itself but {member.name!r} learns from "
                    "a whole search; leave it out."
                )
        self.members = tuple(members)
        self.labels = unique([member.name for member in members])
        self.name = f"{kind}({', '.join(self.labels)})"
        self.accepts: frozenset[Modality] = frozenset.intersection(*(m.accepts for m in members))
        if not self.accepts:
            kinds = "; ".join(f"{m.name}: {' and '.join(sorted(m.accepts))}" for m in members)
            raise ConfigError(
                f"Members of {kind} must score the same kind of samples but got {kinds}; frame_mean(NAME) "
                "makes a verifier of pictures one of clips."
            )

    def load(self) -> None:
        """Loads the members."""
        for member in self.members:
            warm_up(member)

    @abstractmethod
    def calls(self, n: int) -> dict[str, int]:
        """Calls of which member scoring `n` samples of one prompt takes."""

    @abstractmethod
    def pool(self, scores: Sequence[Score]) -> list[float]:
        """The values of samples of one prompt that are compared with each other; NaN where unscored."""

    @abstractmethod
    def _ask(
        self, media: Sequence[Media], prompts: Sequence[Prompt], charge: Charge, anchor: Anchor | None
    ) -> list[Score]:
        """Members' scores as parts, of samples of one prompt; values are not set yet."""

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        """One score per sample; those of one prompt are compared with each other."""
        return self.score_by_members(media, prompts, charge=free, anchor=None)

    def score_by_members(
        self, media: Sequence[Media], prompts: Sequence[Prompt], *, charge: Charge, anchor: Anchor | None
    ) -> list[Score]:
        """As `score`, for a caller who has paid for `calls`; what failures cost is charged besides."""
        rows: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            rows.setdefault(prompt.text, []).append(i)
        planned, needed = Counter(self.calls(len(media))), Counter[str]()
        for group in rows.values():
            needed.update(self.calls(len(group)))
        if extra := needed - planned:
            charge(extra)
        scores: dict[int, Score] = {}
        for group in rows.values():
            found = self._ask([media[i] for i in group], [prompts[i] for i in group], charge, anchor)
            for i, score, value in zip(group, found, self.pool(found), strict=True):
                scores[i] = score.model_copy(update={"value": value})
        return [scores[i] for i in range(len(media))]

    def _member_scores(
        self,
        index: int,
        media: Sequence[Media],
        prompts: Sequence[Prompt],
        charge: Charge,
        anchor: Anchor | None,
    ) -> list[Score]:
        """What one member says of samples; what it is asked for at first is paid."""
        member, label = self.members[index], self.labels[index]
        own = None if anchor is None else Anchor(anchor.load, part_of(anchor.score, label))
        return safe_scores(member, media, prompts, charge=charge, anchor=own, paid=True)

    def _values(self, index: int, scores: Sequence[Score]) -> NDArray[np.float64]:
        """``(n,)`` values of one member, read back from parts; NaN where it did not score."""
        member, label = self.members[index], self.labels[index]
        own = [part_of(score, label) for score in scores]
        values = member.pool(own) if isinstance(member, PooledVerifier) else [score.value for score in own]
        return np.array([value if math.isfinite(value) else math.nan for value in values], dtype=np.float64)

    def _joined(self, found: Sequence[Score | None]) -> Score:
        """One sample's scores by the members, None where a member was not asked, as parts of one score."""
        parts: dict[str, float] = {}
        reasons = []
        for member, label, score in zip(self.members, self.labels, found, strict=True):
            if score is None:
                continue
            # the value of a member that compares samples is made again from its parts
            if math.isfinite(score.value) and not isinstance(member, PooledVerifier):
                parts[label] = score.value
            parts |= {f"{label}/{name}": value for name, value in score.parts.items()}
            if score.reason or not math.isfinite(score.value):
                reasons.append(f"{label}: {score.reason or f'returned {score.value}'}")
        return Score(value=math.nan, parts=parts, reason="; ".join(reasons) or None)


def part_of(score: Score, label: str) -> Score:
    """The score of one member, from those joined."""
    inner = f"{label}/"
    parts = {name.removeprefix(inner): value for name, value in score.parts.items() if name.startswith(inner)}
    return Score(value=score.parts.get(label, math.nan), parts=parts)


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with numbers behind those that occur again."""
    seen: Counter[str] = Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(labels)


def added(calls: Sequence[dict[str, int]]) -> dict[str, int]:
    """Calls of several members together."""
    total: Counter[str] = Counter()
    for each in calls:
        total.update(each)
    return dict(total)


def calls_by_member(members: Sequence[Verifier], counts: Sequence[int]) -> dict[str, int]:
    """Calls of which verifier it takes to have each member score its count of samples."""
    return added([calls_of(member, n) for member, n in zip(members, counts, strict=True)])
