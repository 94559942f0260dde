"""The toy sampler keeps the sampler contract in all its forms, and its closed forms are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tts_vision.condition import Condition
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import SamplerContract, VerifierContract
from tts_vision.testing.toys import (
    TWO_MODES,
    GaussianMixture,
    GaussianMixtureSampler,
    LinearReward,
    TargetReward,
    draw_position,
    position_of,
)
from tts_vision.types import Media
from tts_vision.verifier import Verifier

FORMS: list[dict[str, Any]] = [
    {"eta": 0.0},
    {"eta": 1.0, "guidance": True},
    {"eta": 0.5, "order": 2},
    {"eta": 0.0, "order": 2, "path": "flow"},
    {"eta": 1.0, "order": 2, "path": "flow"},
]


class TestSampler(SamplerContract):
    @pytest.fixture(params=FORMS, ids=str)
    def sampler(self, request: pytest.FixtureRequest) -> Sampler:
        return GaussianMixtureSampler(num_steps=5, **request.param)


class TestVerifiers(VerifierContract):
    @pytest.fixture(params=[LinearReward, TargetReward])
    def verifier(self, request: pytest.FixtureRequest) -> Verifier:
        verifier: Verifier = request.param()
        return verifier

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        return [draw_position(np.array(position)) for position in ((0.0, 0.0), (1.0, 0.5), (-2.0, 3.0))]


def test_images_hold_exact_positions() -> None:
    position = np.array([0.1, -3.75, 1e-6, 12.0], dtype=np.float32)
    assert (position_of(draw_position(position)) == position).all()


@pytest.mark.parametrize("path", ["vp", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_follow_the_mixture(path: Any, eta: float) -> None:
    sampler = GaussianMixtureSampler(num_steps=25, path=path, eta=eta)
    state = sampler.init(Condition("x"), range(500), seed=0)
    x = sampler.advance(state, 25).latents.double()
    exact = TWO_MODES.sample(100_000, seed=1)
    assert torch.allclose(x.mean(0), exact.mean(0), atol=0.15)
    assert torch.allclose(x.std(0), exact.std(0), atol=0.1)


@pytest.mark.parametrize("reward", [LinearReward((0.8, -0.5)), TargetReward((0.5, 1.0))])
def test_tilted_mixtures_are_right(reward: LinearReward | TargetReward) -> None:
    mixture = GaussianMixture.of((0.6, (-1.0, 0.2), 0.5), (0.4, (1.0, -0.3), 0.8))
    x = mixture.sample(200_000, seed=0)
    if isinstance(reward, LinearReward):
        values = x @ reward.direction
    else:
        values = -(x - reward.target).square().sum(1)
    weights = (0.7 * values).softmax(0)
    tilted = reward.tilted(mixture, 0.7)
    assert torch.allclose(weights @ x, tilted.mean, atol=0.02)
    second = weights @ x.square()
    exact = tilted.weights @ (tilted.means.square() + tilted.stds[:, None] ** 2)
    assert torch.allclose(second, exact, atol=0.04)


def test_posterior_mean_interpolates_between_prior_and_data() -> None:
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    assert torch.allclose(TWO_MODES.posterior_mean(x, 1e-9, 1.0), TWO_MODES.mean[None])
    assert torch.allclose(TWO_MODES.posterior_mean(x, 1.0, 1e-9), x)
