"""The playground's judge: how probably an image is right for a prompt, by a small model that errs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError
from tts_vision.pipelines.playground import weights_path, world
from tts_vision.pipelines.playground.quiet import quietly
from tts_vision.registry import register
from tts_vision.verifiers._rewards import PixelReward, fit_clip
from tts_vision.verifiers._weights import from_pretrained, processor_from


@register(
    "verifier",
    "playground_judge",
    paper="BLIP (Li et al. 2022)",
    notes={"licence": "Apache-2.0", "weights": "bundled", "gradients": "yes"},
)
class PlaygroundJudge(PixelReward):
    """The probability that an image of the playground shows what the prompt asks: counts, colours, relation.

    A BLIP of two million weights, trained on the exact checker's verdicts. It sees composition, which
    `playground_clip` hardly does, and it errs. Prompts are those of the playground's grammar; each is read in
    the grammar's own wording, so that "on the left side of" and "left of" score alike.

    Args:
        path: Folder of the model; the bundled one by default.
    """

    name = "playground_judge"

    def __init__(self, *, path: Path | None = None, device: str | None = None, batch_size: int = 16) -> None:
        super().__init__(device=device, batch_size=batch_size)
        self.path = weights_path("judge") if path is None else path

    def _load(self) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor

        folder = str(self.path)
        with quietly():
            model = from_pretrained(self._class, folder, self.name, dtype=self.dtype)
        self._model = model.to(self.device)
        self._tokenizer: Any = processor_from(AutoTokenizer, folder, self.name)
        self._image_processor: Any = processor_from(CLIPImageProcessor, folder, self.name)

    @property
    def _class(self) -> Any:
        from transformers import BlipForImageTextRetrieval

        return BlipForImageTextRetrieval

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        return self._image_processor(samples, return_tensors="pt").pixel_values

    def _fit(self, pixels: Tensor) -> Tensor:
        return fit_clip(self._image_processor, pixels)

    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        words = self._words(texts)
        logits = self._model(
            pixel_values=pixels, input_ids=words.input_ids, attention_mask=words.attention_mask
        ).itm_score
        return logits.float().softmax(-1)[:, 1]

    def _words(self, texts: Sequence[str]) -> Any:
        """Token ids and mask of prompts, in the grammar's own wording."""
        wordings = [wording(text) for text in texts]
        return self._tokenizer(wordings, padding="max_length", return_tensors="pt").to(self.device)


def wording(text: str) -> str:
    """A prompt in the words of `world.caption`.

    Raises:
        ConfigError: If it is not of the playground's grammar.
    """
    try:
        return world.caption(world.parse_spec(text))
    except ValueError as error:
        raise ConfigError(str(error)) from error
