"""Vision-language models: the probability of an answer, and generated text.

The probability of "yes" is the one primitive that VQAScore, ORM, PARM, checklists, GenEval 2 and DSG are
made of: one forward pass, and a softmax over the first tokens that an answer could begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.verifiers._base import DTYPES, UnusableSample, default_device
from tts_vision.verifiers._weights import from_pretrained, processor_from

Question: TypeAlias = str | Sequence[str]
"""What the user asks, or a dialogue: turns of user and assistant by turns, the user's first and last."""

YES, NO = ("yes",), ("no",)


@dataclass(frozen=True)
class FirstToken:
    """A sampled first token of an answer.

    Attributes:
        text: It as the vocabulary writes it.
        probabilities: ``(V,)`` what it was drawn from.
    """

    text: str
    probabilities: Tensor


class VisionLanguageModel:
    """Any transformers image-text-to-text model with a chat template; loads on first use.

    Pictures belong to the first turn of a question. Questions of different length are padded on the left,
    and what cannot be computed together is computed one by one, so that an answer does not depend on the
    others up to rounding (about 1e-6 in float32, 1e-2 in half precision).

    Args:
        checkpoint: A folder or a repository on the Hugging Face hub.
        owner: The verifier, for messages.
        device: Where it computes; by default the accelerator, if there is one.
        dtype: Precision of its weights: float32, bfloat16 or float16.
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
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1 but got {batch_size}; raise it.")
        if isinstance(dtype, str) and dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)} but got {dtype!r}; change it.")
        self.checkpoint = checkpoint
        self.owner = owner
        self.device = torch.device(device or default_device())
        self.dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
        self.batch_size = batch_size
        self._model: Any = None
        self._tokenizer: Any = None
        self._processor: Any = None

    def load(self) -> None:
        """Loads model and processor.

        Raises:
            VerifierError: If they cannot be found, do not fit, or know no chat template.
        """
        if self._model is None:
            model = self._load()
            if self._tokenizer.pad_token_id is None:
                self._tokenizer.pad_token = self._tokenizer.eos_token
            self._tokenizer.padding_side = "left"
            self._model = model.to(self.device)

    def yes_probabilities(
        self, pictures: Sequence[Sequence[Image.Image]], questions: Sequence[Question]
    ) -> list[float]:
        """P(yes), normalised over yes and no: `answer_probabilities` for these words.

        Args:
            pictures: Those of each question, such as the frames of a clip; may be none.
            questions: What is asked about them.

        Returns:
            One probability in [0, 1] per question.

        Raises:
            UnusableSample: If the model cannot take a question or its pictures.
        """
        return self.answer_probabilities(pictures, questions, YES, NO)

    def answer_probabilities(
        self,
        pictures: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
        answers: Sequence[str],
        others: Sequence[str],
    ) -> list[float]:
        """P(one of `answers`), normalised over `answers` and `others`.

        The probability of a word is the sum over its variants in case, with and without a space before
        it, that are one token.

        Args:
            pictures: Those of each question.
            questions: What is asked about them.
            answers: Words whose probability is wanted.
            others: Words against which it is wanted.

        Returns:
            One probability in [0, 1] per question.

        Raises:
            UnusableSample: If the model cannot take a question or its pictures.
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
        logits = self.next_token_logits(pictures, questions)
        return logits[:, wanted + rest].softmax(-1)[:, : len(wanted)].sum(-1).tolist()

    @torch.no_grad()
    def next_token_logits(
        self, pictures: Sequence[Sequence[Image.Image]], questions: Sequence[Question]
    ) -> Tensor:
        """Logits of the first token of each answer; one forward pass per batch.

        Returns:
            ``(B, V)`` float32 on the CPU, as the model gives them, before any sampling rule.

        Raises:
            UnusableSample: If the model cannot take a question or its pictures.
        """

        def forward(inputs: Mapping[str, Any]) -> list[Tensor]:
            output = self._generate(inputs, 1, output_logits=True, return_dict_in_generate=True)
            return list(output.logits[0].float().cpu())

        rows = self._batched(forward, pictures, questions)
        return torch.stack(rows) if rows else torch.empty(0, 0)

    def first_tokens(
        self,
        pictures: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
        generators: Sequence[torch.Generator],
    ) -> list[FirstToken]:
        """First tokens of sampled answers, at temperature 1 under the checkpoint's top-k and top-p.

        Top-k is 50 where the checkpoint does not say; its repetition penalty has nothing to act on yet.

        Args:
            pictures: Those of each question.
            questions: What is asked about them.
            generators: One per question, on the CPU.

        Raises:
            UnusableSample: If the model cannot take a question or its pictures.
        """
        found = []
        for logits, generator in zip(self.next_token_logits(pictures, questions), generators, strict=True):
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
        pictures: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
        *,
        max_new_tokens: int = 512,
    ) -> list[str]:
        """Answers, decoded greedily.

        Args:
            pictures: Those of each question.
            questions: What is asked about them.
            max_new_tokens: Longest answer.

        Raises:
            UnusableSample: If the model cannot take a question or its pictures.
        """

        def forward(inputs: Mapping[str, Any]) -> list[str]:
            sequences = self._generate(inputs, max_new_tokens)
            asked = inputs["input_ids"].shape[1]
            return [
                self._tokenizer.decode(row, skip_special_tokens=True).strip() for row in sequences[:, asked:]
            ]

        return self._batched(forward, pictures, questions)

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

    def _load(self) -> Any:
        """Loads the processor and its tokenizer; returns the model, on the CPU."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._processor = processor_from(AutoProcessor, self.checkpoint, self.owner)
        if not getattr(self._processor, "chat_template", None):
            raise VerifierError(
                f"The model of {self.owner!r} must come with a chat template but {self.checkpoint!r} has "
                "none; give an instruction-tuned checkpoint with its processor."
            )
        self._tokenizer = self._processor.tokenizer
        return from_pretrained(AutoModelForImageTextToText, self.checkpoint, self.owner, dtype=self.dtype)

    def _inputs(self, pictures: Sequence[Sequence[Image.Image]], questions: Sequence[Question]) -> Any:
        """What the model takes, for one batch: a mapping with a `to`."""
        placeholder = getattr(self._processor, "image_token", None)
        conversations = []
        for shown, question in zip(pictures, questions):
            asked = turns(question)
            if placeholder and any(placeholder in text for text in asked):
                raise UnusableSample(
                    f"a question must not contain {placeholder!r}, which stands for a picture"
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
            images=[list(shown) for shown in pictures] if any(pictures) else None,
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
        pictures: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
    ) -> list[Any]:
        self.load()
        if len(pictures) != len(questions):
            raise ValueError(f"Got {len(pictures)} lists of pictures for {len(questions)} questions.")
        for question in questions:
            turns(question)
        results: list[Any] = []
        for at in range(0, len(questions), self.batch_size):
            some = slice(at, at + self.batch_size)
            results += self._together(forward, pictures[some], questions[some])
        return results

    def _together(
        self,
        forward: Callable[[Mapping[str, Any]], list[Any]],
        pictures: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
    ) -> list[Any]:
        try:
            inputs = self._inputs(pictures, questions)
        except (UnusableSample, ValueError, TypeError, RuntimeError, IndexError) as error:
            if len(questions) > 1:  # pictures that cannot be stacked, or one that cannot be used
                each = zip(pictures, questions)
                return [row for shown, asked in each for row in self._together(forward, [shown], [asked])]
            if isinstance(error, UnusableSample):
                raise
            raise UnusableSample(f"the model cannot take this sample: {error}") from error
        return forward(inputs.to(self.device, self.dtype))


def turns(question: Question) -> list[str]:
    """The turns of a question, the user's first.

    Raises:
        ValueError: If the last turn is not the user's.
    """
    asked = [question] if isinstance(question, str) else list(question)
    if len(asked) % 2 == 0:
        raise ValueError(f"A dialogue must end with the user's turn but has {len(asked)} turns.")
    return asked


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
