"""Gradient guidance: shifts of known length and direction, on deterministic and stochastic samplers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch

from toy_search import events, run, toy_context
from tts_vision.algorithms.gradient_guidance import Rule, Shift, gradient_guidance, guided_steps
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.moves import describe, from_description
from tts_vision.testing.contracts import AlgorithmContract
from tts_vision.testing.toys import GaussianMixture, GaussianMixtureSampler, LinearReward, TargetReward
from tts_vision.types import Cost, State


class TestContract(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return gradient_guidance


class TestContractWithRepeats(AlgorithmContract):
    @pytest.fixture
    def kills(self) -> int:
        return 10

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return partial(gradient_guidance, repeats=2)

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"n": 2, "rule": "score", "scale": 0.5}


def ode(num_steps: int = 6) -> GaussianMixtureSampler:
    return GaussianMixtureSampler(num_steps=num_steps, eta=0.0)


def shifted(shift: Shift, at: int = 3) -> tuple[State, State, State]:
    """A state, what a step made of it, and that shifted."""
    ctx = toy_context(ode())
    start = ctx.advance(ctx.init(4), at)
    ahead, _ = ctx.gradient(start)
    return start, ahead, ctx.mutate(ahead, shift)


def test_a_relative_shift_is_so_long_against_the_step() -> None:
    start, ahead, moved = shifted(Shift("relative", 0.3))
    by = moved.latents - ahead.latents
    length = (ahead.latents - start.latents).norm(dim=1)
    assert torch.allclose(by.norm(dim=1), 0.3 * length, rtol=1e-4)
    along = torch.nn.functional.cosine_similarity(by, ahead.carry["gradient"])
    assert torch.allclose(along, torch.ones(4), atol=1e-4)


def test_a_plain_shift_is_a_multiple_of_the_gradient() -> None:
    _, ahead, moved = shifted(Shift("plain", 2.5))
    assert torch.allclose(moved.latents - ahead.latents, 2.5 * ahead.carry["gradient"], atol=1e-6)


def test_the_score_rule_adds_to_the_score_of_the_model() -> None:
    """The DDIM step with its noise estimate moved by minus sigma times the gradient, written out."""
    start, ahead, moved = shifted(Shift("score", 2.0))
    sampler = ode()
    a, s, to_a, to_s = sampler.alphas[3], sampler.sigmas[3], sampler.alphas[4], sampler.sigmas[4]
    x = start.latents.double()
    eps = (x - a * sampler.mixture.posterior_mean(x, a, s)) / s
    eps = eps - s * 2.0 * ahead.carry["gradient"].double()
    expected = to_a * (x - s * eps) / a + to_s * eps
    assert torch.allclose(moved.latents.double(), expected, atol=1e-5)


def test_the_score_rule_tilts_a_gaussian_as_it_should() -> None:
    """For one Gaussian and a linear reward, guidance by the score at scale 1 samples p(x) exp(r(x)).

    There the reward of the preview differs from the log of the mean of exp(r) by a constant only.
    """
    mixture = GaussianMixture.of((1.0, (0.5, -0.5), 0.6))
    reward = LinearReward((1.0, 0.5))
    ctx = toy_context(GaussianMixtureSampler(mixture, num_steps=60, eta=0.0), reward, seed=1)
    state = run(gradient_guidance, ctx, n=400, rule="score", scale=1.0)
    exact = reward.tilted(mixture, 1.0)
    assert torch.allclose(state.latents.double().mean(0), exact.mean, atol=0.12)
    assert (exact.mean - mixture.mean).norm() > 0.35
    assert state.latents.std(0).tolist() == pytest.approx([0.6, 0.6], abs=0.1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("rule", get_args(Rule))
def test_rewards_rise_on_any_sampler(rule: Rule, eta: float) -> None:
    scale = {"relative": 0.3, "score": 2.0, "plain": 0.3}[rule]

    def mean(scale: float) -> float:
        ctx = toy_context(GaussianMixtureSampler(num_steps=12, eta=eta), TargetReward((2.0, 1.0)), seed=3)
        state = run(gradient_guidance, ctx, n=60, rule=rule, scale=scale)
        return float(ctx.current_scores(state).mean())

    assert mean(scale) > mean(0.0) + 0.5


def test_nothing_is_shifted_at_scale_zero() -> None:
    ctx, plain = toy_context(ode(), seed=3), toy_context(ode(), seed=3)
    state = run(gradient_guidance, ctx, n=3, scale=0.0)
    assert torch.equal(state.latents, plain.finish(plain.init(3)).latents)


def test_solver_history_goes_on() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6, eta=0.0, order=2), seed=3)
    plain = toy_context(GaussianMixtureSampler(num_steps=6, eta=0.0, order=2), seed=3)
    state = run(gradient_guidance, ctx, n=3, scale=0.0)
    assert torch.equal(state.latents, plain.finish(plain.init(3)).latents)


def test_only_chosen_steps_are_shifted_and_paid_for() -> None:
    ctx = toy_context(ode(10))
    run(gradient_guidance, ctx, n=2, start=0.2, end=0.7, every=2)
    assert [event.from_step for event in events(ctx, "gradient")] == [2, 4, 6]
    assert ctx.ledger.spent == Cost(nfe=2 * (10 + 3), decodes=2 * 4, verifier_calls=2 * 4)


def test_repeats_go_back_by_noise_but_not_to_where_nothing_is_left() -> None:
    ctx = toy_context(ode(4), nfe=1000)
    run(gradient_guidance, ctx, n=2, repeats=3)
    assert [event.from_step for event in events(ctx, "gradient")] == [0, 1, 1, 1, 2, 2, 2]
    assert [(event.from_step, event.step) for event in events(ctx, "renoise")] == [
        (2, 1),
        (2, 1),
        (3, 2),
        (3, 2),
    ]
    # seven steps forth and back, the last one forth
    assert ctx.ledger.spent.nfe == 2 * (7 * 2 + 1)


def test_repeats_need_a_sampler_that_goes_back() -> None:
    class Onward(GaussianMixtureSampler):
        def __init__(self) -> None:
            super().__init__(num_steps=5)
            self.capabilities = self.capabilities - {"renoise"}

    with pytest.raises(CapabilityError, match="needs a sampler with 'renoise'"):
        run(gradient_guidance, toy_context(Onward()), n=1, repeats=2)
    ctx = toy_context(Onward())
    run(gradient_guidance, ctx, n=1)
    assert ctx.best is not None


def test_guided_steps() -> None:
    assert guided_steps(10, 0.0, 1.0, 1) == list(range(9))
    assert guided_steps(10, 0.3, 0.6, 1) == [3, 4, 5]
    assert guided_steps(2, 0.0, 1.0, 1) == [0]
    with pytest.raises(ConfigError, match=r"at least one of 1 steps.*'reno' for one-step models"):
        guided_steps(1, 0.0, 1.0, 1)
    with pytest.raises(ConfigError, match=r"start=0\.8 and end=0\.5 leave none"):
        guided_steps(10, 0.8, 0.5, 1)


def test_a_budget_is_filled() -> None:
    ctx = toy_context(ode(10), times=16)
    state = run(gradient_guidance, ctx)
    # eight at 1.9 samples each, and less than one is left
    assert len(state) == len(ctx.candidates) == 8
    asked = toy_context(ode(10), times=16)
    assert len(run(gradient_guidance, asked, n=2)) == len(asked.candidates) == 2


def test_the_move_is_described_by_plain_values() -> None:
    assert from_description(describe(Shift("score", 2.0))) == Shift("score", 2.0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"scale": -1.0}, "scale must be at least 0"),
        ({"every": 0}, "every must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"start": 2.0}, "start must be between 0 and 1"),
        ({"n": 9}, "must fit its budget of 40 nfe"),
    ],
)
def test_rejects(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(gradient_guidance, toy_context(nfe=40), **parameters)


def test_a_zero_gradient_shifts_nothing() -> None:
    class Flat(TargetReward):
        def rewards(self, pixels: Any, prompts: Any) -> Any:
            return super().rewards(pixels, prompts) * 0

    ctx, plain = toy_context(ode(), Flat(), seed=3), toy_context(ode(), seed=3)
    state = run(gradient_guidance, ctx, n=2)
    assert isinstance(ctx, SearchContext)
    assert torch.equal(state.latents, plain.finish(plain.init(2)).latents)
