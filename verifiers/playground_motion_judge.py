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
    logit_of,
    tracks_of,
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
    notes={"licence": "Apache-2.0", "weights": "bundled"},
)
class PlaygroundMotionJudge(BatchedVerifier):
    """The probability that a clip of the playground shows what the prompt asks, chunk after chunk.

    A small network looks at soft tracks, the places of the pixels of each asked colour, and has learnt from
    clips of `playground-video` what the exact motion checker says of them; `playground_judge` is asked
    whether frames show the objects, of which the worst counts; a logistic regression weighs both answers. It
    errs: tracks confuse colours and know no shapes. The first chunks of a clip are judged on what they show.

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
            self._model = load_judge(path)
        except (FileNotFoundError, PipelineError) as error:
            raise VerifierError(str(error)) from error
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
            found = self._chances([samples[i] for i in rows], [prompts[i].text for i in rows])
            scores.update(zip(rows, map(_score, found)))
        return [scores[i] for i in range(len(samples))]

    def _chances(self, clips: Sequence[Tensor], texts: Sequence[str]) -> list[list[float]]:
        """The probability of being right up to each chunk, of clips of one length."""
        return self._model(two_logits(self._model, self._images, clips, texts)).sigmoid().tolist()


def two_logits(
    judge: MotionJudge, images: PlaygroundJudge, clips: Sequence[Tensor], texts: Sequence[str]
) -> Tensor:
    """The answers about the first one, two, ... chunks of clips: by their tracks, and by their worst frame.

    Args:
        judge: The motion judge.
        images: The judge of images; every second frame is shown to it.
        clips: Clips of one length, each uint8 `(t, 64, 64, 3)`, t a multiple of 4.
        texts: A prompt for each.

    Returns:
        Logits, `(b, chunks, 2)`.

    Raises:
        ConfigError: If a prompt is not of the grammar.
    """
    specs = [_spec(text) for text in texts]
    tracks = logit_of(judge.log_chances(*tracks_of(clips, specs)))
    looked = [Image.fromarray(frame.cpu().numpy()) for clip in clips for frame in clip[::LOOKED_AT]]
    each = len(looked) // len(clips)
    still = [Prompt(motion.caption(spec.objects)) for spec in specs for _ in range(each)]
    chances = torch.tensor([score.value for score in images.score(looked, still)])
    return torch.stack([tracks, worst_frames(chances.view(*tracks.shape, -1))], -1)


def _score(chances: Sequence[float]) -> Score:
    parts = {f"chunk_{i}": chance for i, chance in enumerate(chances, start=1)}
    if chances[-1] < 0.5:
        first = next(i for i, chance in enumerate(chances) if chance < 0.5)
        parts[FAILS_AT] = first * motion.CHUNK / motion.FPS
    return Score(value=chances[-1], parts=parts)


def _spec(text: str) -> motion.MotionSpec:
    try:
        return motion.parse_spec(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error
