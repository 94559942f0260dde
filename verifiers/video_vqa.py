"""A vision-language model as a judge of clips: how likely it answers yes."""

from __future__ import annotations

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier, UnusableSample
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifiers._frames import clip, frame_images, middles
from tts_vision.verifiers._vlm import VisionLanguageModel

TEMPLATE = 'These are frames of a video in order. Does this video show "{prompt}"? Please answer yes or no.'


@register(
    "verifier",
    "video_vqa",
    paper="VQAScore (Lin et al. 2024), asked of the frames of a clip",
    notes={
        "licence": "that of the checkpoint (Qwen2.5-VL-7B: Apache-2.0)",
        "weights": "Qwen/Qwen2.5-VL-7B-Instruct",
    },
)
class VideoVQA(BatchedVerifier):
    """P(yes) of any transformers vision-language model to whether a clip shows its prompt, in [0, 1].

    The frames are given as separate images, which every model that takes several supports; a model's own
    video input is not used.

    Args:
        checkpoint: Folder or hub id of an instruction-tuned model that takes several images.
        template: The question; ``{prompt}`` is replaced by the prompt.
        frames: Frames it looks at: the middle ones of as many equal intervals, or all of a shorter clip.
    """

    name = "video_vqa"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(
        self,
        *,
        checkpoint: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        template: str = TEMPLATE,
        frames: int = 8,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 1,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        if "{prompt}" not in template:
            raise ConfigError(f"template must contain {{prompt}} but is {template!r}; put it in.")
        if frames < 1:
            raise ConfigError(f"frames must be at least 1 but got {frames}; raise it.")
        self.template, self.frames = template, frames
        self._vlm = VisionLanguageModel(
            checkpoint, owner=self.name, device=self.device, dtype=self.dtype, batch_size=batch_size
        )

    def _load(self) -> None:
        self._vlm.load()

    def _usable(self, sample: Media) -> Video:
        return clip(sample, self.name)

    def _score_batch(self, samples: list[Video], prompts: list[Prompt]) -> list[Score]:
        frames = [
            frame_images(video, middles(len(video.frames), min(self.frames, len(video.frames))))
            for video in samples
        ]
        questions = [self.template.replace("{prompt}", prompt.text) for prompt in prompts]
        try:
            return [Score(value=value) for value in self._vlm.yes_probabilities(frames, questions)]
        except UnusableSample as error:
            if len(samples) == 1:
                return [Score.unscored(str(error))]
            return [self._score_batch([video], [prompt])[0] for video, prompt in zip(samples, prompts)]
