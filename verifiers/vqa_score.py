"""VQAScore: how likely a vision-language model finds that an image shows its prompt."""

from __future__ import annotations

from typing import Any

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Prompt, Score
from tts_vision.verifiers._vlm import VisionLanguageModel


@register(
    "verifier",
    "vqa_score",
    paper="VQAScore (Lin et al. 2024)",
    notes={
        "licence": "of the model; Apache-2.0 for the default",
        "weights": "Qwen/Qwen2.5-VL-7B-Instruct, or any image-text-to-text model of transformers",
    },
)
class VQAScore(BatchedVerifier):
    """VQAScore: P(yes) of a vision-language model asked whether the image shows the prompt, in [0, 1].

    The paper reads P("Yes") over the whole vocabulary; here it is normalised over yes and no in all their
    spellings, so that no probability is lost to a model's way of writing.

    Args:
        checkpoint: Folder or hub id of any transformers image-text-to-text model with a chat template.
        template: The question; ``{prompt}`` is replaced by the prompt.
    """

    name = "vqa_score"

    def __init__(
        self,
        *,
        checkpoint: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        template: str = 'Does this figure show "{prompt}"? Please answer yes or no.',
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        if "{prompt}" not in template:
            raise ConfigError(f"template must contain {{prompt}} but is {template!r}; put it in.")
        self.template = template
        self._vlm = VisionLanguageModel(
            checkpoint, owner=self.name, device=self.device, dtype=self.dtype, batch_size=batch_size
        )

    def _load(self) -> None:
        self._vlm.load()

    def _score_batch(self, samples: list[Any], prompts: list[Prompt]) -> list[Score]:
        questions = [self.template.replace("{prompt}", prompt.text) for prompt in prompts]
        found = self._vlm.yes_probabilities([[sample] for sample in samples], questions)
        return [Score(value=probability) for probability in found]
