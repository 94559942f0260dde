"""The playground's motion judge: how probably a clip is right for a prompt, by a small model that errs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError, PipelineError, VerifierError
from tts_vision.model_verifier import BatchedVerifier, UnusableSample
from tts_vision.pipelines.playground import motion, weights_path
from tts_vision.pipelines.playground.video_judge import (
    MotionJudge,
    load_judge,
    pixels_of,
    token_ids,
    worst_frames,
)
from tts_vision.registry import register
from tts_vision.types import FAILS_AT, Media, Modality, Prompt, Score
from tts_vision.verifiers._frames import clip
from tts_vision.verifiers.playground_judge import PlaygroundJudge

LOOKED_AT = 2  # each second frame of a clip is shown to the judge of images


@register(
    "verifier",
    "playground_motion_judge",
    paper="BLIP (Li et al. 2022)",
    notes={"licence": "Apache-2.0", "weights": "bundled"},
)
class PlaygroundMotionJudge(BatchedVerifier):
    """The probability that a clip of the playground shows what the prompt asks, chunk after chunk.

    Two networks judge, and a logistic regression weighs their answers: a video tower with a text tower,
    trained on the exact motion checker's verdicts about clips of `playground-video` and drawn ones; and
    `playground_judge`, asked whether frames show the objects, of which the worst counts. Both err. The first
    chunks of a clip are judged on what they show.

    ``parts`` has the probability that the clip was right up to each chunk; if the clip is probably wrong,
    ``parts["fails_at"]`` is the time in seconds at which the first chunk begins that is probably wrong.
    Prompts are those of the grammar of `motion.parse_spec`, read in its own wording.

    Args:
        path: Folder of the model; the bundled one by default.
    """

    name = "playground_motion_judge"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(self, *, path: Path | None = None, device: str | None = None, batch_size: int = 16) -> None:
        super().__init__(device=device, batch_size=batch_size)
        self.path = path

    def _load(self) -> None:
        try:
            path = weights_path("motion_judge") if self.path is None else Path(self.path)
            model, self._blend = load_judge(path)
        except (FileNotFoundError, PipelineError) as error:
            raise VerifierError(str(error)) from error
        self._model = model.to(self.device)
        self._images = PlaygroundJudge(device=str(self.device), batch_size=self.batch_size)
        self._images.load()

    def _usable(self, sample: Media) -> Tensor:
        video = clip(sample, self.name)
        count, height, width, _ = video.frames.shape
        if abs(video.fps / motion.FPS - 1) > 0.05 or count % motion.CHUNK or count > motion.FRAMES:
            raise UnusableSample(
                f"{self.name} judges chunks of {motion.CHUNK} frames, at most {motion.FRAMES} at "
                f"{motion.FPS:g} a second, but got {count} at {video.fps:g}; give all frames of the chunks"
            )
        if (height, width) != (motion.SIZE, motion.SIZE):
            raise UnusableSample(f"{self.name} judges frames of 64x64 pixels but got {width}x{height}")
        return video.frames

    def _score_batch(self, samples: list[Tensor], prompts: list[Prompt]) -> list[Score]:
        scores: dict[int, Score] = {}
        for length in sorted({len(frames) for frames in samples}):
            rows = [i for i, frames in enumerate(samples) if len(frames) == length]
            frames = torch.stack([samples[i] for i in rows])
            found = self._chances(frames, [prompts[i].text for i in rows])
            scores.update(zip(rows, map(_score, found)))
        return [scores[i] for i in range(len(samples))]

    def _chances(self, frames: Tensor, texts: Sequence[str]) -> list[list[float]]:
        """The probability of being right up to each chunk, of clips of one length."""
        logits = two_logits(self._model, self._images, frames, texts)
        return self._blend(logits).sigmoid().tolist()


def two_logits(judge: MotionJudge, images: PlaygroundJudge, frames: Tensor, texts: Sequence[str]) -> Tensor:
    """The answers about the first one, two, ... chunks of clips: of the motion judge, and of the worst frame.

    Args:
        judge: The motion judge.
        images: The judge of images; every second frame is shown to it.
        frames: uint8 `(b, t, 64, 64, 3)`, t a multiple of 4.
        texts: A prompt for each.

    Returns:
        `(b, chunks, 2)`.

    Raises:
        ConfigError: If a prompt is not of the grammar.
    """
    device = judge.frame_place.device
    ids = token_ids([wording(text) for text in texts]).to(device)
    motions = judge(pixels_of(frames.to(device)), ids[:, None])[:, 0].float().cpu()
    shown = frames[:, ::LOOKED_AT].cpu()
    looked = [Image.fromarray(frame.numpy()) for frame in shown.flatten(0, 1)]
    still = [Prompt(motion.caption(motion.parse_spec(text).objects)) for text in texts]
    found = images.score(looked, [prompt for prompt in still for _ in range(shown.shape[1])])
    chances = torch.tensor([score.value for score in found]).view(len(frames), motions.shape[1], -1)
    return torch.stack([motions, worst_frames(chances)], -1)


def _score(chances: Sequence[float]) -> Score:
    parts = {f"chunk_{i}": chance for i, chance in enumerate(chances, start=1)}
    if chances[-1] < 0.5:
        first = next(i for i, chance in enumerate(chances) if chance < 0.5)
        parts[FAILS_AT] = first * motion.CHUNK / motion.FPS
    return Score(value=chances[-1], parts=parts)


def wording(text: str) -> str:
    """A prompt in the words of `motion.caption`.

    Raises:
        ConfigError: If it is not of its grammar.
    """
    try:
        return motion.caption(motion.parse_spec(text))
    except ValueError as error:
        raise ConfigError(str(error)) from error
