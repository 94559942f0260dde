"""FK steering: the potentials of the released code, products that telescope, the tilted distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch

from toy_search import events, run, toy_context
from tts_vision.algorithms.fk_steering import (
    Potential,
    check_steps,
    fk_steering,
    log_potential,
    log_terminal,
    resampling_steps,
)
from tts_vision.errors import ConfigError
from tts_vision.resampling import normalise
from tts_vision.testing.contracts import AlgorithmContract
from tts_vision.testing.toys import TWO_MODES, GaussianMixtureSampler, LinearReward
from tts_vision.types import Cost, State

POTENTIALS: tuple[Potential, ...] = get_args(Potential)
NAN = float("nan")


class TestContract(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return fk_steering

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"n": 3, "ess_threshold": None}


# executed reference: lambda 2, r1, then ancestors [3, 3, 1, 0], r2
R1, R2, ANCESTORS = np.array([0.1, 0.4, -0.2, 0.9]), np.array([0.3, 0.2, 0.5, 0.6]), [3, 3, 1, 0]
PLAIN = [1.2214, 2.2255, 0.6703, 6.0496]
GOLDEN: dict[Potential, tuple[list[float], list[float]]] = {
    "diff": (PLAIN, [0.3012, 0.2466, 1.2214, 2.7183]),
    "max": ([1.2214, 2.2255, 1.0, 6.0496], [6.0496, 6.0496, 2.7183, 3.3201]),
    "add": (PLAIN, [11.0232, 9.0250, 6.0496, 4.0552]),
    "rt": (PLAIN, [1.8221, 1.4918, 2.7183, 3.3201]),
}


@pytest.mark.parametrize("potential", POTENTIALS)
def test_potentials_are_those_of_the_released_code(potential: Potential) -> None:
    first, second = GOLDEN[potential]
    log_g, history = log_potential(potential, 2.0, R1, np.zeros(4), np.zeros(4))
    assert np.exp(log_g) == pytest.approx(first, abs=5e-5)
    log_g, _ = log_potential(potential, 2.0, R2, history[ANCESTORS], log_g[ANCESTORS])
    assert np.exp(log_g) == pytest.approx(second, abs=5e-5)


@pytest.mark.parametrize("potential", POTENTIALS)
def test_all_potentials_multiply_to_the_tilt(potential: Potential) -> None:
    rng, lam = np.random.default_rng(0), 3.0
    log_product, history = np.zeros(6), np.zeros(6)
    for _ in range(4):
        rewards = np.where(rng.random(6) < 0.2, NAN, rng.normal(size=6))
        log_g, history = log_potential(potential, lam, rewards, history, log_product)
        ancestors = rng.integers(0, 6, 6)
        log_product, history = (log_product + log_g)[ancestors], history[ancestors]
    final = rng.normal(size=6)
    assert log_product + log_terminal(lam, final, log_product) == pytest.approx(lam * final)


def test_large_rewards_do_not_overflow() -> None:
    log_g, history = log_potential("add", 1000.0, np.array([50.0, 49.0]), np.array([90.0, 90.0]), np.zeros(2))
    assert normalise(log_g) == pytest.approx([1.0, 0.0])
    assert history.tolist() == [140.0, 139.0]


@pytest.mark.parametrize("potential", POTENTIALS)
def test_unscored_particles_get_the_mean_potential_and_keep_their_history(potential: Potential) -> None:
    rewards = np.array([0.1, NAN, 0.5])
    log_g, history = log_potential(potential, 2.0, rewards, np.full(3, 0.3), np.zeros(3))
    assert np.exp(log_g[1]) == pytest.approx(np.exp(log_g[[0, 2]]).mean())
    assert history[1] == 0.3


def test_resampling_steps() -> None:
    assert resampling_steps(100, 0.2, 0.2, 0.8) == [20, 40, 60, 80]
    assert resampling_steps(100, 0.05, 0.05, 0.3) == [5, 10, 15, 20, 25, 30]
    assert resampling_steps(7, 0.2, 0.2, 0.8) == [1, 3, 4, 6]
    # step 0 has no preview, and the end is scored anyway
    assert resampling_steps(4, 0.0, 0.25, 1.0) == [1, 2, 3]


@pytest.mark.parametrize(("potential", "ess_threshold"), [("diff", None), ("diff", 0.5), ("max", 0.5)])
def test_follows_the_tilted_distribution(potential: Potential, ess_threshold: float | None) -> None:
    reward, lam = LinearReward((1.0, 0.5)), 1.0
    ctx = toy_context(GaussianMixtureSampler(num_steps=15), reward, seed=0)
    state = run(fk_steering, ctx, n=300, potential=potential, lam=lam, ess_threshold=ess_threshold)
    weights = torch.from_numpy(normalise(state.carry["log_weight"]))
    mean = weights @ state.latents.double()
    exact = reward.tilted(TWO_MODES, lam).mean
    # the untilted mean is 1.6 away; sampling error and the few steps leave about 0.2
    assert (mean - exact).norm() < 0.4 < (TWO_MODES.mean - exact).norm() / 3


def test_weights_are_carried_across_skipped_resamplings() -> None:
    never = toy_context(GaussianMixtureSampler(num_steps=10), seed=0)
    state = run(fk_steering, never, n=6, potential="diff", lam=0.1, ess_threshold=0.0)
    assert not events(never, "select")
    final = torch.tensor([never.candidates[uid].score.value for uid in state.uids], dtype=torch.float64)
    # without any resampling, all potentials are still in the weights
    assert torch.allclose(state.carry["log_weight"], 0.1 * final)


def test_resamples_only_below_the_threshold() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=10), seed=0)
    run(fk_steering, ctx, n=8, ess_threshold=0.5)
    low = [event.value["step"] for event in events(ctx, "note") if event.value["ess"] < 4]
    assert [event.step for event in events(ctx, "select")] == low
    assert 0 < len(low) < len(events(ctx, "note"))


def test_never_resamples_where_copies_could_not_differ() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=10), seed=0)
    # the last noise comes in step 8
    run(fk_steering, ctx, n=4, resample_steps=[3, 8, 9], ess_threshold=None)
    assert [event.step for event in events(ctx, "select")] == [3, 8]
    plain = toy_context(GaussianMixtureSampler(num_steps=10, eta=0.0), seed=0)
    run(fk_steering, plain, n=4)
    assert not events(plain, "select") and len(plain.candidates) == 4


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual", "ssp", "multinomial"])
def test_schemes(scheme: Any) -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=10), seed=0)
    state = run(fk_steering, ctx, n=5, scheme=scheme, ess_threshold=None)
    assert len(state) == len(set(state.uids)) == 5


def test_costs_particles_times_steps_and_previews() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=10, guidance=True))
    run(fk_steering, ctx, n=5)
    assert ctx.ledger.spent == Cost(nfe=5 * 10 * 2, decodes=5 * 5, verifier_calls=5 * 5)


def test_verifier_calls_limit_the_particles() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=10), verifier_calls=24)
    assert len(run(fk_steering, ctx)) == 4  # four previews and a final score each


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"lam": -1.0}, "lam must be at least 0 but got -1"),
        ({"ess_threshold": 2.0}, "ess_threshold must be between 0 and 1"),
        ({"every": 0.0}, "Resampling must go from start to a later end"),
        ({"start": 0.9, "end": 0.5}, "Resampling must go from start to a later end"),
        ({"resample_steps": [4, 2]}, r"must increase and lie between 1 and 4 but got \[4, 2\]"),
        ({"resample_steps": [5]}, r"must increase and lie between 1 and 4 but got \[5\]"),
        ({"n": 9}, "must fit its budget of 40 nfe"),
    ],
)
def test_rejects(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(fk_steering, toy_context(nfe=40), **parameters)


def test_accepts_steps_in_order() -> None:
    assert check_steps([1, 3], 5) == [1, 3]
