"""States: one way to reindex, everything goes along, nothing changes in place."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Cost, Prompt, Rows, Sampler, Score, State, Verifier


def state(uids: tuple[int, ...] = (4, 5, 6), step: int = 2, offset: float = 0.0) -> State:
    n = len(uids)
    return State(
        latents=torch.arange(n * 2, dtype=torch.float32).view(n, 2) + offset,
        step=step,
        uids=uids,
        prompt=Prompt("x"),
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


@pytest.mark.parametrize(
    "other", [state(step=3), replace(state(), seed=2), replace(state(), prompt=Prompt("y"))]
)
def test_cat_refuses_states_that_do_not_belong_together(other: State) -> None:
    with pytest.raises(ValueError, match="must be at one step of one search but are at steps"):
        State.cat([state(), other])


def test_cat_refuses_different_carry() -> None:
    with pytest.raises(
        ValueError, match=r"must carry the same entries but carry \[\['history', 'words'\], \[\]\]"
    ):
        State.cat([state(), replace(state(), carry={})])


def test_ghosts_can_be_reindexed_and_joined() -> None:
    ghost = state().ghost()
    assert ghost.is_ghost and not state().is_ghost
    assert ghost.select([1, 1, 0]).latents.shape == (3, 2)
    joined = State.cat([ghost, state((9,))])
    assert joined.is_ghost and joined.uids == (4, 5, 6, 9) and joined.latents.shape == (4, 2)


def test_costs_add_and_multiply() -> None:
    assert Cost(1.5, 2, 3) + Cost(1, 1, 1) * 2 == Cost(3.5, 4, 5)


def test_unscored_has_a_reason() -> None:
    score = Score.unscored("blurred")
    assert score.value != score.value and score.reason == "blurred"


def test_protocols_are_checkable() -> None:
    assert isinstance(GaussianMixtureSampler(), Sampler) and not isinstance(object(), Sampler)
    assert isinstance(TargetReward(), Verifier) and not isinstance(GaussianMixtureSampler(), Verifier)
