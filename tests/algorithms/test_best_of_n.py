"""Best of n: as many independent samples as asked for or paid for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from toy_search import events, run, toy_context
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.errors import BudgetSpent, ConfigError
from tts_vision.testing.contracts import AlgorithmContract, FakeClock, SlowReward, results
from tts_vision.types import State


class TestContract(AlgorithmContract):
    @pytest.fixture
    def kills(self) -> None:
        return None

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return best_of_n


def test_spends_exactly_what_there_is() -> None:
    ctx = toy_context(nfe=5 * 37)
    state = run(best_of_n, ctx)
    assert len(state) == 37
    assert ctx.ledger.spent.nfe == 5 * 37
    assert state.uids == tuple(range(37))


def test_is_the_best_of_the_same_samples_made_one_by_one() -> None:
    ctx = toy_context()
    run(best_of_n, ctx, n=7)
    single = {}
    for n in range(1, 8):
        one = toy_context()
        run(best_of_n, one, n=n)
        single.update(results(one))
    assert results(ctx) == single
    assert ctx.best is not None and ctx.best.uid == max(single, key=lambda uid: single[uid])


def test_scores_each_chunk_before_the_next() -> None:
    kinds: list[str] = []
    ctx = toy_context(max_batch=2, observer=lambda _, event: kinds.append(event.what))
    run(best_of_n, ctx, n=5)
    assert kinds == ["init", "advance", "decode", "score"] * 3


def test_more_than_is_paid_for_is_refused_before_anything_is_computed() -> None:
    ctx = toy_context(nfe=5 * 3 + 4)
    with pytest.raises(
        ConfigError, match="must fit its budget of 19 nfe but n=10 costs 50; lower it, leave it out to fill"
    ):
        run(best_of_n, ctx, n=10)
    assert ctx.ledger.spent.nfe == 0 and not ctx.events
    with pytest.raises(ConfigError, match="must fit its budget of 4 verifier calls but n=10 costs 10"):
        run(best_of_n, toy_context(verifier_calls=4), n=10)


def test_plans_under_a_time_limit_by_a_first_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = toy_context(verifier=SlowReward(FakeClock(monkeypatch), 0.9), seconds=10)
    state = run(best_of_n, ctx)
    # 11 samples of 0.9 s fit, of which the first one measures
    assert len(state) == 10 and len(ctx.candidates) == 11
    # no more at a time than there are, in case that the forecast is wrong
    assert [len(event.uids) for event in events(ctx, "init")] == [1, 1, 2, 4, 3]
    assert ctx.ledger.elapsed <= 10


def test_time_ends_a_search_of_a_given_size_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = toy_context(verifier=SlowReward(FakeClock(monkeypatch), 0.9), seconds=10)
    with pytest.raises(BudgetSpent):
        run(best_of_n, ctx, n=100)
    # a batch of 16 at once could have ended with nothing
    assert len(ctx.candidates) == 11 and ctx.best is not None
    assert [len(event.uids) for event in events(ctx, "init")] == [1, 1, 2, 4, 8]


@pytest.mark.parametrize("n", [0, -3])
def test_rejects_no_samples(n: int) -> None:
    with pytest.raises(ConfigError, match=f"n must be at least 1 but got {n}"):
        run(best_of_n, toy_context(), n=n)
