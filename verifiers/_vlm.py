"""Vision-language models: the probability of an answer, and generated text.

The probability of "yes" is the one primitive that VQAScore, ORM, PARM, checklists, GenEval 2 and DSG are
made of: one forward pass, and a softmax over the first tokens that an answer could begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tts_vision.chat import Question, turns
from tts_vision.errors import VerifierError
from tts_vision.memory import in_halves, out_of_memory
from tts_vision.model_verifier import LazyModel, UnusableSample
from tts_vision.verifiers._weights import from_pretrained, processor_from

YES, NO = ("yes",), ("no",)
YES_SPELLINGS = ("Yes", "yes", " yes", " Yes")
MOST_DISTRIBUTIONS = 64
"""Distributions over the vocabulary that are held at once, a megabyte each."""


@dataclass(frozen=True)
class FirstToken:
    """A sampled first token of an answer.

    Attributes:
        text: The token as the vocabulary writes it.
        probabilities: ``(V,)`` probabilities that it was drawn from.
    """

    text: str
    probabilities: Tensor


@dataclass(frozen=True)
class AnswerMass:
    """How likely an answer begins in one of several spellings.

    Attributes:
        probability: Of the first tokens of all spellings together, over the whole vocabulary.
        greedy: The likeliest first token, decoded.
    """

    probability: float
    greedy: str


class VisionLanguageModel(LazyModel):
    """Any transformers image-text-to-text model with a chat template; loads on first use.

    Images belong to the first turn of a question. Questions of different length are padded on the left, and
    those that cannot be batched are computed one by one, so that an answer does not depend on the others up
    to rounding (about 1e-6 in float32, 1e-2 in half precision). When memory is full, the batch size is halved
    and stays so.

    Args:
        checkpoint: A folder or a repository on the Hugging Face hub.
        owner: Name of the plugin, for messages.
        batch_size: Questions computed at once.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        owner: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint = checkpoint
        self.owner = owner
        self._model: Any = None
        self._tokenizer: Any = None
        self._processor: Any = None

    def _load(self) -> None:
        model = self._read_model()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "left"
        self._model = model.to(self.device)

    def yes_probabilities(
        self, images: Sequence[Sequence[Image.Image]], questions: Sequence[Question]
    ) -> list[float]:
        """P(yes), normalised over yes and no: `answer_probabilities` for these words.

        Args:
            images: Those of each question, such as the frames of a clip; may be none.
            questions: The questions about them.

        Returns:
            One probability in [0, 1] per question.

        Raises:
            UnusableSample: If the model cannot take a question or its images.
        """
        return self.answer_probabilities(images, questions, YES, NO)

    def answer_probabilities(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
        answers: Sequence[str],
        others: Sequence[str],
    ) -> list[float]:
        """P(one of `answers`), normalised over `answers` and `others`.

        The probability of a word is the sum over its variants in case, with and without a space before
        it, that are one token.

        Args:
            images: Those of each question.
            questions: The questions about them.
            answers: Words whose probability is wanted.
            others: Words that it is normalised against.

        Returns:
            One probability in [0, 1] per question.

        Raises:
            UnusableSample: If the model cannot take a question or its images.
            VerifierError: If its vocabulary has no token for an answer, or one for both.
        """
        self.load()
        wanted, rest = self.token_ids(answers), self.token_ids(others)
        if set(wanted) & set(rest):
            raise VerifierError(
                f"Answers that {self.owner!r} compares must begin with different tokens but {list(answers)} "
                f"and {list(others)} share one in {self.checkpoint!r}; choose other words or another model."
            )
        if not questions:
            return []
        logits = self.next_token_logits(images, questions)
        return logits[:, wanted + rest].softmax(-1)[:, : len(wanted)].sum(-1).tolist()

    def likelihoods(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
        answer: str,
        *,
        to_the_end: bool = False,
    ) -> list[float]:
        """P(the first token of `answer`) over the whole vocabulary.

        Args:
            images: Those of each question.
            questions: The questions about them.
            answer: The answer, written just so.
            to_the_end: Whether it is the geometric mean with the probability that the answer ends there.

        Returns:
            One probability in [0, 1] per question.

        Raises:
            UnusableSample: If the model cannot take a question or its images.
            VerifierError: If the tokenizer makes nothing of the answer.
        """
        self.load()
        tokens = self._tokenizer.encode(answer, add_special_tokens=False)
        if not tokens:
            raise VerifierError(
                f"The answer that {self.owner!r} waits for must have a token but {answer!r} has none; choose "
                "another word."
            )
        if not questions:
            return []
        found = self.next_token_logits(images, questions).log_softmax(-1)[:, tokens[0]]
        if to_the_end:
            after = self.next_token_logits(images, questions, begun=tokens[:1]).log_softmax(-1)
            found = (found + after[:, self._tokenizer.eos_token_id]) / 2
        return found.exp().tolist()

    def answer_masses(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
        spellings: Sequence[Sequence[str]],
    ) -> list[AnswerMass]:
        """P(one of the `spellings` begins) over the whole vocabulary, as GenEval 2 reads answers.

        A spelling of several tokens counts by the first of them, so that "10" may count as "1"; a token that
        several spellings begin with counts once.

        Args:
            images: Those of each question.
            questions: The questions about them.
            spellings: Those of each answer, written just so, leading spaces included.

        Returns:
            One per question; probabilities in [0, 1], not normalised against other answers.

        Raises:
            UnusableSample: If the model cannot take a question or its images.
            VerifierError: If the vocabulary has no token that an answer begins with.
        """
        self.load()
        wanted = [self._first_token_ids(each) for each in spellings]
        found: list[AnswerMass] = []
        for at in range(0, len(questions), MOST_DISTRIBUTIONS):
            rows = slice(at, at + MOST_DISTRIBUTIONS)
            probabilities = self.next_token_logits(images[rows], questions[rows]).softmax(-1)
            likeliest = [self._tokenizer.decode([token]) for token in probabilities.argmax(-1).tolist()]
            masses = [row[tokens].sum().item() for row, tokens in zip(probabilities, wanted[rows])]
            found += [AnswerMass(min(mass, 1.0), token) for mass, token in zip(masses, likeliest)]
        return found

    def _first_token_ids(self, spellings: Sequence[str]) -> list[int]:
        """The distinct tokens that the spellings of an answer begin with."""
        tokens = [self._tokenizer.encode(each, add_special_tokens=False)[:1] for each in spellings]
        first = {token for found in tokens for token in found if token != self._tokenizer.unk_token_id}
        if not first:
            raise VerifierError(
                f"An answer that {self.owner!r} waits for must begin with a token but the vocabulary of "
                f"{self.checkpoint!r} has none for any of {list(spellings)}; choose another model."
            )
        return sorted(first)

    @torch.no_grad()
    def next_token_logits(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
        *,
        begun: Sequence[int] = (),
    ) -> Tensor:
        """Logits of the next token of each answer; one forward pass per batch.

        Args:
            images: Those of each question.
            questions: The questions about them.
            begun: Tokens that the answers begin with.

        Returns:
            ``(B, V)`` float32 on the CPU, as the model gives them, before any sampling rule.

        Raises:
            UnusableSample: If the model cannot take a question or its images.
        """

        def forward(inputs: Mapping[str, Any]) -> list[Tensor]:
            output = self._generate(
                lengthened(inputs, begun), 1, output_logits=True, return_dict_in_generate=True
            )
            return list(output.logits[0].float().cpu())

        rows = self._batched(forward, images, questions)
        return torch.stack(rows) if rows else torch.empty(0, 0)

    def first_tokens(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
        generators: Sequence[torch.Generator],
    ) -> list[FirstToken]:
        """First tokens of sampled answers, at temperature 1 under the checkpoint's top-k and top-p.

        Top-k is 50 where the checkpoint sets none; its repetition penalty has nothing to act on yet.

        Args:
            images: Those of each question.
            questions: The questions about them.
            generators: One per question, on the CPU.

        Raises:
            UnusableSample: If the model cannot take a question or its images.
        """
        found = []
        for logits, generator in zip(self.next_token_logits(images, questions), generators, strict=True):
            settings = self._model.generation_config
            top_k = 50 if settings.top_k is None else settings.top_k
            top_p = 1.0 if settings.top_p is None else settings.top_p
            probabilities = nucleus(logits, top_k, top_p).softmax(-1)
            token = int(torch.multinomial(probabilities, 1, generator=generator))
            found.append(FirstToken(self._tokenizer.convert_ids_to_tokens(token), probabilities))
        return found

    @torch.no_grad()
    def generate(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
        *,
        max_new_tokens: int = 512,
    ) -> list[str]:
        """Answers, decoded greedily.

        Args:
            images: Those of each question.
            questions: The questions about them.
            max_new_tokens: Longest answer.

        Raises:
            UnusableSample: If the model cannot take a question or its images.
        """

        def forward(inputs: Mapping[str, Any]) -> list[str]:
            sequences = self._generate(inputs, max_new_tokens)
            asked = inputs["input_ids"].shape[1]
            return [
                self._tokenizer.decode(row, skip_special_tokens=True).strip() for row in sequences[:, asked:]
            ]

        return self._batched(forward, images, questions)

    def token_ids(self, words: Sequence[str]) -> list[int]:
        """The tokens that are one of `words`, in any case, with or without a space before it.

        Raises:
            VerifierError: If there is none for a word.
        """
        self.load()
        ids: dict[int, None] = {}
        for word in words:
            variants = [
                space + w for w in (word, word.lower(), word.title(), word.upper()) for space in ("", " ")
            ]
            tokens = [self._tokenizer.encode(v, add_special_tokens=False) for v in variants]
            single = [t[0] for t in tokens if len(t) == 1 and t[0] != self._tokenizer.unk_token_id]
            if not single:
                raise VerifierError(
                    f"Answers that {self.owner!r} compares must be one token but the vocabulary of "
                    f"{self.checkpoint!r} has none for {word!r}; choose another model."
                )
            ids.update(dict.fromkeys(single))
        return list(ids)

    def token_id(self, token: str) -> int:
        """The token that is written just so.

        Raises:
            VerifierError: If there is none.
        """
        self.load()
        found = self._tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self._tokenizer.unk_token_id:
            raise VerifierError(
                f"The vocabulary of {self.owner!r} must have {token!r} but that of {self.checkpoint!r} does "
                "not; choose another model."
            )
        return int(found)

    def _read_model(self) -> Any:
        """Loads the processor and its tokenizer; returns the model, on the CPU.

        Raises:
            VerifierError: If they cannot be found, do not fit, or have no chat template.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._processor = processor_from(AutoProcessor, self.checkpoint, self.owner)
        if not getattr(self._processor, "chat_template", None):
            raise VerifierError(
                f"The model of {self.owner!r} must come with a chat template but {self.checkpoint!r} has "
                "none; give an instruction-tuned checkpoint with its processor."
            )
        self._tokenizer = self._processor.tokenizer
        return from_pretrained(AutoModelForImageTextToText, self.checkpoint, self.owner, dtype=self.dtype)

    def _inputs(self, images: Sequence[Sequence[Image.Image]], questions: Sequence[Question]) -> Any:
        """The model's inputs for one batch: a mapping with a `to`."""
        placeholder = getattr(self._processor, "image_token", None)
        conversations = []
        for shown, question in zip(images, questions):
            asked = turns(question)
            if placeholder and any(placeholder in text for text in asked):
                raise UnusableSample(
                    f"a question must not contain {placeholder!r}, which stands for an image"
                )
            conversations.append(
                [
                    {
                        "role": "assistant" if i % 2 else "user",
                        "content": [{"type": "image"} for _ in ([] if i else shown)]
                        + [{"type": "text", "text": text}],
                    }
                    for i, text in enumerate(asked)
                ]
            )
        texts = self._processor.apply_chat_template(conversations, add_generation_prompt=True)
        bos = self._tokenizer.bos_token
        return self._processor(
            text=texts,
            images=[list(shown) for shown in images] if any(images) else None,
            padding=True,
            return_tensors="pt",
            # some templates write it, some leave it to the tokenizer
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )

    def _generate(self, inputs: Mapping[str, Any], length: int, **settings: Any) -> Any:
        return self._model.generate(
            **inputs,
            max_new_tokens=length,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_k=None,
            top_p=None,
            pad_token_id=self._tokenizer.pad_token_id,
            **settings,
        )

    def _batched(
        self,
        forward: Callable[[Mapping[str, Any]], list[Any]],
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
    ) -> list[Any]:
        self.load()
        if len(images) != len(questions):
            raise ValueError(f"Got {len(images)} lists of images for {len(questions)} questions.")
        for question in questions:
            turns(question)

        def work(start: int, stop: int) -> list[Any]:
            return self._together(forward, images[start:stop], questions[start:stop])

        parts = in_halves(len(questions), self.batch_size, work, shrunk=self._use_batches_of)
        return [row for part in parts for row in part]

    def _together(
        self,
        forward: Callable[[Mapping[str, Any]], list[Any]],
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
    ) -> list[Any]:
        try:
            inputs = self._inputs(images, questions)
        except (UnusableSample, ValueError, TypeError, RuntimeError, IndexError) as error:
            if out_of_memory(error):
                raise
            if len(questions) > 1:  # images that cannot be stacked, or one that cannot be used
                each = zip(images, questions)
                return [row for shown, asked in each for row in self._together(forward, [shown], [asked])]
            if isinstance(error, UnusableSample):
                raise
            raise UnusableSample(f"the model cannot take this sample: {error}") from error
        return forward(inputs.to(self.device, self.dtype))


def lengthened(inputs: Mapping[str, Any], tokens: Sequence[int]) -> dict[str, Any]:
    """Inputs of a model with tokens of text after each row, which is padded on the left."""
    ids: Tensor = inputs["input_ids"]
    longer: dict[str, Any] = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            # ones for masks, zeros for types, of which 0 is text
            fill = list(tokens) if name == "input_ids" else [int("mask" in name)] * len(tokens)
            longer[name] = torch.cat((value, value.new_tensor(fill).expand(len(value), -1)), dim=1)
    return longer


def nucleus(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits of which only the `top_k` largest, and of these the fewest that hold `top_p`, are kept.

    Args:
        logits: ``(V,)``.
        top_k: How many; 0 for all.
        top_p: Probability that is kept, in (0, 1].

    Returns:
        ``(V,)``, minus infinity where dropped.
    """
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        values, order = logits.sort(descending=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        logits = logits.index_fill(0, order[before >= top_p], -torch.inf)
    return logits
