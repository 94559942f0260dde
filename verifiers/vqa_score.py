"""VQAScore: how likely a vision-language model finds that an image shows its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Prompt, Score
from tts_vision.verifiers._vlm import YES_SPELLINGS, VisionLanguageModel

VariantName: TypeAlias = Literal[
    "normalised",
    "paper",
    "clip-flant5",
    "instructblip",
    "qwen2.5-vl",
    "qwen3-vl",
    "llama-3.2-vision",
    "geneval2",
]
PAPER = 'Does this figure show "{prompt}"? Please answer yes or no.'


@dataclass(frozen=True)
class Variant:
    """A way to ask, and to read the answer.

    Attributes:
        template: The question; ``{prompt}`` is replaced by the prompt.
        answers: Spellings of the answer whose first tokens' probability over the whole vocabulary is the
            score; none normalises over yes and no in all their spellings.
        to_the_end: Whether the score is the geometric mean with the probability that the answer ends there.
    """

    template: str
    answers: tuple[str, ...] = ()
    to_the_end: bool = False


# as in the authors' t2v_metrics, by the models that it asks so
VARIANTS: dict[str, Variant] = {
    "normalised": Variant(PAPER),
    "paper": Variant(PAPER, ("Yes",)),  # LLaVA-OneVision, PaliGemma, GPT-4o
    "clip-flant5": Variant(PAPER, ("Yes",), to_the_end=True),  # and LLaVA-1.5, ShareGPT4V
    "instructblip": Variant(f"Question: {PAPER}", ("yes",), to_the_end=True),
    "qwen2.5-vl": Variant('Does this image show "{prompt}"?', ("Yes",)),  # and Qwen2-VL
    "qwen3-vl": Variant(
        'Does this figure show "{prompt}"? Please answer Yes or No.', ("Yes",)
    ),  # and Gemma 4
    "llama-3.2-vision": Variant(  # and Molmo
        'Does this image show "{prompt}"? Answer the question with Yes or No', ("Yes",)
    ),
    "geneval2": Variant(  # as GenEval 2 (Kamath et al. 2025) computes it for comparison
        'Does this image show "{prompt}"? Answer the question with Yes or No.', YES_SPELLINGS
    ),
}


@register(
    "verifier",
    "vqa_score",
    paper="VQAScore (Lin et al. 2024); GenEval 2 (Kamath et al. 2025) for its variant",
    notes={
        "licence": "of the model; Apache-2.0 for the default",
        "weights": "Qwen/Qwen2.5-VL-7B-Instruct, or any image-text-to-text model of transformers",
    },
)
class VQAScore(BatchedVerifier):
    """VQAScore: P(yes) of a vision-language model asked whether the image shows the prompt, in [0, 1].

    By default P(yes) is normalised over yes and no in all their spellings, so that no probability is lost to
    a model's way of writing. The other variants are those of the paper and of the authors' t2v_metrics: each
    has its own words, and reads the unnormalised probability of just that answer. A variant can be used with
    any model that has a chat template, but its published scores are those of the models that it is named
    after. CLIP-FlanT5 itself is not in transformers, and InstructBLIP, which is, has no chat template: their
    variants ask the published question of another model.

    Args:
        checkpoint: Folder or hub id of any transformers image-text-to-text model with a chat template.
        variant: ``normalised``; ``paper``: P("Yes") after the paper's question; ``clip-flant5`` (also of
            LLaVA-1.5): the same, averaged with the end of the answer, as their code does;
            ``instructblip``; ``qwen2.5-vl`` (also of Qwen2-VL); ``qwen3-vl`` (also of Gemma 4);
            ``llama-3.2-vision`` (also of Molmo); ``geneval2``: GenEval 2's own, whose score adds up "Yes" and
            "yes", each with and without a space before it.
        template: Another question than the variant's; ``{prompt}`` is replaced by the prompt.
        answer: Another answer than the variant's, whose first token's probability is read over the whole
            vocabulary.
    """

    name = "vqa_score"

    def __init__(
        self,
        *,
        checkpoint: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        variant: VariantName = "normalised",
        template: str | None = None,
        answer: str | None = None,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        if variant not in VARIANTS:
            raise ConfigError(f"variant must be one of {', '.join(VARIANTS)} but got {variant!r}; change it.")
        if template is not None and "{prompt}" not in template:
            raise ConfigError(f"template must contain {{prompt}} but is {template!r}; put it in.")
        if answer is not None and not answer.strip():
            raise ConfigError("answer must be a word but is empty; give one, such as Yes.")
        known = VARIANTS[variant]
        answers = known.answers if answer is None else (answer,)
        self.variant = Variant(template or known.template, answers, known.to_the_end)
        self._vlm = VisionLanguageModel(
            checkpoint, owner=self.name, device=self.device, dtype=self.dtype, batch_size=batch_size
        )

    def _load(self) -> None:
        self._vlm.load()

    def _score_batch(self, samples: list[Any], prompts: list[Prompt]) -> list[Score]:
        images = [[sample] for sample in samples]
        questions = [self.variant.template.replace("{prompt}", prompt.text) for prompt in prompts]
        return [Score(value=probability) for probability in self._probabilities(images, questions)]

    def _probabilities(self, images: list[list[Any]], questions: list[str]) -> list[float]:
        answers = self.variant.answers
        if not answers:
            return self._vlm.yes_probabilities(images, questions)
        if len(answers) == 1:
            return self._vlm.likelihoods(images, questions, answers[0], to_the_end=self.variant.to_the_end)
        masses = self._vlm.answer_masses(images, questions, [answers] * len(questions))
        return [mass.probability for mass in masses]
