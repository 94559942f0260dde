"""Verifiers of the toy clips of `toy_chunks`, whose scores a test can work out itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tts_vision.types import FAILS_AT, Media, Modality, Prompt, Score, Video
from tts_vision.verifier import ALONE, Asked, Verifier


def values_of(media: Media) -> Tensor:
    """``(T,)``, a number for each frame: the mean of its first numbers."""
    assert isinstance(media, Video)
    return media.frames[:, 0, :4, 0].double().mean(1)


class Bright(Verifier):
    """The brightness of the last frame; keeps what it was asked about.

    Args:
        levels: Scores are rounded to multiples of it, so that some tie.
        fails: Whether a clip fails at the first frame that is darker than this.
    """

    name = "bright"
    accepts: frozenset[Modality] = frozenset({"video"})
    questions = frozenset({"clarity", "potential"})

    def __init__(self, levels: float = 0.0, fails: float | None = None) -> None:
        self.levels, self.fails = levels, fails
        self.checks_demands = fails is not None
        self.asked: list[tuple[str, int]] = []
        self.questioned: list[tuple[str, int, list[float]]] = []

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        clips = [values_of(clip) for clip in media]
        self.asked += [(prompt.text, len(clip)) for prompt, clip in zip(prompts, clips, strict=True)]
        return [self._score(clip, sample) for clip, sample in zip(clips, media, strict=True)]

    def _score(self, clip: Tensor, sample: Media) -> Score:
        assert isinstance(sample, Video)
        value = float(clip[-1])
        if self.levels:
            value = round(value / self.levels) * self.levels
        if self.fails is None:
            return Score(value=value)
        dark = torch.nonzero(clip < self.fails).flatten().tolist()
        parts = {FAILS_AT: dark[0] / sample.fps} if dark else {}
        return Score(value=value, parts=parts, satisfied=not dark)

    def clarity(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        return self._answered("clarity", media, lambda value: 1.0 if value > 110 else 0.0)

    def potential(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        return self._answered("potential", media, lambda value: value / 255)

    def _answered(self, question: str, media: Sequence[Media], of: Callable[[float], float]) -> list[Score]:
        found = [of(float(values_of(clip)[-1])) for clip in media]
        self.questioned.append((question, len(values_of(media[0])), found))
        return [Score(value=value) for value in found]


def prompted(media: Sequence[Media], prompts: Sequence[str]) -> list[float]:
    """A plain function that likes dark clips."""
    return [-float(values_of(clip)[-1]) for clip in media]
