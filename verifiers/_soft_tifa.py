"""Soft-TIFA (Kamath et al. 2025): a prompt as questions with known answers, asked one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tts_vision.model_verifier import UnusableSample
from tts_vision.verifiers._predicates import NUMBERS, Demands, plural
from tts_vision.verifiers._predicates import number as number_word
from tts_vision.verifiers._vlm import YES_SPELLINGS, VisionLanguageModel

CHECKPOINT = "Qwen/Qwen3-VL-8B-Instruct"
TEMPLATE = "{question} Answer in one word."
COUNTS = "How many"
"""The words that a question begins with whose answer is a number."""


@dataclass(frozen=True)
class Atom:
    """A question about an image, and its right answer.

    Attributes:
        question: One that begins with "How many", or whose answer must be yes.
        answer: ``one`` to ``ten``, or ``Yes``.
    """

    question: str
    answer: str

    @property
    def spellings(self) -> tuple[str, ...]:
        """How a model may write the answer: the word, capitalised, the digits; each after a space as well."""
        if not self.question.startswith(COUNTS):
            return YES_SPELLINGS
        word, digits = self.answer, str(NUMBERS[self.answer])
        return (word, word.capitalize(), f" {word}", f" {word.capitalize()}", digits, f" {digits}")


@dataclass(frozen=True)
class Answers:
    """A model's answers to the atoms of one prompt.

    Attributes:
        probabilities: Of the right answers, in [0, 1], in the order of the atoms.
        said: The likeliest first tokens, decoded.
        right: Whether each of these, in lower case, is a spelling of the right answer.
    """

    probabilities: tuple[float, ...]
    said: tuple[str, ...]
    right: tuple[bool, ...]

    @property
    def am(self) -> float:
        """Soft-TIFA AM: the arithmetic mean of the probabilities, an estimate for single atoms."""
        return arithmetic_mean(self.probabilities)

    @property
    def gm(self) -> float:
        """Soft-TIFA GM: the geometric mean of the probabilities, an estimate for whole prompts."""
        return geometric_mean(self.probabilities)

    @property
    def tifa(self) -> float:
        """TIFA: the share of right answers."""
        return arithmetic_mean(self.right)


def arithmetic_mean(values: Sequence[float]) -> float:
    """The arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of at least one value, none of them negative; 0 where one of them is 0."""
    if any(value == 0 for value in values):
        return 0.0
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


def atoms_from_list(pairs: Any) -> list[Atom]:
    """The atoms of a record's ``vqa_list``, a list of ``[question, answer]``.

    Raises:
        ValueError: If it is no such list, is empty, or has an answer that a question cannot have.
    """
    if not isinstance(pairs, list | tuple) or not pairs:
        raise ValueError(f"vqa_list must be a list of [question, answer] but is {pairs!r:.80}")
    return [_atom(pair, number) for number, pair in enumerate(pairs, 1)]


def _atom(pair: Any, number: int) -> Atom:
    if (
        not isinstance(pair, list | tuple)
        or len(pair) != 2
        or not all(isinstance(part, str) and part.strip() for part in pair)
    ):
        raise ValueError(f"entry {number} of vqa_list must be [question, answer], texts, but is {pair!r:.80}")
    question, answer = pair
    allowed = tuple(NUMBERS) if question.startswith(COUNTS) else ("Yes",)
    if answer not in allowed:
        rule = f"one of {', '.join(allowed)}" if len(allowed) > 1 else "Yes"
        raise ValueError(f"the answer to {question!r} must be {rule} but is {answer!r}")
    return Atom(question, answer)


def atoms_from_demands(demands: Demands) -> list[Atom]:
    """The atoms of a prompt's demands: exact numbers up to ten are counted, all else is asked with yes.

    As GenEval 2 does, a thing that is counted is also asked for by itself.
    """
    found: list[Atom] = []
    for predicate in demands.predicates():
        if predicate.kind == "count" and predicate.group is not None:
            group = demands.groups[predicate.group]
            if group.least == group.most and group.least in NUMBERS.values():
                things = plural(demands.called(predicate.group))
                found.append(Atom(f"{COUNTS} {things} are in the image?", number_word(group.least)))
                found.append(Atom(f"Are there any {things} in the image?", "Yes"))
                continue
        found.append(Atom(predicate.question, "Yes"))
    return found


def questions_in(metadata: Mapping[str, Any]) -> list[Atom] | None:
    """The atoms of a prompt's record; None if it has no ``vqa_list``.

    Raises:
        ValueError: As `atoms_from_list`.
    """
    pairs = metadata.get("vqa_list")
    return None if pairs is None else atoms_from_list(pairs)


def ask_atoms(
    vlm: VisionLanguageModel,
    images: Sequence[Image.Image],
    atoms: Sequence[Sequence[Atom]],
    template: str = TEMPLATE,
) -> list[Answers | str]:
    """The answers about each image; else the reason why there are none.

    Args:
        vlm: The model that is asked; all questions about all images go through it in batches.
        images: The images.
        atoms: Those of each image, at least one.
        template: The text of a question; ``{question}`` is replaced by the question.

    Raises:
        VerifierError: If the vocabulary of the model has no token for an answer.
    """
    flat = [(image, atom) for image, some in zip(images, atoms, strict=True) for atom in some]
    try:
        masses = vlm.answer_masses(
            [[image] for image, _ in flat],
            [template.replace("{question}", atom.question) for _, atom in flat],
            [atom.spellings for _, atom in flat],
        )
    except UnusableSample as error:
        if len(images) == 1:
            return [str(error)]
        pairs = zip(images, atoms, strict=True)
        return [answer for image, some in pairs for answer in ask_atoms(vlm, [image], [some], template)]
    found: list[Answers | str] = []
    at = 0
    for some in atoms:
        mine = masses[at : at + len(some)]
        at += len(some)
        if any(math.isnan(mass.probability) for mass in mine):
            found.append("the model answered NaN")
            continue
        found.append(
            Answers(
                probabilities=tuple(mass.probability for mass in mine),
                said=tuple(mass.greedy for mass in mine),
                right=tuple(m.greedy.lower() in a.spellings for m, a in zip(mine, some, strict=True)),
            )
        )
    return found
