"""VideoScore: five aspects of a clip, regressed by Idefics2 from its frames."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import torch

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifiers._frames import clip, frame_images, starts
from tts_vision.verifiers._weights import from_pretrained, processor_from

Aspect: TypeAlias = Literal[
    "mean",
    "visual_quality",
    "temporal_consistency",
    "dynamic_degree",
    "text_to_video_alignment",
    "factual_consistency",
]
ASPECTS: tuple[str, ...] = get_args(Aspect)[1:]

# word for word, because the model was trained on it (TIGER-Lab/VideoScore, Apache-2.0)
TEMPLATE = """
Suppose you are an expert in judging and evaluating the quality of AI-generated videos,
please watch the following frames of a given video and see the text prompt for generating the video,
then give scores from 5 different dimensions:
(1) visual quality: the quality of the video in terms of clearness, resolution, brightness, and color
(2) temporal consistency, both the consistency of objects or humans and the smoothness of motion or movements
(3) dynamic degree, the degree of dynamic changes
(4) text-to-video alignment, the alignment between the text prompt and the video content
(5) factual consistency, the consistency of the video content with the common-sense and factual knowledge

for each dimension, output a float number from 1.0 to 4.0,
the higher the number is, the better the video performs in that sub-score,\x20
the lowest 1.0 means Bad, the highest 4.0 means Perfect/Real (the video is like a real video)
Here is an output example:
visual quality: 3.2
temporal consistency: 2.7
dynamic degree: 4.0
text-to-video alignment: 2.3
factual consistency: 1.8

For this video, the text prompt is "{prompt}",
all the frames of video are as follows:
"""


@register(
    "verifier",
    "video_score",
    paper="VideoScore (He et al. 2024)",
    notes={"licence": "MIT (v1.1), Apache-2.0 (v1)", "weights": "TIGER-Lab/VideoScore-v1.1"},
)
class VideoScore(BatchedVerifier):
    """VideoScore: quality, consistency, motion, alignment and plausibility of a clip, each about 1 to 4.

    Idefics2 reads the prompt and the frames; a linear layer on its last token gives the five aspects. The
    value is their mean, or one of them.

    Args:
        checkpoint: Folder or hub id; for the first version TIGER-Lab/VideoScore, with frames=16.
        aspect: The value: the mean of all five aspects, or one of them.
        frames: Most frames it looks at: the first of as many equal intervals, or all of a shorter clip.
    """

    name = "video_score"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(
        self,
        *,
        checkpoint: str = "TIGER-Lab/VideoScore-v1.1",
        aspect: Aspect = "mean",
        frames: int = 48,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 1,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        if aspect not in {"mean", *ASPECTS}:
            raise ConfigError(
                f"aspect must be mean or one of {', '.join(ASPECTS)} but got {aspect!r}; change it."
            )
        if frames < 1:
            raise ConfigError(f"frames must be at least 1 but got {frames}; raise it.")
        self.checkpoint, self.aspect, self.frames = checkpoint, aspect, frames

    def _load(self) -> None:
        from transformers import AutoProcessor

        self._model = from_pretrained(_regressor(), self.checkpoint, self.name, dtype=self.dtype)
        self._model.to(self.device)
        self._processor = processor_from(AutoProcessor, self.checkpoint, self.name)

    def _usable(self, sample: Media) -> Video:
        return clip(sample, self.name)

    def _score_batch(self, samples: list[Video], prompts: list[Prompt]) -> list[Score]:
        frames = [frame_images(video, starts(len(video.frames), self.frames)) for video in samples]
        texts = [
            # an image token in a prompt would ask for a frame that is not there
            TEMPLATE.format(prompt=prompt.text.replace("<image>", "")) + "<image> " * len(stills)
            for prompt, stills in zip(prompts, frames, strict=True)
        ]
        inputs = self._processor(text=texts, images=frames, padding=True, return_tensors="pt").to(self.device)
        scores = []
        for row in self._model(**inputs).float().tolist():
            parts = dict(zip(ASPECTS, row, strict=True))
            value = sum(row) / len(row) if self.aspect == "mean" else parts[self.aspect]
            scores.append(Score(value=value, parts=parts))
        return scores


def _regressor() -> Any:
    """Idefics2 with a linear layer on its last token, with the names of the published weights."""
    from transformers import Idefics2Model, Idefics2PreTrainedModel

    class Idefics2Regressor(Idefics2PreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = Idefics2Model(config)
            self.score = torch.nn.Linear(config.text_config.hidden_size, len(ASPECTS))
            self.post_init()

        def forward(self, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
            hidden = self.model(attention_mask=attention_mask, use_cache=False, **inputs).last_hidden_state
            # whichever side is padded
            position = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            last = (attention_mask * position).argmax(dim=1)
            return self.score(hidden[torch.arange(len(hidden), device=hidden.device), last])

    return Idefics2Regressor
