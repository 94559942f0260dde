"""A verifier of images as a verifier of clips: the mean over their frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import ClassVar

from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.model_verifier import UnusableSample
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier, as_verifier
from tts_vision.verifiers._frames import clip, evenly, frame_images

REMEDY = "join verifiers around it: 'ensemble({kind}(clip_score), {kind}(pickscore))'"


def over_frames(scores: Sequence[Score]) -> Score:
    """Mean and minimum of the frames that have a score; without any, the first reason."""
    values = [score.value for score in scores if not math.isnan(score.value)]
    if not values:
        return Score.unscored(f"no frame could be scored: {scores[0].reason}")
    mean = sum(values) / len(values)
    return Score(value=mean, parts={"mean": mean, "min": min(values)})


@register("verifier", "frame_mean", notes={"licence": "that of its member", "weights": "those of its member"})
class FrameMean(Verifier):
    """Mean score of evenly spaced frames of a clip, by a verifier of images: ``frame_mean(clip_score)``.

    Frames that the member cannot score are left out; ``parts`` gives the mean and the minimum of the others.

    Args:
        frames: Frames that are scored, from the first to the last; all of a shorter clip.
    """

    accepts: frozenset[Modality] = frozenset({"video"})
    kind: ClassVar[str] = "frame_mean"

    def __init__(self, members: Sequence[Verifier], *, frames: int = 8) -> None:
        if len(members) != 1:
            names = ", ".join(member.name for member in members) or "none"
            remedy = REMEDY.format(kind=self.kind)
            raise ConfigError(f"{self.kind} is made of one verifier but got {names}; {remedy}.")
        if frames < 1:
            raise ConfigError(f"frames must be at least 1 but got {frames}; raise it.")
        self.member = as_verifier(members[0])
        if "image" not in self.member.accepts:
            raise ConfigError(
                f"The member of {self.kind} must score images but {self.member.name!r} scores "
                f"{' and '.join(sorted(self.member.accepts))}; use it without {self.kind}."
            )
        if self.member.settles:
            raise ConfigError(
                f"The member of {self.kind} must score each frame by itself but {self.member.name!r} "
                f"compares samples; {REMEDY.format(kind=self.kind)}."
            )
        self.frames = frames
        self.name = f"{self.kind}({self.member.name})"
        self.relative = self.member.relative
        self.differentiable = self.member.differentiable

    def load(self) -> None:
        """Loads the member."""
        self.member.load()

    def calls(self, n: int) -> dict[str, int]:
        """Calls of the member for `n` clips, by name; fewer are made for clips shorter than `frames`."""
        return self.member.calls(n * self.frames)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        """One score per clip, on the scale of the member.

        Raises:
            VerifierError: If the member does not return one score per frame.
        """
        views = [self._views(sample) for sample in media]
        frames = [frame for view in views if not isinstance(view, str) for frame in view]
        theirs = [p for view, p in zip(views, prompts) if not isinstance(view, str) for _ in view]
        # the best sample and the history are of clips, so the member does not get them
        found = list(self.member.score(frames, theirs, Asked(charge=asked.charge))) if frames else []
        if len(found) != len(frames):
            raise VerifierError(
                f"Verifier {self.member.name!r} must return one score per frame, {len(frames)} here, but "
                f"returned {len(found)}; return NaN for a frame that it cannot score."
            )
        rest = iter(found)
        return [
            Score.unscored(view) if isinstance(view, str) else over_frames(list(islice(rest, len(view))))
            for view in views
        ]

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Rewards of clips ``(B, T, 3, H, W)`` in [0, 1], with their gradient, if the member gives any."""
        frames = pixels[:, self._chosen(pixels.shape[1])]
        theirs = [prompt for prompt in prompts for _ in range(frames.shape[1])]
        rewards = self.member.rewards(frames.flatten(0, 1), theirs)
        return rewards.view(len(frames), -1).nanmean(1)

    def _views(self, sample: Media) -> list[Image.Image] | str:
        """The frames that are scored, or the reason why there are none."""
        try:
            video = clip(sample, self.name)
        except UnusableSample as error:
            return str(error)
        return frame_images(video, self._chosen(len(video.frames)))

    def _chosen(self, total: int) -> list[int]:
        """The frames that are scored, of so many."""
        return evenly(total, min(self.frames, total))
