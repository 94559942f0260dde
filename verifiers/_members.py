"""Base class and helpers of verifiers that are made of several others."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tts_vision.errors import ConfigError
from tts_vision.scoring import safe_scores
from tts_vision.types import Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier, as_verifier, for_member

READ_BACK = 2**14
"""Samples whose members' scores are remembered as they were read back from their parts."""


class Composite(Verifier):
    """A verifier of several members whose values compare samples of one prompt with each other.

    The scores of a member become parts: its value under its label, its own parts under ``label/part``. A
    member that raises or returns no finite value leaves the sample unscored by that member alone, with the
    reason; `settle` decides the value of such a sample.
    """

    relative = True
    settles = True

    def __init__(self, members: Sequence[Verifier], kind: str) -> None:
        self.members = tuple(as_verifier(member) for member in members)
        for member in self.members:
            if member.learns:
                raise ConfigError(
                    f"A member of {kind} must score each sample by itself but {member.name!r} learns from "
                    "a whole search; leave it out."
                )
        self._read_back: dict[int, tuple[dict[str, float], tuple[Score, ...]]] = {}
        self.labels = unique([member.name for member in self.members])
        self.name = f"{kind}({', '.join(self.labels)})"
        self.accepts: frozenset[Modality] = frozenset.intersection(*(m.accepts for m in self.members))
        if not self.accepts:
            kinds = "; ".join(f"{m.name}: {' and '.join(sorted(m.accepts))}" for m in self.members)
            raise ConfigError(
                f"Members of {kind} must score the same kind of samples but got {kinds}; frame_mean(NAME) "
                "makes a verifier of images one of clips."
            )

    def load(self) -> None:
        """Loads the members."""
        for member in self.members:
            member.load()

    @abstractmethod
    def calls(self, n: int) -> dict[str, int]:
        """Calls of the members, by name, that it takes to score `n` samples of one prompt."""

    @abstractmethod
    def settle(self, scores: Sequence[Score]) -> list[float]:
        """The values of samples of one prompt that are compared with each other; NaN where unscored."""

    @abstractmethod
    def _ask(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked) -> list[Score]:
        """Members' scores as parts, of samples of one prompt; values are not set yet."""

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        """One score per sample; those of one prompt are compared with each other."""
        rows: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            rows.setdefault(prompt.text, []).append(i)
        planned, needed = Counter(self.calls(len(media))), Counter[str]()
        for group in rows.values():
            needed.update(self.calls(len(group)))
        if extra := needed - planned:
            asked.charge(extra)
        scores: dict[int, Score] = {}
        for group in rows.values():
            found = self._ask([media[i] for i in group], [prompts[i] for i in group], asked)
            for i, score, value in zip(group, found, self.settle(found), strict=True):
                scores[i] = score.model_copy(update={"value": value})
        return [scores[i] for i in range(len(media))]

    def _member_scores(
        self, index: int, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked
    ) -> list[Score]:
        """The scores by one member; its first attempt is already charged."""
        own = for_member(asked, lambda score: part_of(score, self.labels[index]))
        return safe_scores(self.members[index], media, prompts, asked=own, paid=True)

    def _values(self, index: int, scores: Sequence[Score]) -> NDArray[np.float64]:
        """``(n,)`` values of one member, read back from parts; NaN where it did not score."""
        values = np.array(
            self.members[index].settle([self._parts(score)[index] for score in scores]), dtype=np.float64
        )
        return np.where(np.isfinite(values), values, math.nan)

    def _parts(self, score: Score) -> tuple[Score, ...]:
        """The members' scores of one sample; read back once, because a search settles all samples often."""
        known = self._read_back.get(id(score.parts))
        if known is not None and known[0] is score.parts:
            return known[1]
        found = tuple(part_of(score, label) for label in self.labels)
        self._read_back[id(score.parts)] = (score.parts, found)
        if len(self._read_back) > READ_BACK:
            del self._read_back[next(iter(self._read_back))]
        return found

    def _joined(self, found: Sequence[Score | None]) -> Score:
        """One sample's scores by the members, None where a member was not asked, as parts of one score."""
        parts: dict[str, float] = {}
        reasons = []
        for member, label, score in zip(self.members, self.labels, found, strict=True):
            if score is None:
                continue
            # the value of a member that settles is made again from its parts
            if math.isfinite(score.value) and not member.settles:
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


def calls_by_member(members: Sequence[Verifier], counts: Sequence[int]) -> dict[str, int]:
    """Calls, by name, that it takes to have each member score its count of samples."""
    total: Counter[str] = Counter()
    for member, n in zip(members, counts, strict=True):
        total.update(member.calls(n))
    return dict(total)
