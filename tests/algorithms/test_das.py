"""DAS: weights that make up for the twist, tempering, bisection, and the target in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from toy_search import events, run, toy_context
from tts_vision.algorithms.das import Twist, das
from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.moves import describe, from_description
from tts_vision.resampling import ess, normalise
from tts_vision.tempering import Tempering, adaptive, tempered, weighed
from tts_vision.testing.contracts import AlgorithmContract
from tts_vision.testing.toys import TWO_MODES, GaussianMixtureSampler, LinearReward, TargetReward
from tts_vision.types import Cost, State

NAN = float("nan")


class TestContract(AlgorithmContract):
    @pytest.fixture
    def kills(self) -> int:
        return 10

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return das

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        # sharp enough that some of the few particles are resampled
        return {"n": 3, "alpha": 0.1, "ess_threshold": 0.9}


def twisted(scale: float, n: int = 5) -> tuple[State, State]:
    """A state with a gradient, and its children."""
    sampler = GaussianMixtureSampler(num_steps=5)
    ctx = toy_context(sampler)
    ahead, _ = ctx.gradient(ctx.advance(ctx.init(n), 2))
    return ahead, ctx.mutate(ahead, Twist(scale))


@pytest.mark.parametrize("scale", [0.0, 0.7, -3.0])
def test_the_twist_draws_from_the_shifted_kernel_and_weighs_it(scale: float) -> None:
    ahead, children = twisted(scale)
    mean = (ahead.latents - ahead.carry["step_noise"]).double()
    std = ahead.carry["step_noise_std"][:, None].double()
    g = scale * ahead.carry["gradient"].double()
    assert float(std.min()) > 0 and not torch.equal(ahead.latents, children.latents)
    shifted = mean + std**2 * g
    # the children's own noise explains what is left
    assert torch.allclose(
        children.latents.double() - shifted, children.carry["step_noise"].double(), atol=1e-6
    )
    model = torch.distributions.Normal(mean, std).log_prob(children.latents.double()).sum(1)
    twist = torch.distributions.Normal(shifted, std).log_prob(children.latents.double()).sum(1)
    log_ratio = children.carry["log_ratio"]
    assert isinstance(log_ratio, Tensor)
    assert torch.allclose(log_ratio, model - twist, atol=1e-4)
    assert (scale == 0) == (not log_ratio.any())


def test_children_of_one_parent_differ_and_belong_to_it() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5))
    ahead, _ = ctx.gradient(ctx.advance(ctx.init(3), 2))
    children = ctx.mutate(ahead, Twist(1.0), [2, 2, 0])
    assert not torch.equal(children.latents[0], children.latents[1])
    # everything that a particle has goes with it: its gradient, its reward, its mean
    for key in ("gradient", "reward", "origin", "step_noise_std"):
        assert torch.equal(children.carry[key], ahead.carry[key][[2, 2, 0]]), key  # type: ignore[index]
    mean = ahead.latents - ahead.carry["step_noise"]
    std2 = ahead.carry["step_noise_std"][:, None] ** 2
    assert torch.allclose(
        children.latents - children.carry["step_noise"],
        (mean + std2 * ahead.carry["gradient"])[[2, 2, 0]],
        atol=1e-6,
    )


@pytest.mark.parametrize("ess_threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tempering", get_args(Tempering))
def test_follows_the_target(tempering: Tempering, ess_threshold: float) -> None:
    reward, alpha = LinearReward((1.0, 0.5)), 0.7
    ctx = toy_context(GaussianMixtureSampler(num_steps=15), reward, seed=0)
    state = run(das, ctx, n=400, alpha=alpha, tempering=tempering, ess_threshold=ess_threshold)
    weights = torch.from_numpy(normalise(state.carry["log_weight"]))
    mean = weights @ state.latents.double()
    exact = reward.tilted(TWO_MODES, 1 / alpha).mean
    # the untilted mean is 1.8 away; what is left is sampling error and the few steps
    assert (mean - exact).norm() < 0.35 < (TWO_MODES.mean - exact).norm() / 4


def test_the_twist_keeps_more_particles_alive() -> None:
    """Without resampling: guided proposals have more equal weights at the end than the model's own."""
    reward, found = LinearReward((1.0, 0.5)), {}
    for name, power in [("twisted", 1.0), ("not until the end", 1e6)]:
        ctx = toy_context(GaussianMixtureSampler(num_steps=15), reward, seed=0)
        state = run(das, ctx, n=200, alpha=0.5, tempering="polynomial", power=power, ess_threshold=0.0)
        found[name] = ess(normalise(state.carry["log_weight"]))
    assert found["twisted"] > 1.3 * found["not until the end"]


def test_weights_telescope_to_the_reward_without_a_twist() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=8), seed=0)
    # never tempered up before the end, so never twisted, and never resampled
    state = run(das, ctx, n=6, alpha=0.5, gamma=0.0, ess_threshold=0.0)
    final = torch.tensor([ctx.candidates[uid].score.value for uid in state.uids], dtype=torch.float64)
    assert torch.allclose(state.carry["log_weight"], final / 0.5)


