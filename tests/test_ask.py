"""Answers from elsewhere: asked once, charged, recorded, and repeated from the record."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toy_search import events, toy_context
from tts_vision.context import SearchContext
from tts_vision.errors import BudgetSpent, CapabilityError, ConfigError, StorageError
from tts_vision.journal import Journal
from tts_vision.testing.contracts import FakeClock, kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Cost, State


def never(*arguments: Any) -> Any:
    raise AssertionError(f"asked again: {arguments}")


def test_an_answer_is_recorded_and_charged_before_it_is_asked() -> None:
    ctx = toy_context()

    def critic(text: str, times: int) -> dict[str, Any]:
        assert ctx.ledger.spent == Cost(verifier_calls=2) and not ctx.events
        return {"text": text * times, "sure": True, "others": [1, 2.5, None]}

    answer = ctx.ask("critic", critic, "ab", 2, cost={"critic": 2})
    assert answer == {"text": "abab", "sure": True, "others": [1, 2.5, None]}
    (event,) = events(ctx, "critic")
    assert event.kind == "answer" and event.value == answer
    assert event.spent.verifier_calls == 2 and event.spent.calls == {"critic": 2}
    assert ctx.ask("free", lambda: 3) == 3 and ctx.ledger.spent == Cost(verifier_calls=2)
    ctx.ask("drafter", lambda: "x", cost=Cost(nfe=4, tokens=9))
    assert ctx.ledger.spent == Cost(nfe=4, verifier_calls=2, tokens=9)
    assert ctx.ledger.calls == {"critic": 2}


def test_an_answer_is_as_json_has_it_from_the_start() -> None:
    # so that a resumed search, which reads it from a file, does not differ
    assert toy_context().ask("pair", lambda: ((1, 2), {3: "x"})) == [[1, 2], {"3": "x"}]


def test_a_resumed_search_takes_the_answers_from_its_record(tmp_path: Path) -> None:
    first = toy_context(journal=Journal(tmp_path))
    given = [
        first.ask("critic", lambda: ["better", "worse"], cost={"critic": 1}),
        first.ask("critic", lambda: None),
        first.ask("critic", lambda: {"score": math.nan, "worst": -math.inf, "best": 1 / 3}),
    ]
    first.interrupted("killed")
    again = toy_context(journal=Journal(tmp_path))
    taken = [
        again.ask("critic", never, cost={"critic": 1}),
        again.ask("critic", never),
        again.ask("critic", never),
    ]
    assert taken[:2] == given[:2] == [["better", "worse"], None]
    assert math.isnan(taken[2]["score"]) and taken[2]["worst"] == -math.inf and taken[2]["best"] == 1 / 3
    assert again.ledger.spent == first.ledger.spent == Cost(verifier_calls=1)
    assert again.ledger.calls == {"critic": 1}
    assert again.ask("critic", lambda: "new") == "new"


def test_a_resumed_search_asks_for_the_same(tmp_path: Path) -> None:
    ctx = toy_context(journal=Journal(tmp_path))
    ctx.ask("critic", lambda: 1)
    ctx.interrupted("killed")
    for ask in (lambda c: c.ask("reader", never), lambda c: c.init(1)):
        with pytest.raises(StorageError, match=r"must repeat itself .* ask others through ctx.ask"):
            ask(toy_context(journal=Journal(tmp_path)))


def test_a_function_that_fails_is_asked_again(tmp_path: Path) -> None:
    def down() -> str:
        raise ConnectionError("the endpoint is down")

    ctx = toy_context(journal=Journal(tmp_path))
    ctx.init(1)
    with pytest.raises(ConnectionError, match="is down"):
        ctx.ask("critic", down)
    assert not events(ctx, "critic")
    ctx.interrupted("ConnectionError")
    again = toy_context(journal=Journal(tmp_path))
    again.init(1)
    assert again.ask("critic", lambda: "up") == "up"


@pytest.mark.parametrize("cost", [{"critic": 3}, Cost(verifier_calls=3)])
def test_what_cannot_be_paid_for_is_not_asked(cost: Any) -> None:
    ctx = toy_context(verifier_calls=5)
    assert ctx.ask("critic", lambda: 1, cost=cost) == 1
    with pytest.raises(BudgetSpent):
        ctx.ask("critic", never, cost=cost)
    assert ctx.ledger.spent.verifier_calls == 3 and len(events(ctx, "critic")) == 1
    assert ctx.ask("critic", lambda: 2) == 2, "free answers need no budget"


def test_a_search_that_ended_by_its_budget_asks_nothing_new(tmp_path: Path) -> None:
    def search(ctx: SearchContext, critic: Callable[[], int]) -> None:
        try:
            for _ in range(9):
                ctx.ask("critic", critic, cost={"critic": 2})
        except BudgetSpent:
            ctx.done(budget_spent=True)

    first = toy_context(journal=Journal(tmp_path), verifier_calls=5)
    search(first, lambda: 1)
    again = toy_context(journal=Journal(tmp_path), verifier_calls=5)
    search(again, never)
    assert len(events(again, "critic")) == 2 and again.ledger.spent == first.ledger.spent


@pytest.mark.parametrize(
    "answer", [torch.ones(2), object(), {1, 2}, b"bytes", {"image": torch.zeros(1)}, {(1, 2): 3}]
)
def test_answers_are_plain_values(answer: Any) -> None:
    ctx = toy_context()
    with pytest.raises(
        ConfigError, match=r"values that JSON can hold but that of 'critic' is not: .*; convert"
    ):
        ctx.ask("critic", lambda: answer)
    assert not ctx.events


@pytest.mark.parametrize("name", ["init", "select", "advance", "gradient", "decode", "score", "features"])
def test_names_of_operations_are_taken(name: str) -> None:
    ctx = toy_context()
    with pytest.raises(
        ConfigError, match=f"need a name of their own but '{name}' is an operation; rename it"
    ):
        ctx.ask(name, never)
    assert not ctx.events and ctx.op == 0


def test_no_operation_is_part_of_an_answer() -> None:
    ctx = toy_context()
    state = ctx.finish(ctx.init(2))
    before = ctx.op
    with pytest.raises(ConfigError, match="no operation but 'score' came while 'critic' was asked; run it"):
        ctx.ask("critic", lambda: ctx.score(state).tolist())
    assert not events(ctx, "critic") and ctx.op == before + 1
    scores = ctx.score(state).tolist()
    assert ctx.ask("critic", max, scores) == max(scores)


def test_asking_takes_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)

    def slow() -> str:
        clock.now += 3
        return "x"

    ctx = toy_context(seconds=5)
    ctx.ask("critic", slow)
    assert ctx.ledger.seconds == {"ask": 3} and ctx.ledger.remaining().seconds == 2


def test_numbers_that_rows_carry_are_measured_once(tmp_path: Path) -> None:
    def search(journal: Journal) -> tuple[SearchContext, torch.Tensor]:
        ctx = toy_context(journal=journal)
        state = ctx.advance(ctx.init(3), 2)
        return ctx, ctx.measure(state, "step_noise_std")

    first, stds = search(Journal(tmp_path))
    assert stds.dtype == torch.float64 and stds.shape == (3,) and (stds > 0).all()
    (event,) = events(first, "measure step_noise_std")
    assert event.uids == (0, 1, 2) and event.value == stds.tolist()
    first.interrupted("killed")
    for path in (tmp_path / "state").iterdir():
        path.unlink()  # a resumed search needs no tensors for it
    again, same = search(Journal(tmp_path))
    assert torch.equal(stds, same)
    with pytest.raises(CapabilityError, match="a state that carries 'nothing' but the one at step 0 carries"):
        again.measure(again.init(1), "nothing")


def test_notes_are_numbers_about_the_search() -> None:
    ctx = toy_context()
    ctx.note(ess=torch.tensor(2.5), generation=3)  # type: ignore[arg-type]
    assert [event.value for event in events(ctx, "note")] == [{"ess": 2.5, "generation": 3.0}]


def test_a_search_that_asks_survives_a_kill_anywhere(tmp_path: Path) -> None:
    asked: list[int] = []

    def search(ctx: SearchContext) -> State:
        state = ctx.init(3)
        for step in range(3):
            state = ctx.advance(state, 1)
            order = ctx.ask("order", lambda: asked.append(0) or [1, 0], cost={"critic": 1})
            state = ctx.select(state, order)
            words = ctx.ask("words", "wording {}".format, step)
            state = ctx.recondition(state, words, [0, 1])
        state = ctx.finish(state)
        ctx.score(state)
        return state

    kill_everywhere(search, lambda: GaussianMixtureSampler(num_steps=5), TargetReward(), tmp_path)
    # each search asks three times, whatever session it is in
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(asked) == 3 * len(folders)
