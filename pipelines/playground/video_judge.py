"""The network of the playground's motion judge: whether soft tracks and frames show what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tts_vision.pipelines.module_folders import load_weights, save_weights
from tts_vision.pipelines.playground.motion import MotionSpec
from tts_vision.pipelines.playground.tracks import FEATURES, features

WIDTH = 32
_FAR = 4.0  # features are clipped so many deviations from their mean


class MotionJudge(nn.Module):
    """The judge: a small perceptron for each object and chunk, and a regression on its answer and another.

    A clip is right as long as all objects do what is asked, so the chances are multiplied. The logit of the
    product and the logit of the worst frame, by a judge of images, are weighed by a logistic regression.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(FEATURES))
        self.moves = nn.Sequential(
            nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1)
        )
        self.verdict = nn.Linear(2, 1)

    def log_chances(self, tracked: Tensor, there: Tensor) -> Tensor:
        """The logarithm of the chance that all objects did what is asked, up to each chunk.

        Args:
            tracked: Of `tracks.features`, padded to one number of objects, `(b, chunks, k, FEATURES)`.
            there: Which objects are asked for, bool `(b, k)`.

        Returns:
            `(b, chunks)`, at most 0.
        """
        near = ((tracked - self.centre) / self.spread).clamp(-_FAR, _FAR)
        each = F.logsigmoid(self.moves(near)[..., 0]) * there[:, None]
        return each.sum(-1).cumsum(-1)

    def forward(self, both: Tensor) -> Tensor:
        """The logit of a clip being right, by the logits of its tracks and of its worst frame.

        Args:
            both: `(..., 2)`.

        Returns:
            `(...)`.
        """
        return self.verdict(both)[..., 0]


def logit_of(log_chance: Tensor) -> Tensor:
    """The logit of a chance whose logarithm is given."""
    log_chance = log_chance.clamp(max=-1e-6)
    return log_chance - torch.log(-torch.expm1(log_chance))


def worst_frames(chances: Tensor) -> Tensor:
    """The logit of the worst frame up to each chunk.

    Args:
        chances: Of frames that show the objects, as many of each chunk, `(b, chunks, k)`.

    Returns:
        `(b, chunks)`.
    """
    return chances.logit(eps=1e-4).amin(-1).cummin(-1).values


def tracks_of(frames: Sequence[Tensor], specs: Sequence[MotionSpec]) -> tuple[Tensor, Tensor]:
    """The soft tracks of clips of one length, as the judge takes them.

    Args:
        frames: Clips, each uint8 `(t, h, w, 3)`.
        specs: A prompt for each.

    Returns:
        Tracks `(b, chunks, k, FEATURES)`, and which objects there are, `(b, k)`.
    """
    found = [features(clip.cpu(), spec) for clip, spec in zip(frames, specs)]
    most = max(each.shape[1] for each in found)
    tracked = torch.stack([F.pad(each, (0, 0, 0, most - each.shape[1])) for each in found])
    there = torch.tensor([[k < each.shape[1] for k in range(most)] for each in found])
    return tracked, there


def save_judge(judge: MotionJudge, folder: Path) -> None:
    """Writes a judge."""
    save_weights(judge, folder, torch.float32)


def load_judge(folder: Path) -> MotionJudge:
    """Reads a folder of `save_judge`.

    Raises:
        PipelineError: If the weights are missing or do not fit.
    """
    judge = MotionJudge()
    load_weights(judge, folder)
    return judge.eval().requires_grad_(False)
