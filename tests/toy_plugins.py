"""Plugins of a user's own file, named ``toy_plugins.py@NAME``: a model that costs nothing, and verifiers."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from tts_vision.config import ModelOptions
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, position_of
from tts_vision.types import Media, Modality, Prompt, Score

MODEL, VERIFIER = f"{__file__}@model", f"{__file__}@verifier"


def model(name: str, *, options: ModelOptions) -> GaussianMixtureSampler:
    """The toy model, with stochastic steps."""
    return GaussianMixtureSampler(num_steps=6)


def deterministic(name: str, *, options: ModelOptions) -> GaussianMixtureSampler:
    """The toy model without noise in its steps."""
    return GaussianMixtureSampler(num_steps=6, eta=0.0)


def verifier(*, x: float = 1.0, y: float = 1.0) -> TargetReward:
    """Likes samples near a point.

    Args:
        x: First coordinate of the point.
        y: Second coordinate.
    """
    return TargetReward((x, y))


def first_coordinate(images: list[Media], prompts: list[str]) -> list[float]:
    """A plain function as a verifier."""
    return [float(position_of(image)[0]) for image in images]


def raises(images: list[Media], prompts: list[str]) -> list[float]:
    """Fails on every sample."""
    raise RuntimeError("no such reward")


def nan(images: list[Media], prompts: list[str]) -> list[float]:
    """Scores nothing."""
    return [float("nan")] * len(images)


def too_few(images: list[Media], prompts: list[str]) -> list[float]:
    """Breaks the contract."""
    return [0.0] * (len(images) - 1)


def fatal(images: list[Media], prompts: list[str]) -> list[float]:
    """Ends its process, as a system that is out of memory does."""
    os.kill(os.getpid(), signal.SIGKILL)
    return []


class Videos:
    """Scores videos only."""

    name = "videos"
    accepts: frozenset[Modality] = frozenset({"video"})

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(value=0.0) for _ in media]


def broken_model(name: str, *, options: ModelOptions) -> object:
    """Cannot be loaded."""
    raise OSError("invalid header in weights.safetensors")


def no_pipeline(name: str, *, options: ModelOptions) -> object:
    """Loads something that cannot be driven."""
    return object()
