"""VisionReward's checklists: yes-or-no questions with weights, for clips and for images.

The models that VisionReward asks (CogVLM2 of its own training) are not in transformers and cannot be loaded.
These verifiers keep the published arithmetic, and ask another model. Their values are on the published
scale, but they are not VisionReward's: another model answers differently, and the weights were fitted
to the answers of the authors' model.

Questions and weights are read from files as published (`VisionReward_video_qa_select.txt` and `weight.json`;
`VisionReward_image_qa_select.txt` and `weight_select.json`); none come with this package.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier, UnusableSample
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifiers._frames import clip, each_second, frame_images
from tts_vision.verifiers._vlm import VisionLanguageModel

PLACEHOLDER = "[[prompt]]"
ALIGNMENT = 'Does this figure show "{prompt}"? Please answer yes or no.'
# of the image's checklist, by their numbers from 0: a no to body, face or hands voids questions about them
MASKS = {0: (22, 23, 24, 28, 29), 1: (25, 26), 2: (27,)}
NOTES = {
    "licence": "questions and weights: the user's files; checkpoint: its own (Qwen2.5-VL-7B: Apache-2.0)",
    "weights": "Qwen/Qwen2.5-VL-7B-Instruct in place of THUDM/VisionReward-Video and -Image",
}


class Checklist(BatchedVerifier):
    """A vision-language model that answers a list of questions about each sample.

    Args:
        soft: Whether an answer is 2 P(yes) - 1 instead of +1 or -1, so that fewer samples tie.
        batch_size: Questions computed at once; by default all of one sample.
    """

    def __init__(
        self,
        questions: Path,
        checkpoint: str,
        soft: bool,
        device: str | None,
        dtype: str,
        batch_size: int | None,
    ) -> None:
        super().__init__(device=device, dtype=dtype)
        self._questions = [line.strip() for line in _text(questions).splitlines() if line.strip()]
        if not self._questions:
            raise ConfigError(
                f"{str(questions)!r} must hold questions but is empty; give the published file."
            )
        self.soft = soft
        self._vlm = VisionLanguageModel(
            checkpoint,
            owner=self.name,
            device=self.device,
            dtype=self.dtype,
            batch_size=len(self._questions) + 1 if batch_size is None else batch_size,
        )

    def _load(self) -> None:
        self._vlm.load()

    def _value(self, yes: list[float]) -> Score:
        """The score that follows from the probabilities of yes to `_asked`."""
        raise NotImplementedError

    def _asked(self, prompt: str) -> list[str]:
        """All questions about a sample."""
        return [question.replace(PLACEHOLDER, prompt) for question in self._questions]

    def _images(self, sample: Any) -> list[Image.Image]:
        """The images that the model sees."""
        return [sample]

    def _score_batch(self, samples: list[Any], prompts: list[Prompt]) -> list[Score]:
        scores = []
        for sample, prompt in zip(samples, prompts, strict=True):
            shown, asked = self._images(sample), self._asked(prompt.text)
            try:
                scores.append(self._value(self._vlm.yes_probabilities([shown] * len(asked), asked)))
            except UnusableSample as error:
                scores.append(Score.unscored(str(error)))
        return scores


@register("verifier", "vision_reward", paper="VisionReward (Xu et al. 2024)", notes=NOTES)
class VisionReward(Checklist):
    """VisionReward's checklist for clips, asked of any transformers vision-language model.

    The value is the mean of weight times answer, +1 for yes and -1 for no; the parts are the answers. It is
    not VisionReward's score: its model cannot be loaded; see the module.

    Args:
        questions: The published file of questions, one a line, ``[[prompt]]`` for the prompt.
        weights: The published JSON list of as many weights.
        checkpoint: Folder or hub id of an instruction-tuned model that takes several images.
        frames: Most frames it looks at: the one nearest to each second from 0 on.
    """

    name = "vision_reward"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(
        self,
        *,
        questions: Path,
        weights: Path,
        checkpoint: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        soft: bool = False,
        frames: int = 24,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(questions, checkpoint, soft, device, dtype, batch_size)
        if frames < 1:
            raise ConfigError(f"frames must be at least 1 but got {frames}; raise it.")
        self.frames = frames
        self.weights = _numbers(_json(weights), weights, len(self._questions))

    def _usable(self, sample: Media) -> Video:
        return clip(sample, self.name)

    def _images(self, sample: Video) -> list[Image.Image]:
        return frame_images(sample, each_second(len(sample.frames), sample.fps, self.frames))

    def _value(self, yes: list[float]) -> Score:
        answers = [answer(p, self.soft) for p in yes]
        value = linear(answers, self.weights) / len(answers)
        return Score(value=value, parts=dict(zip(self._questions, answers)))


@register("verifier", "vision_reward_image", paper="VisionReward (Xu et al. 2024)", notes=NOTES)
class VisionRewardImage(Checklist):
    """VisionReward's checklist for images, asked of any transformers vision-language model.

    The value is a linear function of the alignment with the prompt (VQAScore, by the same model) and of the
    answers, +1 for yes, -1 for no and 0 where there is no body, face or hand to ask about; these are also
    the parts. It is not VisionReward's score: its models cannot be loaded; see the module.

    Args:
        questions: The published file of 30 questions, one a line.
        weights: The published JSON file with ``coef`` (28) and ``intercept``.
        checkpoint: Folder or hub id of an instruction-tuned model.
    """

    name = "vision_reward_image"

    def __init__(
        self,
        *,
        questions: Path,
        weights: Path,
        checkpoint: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        soft: bool = False,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(questions, checkpoint, soft, device, dtype, batch_size)
        if len(self._questions) != 30:
            raise ConfigError(
                f"{str(questions)!r} must hold the 30 questions that the masks are about but holds "
                f"{len(self._questions)}; give the published file of selected questions."
            )
        found = _json(weights)
        if not isinstance(found, Mapping):
            raise ConfigError(
                f"{str(weights)!r} must map coef and intercept to numbers; give the published file."
            )
        self.coefficients = _numbers(found.get("coef"), weights, 1 + 30 - len(MASKS))
        (self.intercept,) = _numbers(found.get("intercept"), weights, 1)

    def _asked(self, prompt: str) -> list[str]:
        return [ALIGNMENT.replace("{prompt}", prompt), *super()._asked(prompt)]

    def _value(self, yes: list[float]) -> Score:
        alignment, *rest = yes
        kept = unmasked([answer(p, self.soft) for p in rest])
        value = linear([alignment, *kept.values()], self.coefficients) + self.intercept
        return Score(
            value=value, parts={"alignment": alignment} | {self._questions[i]: x for i, x in kept.items()}
        )


def answer(yes: float, soft: bool) -> float:
    """The answer of a model that says yes with this probability; NaN stays NaN, not a no."""
    if soft or math.isnan(yes):
        return 2 * yes - 1
    return 1.0 if yes > 0.5 else -1.0


def linear(features: Sequence[float], weights: Sequence[float]) -> float:
    """The sum of weight times feature."""
    return sum(w * x for w, x in zip(weights, features, strict=True))


def unmasked(answers: Sequence[float]) -> dict[int, float]:
    """Answers by question number without those of the masks; 0 for questions that a mask voids."""
    void = {i for mask, about in MASKS.items() if answers[mask] <= 0 for i in about}
    return {i: 0.0 if i in void else answer for i, answer in enumerate(answers) if i not in MASKS}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{str(path)!r} must be a text file that can be read but: {error}; check the path."
        ) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{str(path)!r} must be JSON but: {error}; give the published weights.") from error


def _numbers(found: Any, path: Path, count: int) -> list[float]:
    if (
        not isinstance(found, list)
        or len(found) != count
        or not all(isinstance(n, int | float) for n in found)
    ):
        held = f"{len(found)} entries" if isinstance(found, list) else type(found).__name__
        raise ConfigError(
            f"{str(path)!r} must list {count} numbers for its questions but has {held}; give the file "
            "that was published with these questions."
        )
    return [float(number) for number in found]
