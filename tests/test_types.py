"""States: one way to reindex, everything goes along, nothing changes in place."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.types import Cost, Rows, Score, State

CONDITION = Condition("x")


def state(uids: tuple[int, ...] = (4, 5, 6), step: int = 2, offset: float = 0.0) -> State:
    n = len(uids)
    return State(
        latents=torch.arange(n * 2, dtype=torch.float32).view(n, 2) + offset,
        step=step,
        uids=uids,
        conditions=(CONDITION,) * n,
        seed=1,
        carry={"history": torch.arange(n) + offset, "words": Rows(f"w{uid}" for uid in uids)},
        shared={"order": 2},
        keepalive=frozenset({uids}),
    )


def test_select_takes_everything_along() -> None:
    chosen = state().select([2, 0, 0])
    assert chosen.uids == (6, 4, 4)
    assert chosen.latents.tolist() == [[4, 5], [0, 1], [0, 1]]
    assert chosen.carry["history"].tolist() == [2, 0, 0]  # type: ignore[union-attr]
    assert chosen.carry["words"] == ("w6", "w4", "w4")
    assert (chosen.step, chosen.shared, chosen.keepalive) == (2, {"order": 2}, state().keepalive)


def test_select_can_give_new_identities() -> None:
    assert state().select([0, 0], uids=[4, 9]).uids == (4, 9)


def test_conditions_belong_to_rows() -> None:
    first, second = Condition("one"), Condition("two")
    mixed = replace(state(), conditions=(first, second, first))
    assert mixed.select([1, 0, 1]).conditions == (second, first, second)
    assert State.cat([mixed, mixed.select([1])]).conditions == (first, second, first, second)


def test_particles_at_step_0_have_one_condition() -> None:
    start = State.initial(torch.zeros(2, 3), [5, 7], CONDITION, 4)
    assert (start.step, start.uids, start.seed, start.conditions) == (0, (5, 7), 4, (CONDITION,) * 2)
    assert start.carry == {} and start.shared == {}


def test_groups_of_conditions_are_worked_on_apart_and_keep_the_order_of_rows() -> None:
    first, second = Condition("one"), Condition("two")
    mixed = replace(state(), conditions=(first, second, first))
    seen: list[tuple[int, ...]] = []

    def work(rows: State) -> State:
        seen.append(rows.uids)
        return replace(rows, latents=rows.latents + len(seen), step=rows.step + 1)

    done = mixed.in_groups(lambda condition: condition.text, work)
    assert seen == [(4, 6), (5,)]
    assert done.uids == mixed.uids and done.conditions == mixed.conditions and done.step == 3
    assert (done.latents - mixed.latents).tolist() == [[1, 1], [2, 2], [1, 1]]
    seen.clear()
    mixed.in_groups(lambda condition: "all alike", work)
    assert seen == [(4, 5, 6)]


def test_select_copies() -> None:
    original = state()
    original.select([0]).latents.add_(5)
    assert torch.equal(original.latents, state().latents)


def test_states_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        state().step = 3  # type: ignore[misc]


def test_cat_joins_rows() -> None:
    joined = State.cat([state((1, 2)), state((3,), offset=10)])
    assert joined.uids == (1, 2, 3) and len(joined) == 3
    assert joined.latents[2].tolist() == [10, 11]
    assert joined.carry["history"].tolist() == [0, 1, 10]  # type: ignore[union-attr]
    assert joined.carry["words"] == ("w1", "w2", "w3")
    assert joined.keepalive == {(1, 2), (3,)}


def test_cat_undoes_splitting() -> None:
    whole = state()
    again = State.cat([whole.select([0]), whole.select([1, 2])])
    assert torch.equal(again.latents, whole.latents) and again.uids == whole.uids


@pytest.mark.parametrize("other", [state(step=3), replace(state(), seed=2)])
def test_cat_refuses_states_that_do_not_belong_together(other: State) -> None:
    with pytest.raises(ValueError, match="must be at one step of one search but are at steps"):
        State.cat([state(), other])


def test_cat_refuses_latents_of_different_shapes() -> None:
    with pytest.raises(ValueError, match=r"latents of one shape but have \[\(2,\), \(5,\)\]; give all"):
        State.cat([state(), replace(state(), latents=torch.zeros(3, 5))])


def test_cat_refuses_different_carry() -> None:
    with pytest.raises(
        ValueError, match=r"must carry the same entries but carry \[\['history', 'words'\], \[\]\]"
    ):
        State.cat([state(), replace(state(), carry={})])


def test_cat_refuses_rows_of_different_shapes() -> None:
    long = replace(state(), carry={**state().carry, "history": torch.zeros(3, 7)})
    with pytest.raises(ConfigError, match=r"'history' has \[\(\), \(7,\)\], as caches.*pad the texts"):
        State.cat([state(), long])


def test_placeholders_can_be_reindexed_and_joined() -> None:
    placeholder = state().placeholder()
    assert placeholder.is_placeholder and not state().is_placeholder
    assert placeholder.select([1, 1, 0]).latents.shape == (3, 2)
    joined = State.cat([placeholder, state((9,))])
    assert joined.is_placeholder and joined.uids == (4, 5, 6, 9) and joined.latents.shape == (4, 2)


def test_placeholders_of_another_length_can_be_joined() -> None:
    # a placeholder is shaped as the tokens before the steps that are not done again
    before = replace(state((1,)), latents=torch.zeros(1, 5)).placeholder()
    for states in ([before, state((9,))], [state((9,)), before], [before, state((9,)).placeholder()]):
        assert State.cat(states).is_placeholder


def test_costs_add_and_multiply() -> None:
    assert Cost(1.5, 2, 3) + Cost(1, 1, 1) * 2 == Cost(3.5, 4, 5)


def test_unscored_has_a_reason() -> None:
    score = Score.unscored("blurred")
    assert score.value != score.value and score.reason == "blurred"
