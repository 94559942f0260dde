"""Budgets are read, resolved, and never passed."""

from __future__ import annotations

import pytest

from tts_vision.errors import BudgetSpent, ConfigError
from tts_vision.ledger import Budget, Ledger, Remaining
from tts_vision.testing.contracts import FakeClock
from tts_vision.types import Cost


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("40x", Budget(times=40)),
        (" 2.5 x ", Budget(times=2.5)),
        ("nfe=2000", Budget(nfe=2000)),
        ("seconds = 60", Budget(seconds=60)),
        ("verifier_calls=100", Budget(verifier_calls=100)),
        ("40x and seconds=1e2", Budget(times=40, seconds=100)),
        ("nfe=10, verifier_calls=3 and seconds=2", Budget(nfe=10, verifier_calls=3, seconds=2)),
    ],
)
def test_parses(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text", ["", "lots", "40", "x", "nfe=", "nfe=many", "steps=4", "1.2.3x", "40x or nfe=3"]
)
def test_rejects_what_is_no_budget(text: str) -> None:
    with pytest.raises(ConfigError, match="A budget must be '40x'"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0x", "must be positive but got '0x'"),
        ("nfe=0", "must be positive"),
        ("seconds=1e999", "must be positive"),
        ("4x and 5x", "names each limit once"),
        ("verifier_calls=0.5", "takes 1 verifier calls, but gives 0; raise it to 1"),
    ],
)
def test_rejects_useless_limits(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget.parse(text).resolve(Cost(nfe=1))


def test_resolves_multiples_of_a_sample() -> None:
    assert Budget(times=4).resolve(Cost(nfe=50)) == Budget(nfe=200)
    assert Budget(times=4, nfe=100).resolve(Cost(nfe=50)) == Budget(nfe=100)
    # 3 * 0.1 is a little more than 0.3
    assert Budget(times=3).resolve(Cost(nfe=0.1)) == Budget(nfe=0.3)


def test_refuses_less_than_one_sample() -> None:
    with pytest.raises(ConfigError, match="must pay for one sample, which costs 50 nfe, but gives 49"):
        Budget(nfe=49).resolve(Cost(nfe=50))


def test_refuses_less_than_the_members_of_a_verifier_need() -> None:
    with pytest.raises(ConfigError, match="which takes 3 verifier calls, but gives 2; raise it to 3"):
        Budget(verifier_calls=2).resolve(Cost(nfe=1, verifier_calls=3))
    assert Budget(verifier_calls=3).resolve(Cost(nfe=1, verifier_calls=3)).verifier_calls == 3


@pytest.mark.parametrize("limits", [{"nfe": 10.0}, {"verifier_calls": 10}])
def test_charges_up_to_the_limit_and_no_further(limits: dict[str, int]) -> None:
    ledger = Ledger(Budget(**limits))
    one = Cost(nfe=1, verifier_calls=1)
    for _ in range(10):
        ledger.charge(one)
    with pytest.raises(BudgetSpent):
        ledger.charge(one)
    assert ledger.spent == one * 10, "a refused charge must leave nothing behind"
    assert ledger.affordable(one) == 0


def test_affordable_takes_the_tightest_limit() -> None:
    ledger = Ledger(Budget(nfe=100, verifier_calls=7))
    assert ledger.affordable(Cost(nfe=10, verifier_calls=1)) == 7
    assert ledger.affordable(Cost(nfe=30, verifier_calls=1)) == 3
    assert ledger.affordable(Cost(nfe=100)) == 1
    assert ledger.affordable(Cost(decodes=1)) is None
    assert Ledger().affordable(Cost(nfe=1)) is None


def test_fractional_costs_add_up() -> None:
    ledger = Ledger(Budget(nfe=0.3))
    assert ledger.affordable(Cost(nfe=0.1)) == 3
    for _ in range(3):
        ledger.charge(Cost(nfe=0.1))
    with pytest.raises(BudgetSpent):
        ledger.charge(Cost(nfe=0.1))


def test_seconds_are_forecast_from_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    ledger = Ledger(Budget(seconds=10))
    sample = Cost(nfe=4, verifier_calls=1)
    assert ledger.affordable(sample) == 1, "nothing is known before the first sample"
    ledger.charge(sample)
    with ledger.phase("denoise"):
        clock.now += 2
    with ledger.phase("verify"):
        clock.now += 1
    clock.now += 0.5  # overhead counts as well
    assert ledger.elapsed == 3.5
    assert ledger.affordable(sample) == 2
    assert ledger.affords(sample * 2) and not ledger.affords(sample * 3)
    clock.now += 4
    with pytest.raises(BudgetSpent):
        ledger.charge(sample)


def test_inner_phases_interrupt_outer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    ledger = Ledger()
    with ledger.phase("denoise"):
        clock.now += 1
        with ledger.phase("encode"):
            clock.now += 2
        clock.now += 4
    with pytest.raises(RuntimeError), ledger.phase("decode"):
        clock.now += 8
        raise RuntimeError
    assert ledger.seconds == {"denoise": 5, "encode": 2, "decode": 8}


def test_goes_on_from_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    ledger = Ledger()
    ledger.charge(Cost(3, 2, 1))
    with ledger.phase("verify"):
        clock.now += 2
    snapshot = ledger.read()
    clock.now += 100  # the process is gone for a while
    later = Ledger()
    later.restore(snapshot)
    clock.now += 1
    assert later.spent == Cost(3, 2, 1)
    assert later.elapsed == 3
    with later.phase("verify"):
        clock.now += 1
    assert later.seconds == {"verify": 3}
    assert snapshot.seconds == {"verify": 2}


def test_calls_are_counted_by_name() -> None:
    ledger = Ledger(Budget(verifier_calls=6))
    ledger.charge_calls({"cheap": 3, "dear": 1})
    snapshot = ledger.read()
    ledger.charge_calls({"cheap": 1})
    with pytest.raises(BudgetSpent):
        ledger.charge_calls({"dear": 1, "other": 1})
    assert ledger.calls == {"cheap": 4, "dear": 1}, "a refused charge must leave nothing behind"
    assert ledger.spent == Cost(verifier_calls=5)
    assert snapshot.calls == {"cheap": 3, "dear": 1}
    later = Ledger()
    later.restore(snapshot)
    later.charge_calls({"dear": 2})
    assert later.read().calls == {"cheap": 3, "dear": 3}
    assert snapshot.calls == {"cheap": 3, "dear": 1}


def test_remaining_is_a_snapshot() -> None:
    ledger = Ledger(Budget(nfe=5))
    left = ledger.remaining()
    ledger.charge(Cost(nfe=4))
    assert left == Remaining(nfe=5)
    assert left.times(Cost(nfe=2)) == 2 and ledger.affordable(Cost(nfe=2)) == 0


def test_peak_memory_is_measured_without_an_accelerator_too() -> None:
    assert Ledger().read().peak_memory > 10 * 2**20
