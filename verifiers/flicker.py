"""Temporal flickering: how little neighbouring frames differ, without a model."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifiers._frames import moving


def steadiness(frames: Tensor) -> float:
    """1 - mean |f_t - f_{t+1}| / 255 over all pixels and pairs of neighbours, in [0, 1].

    Args:
        frames: ``(T, H, W, 3)`` uint8, two or more.
    """
    # pair by pair, so that a long clip is never held in a wider type
    differences = [(b.to(torch.int16) - a.to(torch.int16)).abs().double().mean() for a, b in pairwise(frames)]
    return 1 - float(torch.stack(differences).mean()) / 255


@register(
    "verifier",
    "flicker",
    paper="VBench (Huang et al. 2024), temporal flickering",
    notes={"licence": "no model", "weights": "none"},
)
class Flicker(BatchedVerifier):
    """How little a clip flickers: one minus the mean difference of neighbouring frames, in [0, 1].

    A still clip gets 1; VBench measures flicker only after a filter has dropped still clips. As a reward,
    combine it with one of motion. The prompt is not read.
    """

    name = "flicker"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(self) -> None:
        super().__init__(device="cpu")

    def _load(self) -> None:
        pass

    def _usable(self, sample: Media) -> Video:
        return moving(sample, self.name)

    def _score_batch(self, samples: list[Video], prompts: list[Prompt]) -> list[Score]:
        return [Score(value=steadiness(video.frames)) for video in samples]
