"""Moves keep the distribution of what they change, exactly where the mathematics says so."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from toy_tokens import TokenSampler

from toy_search import toy_context
from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.moves import (
    AddStepNoise,
    Blend,
    Move,
    Neighbour,
    Recondition,
    Renoise,
    Select,
    StepNoise,
    TokenNoise,
    describe,
    from_description,
    neighbours,
    register_move,
)
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.tokens import draw
from tts_vision.types import State

ROWS, DIM = 200, 64
TOY = GaussianMixtureSampler()
CONDITION = Condition("x")


def noise(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(seed))


def state(latents: torch.Tensor, **carry: Any) -> State:
    return State.initial(latents, range(len(latents)), CONDITION, 0, carry)


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.95, 0.999])
def test_neighbours_have_exact_cosine_and_equal_norm(tau: float) -> None:
    x = 3 * noise(0)
    y = neighbours(x, noise(1), tau)
    assert y.dtype == x.dtype and y.shape == x.shape
    cosine = torch.cosine_similarity(x.double(), y.double())
    assert torch.allclose(cosine, torch.full_like(cosine, tau), atol=1e-6)
    assert torch.allclose(x.norm(dim=1), y.norm(dim=1), rtol=1e-5)


def test_siblings_have_cosine_tau_squared() -> None:
    x = noise(0)
    siblings = torch.cosine_similarity(neighbours(x, noise(1), 0.95), neighbours(x, noise(2), 0.95))
    assert siblings.mean() == pytest.approx(0.95**2, abs=0.005)


def test_neighbours_are_flattened_per_row() -> None:
    x, v = noise(0), noise(1)
    shaped = neighbours(x.view(ROWS, 4, 4, 4), v.view(ROWS, 4, 4, 4), 0.9)
    assert torch.equal(shaped.view(ROWS, DIM), neighbours(x, v, 0.9))


@pytest.mark.parametrize("beta", [0.0, 0.2, 1.0])
def test_blend_stays_standard_normal(beta: float) -> None:
    x = noise(0)
    y = Blend(beta).apply(TOY, state(x), noise(1)).latents
    assert y.std() == pytest.approx(1, abs=0.02)
    assert torch.cosine_similarity(x.flatten(), y.flatten(), 0) == pytest.approx(
        math.sqrt(1 - beta**2), abs=0.02
    )


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_step_noise_is_replaced_not_added(beta: float) -> None:
    mean, std = noise(0), 0.4
    injected = std * noise(1)
    before = state(
        mean + injected, step_noise=injected, step_noise_std=torch.full((ROWS,), std), preview=mean
    )
    after = StepNoise(beta).apply(TOY, before, noise(2))
    added = after.latents - mean
    assert added.std() == pytest.approx(std, rel=0.02)
    assert torch.allclose(added, math.sqrt(1 - beta**2) * injected + beta * std * noise(2), atol=1e-6)
    # what it carries is its new noise, so it can be mutated again
    assert torch.allclose(after.carry["step_noise"], added, atol=1e-6)  # type: ignore[arg-type]
    assert torch.equal(before.latents, mean + injected)


def test_released_code_doubles_the_variance() -> None:
    injected = 0.4 * noise(1)
    before = state(injected, step_noise=injected, step_noise_std=torch.full((ROWS,), 0.4))
    after = AddStepNoise().apply(TOY, before, noise(2))
    assert after.latents.var() == pytest.approx(2 * 0.4**2, rel=0.03)
    assert after.step == before.step - 1
    elite = AddStepNoise(scale=0).apply(TOY, before, noise(2))
    assert torch.equal(elite.latents, before.latents)
    blended = AddStepNoise(scale=0, blend=0.6).apply(TOY, before, noise(2))
    assert torch.allclose(blended.latents, 0.8 * injected + 0.6 * noise(2))


def test_std_per_row() -> None:
    injected = torch.zeros(2, 3, 5)
    before = state(injected, step_noise=injected, step_noise_std=torch.tensor([0.0, 2.0]))
    after = StepNoise(1.0).apply(TOY, before, torch.ones(2, 3, 5))
    assert (after.latents[0] == 0).all() and (after.latents[1] == 2).all()


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_token_noise_keeps_the_distribution(share: float, ids: bool) -> None:
    sampler = TokenSampler((1, 3, 5), bias=0.8, ids=ids)
    parents = sampler.advance(sampler.init(CONDITION, range(3000), seed=0), 3)
    children = sampler.apply(TokenNoise(share), replace(parents, uids=tuple(range(5000, 8000))))
    # the scales before the last one stay
    assert torch.equal(children.latents[:, :4], parents.latents[:, :4])
    assert children.latents.dtype == parents.latents.dtype and children.step == 3
    redrawn = children.carry["token_noise"] != parents.carry["token_noise"]
    assert redrawn.float().mean() == pytest.approx(share, abs=0.015)  # type: ignore[union-attr]
    changed = children.latents[:, 4:] != parents.latents[:, 4:]
    assert not (changed & ~redrawn).any()
    assert bool(changed.any()) == bool(share)
    # tokens are still those that their noise draws, and as frequent as before
    drawn = draw(children.carry["token_probability"], children.carry["token_noise"])  # type: ignore[arg-type]
    assert torch.equal(children.latents[:, 4:], drawn)
    before, after = (state.latents[:, 4:].flatten().bincount() for state in (parents, children))
    assert torch.allclose(before / before.sum(), after / after.sum(), atol=0.015)


def test_token_noise_belongs_to_the_child() -> None:
    sampler = TokenSampler()
    parents = sampler.advance(sampler.init(CONDITION, (0, 1, 2), seed=0), 4).select([0, 1], (7, 9))
    both = sampler.apply(TokenNoise(0.5), parents)
    alone = sampler.apply(TokenNoise(0.5), parents.select([1]))
    assert torch.equal(both.latents[1:], alone.latents)
    twice = sampler.apply(TokenNoise(0.5), replace(both, uids=(11, 12)))
    assert not torch.equal(twice.carry["token_noise"], both.carry["token_noise"])  # type: ignore[arg-type]
    assert sampler.advance(both, 2).step == 6


def test_token_noise_needs_tokens() -> None:
    sampler = TokenSampler()
    start = sampler.init(CONDITION, (0,), seed=0)
    with pytest.raises(
        CapabilityError,
        match=r"carries 'token_noise' but the one at step 0 carries \[\]; take it from ctx.advance",
    ):
        sampler.apply(TokenNoise(0.5), start)
    ctx = toy_context(GaussianMixtureSampler(num_steps=3))
    with pytest.raises(
        CapabilityError, match="Drawing tokens again needs a state that carries 'token_noise'"
    ):
        ctx.mutate(ctx.advance(ctx.init(1)), TokenNoise(0.5))


@pytest.mark.parametrize("move", [Blend(0.2), Neighbour(0.9)])
def test_predictions_of_the_parent_are_dropped(move: Move) -> None:
    child = move.apply(TOY, state(noise(0), preview=noise(1), other=noise(2)), noise(3))
    assert set(child.carry) == {"other"}


def test_deterministic_steps_carry_nothing_to_mutate() -> None:
    sampler = GaussianMixtureSampler(num_steps=3, eta=0.0)
    after = sampler.advance(sampler.init(CONDITION, (0,), seed=0))
    with pytest.raises(CapabilityError, match="step 1 carries none; build the sampler with stochastic=True"):
        StepNoise(0.2).apply(sampler, after, torch.zeros_like(after.latents))


@pytest.mark.parametrize(
    "move",
    [
        Blend(0.2),
        Neighbour(0.9),
        StepNoise(0.3),
        AddStepNoise(0.0, 0.5),
        TokenNoise(0.2),
        Select(),
        Recondition(),
        Renoise(2),
    ],
)
def test_descriptions_make_the_move_again(move: Move) -> None:
    assert from_description(describe(move)) == move


def test_a_move_that_nobody_registered_cannot_be_made_again() -> None:
    with pytest.raises(ConfigError, match="must be registered but 'fling' is not; import the module"):
        from_description({"name": "fling", "speed": 3})


@pytest.mark.parametrize("move", [StepNoise(0.2), AddStepNoise(), Renoise(1), Select(), Recondition()])
def test_placeholders_stay_placeholders_at_the_right_step(move: Move) -> None:
    sampler = GaussianMixtureSampler(num_steps=3)
    real = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 2)
    assert sampler.apply(move, real.placeholder()).step == sampler.apply(move, real).step
    assert sampler.apply(move, real.placeholder()).is_placeholder


def test_a_strength_is_a_move_of_the_initial_noise_or_of_the_last_step() -> None:
    sampler = GaussianMixtureSampler(num_steps=4)
    found = [sampler.move(step, 0.3) for step in range(5)]
    # the last step adds no noise, so there is none to redo after it
    assert found == [Blend(0.3), StepNoise(0.3), StepNoise(0.3), StepNoise(0.3), None]
    still = GaussianMixtureSampler(num_steps=4, eta=0.0)
    assert [still.move(step, 0.3) for step in range(5)] == [Blend(0.3), None, None, None, None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blend(1.5), r"beta must be in \[0, 1\] but got 1.5"),
        (lambda: StepNoise(-0.1), r"beta must be in \[0, 1\] but got -0.1"),
        (lambda: Neighbour(1.0), r"tau must be in \[0, 1\) but got 1.0"),
        (lambda: AddStepNoise(blend=2), "blend must be in"),
        (lambda: TokenNoise(1.5), r"share must be in \[0, 1\] but got 1.5"),
    ],
)
def test_rejects(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@register_move
@dataclass(frozen=True)
class Stretch(Move):
    """A move of one's own, with values that JSON has otherwise."""

    factors: tuple[float, ...]
    least: float = math.nan
    name: ClassVar[str] = "stretch"
    draws_noise: ClassVar[bool] = False

    def apply(self, sampler: Sampler, state: State, noise: torch.Tensor) -> State:
        return replace(state, latents=state.latents * torch.tensor(self.factors))


def test_a_search_by_a_move_of_ones_own_survives_a_kill_anywhere(tmp_path: Path) -> None:
    def search(ctx: SearchContext) -> State:
        state = ctx.mutate(ctx.advance(ctx.init(2), 2), Stretch((0.9, 1.1)), [0, 1, 1])
        state = ctx.finish(state)
        ctx.score(state)
        return state

    kill_everywhere(search, lambda: GaussianMixtureSampler(num_steps=4), TargetReward(), tmp_path)
