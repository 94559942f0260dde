"""The base class of verifiers: reward models, judges and checkers that score samples against prompts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from tts_vision.calibration import NO_HISTORY, History
from tts_vision.errors import CapabilityError, ConfigError, VerifierError
from tts_vision.types import Media, Modality, Prompt, Score

Charge: TypeAlias = Callable[[Mapping[str, int]], None]


def no_charge(calls: Mapping[str, int]) -> None:
    """Charges nothing: the ledger of a verifier that belongs to no search."""


def at_once(key: str, function: Callable[[], Any]) -> Any:
    """The answer of a function, which is not recorded."""
    return function()


@dataclass(frozen=True)
class Best:
    """The best finished sample so far, for verifiers that compare others with it.

    Attributes:
        load: Gets its pixels.
        score: Its score.
    """

    load: Callable[[], Media]
    score: Score


@dataclass(frozen=True)
class Asked:
    """The circumstances under which a search asks for scores.

    Attributes:
        charge: Called before calls beyond those that `Verifier.calls` announced, with their number by
            verifier.
        best: The best finished sample so far, while finished samples are scored.
        step: Step of the previews that are scored; None for finished samples.
        history: Scores of previews of this search and of the finished samples that came of them.
        remember: Called with a key and a function, gets the answer of the function for that key, of values
            that JSON can hold: asked once, and recorded in a search, for verifiers that ask a person.
    """

    charge: Charge = no_charge
    best: Best | None = None
    step: int | None = None
    history: History = NO_HISTORY
    remember: Callable[[str, Callable[[], Any]], Any] = at_once


ALONE = Asked()
"""Asked outside any search."""


class Verifier(ABC):
    """Scores samples against prompts.

    A subclass sets `name` and `accepts` and defines `score`; every other method has a default that does
    nothing. A sample that cannot be scored gets `Score.unscored` with the reason.

    Attributes:
        name: Shown in reports.
        accepts: Modalities it can score.
        differentiable: Whether `rewards` gives gradients.
        relative: Whether the values of one call compare its samples with each other, so that samples should
            come in one call.
        settles: Whether `settle` makes values anew whenever samples are added, as ranks need.
        learns: Whether `score` learns from `Asked.history`.
        checks_demands: Whether scores say if all demands of the prompt are met (`Score.satisfied`).
        questions: Further questions that it answers, each by the method of that name, which takes samples and
            prompts and returns a score for each: P(yes) or the like, and in `Score.satisfied` the verdict, by
            default whether the value is above 0.5. Searches ask for ``clarity`` (is this preview clear
            enough to judge?), ``potential`` (will it become a good sample?) and ``reflection`` (is this
            sample good, and if not, why?).

    Example:
        >>> class Brightness(Verifier):
        ...     name, accepts = "brightness", frozenset({"image"})
        ...     def score(self, media, prompts, asked=ALONE):
        ...         return [Score(value=float(np.asarray(image).mean())) for image in media]
    """

    name: str
    accepts: frozenset[Modality]
    differentiable: bool = False
    relative: bool = False
    settles: bool = False
    learns: bool = False
    checks_demands: bool = False
    questions: frozenset[str] = frozenset()

    @abstractmethod
    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        """One score per sample, in order.

        Args:
            media: Samples.
            prompts: The prompt of each.
            asked: The circumstances. The caller has already charged ``calls(len(media))``.
        """

    def calls(self, n: int) -> dict[str, int]:
        """Calls that scoring `n` samples of one prompt takes, by the name of the verifier that is called."""
        return {self.name: n}

    def answer(self, question: str, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        """The answers to one of its `questions`, one per sample, in order.

        Raises:
            CapabilityError: If it does not answer that question.
        """
        if question not in self.questions:
            answers = ", ".join(sorted(self.questions)) or "none"
            raise CapabilityError(
                f"A question must be one that the verifier answers but {self.name!r} was asked for "
                f"{question!r} and answers {answers}; use another verifier, such as parm."
            )
        answered_by: Callable[..., list[Score]] = getattr(self, question)
        return answered_by(media, prompts)

    def calls_to_answer(self, question: str, n: int) -> dict[str, int]:
        """Calls that the answers to a question about `n` samples take, by the name of what is called."""
        return {self.name: n}

    def settle(self, scores: Sequence[Score]) -> list[float]:
        """The values of all finished samples, from their scores; NaN for those that are unscored."""
        return [score.value for score in scores]

    def load(self) -> None:  # noqa: B027
        """Loads the model; called by a search before it spends anything.

        Raises:
            VerifierError: If it cannot be loaded.
        """

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Rewards that carry the gradient of `pixels`; like `score`, up to rounding and resizing.

        Args:
            pixels: ``(B, 3, H, W)`` in [0, 1], of any size, on any device; clips ``(B, T, 3, H, W)`` where
                it accepts them.
            prompts: One per sample.

        Returns:
            ``(B,)``, higher is better, on the device of `pixels`.

        Raises:
            CapabilityError: If it gives no gradients (`differentiable` is False).
        """
        raise CapabilityError(
            f"Gradients need a verifier with a differentiable reward but {self.name!r} has none; use a "
            "reward model of the CLIP family."
        )


