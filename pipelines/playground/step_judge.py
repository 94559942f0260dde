"""The playground's step verifier: a small model that answers three questions about an image."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from transformers import BlipConfig, BlipForImageTextRetrieval


class Answers(NamedTuple):
    """Logits of no and yes: of each question ``(..., 2)``, and of each word being met ``(..., t, 2)``."""

    clarity: Tensor
    potential: Tensor
    final: Tensor
    met: Tensor


class StepJudge(BlipForImageTextRetrieval):
    """A BLIP with a linear head for each question of PARM, and one that says which words are met.

    Args:
        config: That of the towers.
    """

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        width = config.get_text_config().hidden_size
        self.clarity_head = nn.Linear(width, 2)
        self.potential_head = nn.Linear(width, 2)
        self.met_head = nn.Linear(width, 2)

    def answers(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Answers:
        """Answers to all questions.

        Args:
            pixels: Images in [-1, 1], ``(B, 3, 64, 64)``.
            ids: Prompts, ``(B, t)``.
            mask: True or 1 where there is text, ``(B, t)``.
        """
        seen = self.vision_model(pixel_values=pixels).last_hidden_state
        said = self.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen
        ).last_hidden_state
        return self.read(said)

    def read(self, said: Tensor) -> Answers:
        """Answers from the last states of the words ``(..., t, width)``."""
        first = said[..., 0, :]
        return Answers(
            self.clarity_head(first), self.potential_head(first), self.itm_head(first), self.met_head(said)
        )
