"""A tournament: samples are compared in pairs by a vision-language model, and rated by who beat whom."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import model_validator
from scipy.special import expit

from tts_vision.chat import LONGEST_ANSWER, ChatEndpoint, ImageFormat
from tts_vision.errors import ConfigError
from tts_vision.model_verifier import UnusableSample, as_image
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier
from tts_vision.verifiers._cache import key_of
from tts_vision.verifiers._structured import AsksModel, Schema, ask
from tts_vision.verifiers._vlm import VisionLanguageModel

QUESTION = (
    'Here are two images that were made for the prompt "{prompt}". Which one shows better what the prompt '
    "asks for? If both show it equally well, which one looks better? Answer with one word, first or second."
)
FORM = ' Write it as JSON: {"winner": "first"} or {"winner": "second"}.'
WAYS = {"first": {"first", "1", "1st"}, "second": {"second", "2", "2nd"}}
ELO_START, ELO_STEP = 1000.0, 32.0


class Winner(Schema):
    """Which of two images is better."""

    winner: Literal["first", "second"]

    @model_validator(mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        """Takes other ways to say it: the bare word, "Image 1", 2."""
        told = value.get("winner") if isinstance(value, dict) else value
        words = set(re.findall(r"\w+", str(told).lower()))
        said = [name for name, ways in WAYS.items() if words & ways]
        return {"winner": said[0]} if len(said) == 1 and len(words) < 6 else value


@dataclass
class Table:
    """The samples of one prompt, and their games.

    Attributes:
        prompt: The prompt.
        players: The samples.
        order: Players sorted by their content, so that ratings do not depend on the order of samples.
        games: Pairs of players and the points of the first: 1, 0, or 0.5 for a tie.
        met: Pairs that were asked about.
        rests: Rounds in which a player had no partner.
        failures: Reasons why games of a player have no result.
    """

    prompt: Prompt
    players: list[Image.Image]
    order: list[int] = field(init=False)
    games: list[tuple[int, int, float]] = field(default_factory=list)
    met: set[frozenset[int]] = field(default_factory=set)
    rests: dict[int, int] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = sorted(range(len(self.players)), key=lambda i: key_of(self.players[i]))

    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of the next round: players of equal points, a rest being worth half a point."""
        points = dict.fromkeys(range(len(self.players)), 0.0) | {i: n / 2 for i, n in self.rests.items()}
        for a, b, won in self.games:
            points[a] += won
            points[b] += 1 - won
        found = swiss_pairs(sorted(self.order, key=lambda i: -points[i]), self.met)
        self.met |= {frozenset(pair) for pair in found}
        for i in set(self.order).difference(*found):
            self.rests[i] = self.rests.get(i, 0) + 1
        return found