class Question(Verifier):
    """One question of a verifier, as a verifier whose scores are the answers.

    Args:
        verifier: Answers it.
        question: One of its `Verifier.questions`.

    Raises:
        CapabilityError: If it does not answer that question.
    """

    def __init__(self, verifier: Verifier, question: str) -> None:
        self.verifier, self.question = verifier, question
        self.name, self.accepts = verifier.name, verifier.accepts
        if question not in verifier.questions:
            verifier.answer(question, [], [])

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        found = self.verifier.answer(self.question, media, prompts)
        return [_with_verdict(score) for score in as_scores(found, len(media), self.name)]

    def calls(self, n: int) -> dict[str, int]:
        return self.verifier.calls_to_answer(self.question, n)


def _with_verdict(score: Score) -> Score:
    if score.satisfied is not None or math.isnan(score.value):
        return score
    return score.model_copy(update={"satisfied": score.value > 0.5})


class FunctionVerifier(Verifier):
    """A plain function ``f(media, prompts) -> floats`` as a verifier.

    The floats may be a list, or an array or tensor of shape (n,) or (n, 1); None is a sample that could not
    be scored.
    """

    accepts: frozenset[Modality] = frozenset({"image", "video"})

    def __init__(self, function: Callable[[list[Media], list[str]], Any], name: str | None = None) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        found = self.function(list(media), [prompt.text for prompt in prompts])
        return as_scores(found, len(media), self.name)


class ObjectVerifier(Verifier):
    """An object with ``name``, ``accepts`` and ``score(media, prompts)`` as a verifier.

    It may return scores, or numbers as a function may. Its ``load()`` and ``rewards(pixels, prompts)`` are
    used where it has them, and the methods that its ``questions`` name.
    """

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.name: str = wrapped.name
        self.accepts: frozenset[Modality] = frozenset(wrapped.accepts)
        self.differentiable = callable(getattr(wrapped, "rewards", None))
        self.questions = frozenset(getattr(wrapped, "questions", ()))

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return as_scores(self.wrapped.score(media, prompts), len(media), self.name)

    def answer(self, question: str, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        if question not in self.questions:
            return super().answer(question, media, prompts)
        return as_scores(getattr(self.wrapped, question)(media, prompts), len(media), self.name)

    def load(self) -> None:
        getattr(self.wrapped, "load", lambda: None)()

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        rewards: Tensor = self.wrapped.rewards(pixels, prompts)
        return rewards


def as_verifier(value: Any, text: str = "it") -> Verifier:
    """Anything that can score as a `Verifier`.

    Args:
        value: A `Verifier`, an object with ``name``, ``accepts`` and ``score(media, prompts)``, or a function
            ``f(media, prompts) -> floats``.
        text: What to call it in messages.

    Raises:
        ConfigError: If it is none of these.
    """
    if isinstance(value, Verifier):
        return value
    if all(hasattr(value, part) for part in ("name", "accepts", "score")):
        return ObjectVerifier(value)
    if callable(value):
        return FunctionVerifier(value)
    raise ConfigError(
        "A verifier must be a name, an object with name, accepts and score, or a function f(images, "
        f"prompts) -> floats, but {text} is {type(value).__qualname__}; give one of these."
    )


def as_scores(found: Any, n: int, name: str) -> list[Score]:
    """The scores that a user's verifier returned, in whatever form; their number is checked elsewhere.

    Args:
        found: Scores or numbers: a list or tuple, or an array or tensor of shape (n,) or (n, 1).
        n: Number of samples.
        name: Name of the verifier, for messages.

    Raises:
        VerifierError: If it is no such list, or none of its entries is a number.
    """
    shape = getattr(found, "shape", None)
    if isinstance(shape, tuple):  # of an array or a tensor
        if not shape or math.prod(shape) != shape[0]:
            raise VerifierError(_not_scores(name, n, f"{type(found).__name__} of shape {tuple(shape)}"))
        found = found.reshape(shape[0]).tolist()
    elif isinstance(found, Mapping | Set | str | bytes) or not isinstance(found, Iterable):
        raise VerifierError(_not_scores(name, n, "None" if found is None else type(found).__name__))
    entries = list(found)
    scores = [_as_score(entry, name) for entry in entries]
    if wrong := [entry for entry, score in zip(entries, scores) if score is None]:
        if len(wrong) == len(entries):
            raise VerifierError(_not_scores(name, n, f"a list of {type(wrong[0]).__name__}"))
        return [score or Score.unscored(f"{name} returned no number for it") for score in scores]
    return [score for score in scores if score is not None]


def _as_score(entry: Any, name: str) -> Score | None:
    """The score that an entry stands for; none if it is no number."""
    if isinstance(entry, Score):
        return entry
    if entry is None:
        return Score.unscored(f"{name} returned None for it")
    if isinstance(entry, list | tuple) and len(entry) == 1:
        return _as_score(entry[0], name)
    try:
        return Score(value=float(entry.item() if hasattr(entry, "item") else entry))
    except (TypeError, ValueError, RuntimeError):
        return None


def _not_scores(name: str, n: int, found: str) -> str:
    return (
        f"Verifier {name!r} must return one score per sample, {n} here, but returned {found}; return a list "
        "of numbers, NaN for a sample that it cannot score."
    )


def for_member(asked: Asked, score_of: Callable[[Score], Score]) -> Asked:
    """The circumstances for a member of a verifier that is made of others.

    Args:
        asked: Of the whole.
        score_of: The member's own score, from that of the whole.
    """
    if asked.best is None:
        return asked
    return replace(asked, best=Best(asked.best.load, score_of(asked.best.score)))
