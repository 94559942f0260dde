"""ReNO: the penalty of the released code, the optimiser of torch, noise that climbs and keeps its norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from toy_search import events, run, toy_context
from tts_vision.algorithms.reno import NoiseAscent, reno
from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.gradients import clipped, norm_penalty, norm_penalty_gradient
from tts_vision.moves import describe, from_description
from tts_vision.testing.contracts import AlgorithmContract
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Cost, State

TOY = GaussianMixtureSampler()


class TestContract(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return reno

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"n": 2, "iterations": 4}

    @pytest.fixture
    def make_sampler(self) -> Callable[[], GaussianMixtureSampler]:
        return lambda: GaussianMixtureSampler(num_steps=6, order=2, eta=0.0)


def ode(num_steps: int = 4) -> GaussianMixtureSampler:
    """A deterministic toy, as few-step models are."""
    return GaussianMixtureSampler(num_steps=num_steps, eta=0.0)


def noise_of_norm(norm: float, d: int = 16384) -> Tensor:
    x = torch.randn(1, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x * norm / x.norm()


def test_golden_value_of_the_penalty() -> None:
    # the released code at d = 16384 and the norm where its gradient vanishes, sqrt(16383) = 127.996
    x = noise_of_norm(math.sqrt(16383))
    assert 0.01 * float(norm_penalty(x)) == pytest.approx(-712.98812, abs=1e-4)
    assert float(norm_penalty_gradient(x).norm()) < 1e-9


@pytest.mark.parametrize("norm", [60.0, 127.996, 300.0])
def test_the_penalty_has_the_gradient_that_autograd_finds(norm: float) -> None:
    x = noise_of_norm(norm).requires_grad_()
    (expected,) = torch.autograd.grad(norm_penalty(x).sum(), x)
    assert torch.allclose(norm_penalty_gradient(x.detach()), expected, atol=1e-9)


def test_each_row_is_clipped_alone() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.03, 0.04], [0.0, 0.0]])
    assert torch.allclose(clipped(gradient, 0.1), torch.tensor([[0.06, 0.08], [0.03, 0.04], [0.0, 0.0]]))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_those_of_torch_sgd(momentum: float) -> None:
    """Nesterov SGD with clipped gradients on the same loss, by torch itself."""
    d, target = 64, torch.linspace(-1, 1, 64)
    start = torch.randn(1, d, generator=torch.Generator().manual_seed(1))
    x = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.SGD([x], lr=5.0, momentum=momentum, nesterov=momentum > 0)
    ascent = NoiseAscent(2.0, 0.01, 5.0, momentum, 0.1, back=1)
    state = State.initial(start, (0,), Condition("x"), 0)
    for _ in range(6):
        optimiser.zero_grad()
        reward = -(x - target).square().sum()
        (-2.0 * reward + 0.01 * norm_penalty(x).sum()).backward()
        torch.nn.utils.clip_grad_norm_([x], 0.1)
        optimiser.step()
        gradient = -2 * (state.latents - target)
        carry = {**state.carry, "gradient": gradient, "origin": state.latents}
        sample = replace(state, step=1, carry=carry)
        state = ascent.apply(TOY, sample, torch.zeros(1, d))
        assert state.step == 0
        assert torch.allclose(state.latents, x.detach(), atol=1e-5)


def test_half_precision_noise_is_optimised_in_float32() -> None:
    # steps far below what half precision tells apart still add up
    start = torch.full((1, 64), 4.0, dtype=torch.bfloat16)
    ascent = NoiseAscent(1.0, 0.0, 1.0, 0.0, 0.01, back=1)
    state = State.initial(start, (0,), Condition("x"), 0)
    for _ in range(100):
        carry = {**state.carry, "gradient": torch.ones(1, 64), "origin": state.latents}
        state = ascent.apply(TOY, replace(state, step=1, carry=carry), torch.zeros(1, 64))
        assert state.latents.dtype == torch.bfloat16
    assert float(state.latents[0, 0]) == pytest.approx(4 + 100 * 0.01 / 8, abs=0.02)


def test_climbs_to_what_the_reward_wants() -> None:
    ctx = toy_context(ode(), TargetReward((1.0, 0.5)), seed=0)
    run(reno, ctx, n=3, iterations=30, lr=3.0)
    rewards = torch.tensor([event.rewards for event in events(ctx, "gradient")])
    assert rewards.shape == (29, 3)
    assert (rewards[-1] > rewards[0]).all()
    assert rewards[-1].max() > -0.05
    first = [ctx.candidates[uid].score.value for uid in range(3)]
    assert ctx.best is not None and ctx.best.score.value > max(first)


def test_the_penalty_keeps_the_noise_at_its_norm() -> None:
    norms = {}
    for weight in (0.0, 10.0):
        ctx = toy_context(ode(), TargetReward((9.0, 9.0)), seed=0)
        state = ctx.init(1)
        ascent = NoiseAscent(1.0, weight, 1.0, 0.0, 0.5, back=4)
        for _ in range(40):
            state = ctx.mutate(ctx.gradient(state, 4)[0], ascent)
        norms[weight] = float(state.latents.norm())
    # the target is out of reach, so that nothing but the penalty ends the climb
    assert norms[0.0] > 5 > 2 > norms[10.0]


def test_noises_do_not_touch_each_other() -> None:
    ctx = toy_context(ode(), seed=5)
    run(reno, ctx, n=3, iterations=5)
    alone = toy_context(ode(), seed=5)
    run(reno, alone, n=1, iterations=5)
    together = [event.rewards[0] for event in events(ctx, "gradient")]
    assert together == pytest.approx([event.rewards[0] for event in events(alone, "gradient")])


def test_the_first_iterate_is_the_plain_sample_and_each_is_a_candidate() -> None:
    ctx = toy_context(ode(), seed=2)
    run(reno, ctx, n=1, iterations=6)
    plain = toy_context(ode(), seed=2)
    score = plain.score(plain.finish(plain.init(1)))
    assert ctx.candidates[0].score.value == float(score[0])
    assert len(ctx.candidates) == 6
    # 6 times forth, 5 times back
    assert ctx.ledger.spent == Cost(nfe=4 * (6 + 5), decodes=6 + 5, verifier_calls=6 + 5)
    assert sum(event.backwards for event in events(ctx, "gradient")) == 4 * 5


def test_independent_samples_where_the_noises_are_too_many() -> None:
    ctx = toy_context(ode(), nfe=40)
    state = run(reno, ctx, n=11)
    assert [event.value for event in events(ctx, "size")] == [0]
    assert state.uids == tuple(ctx.candidates) == tuple(range(10)) and not events(ctx, "gradient")


def test_patience() -> None:
    ctx = toy_context(ode(), seed=2)
    state = run(reno, ctx, n=1, iterations=40, lr=0.0, patience=3)
    # nothing ever changes, so the first iterate stays the best
    assert len(ctx.candidates) == 4 and state.step == ctx.num_steps


def test_a_budget_pays_for_iterations() -> None:
    # each but the last is a sample and a gradient at the cost of another one
    for times, iterations in [(1, 1), (2, 1), (3, 2), (16, 8), (99, 50), (150, 75)]:
        ctx = toy_context(ode(), times=times)
        run(reno, ctx)
        assert [event.value for event in events(ctx, "size")] == [iterations]
        assert len(events(ctx, "gradient")) == iterations - 1, times
    ctx = toy_context(ode(), times=16)
    run(reno, ctx, n=4)
    assert [event.value for event in events(ctx, "size")] == [2]
    free = toy_context(ode())
    run(reno, free)
    assert len(events(free, "gradient")) == 49 and len(events(free, "init")[0].uids) == 1, "as in the paper"


def test_the_rest_of_a_budget_goes_to_independent_samples() -> None:
    ctx = toy_context(ode(), times=16)
    run(reno, ctx)
    # 7 gradients at 2, the last iterate and one more sample
    assert ctx.ledger.spent.nfe == 16 * 4 and len(ctx.candidates) == 9
    asked = toy_context(ode(), times=16)
    run(reno, asked, n=1, iterations=2)
    assert len(asked.candidates) == 2


def test_the_move_is_described_by_plain_values() -> None:
    ascent = NoiseAscent(1.0, 0.01, 5.0, 0.9, 0.1, back=4)
    assert from_description(describe(ascent)) == ascent
    assert ascent.gradient_steps == 4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"momentum": 1.5}, "momentum must be between 0 and 1"),
        ({"n": 2, "iterations": 40}, "must fit its budget of 40 nfe but iterations=40 costs 632"),
        ({"iterations": 40}, "must fit its budget of 40 nfe but iterations=40 costs 316"),
    ],
)
def test_rejects(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(reno, toy_context(ode(), nfe=40), **parameters)
