"""Strengths that fit the verifier, warnings, and weighted particles as an answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tts_vision
from toy_search import events, run, toy_context
from tts_vision.algorithms.das import das
from tts_vision.algorithms.fk_steering import fk_steering
from tts_vision.algorithms.tts_var import tts_var
from tts_vision.errors import ConfigError, SearchWarning
from tts_vision.resampling import ess, normalise, strength_for
from tts_vision.testing.toys import TWO_MODES, GaussianMixtureSampler, LinearReward, position_of
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import ALONE, Asked


class Scaled(LinearReward):
    """The linear reward in other units."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        scores = super().score(media, prompts, asked)
        return [Score(value=score.value * self.scale) for score in scores]


@pytest.mark.parametrize("target", [1.2, 2.0, 5.0, 7.9])
def test_strength_for_an_effective_sample_size(target: float) -> None:
    rewards = np.random.default_rng(0).normal(size=8)
    strength = strength_for(rewards, target)
    assert strength is not None
    assert ess(normalise(strength * rewards)) == pytest.approx(target, rel=1e-6)
    scaled = strength_for(0.018 * rewards, target)
    assert scaled == pytest.approx(strength / 0.018, rel=1e-6)


@pytest.mark.parametrize(
    "rewards", [[1.0, 1.0, 1.0], [1.0, 1.0 + 1e-9, 1.0], [0.0] * 3, [math.nan] * 3, [2.0, math.nan, math.nan]]
)
def test_no_strength_where_rewards_are_alike(rewards: list[float]) -> None:
    assert strength_for(rewards, 1.5) is None


@pytest.mark.parametrize("algorithm", [fk_steering, tts_var])
def test_auto_does_not_depend_on_the_units_of_the_verifier(algorithm: Callable[..., Any]) -> None:
    def ancestors(scale: float) -> list[tuple[int, ...]]:
        ctx = toy_context(GaussianMixtureSampler(num_steps=20), Scaled(scale), seed=1)
        extra = {"clustering": False} if algorithm is tts_var else {}
        run(algorithm, ctx, n=8, **extra)
        return [event.parents for event in events(ctx, "select")]

    like_hps, plain, percent = ancestors(0.018), ancestors(1.0), ancestors(100.0)
    assert like_hps == plain == percent
    assert any(len(set(parents)) < 8 for parents in plain), "it resamples"


def test_the_strength_is_recorded_and_a_number_stays_a_number() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=20), Scaled(0.018))
    run(fk_steering, ctx, n=8)
    assert events(ctx, "strength")[0].value > 10
    fixed = toy_context(GaussianMixtureSampler(num_steps=20), Scaled(0.018))
    with pytest.warns(SearchWarning, match="never resampled at lam=10"):
        run(fk_steering, fixed, n=8, lam=10.0)
    assert not events(fixed, "strength") and not events(fixed, "select")


def test_warns_of_one_line_of_descent() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=20), Scaled(100.0))
    with pytest.warns(SearchWarning, match="descend from one at lam=10"):
        run(fk_steering, ctx, n=8, lam=10.0)
    assert len(events(ctx, "warning")) == 1


def test_weights_are_part_of_the_result(tmp_path: Path) -> None:
    result = tts_vision.search(
        GaussianMixtureSampler(num_steps=10),
        "x",
        algorithm="fk_steering",
        algorithm_params={"n": 6, "potential": "diff", "lam": 1.0},
        verifier=LinearReward(),
        budget="nfe=100",
        output=tmp_path / "r",
    )
    assert sum(result.weights.values()) == pytest.approx(1)
    assert set(result.weights) <= {candidate.uid for candidate in result.population}
    assert 1 <= result.ess <= 6 and math.isfinite(result.log_z)
    stored = json.loads((tmp_path / "r" / "result.json").read_text())
    assert stored["weights"] == {str(uid): weight for uid, weight in result.weights.items()}
    loaded = tts_vision.load_result(tmp_path / "r")
    assert loaded.weights == result.weights and loaded.log_z == result.log_z
    assert [c.uid for c in loaded.sample(5, seed=3)] == [c.uid for c in result.sample(5, seed=3)]


def test_draws_follow_the_tilted_law_and_log_z_is_its_constant() -> None:
    lam, reward = 1.0, LinearReward()
    tilted = reward.tilted(TWO_MODES, lam)
    exact = TWO_MODES.sample(200_000, 0) @ reward.direction
    log_z = float((lam * exact).exp().mean().log())
    for algorithm, params in (
        ("fk_steering", {"lam": lam, "potential": "diff", "ess_threshold": 0.5}),
        ("das", {"alpha": 1 / lam}),
    ):
        result = tts_vision.search(
            GaussianMixtureSampler(TWO_MODES, num_steps=40),
            "x",
            algorithm=algorithm,
            algorithm_params={"n": 600, **params},
            verifier=reward,
            budget="nfe=1e6",
            seed=2,
        )
        drawn = np.stack([position_of(c.load()) for c in result.sample(4000)])
        assert drawn.mean(0) == pytest.approx(tilted.mean.numpy(), abs=0.15), algorithm
        assert result.log_z == pytest.approx(log_z, abs=0.15), algorithm


def test_algorithms_without_a_law_have_no_draws() -> None:
    result = tts_vision.search(GaussianMixtureSampler(num_steps=3), "x", verifier=LinearReward(), budget="2x")
    assert result.weights == {} and math.isnan(result.ess) and math.isnan(result.log_z)
    with pytest.raises(ConfigError, match="'best_of_n' gives none"):
        result.sample()


def test_das_warns_too() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), LinearReward())
    with pytest.warns(SearchWarning, match="never resampled at alpha=1e"):
        run(das, ctx, n=4, alpha=1e6)