def test_resamples_below_the_threshold_and_starts_anew() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=10), seed=0)
    run(das, ctx, n=8, alpha=0.3)
    notes = {event.value["step"]: event.value["ess"] for event in events(ctx, "note")}
    assert list(notes) == list(range(9))
    forked = [event.step - 1 for event in events(ctx, "move") if len(set(event.parents)) < 8]
    assert forked == [step for step, value in notes.items() if value < 4]
    assert 0 < len(forked) < 9


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual", "ssp", "multinomial"])
def test_schemes(scheme: Any) -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), seed=0)
    state = run(das, ctx, n=5, scheme=scheme, ess_threshold=1.0)
    assert len(state) == len(set(state.uids)) == 5


def test_the_released_schedules() -> None:
    exp = [tempered("exp", i, 8, 0.1, 1.0) for i in range(9)]
    assert exp == pytest.approx([0, 0.1, 0.21, 0.331, 0.464, 0.611, 0.772, 0.949, 1], abs=5e-4)
    hundred = [tempered("exp", i, 100, 0.008, 1.0) for i in range(101)]
    assert next(i for i, lam in enumerate(hundred) if lam == 1) in (87, 88)
    # the default speed is the paper's, for any number of steps
    assert [tempered("exp", i, 100, None, 1.0) for i in range(101)] == pytest.approx(hundred, abs=0.01)
    assert tempered("exp", 7, 8, None, 1.0) == 1.0
    assert [tempered("polynomial", i, 10, 0.2, 2.0) for i in (0, 1, 2, 5, 9)] == pytest.approx(
        [0, 0.04, 0.16, 1, 1]
    )
    assert tempered("polynomial", 0, 10, None, 0.0) == 0.0


def test_bisection_keeps_the_effective_sample_size() -> None:
    r = np.random.default_rng(0).normal(size=16) * 5
    log_w = np.random.default_rng(1).normal(size=16) * 0.3
    lam = adaptive(log_w, r, 0.0, 0.5)
    assert 0 < lam < 1 and ess(normalise(log_w + lam * r)) == pytest.approx(8, abs=1e-6)
    assert adaptive(log_w, r, 0.9, 0.5) == 0.9, "never lower than before"
    assert adaptive(log_w, r * 1e-3, 0.0, 0.5) == 1.0
    assert adaptive(log_w, np.full(16, NAN), 0.0, 0.5) == 1.0


def test_a_failed_preview_biases_no_particle_for_good() -> None:
    ratio, zero = np.zeros(3), np.zeros(3)
    log_w, psi = weighed(zero, ratio, np.array([1.0, NAN, 3.0]), zero)
    mean = np.log((np.exp(1.0) + np.exp(3.0)) / 2)
    assert log_w == pytest.approx([1.0, mean, 3.0]) and psi == pytest.approx([1.0, mean, 3.0])
    # once all are known, the weights are those without the failure
    log_w, psi = weighed(log_w, ratio + 0.5, np.array([2.0, 4.0, 1.0]), psi)
    assert log_w == pytest.approx([2.5, 4.5, 1.5]) and psi.tolist() == [2.0, 4.0, 1.0]


def test_cost() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=10, guidance=True))
    run(das, ctx, n=5)
    # nine twisted steps go forth and back, the last one adds no noise
    assert ctx.ledger.spent == Cost(nfe=5 * 2 * (9 * 2 + 1), decodes=5 * 10, verifier_calls=5 * 10)
    filled = toy_context(GaussianMixtureSampler(num_steps=10), times=16)
    assert len(run(das, filled)) == 8  # at 1.9 samples each
    assert len(filled.candidates) == 8


def test_the_move_is_described_by_plain_values() -> None:
    assert from_description(describe(Twist(0.3))) == Twist(0.3)


def test_half_precision_steps_are_twisted_in_float32() -> None:
    start = State.initial(
        torch.full((1, 4), 2.0, dtype=torch.bfloat16),
        (0,),
        Condition("x"),
        0,
        {
            "gradient": torch.full((1, 4), 1e-3),
            "gradient_scale": torch.ones(1),
            "step_noise": torch.zeros(1, 4, dtype=torch.bfloat16),
            "step_noise_std": torch.ones(1),
        },
    )
    state = replace(start, step=1)
    child = Twist(100.0).apply(GaussianMixtureSampler(), state, torch.zeros(1, 4, dtype=torch.bfloat16))
    assert child.latents.dtype == torch.bfloat16
    assert child.latents.float().tolist() == [[pytest.approx(2.1, abs=0.02)] * 4]
    assert float(child.carry["log_ratio"][0]) == pytest.approx(-4 * 0.01 / 2)  # type: ignore[index]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"alpha": 0.0}, "alpha must be positive but got 0"),
        ({"gamma": -0.1}, "gamma must be at least 0"),
        ({"ess_threshold": 2.0}, "ess_threshold must be between 0 and 1"),
        ({"n": 9}, "must fit its budget of 40 nfe"),
    ],
)
def test_rejects(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(das, toy_context(nfe=40), **parameters)


def test_large_rewards_do_not_overflow() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), TargetReward(), seed=0)
    with np.errstate(all="raise", under="ignore"):
        state = run(das, ctx, n=4, alpha=1e-4)
    assert state.latents.isfinite().all() and np.isfinite(state.carry["log_weight"].numpy()).all()  # type: ignore[union-attr]
