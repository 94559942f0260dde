"""Soft-TIFA: questions with known answers about an image, scored by the probability of the right ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Prompt, Score
from tts_vision.verifiers._predicates import from_record, from_text
from tts_vision.verifiers._soft_tifa import (
    CHECKPOINT,
    TEMPLATE,
    Answers,
    Atom,
    ask_atoms,
    atoms_from_demands,
    questions_in,
)
from tts_vision.verifiers._vlm import VisionLanguageModel

WITHOUT_QUESTIONS = (
    "the prompt has no questions: neither a vqa_list in its record nor the form of GenEval's prompts ('four "
    "white bicycles in front of three plastic cows'); use checklist, which asks a language model for a list"
)


@register(
    "verifier",
    "soft_tifa",
    paper="GenEval 2 (Kamath et al. 2025, arXiv:2512.16853); TIFA (Hu et al. 2023)",
    notes={
        "licence": "of the model; Apache-2.0 for the default",
        "weights": f"{CHECKPOINT}, or any image-text-to-text model of transformers",
    },
)
class SoftTIFA(BatchedVerifier):
    """Soft-TIFA: mean probability of the right answers to the questions of a prompt, in [0, 1].

    The questions are those of the prompt's record (``vqa_list`` in its metadata, as in GenEval 2's data), or
    follow from its GenEval record, or from a prompt of GenEval's form. Each is asked by itself, with "Answer
    in one word."; the probability of the right answer is that of the first tokens of its spellings (word,
    capitalised, digits, with and without a space) over the whole vocabulary. ``parts`` has one probability
    per question. An image satisfies its prompt where the likeliest token is right for all questions (a TIFA
    of 1); otherwise the reason names the wrong answers.

    Args:
        mean: ``gm``, the geometric mean, which GenEval 2 uses for whole prompts, or ``am``, the arithmetic
            mean, which it uses for single skills.
        checkpoint: Folder or hub id of any transformers image-text-to-text model with a chat template.
        template: The text of a question; ``{question}`` is replaced by the question.
        batch_size: Questions computed at once.
    """

    name = "soft_tifa"
    checks_demands = True

    def __init__(
        self,
        *,
        mean: Literal["gm", "am"] = "gm",
        checkpoint: str = CHECKPOINT,
        template: str = TEMPLATE,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 8,
    ) -> None:
        # the model has batches of its own
        super().__init__(device=device, dtype=dtype, batch_size=2**20)
        if mean not in ("gm", "am"):
            raise ConfigError(f"mean must be gm or am but got {mean!r}; change it.")
        if "{question}" not in template:
            raise ConfigError(f"template must contain {{question}} but is {template!r}; put it in.")
        self.mean, self.template = mean, template
        self._vlm = VisionLanguageModel(
            checkpoint, owner=self.name, device=self.device, dtype=self.dtype, batch_size=batch_size
        )

    def _load(self) -> None:
        self._vlm.load()

    def _score_batch(self, samples: list[Image.Image], prompts: list[Prompt]) -> list[Score]:
        atoms = [atoms_of(prompt) for prompt in prompts]
        asked = {i: some for i, some in enumerate(atoms) if not isinstance(some, str)}
        answers = ask_atoms(self._vlm, [samples[i] for i in asked], list(asked.values()), self.template)
        found = dict(zip(asked, answers, strict=True))
        return [
            Score.unscored(some) if isinstance(some, str) else self._score(some, found[i])
            for i, some in enumerate(atoms)
        ]

    def _score(self, atoms: Sequence[Atom], answers: Answers | str) -> Score:
        if isinstance(answers, str):
            return Score.unscored(answers)
        told = zip(atoms, answers.said, answers.right, strict=True)
        wrong = [f"{atom.question} {said.strip()!r}, not {atom.answer}" for atom, said, ok in told if not ok]
        return Score(
            value=answers.gm if self.mean == "gm" else answers.am,
            parts=dict(zip(_names(atoms), answers.probabilities, strict=True)),
            reason="; ".join(wrong) or None,
            satisfied=not wrong,
        )


def atoms_of(prompt: Prompt) -> list[Atom] | str:
    """The questions of a prompt; else the reason why there are none."""
    try:
        atoms = questions_in(prompt.metadata)
        if atoms is not None:
            return atoms
        demands = from_record(prompt.metadata) or from_text(prompt.text)
    except ValueError as error:
        return str(error)
    return WITHOUT_QUESTIONS if demands is None else atoms_from_demands(demands)


def _names(atoms: Sequence[Atom]) -> list[str]:
    """The questions as names of parts; one that is asked again gets a number."""
    seen: Counter[str] = Counter()
    names = []
    for atom in atoms:
        seen[atom.question] += 1
        times = seen[atom.question]
        names.append(atom.question if times == 1 else f"{atom.question} ({times})")
    return names