@register(
    "verifier",
    "tournament",
    paper="Bradley and Terry 1952; Elo 1978",
    notes={
        "licence": "of the model; Apache-2.0 for the default",
        "weights": "Qwen/Qwen2.5-VL-7B-Instruct, any image-text-to-text model, or an endpoint",
    },
)
class Tournament(AsksModel, Verifier):
    """Ratings from pairwise comparisons by a vision-language model; breaks ties that single scores leave.

    Samples of one prompt play a few rounds of a Swiss tournament: those with equal points so far meet, and
    none meet twice. A pair is shown in both orders; it is a tie unless the same sample wins both. Ratings
    compare the samples of one call. The best sample of a search so far plays along with its rating fixed, so
    that ratings of successive calls are on one scale.

    Args:
        aggregate: How games become ratings: ``bradley_terry`` (log-odds, 0 is average strength) or
            ``elo`` (points, from 1000 on, 32 at stake in a game).
        rounds: Games of a sample, at most.
        prior: For Bradley-Terry: wins, and as many losses, that every sample is given against average
            strength, which keeps the ratings of the undefeated finite.
        batch_size: Pairs computed at once on this machine.
    """

    name = "tournament"
    accepts: frozenset[Modality] = frozenset({"image"})
    relative = True

    def __init__(
        self,
        *,
        aggregate: Literal["bradley_terry", "elo"] = "bradley_terry",
        rounds: int = 4,
        prior: float = 0.1,
        checkpoint: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        base_url: str | None = None,
        model: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        structured: bool = True,
        temperature: float | None = 0.0,
        timeout: float = 60.0,
        retries: int = 4,
        parallel: int = 4,
        max_new_tokens: int = LONGEST_ANSWER,
        image_format: ImageFormat = "jpeg",
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 4,
    ) -> None:
        if aggregate not in {"bradley_terry", "elo"}:
            raise ConfigError(f"aggregate must be bradley_terry or elo but got {aggregate!r}; change it.")
        if rounds < 1:
            raise ConfigError(f"rounds must be at least 1 but got {rounds}; raise it.")
        if not prior > 0:
            raise ConfigError(f"prior must be positive but got {prior}; raise it.")
        endpoint = ChatEndpoint.named(
            base_url,
            model,
            owner=self.name,
            key_variable=key_variable,
            timeout=timeout,
            retries=retries,
            parallel=parallel,
            temperature=temperature,
            max_tokens=max_new_tokens,
            image_format=image_format,
        )
        self.aggregate = aggregate
        self.rounds = rounds
        self.prior = prior
        self.structured = structured
        self._judge: VisionLanguageModel | ChatEndpoint
        self._judge = endpoint or VisionLanguageModel(
            checkpoint, owner=self.name, device=device, dtype=dtype, batch_size=batch_size
        )

    def load(self) -> None:
        """Loads the model, if it is on this machine."""
        self._judge.load()

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        """Ratings, and the games that a sample won, lost and tied; samples of one prompt compete.

        Args:
            media: Samples.
            prompts: The prompt of each.
            asked: Its best sample plays at the table of every prompt and keeps its rating; if it has none, or
                cannot be compared, the others play alone.
        """
        guests, rating = self._guest(asked)
        scores: dict[int, Score] = {}
        seats: dict[str, list[int]] = {}
        images: dict[int, Image.Image] = {}
        for i, (sample, prompt) in enumerate(zip(media, prompts, strict=True)):
            try:
                images[i] = as_image(sample, self.name)
                seats.setdefault(prompt.text, []).append(i)
            except UnusableSample as error:
                scores[i] = Score.unscored(str(error))
        tables = [Table(prompts[s[0]], [images[i] for i in s] + guests) for s in seats.values()]
        for _ in range(self.rounds):
            self._play_round(tables)
        for table, seated in zip(tables, seats.values()):
            fixed = {len(seated): rating} if guests else {}
            ratings = self._ratings(table, fixed)
            scores |= {i: _score(table, player, ratings[player]) for player, i in enumerate(seated)}
        return [scores[i] for i in range(len(media))]

    def _guest(self, asked: Asked) -> tuple[list[Image.Image], float]:
        """The best sample so far, if it can be compared, and its rating."""
        if asked.best is None or math.isnan(asked.best.score.value):
            return [], math.nan
        try:
            return [as_image(asked.best.load(), self.name)], asked.best.score.value
        except UnusableSample:
            return [], math.nan

    def _play_round(self, tables: Sequence[Table]) -> None:
        """One round at all tables, asked together."""
        pairs = [(table, a, b) for table in tables for a, b in table.pairs()]
        orders = [(t, x, y) for t, a, b in pairs for x, y in ((a, b), (b, a))]
        shown = [[t.players[x], t.players[y]] for t, x, y in orders]
        answers = self._firsts(shown, [QUESTION.replace("{prompt}", t.prompt.text) for t, _, _ in orders])
        for (table, a, b), one, two in zip(pairs, answers[::2], answers[1::2]):
            if isinstance(one, str) or isinstance(two, str):
                reason = one if isinstance(one, str) else str(two)
                table.failures |= {a: reason, b: reason}
            else:
                table.games.append((a, b, verdict(one, two)))

    def _firsts(self, shown: list[list[Image.Image]], questions: list[str]) -> list[float | str]:
        """P(the first of two is better) for each pair, or the reason why it is unknown."""
        if isinstance(self._judge, ChatEndpoint):
            answers = ask(
                self._judge,
                shown,
                [question + FORM for question in questions],
                Winner,
                called="winner",
                structured=self.structured,
            )
            return [
                answer if isinstance(answer, str) else float(answer.winner == "first") for answer in answers
            ]
        try:
            return list(self._judge.answer_probabilities(shown, questions, ["first"], ["second"]))
        except UnusableSample as error:
            if len(shown) == 1:
                return [str(error)]
            return [p for s, q in zip(shown, questions) for p in self._firsts([s], [q])]

    def _ratings(self, table: Table, fixed: Mapping[int, float]) -> Sequence[float]:
        n = len(table.players)
        if self.aggregate == "elo":
            return elo(n, table.games, fixed=fixed)
        wins = np.zeros((n, n))
        for a, b, won in table.games:
            wins[a, b] += won
            wins[b, a] += 1 - won
        return bradley_terry(wins, prior=self.prior, fixed=fixed).tolist()


