"""A person as the verifier: rates samples, or compares them in pairs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.media import pixels
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier

Answer: TypeAlias = float | Literal["first", "second", "tie"] | None
_POINTS = {"first": 1.0, "second": 0.0, "tie": 0.5}
_PRIOR = 0.5  # wins and losses against a strength of 0 that each sample starts with


@dataclass(frozen=True)
class Question:
    """What a person is asked.

    Attributes:
        kind: ``rate``: how good is the only sample, from 0 to 1; ``pair``: which of two is better.
        media: One sample, or two.
        prompt: The prompt that they are judged by.
        step: The step of previews; None for finished samples.
    """

    kind: Literal["rate", "pair"]
    media: tuple[Media, ...]
    prompt: Prompt
    step: int | None = None

    @property
    def key(self) -> str:
        """Stands for the question: the same samples and the same prompt have the same key."""
        digest = hashlib.sha256(f"{self.kind}\n{self.prompt.text}".encode())
        for sample in self.media:
            content = pixels(sample)
            digest.update(f"{content.shape}".encode() + content.tobytes())
        return digest.hexdigest()[:32]


Person: TypeAlias = Callable[[Question], Answer]
_person: ContextVar[Person | None] = ContextVar("person", default=None)


@contextmanager
def answered_by(person: Person) -> Iterator[None]:
    """In the block, `person` answers what verifiers named ``human`` ask."""
    token = _person.set(person)
    try:
        yield
    finally:
        _person.reset(token)


@register("verifier", "human", notes={"licence": "none", "weights": "none"})
class Human(Verifier):
    """A person: rates each sample, or votes between pairs. In the app, or from Python with a callback.

    In a search every answer is recorded as it is given, so that a search that is killed and resumed asks
    nothing twice and has the same result.

    Args:
        person: Answers questions; None as an answer says that the person cannot tell. Without one, the person
            at the page of the app.
        how: ``pairs``: samples that are scored together meet in pairs, those of equal standing first; values
            are log-strengths after Bradley and Terry (1952), comparable from one scoring to the next by the
            best sample so far, which takes part. ``rate``: each sample gets a number from 0 to 1.
        rounds: Pairs that each sample of a scoring is in; one that has met all others rests.
    """

    name = "human"
    accepts: frozenset[Modality] = frozenset({"image", "video"})

    def __init__(
        self, person: Person | None = None, *, how: Literal["pairs", "rate"] = "pairs", rounds: int = 3
    ) -> None:
        if how not in ("pairs", "rate"):
            raise ConfigError(f"how must be pairs or rate but got {how!r}; change it.")
        if rounds < 1:
            raise ConfigError(f"rounds must be at least 1 but got {rounds}; raise it.")
        self.how, self.rounds, self.person = how, rounds, person
        self.relative = how == "pairs"

    def load(self) -> None:
        """Checks that somebody answers.

        Raises:
            VerifierError: If nobody does.
        """
        self._asked_person()

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        """One score per sample; unscored where the person could not tell.

        Args:
            media: Samples.
            prompts: The prompt of each; samples of one prompt meet in pairs.
            asked: Its best sample takes part in pairs and keeps its value.
        """
        if self.how == "rate":
            return [self._rated(sample, prompt, asked) for sample, prompt in zip(media, prompts, strict=True)]
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(prompt.text, []).append(i)
        scores: dict[int, Score] = {}
        for rows in groups.values():
            found = self._compared([media[i] for i in rows], prompts[rows[0]], asked)
            scores |= dict(zip(rows, found, strict=True))
        return [scores[i] for i in range(len(media))]

    def _rated(self, sample: Media, prompt: Prompt, asked: Asked) -> Score:
        answer = self._answer(Question("rate", (sample,), prompt, asked.step), asked)
        if answer is None:
            return Score.unscored("the person could not tell")
        if not isinstance(answer, (int, float)) or not 0 <= answer <= 1:
            raise VerifierError(f"A person rates from 0 to 1 but the answer was {answer!r}; change it.")
        return Score(value=float(answer))

    def _compared(self, samples: list[Media], prompt: Prompt, asked: Asked) -> list[Score]:
        """Scores of samples of one prompt, from votes between pairs."""
        from tts_vision.verifiers.tournament import bradley_terry, swiss_pairs

        n = len(samples)
        players, fixed = list(samples), {}
        if asked.best is not None and not math.isnan(asked.best.score.value):
            players.append(asked.best.load())
            fixed = {n: asked.best.score.value}
        wins = np.zeros((len(players), len(players)))
        met: set[frozenset[int]] = set()
        unknown: set[int] = set()
        for _ in range(self.rounds if len(players) > 1 else 0):
            strengths = bradley_terry(wins, prior=_PRIOR, fixed=fixed)
            order = sorted(range(len(players)), key=lambda i: (-strengths[i], i))
            for a, b in swiss_pairs(order, met):
                met.add(frozenset((a, b)))
                answer = self._answer(Question("pair", (players[a], players[b]), prompt, asked.step), asked)
                if answer is None:
                    unknown |= {a, b}
                    continue
                if answer not in _POINTS:
                    raise VerifierError(
                        f"A person votes first, second or tie but the answer was {answer!r}; change it."
                    )
                wins[a, b] += _POINTS[str(answer)]
                wins[b, a] += 1 - _POINTS[str(answer)]
        strengths = bradley_terry(wins, prior=_PRIOR, fixed=fixed)
        return [_standing(i, wins, float(strengths[i]), i in unknown) for i in range(n)]

    def _answer(self, question: Question, asked: Asked) -> Answer:
        person = self._asked_person()
        answer: Answer = asked.remember(f"{self.name} {question.key}", lambda: person(question))
        return answer

    def _asked_person(self) -> Person:
        person = self.person or _person.get()
        if person is None:
            raise VerifierError(
                "Verifier 'human' needs a person who answers but there is none here; use it in the app "
                "('tts-vision app'), or pass tts_vision.verifiers.human.Human(person=FUNCTION) as verifier."
            )
        return person


def _standing(i: int, wins: np.ndarray, strength: float, unknown: bool) -> Score:
    games = float(wins[i].sum() + wins[:, i].sum())
    if not games and unknown:
        return Score.unscored("the person could not tell")
    reason = None if games else "it was compared with no other sample"
    return Score(value=strength, parts={"games": games, "points": float(wins[i].sum())}, reason=reason)
