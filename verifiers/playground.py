"""Verifiers of the playground: its exact checker, and its small CLIP, which errs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.pipelines.playground import weights_path, world
from tts_vision.pipelines.playground.checker import evaluate
from tts_vision.pipelines.playground.quiet import quietly
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score


def _picture(media: Media) -> Image.Image:
    if isinstance(media, Image.Image):
        return media.convert("RGB")
    raise ConfigError(
        f"The playground's verifiers score pictures; got a {type(media).__name__}. Use a verifier that "
        f"accepts it."
    )


@register("verifier", "playground_oracle", paper="GenEval (Ghosh et al. 2023)")
class PlaygroundOracle:
    """The playground's exact checker: 1 for a right picture, else the share of demands that are met.

    Args:
        graded: Whether a wrong picture gets its share of met demands, to tell the better from the worse;
            else it gets 0, so that a mean over pictures is the share of right ones.
    """

    name = "playground_oracle"
    accepts: frozenset[Modality] = frozenset({"image"})

    def __init__(self, *, graded: bool = True) -> None:
        self.graded = graded

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        """One score per picture.

        Args:
            media: Pictures.
            prompts: Their prompts; a GenEval record among the metadata is used, otherwise the text is read.

        Returns:
            Scores in [0, 1].

        Raises:
            ConfigError: If a prompt speaks of something that the playground's world does not have.
        """
        scores = []
        for item, prompt in zip(media, prompts, strict=True):
            verdict = evaluate(np.asarray(_picture(item)), _record(prompt))
            parts = {"correct": float(verdict.correct), "fraction": verdict.fraction}
            value = verdict.fraction if self.graded else parts["correct"]
            scores.append(Score(value=value, parts=parts, reason=verdict.reason or None))
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


@register("verifier", "playground_clip", paper="CLIP (Radford et al. 2021)")
class PlaygroundClip:
    """The playground's small CLIP: the cosine of picture and prompt. Useful and fallible.

    Args:
        path: Folder of the model; the bundled one by default.
        device: Where it computes.
    """

    name = "playground_clip"
    accepts: frozenset[Modality] = frozenset({"image"})

    def __init__(self, *, path: Path | None = None, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        folder = weights_path("clip") if path is None else path
        with quietly():
            self._model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._processor = CLIPImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        """One score per picture, each by itself, so that it does not depend on what else is scored.

        Args:
            media: Pictures.
            prompts: Their prompts.

        Returns:
            Cosines in [-1, 1].
        """
        scores = []
        for item, prompt in zip(media, prompts, strict=True):
            words = self._tokenizer([prompt.text], padding="max_length", truncation=True, return_tensors="pt")
            pixels = self._processor([_picture(item)], return_tensors="pt").pixel_values
            output = self._model(
                input_ids=words.input_ids.to(self._model.device),
                attention_mask=words.attention_mask.to(self._model.device),
                pixel_values=pixels.to(self._model.device),
            )
            scores.append(Score(value=float((output.image_embeds * output.text_embeds).sum())))
        return scores
