"""Verifiers of the playground: its exact checker, and its small CLIP, which errs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError
from tts_vision.pipelines.playground import weights_path, world
from tts_vision.pipelines.playground.checker import evaluate
from tts_vision.pipelines.playground.quiet import quietly
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier
from tts_vision.verifiers._backbones import clip_embeddings, load_clip
from tts_vision.verifiers._rewards import PixelReward, TextCache, cosines, fit_clip
from tts_vision.verifiers._weights import processor_from


def _image(media: Media) -> Image.Image:
    if isinstance(media, Image.Image):
        return media.convert("RGB")
    raise ConfigError(
        f"The playground's oracle scores images; got a {type(media).__name__}. Use a verifier that "
        "accepts it."
    )


@register("verifier", "playground_oracle", paper="GenEval (Ghosh et al. 2023)")
class PlaygroundOracle(Verifier):
    """The playground's exact checker: 1 for a right image, else the share of demands that are met.

    Args:
        graded: Whether a wrong image gets its share of met demands, to tell the better from the worse;
            else it gets 0, so that a mean over images is the share of right ones.
    """

    name = "playground_oracle"
    accepts: frozenset[Modality] = frozenset({"image"})
    checks_demands = True

    def __init__(self, *, graded: bool = True) -> None:
        self.graded = graded

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        """One score per image.

        Args:
            media: Images.
            prompts: Their prompts; a GenEval record in the metadata takes precedence over the text.
            asked: Not used.

        Returns:
            Scores in [0, 1].

        Raises:
            ConfigError: If a prompt names something that the playground's world does not have.
        """
        scores = []
        for item, prompt in zip(media, prompts, strict=True):
            verdict = evaluate(np.asarray(_image(item)), _record(prompt))
            parts = {"correct": float(verdict.correct), "fraction": verdict.fraction}
            value = verdict.fraction if self.graded else parts["correct"]
            reason = verdict.reason or None
            scores.append(Score(value=value, parts=parts, reason=reason, satisfied=verdict.correct))
        return scores


def _record(prompt: Prompt) -> dict[str, Any]:
    if "include" not in prompt.metadata:
        try:
            return world.parse_prompt(prompt.text)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    record = dict(prompt.metadata)
    for entry in record["include"]:
        if entry["class"] not in world.SHAPES:
            raise ConfigError(
                f"The playground knows the shapes {', '.join(world.SHAPES)}; the prompt's record asks for "
                f"{entry['class']!r}. Use a record of the playground, or another verifier."
            )
    return record


@register(
    "verifier",
    "playground_clip",
    paper="CLIP (Radford et al. 2021)",
    notes={"licence": "Apache-2.0", "weights": "bundled", "gradients": "yes"},
)
class PlaygroundClip(PixelReward):
    """The playground's small CLIP: the cosine of image and prompt. Useful and fallible.

    Args:
        path: Folder of the model; the bundled one by default.
    """

    name = "playground_clip"

    def __init__(self, *, path: Path | None = None, device: str | None = None, batch_size: int = 8) -> None:
        super().__init__(device=device, batch_size=batch_size)
        self.path = weights_path("clip") if path is None else path

    def _load(self) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor

        folder = str(self.path)
        with quietly():
            self._model = load_clip(folder, self.name, self.dtype).to(self.device)
        self._tokenizer: Any = processor_from(AutoTokenizer, folder, self.name)
        self._image_processor: Any = processor_from(CLIPImageProcessor, folder, self.name)
        self._texts = TextCache(self._encode)

    def _encode(self, texts: list[str]) -> Tensor:
        words = self._tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        found = self._model.get_text_features(
            input_ids=words.input_ids.to(self.device), attention_mask=words.attention_mask.to(self.device)
        )
        return found.pooler_output

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        return self._image_processor(samples, return_tensors="pt").pixel_values

    def _fit(self, pixels: Tensor) -> Tensor:
        return fit_clip(self._image_processor, pixels)

    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return cosines(clip_embeddings(self._model, pixels), self._texts(texts))
