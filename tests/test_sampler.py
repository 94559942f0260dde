"""The base class of samplers: the methods that a subclass inherits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from toy_tokens import TokenSampler

from tts_vision.condition import Condition
from tts_vision.errors import CapabilityError
from tts_vision.ledger import Ledger
from tts_vision.moves import PREVIEW, Blend, Renoise, Select, StepNoise, TokenNoise
from tts_vision.rng import row_noise
from tts_vision.sampler import Sampler, shared_rows
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import Cost, Media, Prompt, State

CIRCLE, STAR = Condition("a circle"), Condition("a star")


class Minimal(Sampler):
    """Defines no more than it must; a step adds the length of the text, which is also its cost."""

    name = "minimal"
    num_steps = 3

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        return State.initial(torch.zeros(len(uids), 2), uids, condition, seed)

    def advance(self, state: State, steps: int = 1) -> State:
        self.meter.charge(self.price(state, steps))
        added = torch.tensor([[float(len(c.text) * steps)] for c in state.conditions])
        return replace(state, latents=state.latents + added, step=state.step + steps)

    def decode(self, state: State) -> list[Media]:
        return []

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        return Cost(nfe=len(condition.text) * steps)


class Sharing(Minimal):
    name = "sharing"
    shares_forwards = True


def test_a_sampler_that_defines_what_it_must() -> None:
    sampler, ledger = Minimal(), Ledger()
    state = sampler.advance(sampler.init(CIRCLE, [0, 1], seed=0))  # without a ledger it keeps no account
    sampler.bind(ledger)
    assert sampler.advance(state, 2).latents.tolist() == [[24.0, 24.0]] * 2
    assert ledger.spent == Cost(nfe=2 * 8 * 2)
    assert (sampler.modality, sampler.last_noisy_step, sampler.capabilities) == ("image", -1, frozenset())
    assert sampler.move(0, 1.0) is None and sampler.move(1, 1.0) is None
    assert sampler.condition_of(Prompt("a circle", {"tag": "counting"})) == CIRCLE


def test_an_ability_that_is_lacking_is_named_with_a_remedy() -> None:
    sampler = Minimal()
    state = sampler.init(CIRCLE, [0], seed=0)
    for work, message in (
        (lambda: sampler.preview(state), "Decoding an unfinished sample needs a sampler with 'preview'"),
        (lambda: sampler.renoise(state, 0), "Going back to an earlier step needs a sampler with 'renoise'"),
        (lambda: sampler.gradient(state, 1, lambda x: x), "A gradient needs .* without offloading"),
        (lambda: sampler.gradient_cost(CIRCLE, 0, 1), "A gradient needs a sampler with 'differentiable'"),
        (
            lambda: sampler.requires("step_noise", "this"),
            r"'minimal' has \[\]; build it with stochastic=True",
        ),
        (lambda: sampler.requires("noise", "this"), "This needs .*; use another algorithm or model"),
    ):
        with pytest.raises(CapabilityError, match=message):
            work()
    sampler.requires("", "nothing")


def test_the_price_of_rows_of_different_conditions() -> None:
    state = State.cat([Minimal().init(c, [i], seed=0) for i, c in enumerate((CIRCLE, STAR, CIRCLE, STAR))])
    assert Minimal().price(state, 2) == Cost(nfe=2 * (2 * 8 + 2 * 6))
    # rows that agree in latents and condition pay once for the first step, and by themselves after it
    assert Sharing().price(state, 1) == Cost(nfe=8 + 6)
    assert Sharing().price(state, 3) == Cost(nfe=8 + 6 + 2 * (2 * 8 + 2 * 6))
    assert Sharing().price(state, 0) == Cost()
    assert Sharing().price(state.placeholder(), 1) == Cost(nfe=2 * (8 + 6))
    apart = replace(state, latents=torch.arange(8.0).view(4, 2))
    assert Sharing().price(apart, 1) == Cost(nfe=2 * (8 + 6))


def test_rows_are_shared_where_latents_and_conditions_agree() -> None:
    latents = torch.tensor([[0, 1], [0, 1], [2, 3], [0, 1], [2, 3]])
    state = State(latents, 1, tuple(range(5)), (CIRCLE, STAR, CIRCLE, CIRCLE, CIRCLE), 0)
    first, of_row = shared_rows(state)
    assert (first, of_row) == ([0, 1, 2], [0, 1, 2, 0, 2])
    whole = state.select(first).select(of_row)
    assert torch.equal(whole.latents, latents) and whole.conditions == state.conditions
    same = replace(state, conditions=(CIRCLE,) * 5)
    assert shared_rows(same) == ([0, 2], [0, 0, 1, 0, 1])


def test_a_new_condition_drops_the_preview_and_nothing_else() -> None:
    sampler = GaussianMixtureSampler(num_steps=4, order=2)
    state = sampler.advance(sampler.init(CIRCLE, [0, 1], seed=0), 2)
    changed = sampler.recondition(replace(state, conditions=(CIRCLE, STAR)))
    assert set(state.carry) - set(changed.carry) == {PREVIEW}
    assert torch.equal(changed.latents, state.latents)
    assert torch.equal(sampler.advance(changed, 2).latents, sampler.advance(state, 2).latents)


def test_the_default_moves_are_those_of_noise() -> None:
    stochastic, rigid = GaussianMixtureSampler(num_steps=4), GaussianMixtureSampler(num_steps=4, eta=0.0)
    found = [stochastic.move(step, 0.3) for step in range(5)]
    # the last step adds no noise, and a finished sample is past all moves
    assert found == [Blend(0.3), StepNoise(0.3), StepNoise(0.3), StepNoise(0.3), None]
    assert [rigid.move(step, 0.3) for step in range(3)] == [Blend(0.3), None, None]
    tokens = TokenSampler((1, 2, 3))
    assert [tokens.move(step, 0.5) for step in range(4)] == [None, TokenNoise(0.25), TokenNoise(0.25), None]


def test_moves_are_applied_with_noise_of_each_child() -> None:
    sampler = GaussianMixtureSampler(num_steps=4)
    start = sampler.init(CIRCLE, [0], seed=7).select([0, 0], uids=(5, 6))
    start = replace(start, conditions=(CIRCLE, STAR), keepalive=frozenset({"a blob"}))
    children = sampler.apply(Blend(1.0), start)
    assert torch.equal(children.latents, row_noise(7, "mutate", (5, 6), 0, start.latents))
    assert (children.uids, children.conditions, children.step) == ((5, 6), (CIRCLE, STAR), 0)
    assert children.keepalive == {"a blob"}
    assert torch.equal(sampler.apply(Select(), start).latents, start.latents)


def test_moves_of_states_whose_tensors_are_gone_only_say_where_they_lead() -> None:
    sampler = GaussianMixtureSampler(num_steps=4)
    state = sampler.advance(sampler.init(CIRCLE, [0, 1], seed=7), 3).placeholder()
    back = sampler.apply(Renoise(1), state)
    assert back.is_placeholder and (back.step, back.uids) == (1, (0, 1))


def test_rows_of_different_conditions_are_computed_in_groups_and_come_back_in_order() -> None:
    seen: list[tuple[int, ...]] = []

    def work(part: State) -> State:
        seen.append(part.uids)
        return Minimal().advance(part)

    conditions = (STAR, CIRCLE, STAR, CIRCLE)
    state = State.cat([Minimal().init(c, [i], seed=0) for i, c in enumerate(conditions)])
    ahead = state.in_groups(lambda condition: condition.text, work)
    assert seen == [(0, 2), (1, 3)]
    assert ahead.uids == (0, 1, 2, 3) and ahead.conditions == conditions
    assert ahead.latents[:, 0].tolist() == [6.0, 8.0, 6.0, 8.0]
