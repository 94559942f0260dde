"""BLIP's answers to questions about images: P(yes) against no, as T2I-CompBench reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from tts_vision.memory import in_halves
from tts_vision.model_verifier import LazyModel
from tts_vision.verifiers._weights import from_pretrained, processor_from

CHECKPOINT = "Salesforce/blip-vqa-capfilt-large"
MOST_TOKENS = 35
"""Tokens of a question in T2I-CompBench; longer ones are cut."""


class BlipVQA(LazyModel):
    """BLIP for visual questions (Li et al. 2022); loads on first use.

    Args:
        checkpoint: Folder or hub id of a `BlipForQuestionAnswering` of transformers.
        owner: Name of the plugin, for messages.
        batch_size: Questions computed at once.
    """

    def __init__(
        self,
        checkpoint: str = CHECKPOINT,
        *,
        owner: str,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.owner = checkpoint, owner
        self._model: Any = None
        self._processor: Any = None

    def _load(self) -> None:
        from transformers import BlipForQuestionAnswering, BlipProcessor

        self._processor = processor_from(BlipProcessor, self.checkpoint, self.owner)
        model = from_pretrained(BlipForQuestionAnswering, self.checkpoint, self.owner, dtype=self.dtype)
        self._model = model.to(self.device)

    def yes_probabilities(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[float]:
        """P(yes), normalised over the two first tokens yes and no.

        Args:
            images: One for each question.
            questions: Such as "a red book?".

        Returns:
            One per question, in [0, 1].
        """
        self.load()

        def work(start: int, stop: int) -> list[float]:
            return self._batch(list(images[start:stop]), list(questions[start:stop]))

        parts = in_halves(len(questions), self.batch_size, work, shrunk=self._use_batches_of)
        return [value for part in parts for value in part]

    @torch.no_grad()
    def _batch(self, images: list[Image.Image], questions: list[str]) -> list[float]:
        inputs = self._processor(
            images=images,
            text=questions,
            padding=True,
            truncation=True,
            max_length=MOST_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        ids = inputs["input_ids"].clone()
        # BLIP's own code begins questions with the token [ENC], the last one; transformers' leaves [CLS]
        ids[:, 0] = self._model.config.text_config.vocab_size - 1
        started = torch.full((len(ids), 1), self._model.decoder_start_token_id, device=self.device)
        seen = self._model.vision_model(pixel_values=inputs["pixel_values"].to(self.dtype)).last_hidden_state
        asked = self._model.text_encoder(
            input_ids=ids,
            attention_mask=inputs["attention_mask"],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=self.device),
        ).last_hidden_state
        answered = self._model.text_decoder(
            input_ids=started,
            encoder_hidden_states=asked,
            encoder_attention_mask=inputs["attention_mask"],
        )
        tokens = self._processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
        found: list[float] = answered.logits[:, 0, tokens].float().softmax(-1)[:, 0].tolist()
        return found