def swiss_pairs(order: Sequence[int], met: set[frozenset[int]]) -> list[tuple[int, int]]:
    """Pairs for a round: each player, from the best on, with the next who is free and new to them.

    Args:
        order: Players from the best to the worst.
        met: Pairs that have met.

    Returns:
        Pairs; a player without a partner rests.
    """
    free, pairs = list(order), []
    while free:
        player = free.pop(0)
        partner = next((other for other in free if frozenset((player, other)) not in met), None)
        if partner is not None:
            free.remove(partner)
            pairs.append((player, partner))
    return pairs


def verdict(one: float, two: float) -> float:
    """Points of the first of a pair, from P(the one shown first is better) in either order: 1, 0 or 0.5."""
    if one > 0.5 > two:
        return 1.0
    return 0.0 if one < 0.5 < two else 0.5


def bradley_terry(
    wins: NDArray[np.float64], *, prior: float, fixed: Mapping[int, float] | None = None
) -> NDArray[np.float64]:
    """Log-strengths of highest likelihood, where P(i beats j) = sigmoid(t_i - t_j) (Bradley, Terry 1952).

    Args:
        wins: ``(n, n)`` how often the row beat the column; a tie is half a win for each.
        prior: Wins, and as many losses, that each is given against a strength of 0; positive.
        fixed: Log-strengths that are known, by player.

    Returns:
        ``(n,)`` log-strengths.
    """
    games = wins + wins.T
    strengths = np.zeros(len(wins))
    for player, value in (fixed or {}).items():
        strengths[player] = value
    free = np.array([i for i in range(len(wins)) if i not in (fixed or {})], dtype=int)

    def likelihood(t: NDArray[np.float64]) -> float:
        gaps = t[:, None] - t[None, :]
        own = np.logaddexp(0, t[free]) + np.logaddexp(0, -t[free])
        return float(-(wins * np.logaddexp(0, -gaps)).sum() - prior * own.sum())

    for _ in range(100):  # Newton's method on a concave function
        gaps = strengths[:, None] - strengths[None, :]
        expected = expit(gaps)
        alone = expit(strengths)
        slope = (wins - games * expected).sum(1) + prior * (1 - 2 * alone)
        weights = games * expected * (1 - expected)
        curvature = np.diag(weights.sum(1) + 2 * prior * alone * (1 - alone)) - weights
        step = np.zeros_like(strengths)
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], slope[free])
        while likelihood(strengths + step) < likelihood(strengths) and np.abs(step).max() > 1e-12:
            step /= 2
        strengths = strengths + step
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return strengths


def elo(
    n: int,
    games: Sequence[tuple[int, int, float]],
    *,
    start: float = ELO_START,
    step: float = ELO_STEP,
    fixed: Mapping[int, float] | None = None,
) -> list[float]:
    """Elo ratings after games in their order: a rating moves by `step` times (result - expected result).

    Args:
        n: Players.
        games: Pairs of players and the points of the first: 1, 0, or 0.5 for a tie.
        start: Rating before the first game.
        step: Points at stake in a game.
        fixed: Ratings that do not move, by player.
    """
    known = fixed or {}
    ratings = [known.get(i, start) for i in range(n)]
    for a, b, won in games:
        gain = step * (won - 1 / (1 + 10 ** ((ratings[b] - ratings[a]) / 400)))
        ratings[a] += 0.0 if a in known else gain
        ratings[b] -= 0.0 if b in known else gain
    return ratings


def _score(table: Table, player: int, rating: float) -> Score:
    won = [w if a == player else 1 - w for a, b, w in table.games if player in (a, b)]
    if not won and player in table.failures:
        return Score.unscored(table.failures[player])
    parts = {name: float(won.count(w)) for name, w in (("wins", 1.0), ("losses", 0.0), ("ties", 0.5))}
    return Score(value=rating, parts=parts, reason=None if won else "it was compared with no other sample")
