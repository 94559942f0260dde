"""A forecast of the seconds and the cost of a search, from a short measurement on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from tts_vision.context import CHUNK, SearchContext
from tts_vision.ledger import Budget, Ledger, Remaining
from tts_vision.rehearsal import Rehearsal, largest_size
from tts_vision.scoring import safe_scores
from tts_vision.types import Cost, Invalid, State
from tts_vision.verifier import Asked

if TYPE_CHECKING:
    from tts_vision.config import RunConfig
    from tts_vision.resolve import Setup

SLOW = 5.0
"""Seconds of one step of one sample above which larger batches are not timed."""
_UNITS = ("nfe", "tokens", "macs", "verifier_calls")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Rate:
    """Seconds for one unit of work: fastest, most likely, slowest measurement."""

    low: float
    likely: float
    high: float

    @classmethod
    def of(cls, single: Sequence[float], batched: Sequence[float]) -> Rate:
        """The rate of measurements of one row alone and of rows in a batch, in seconds per row.

        A search computes in batches, so these are the more likely ones.
        """
        every = [*single, *batched]
        return cls(min(every), median(batched or single), max(every))


@dataclass(frozen=True)
class Speed:
    """How fast a model and a verifier are here.

    Attributes:
        compute: Seconds per macs where they are counted, else per nfe.
        decode: Seconds per decoded sample or preview.
        call: Seconds per scored sample.
        sample: Cost of one plain sample and its score.
    """

    compute: Rate
    decode: Rate
    call: Rate
    sample: Cost

    def seconds(self, cost: Cost) -> Rate:
        """The seconds that a cost takes."""
        parts = ((self.compute, cost.compute), (self.decode, cost.decodes), (self.call, cost.verifier_calls))
        low, likely, high = (
            sum(getattr(rate, name) * n for rate, n in parts) for name in ("low", "likely", "high")
        )
        return Rate(low, likely, high)


@dataclass(frozen=True)
class Estimate:
    """A forecast of what a search costs on this machine.

    Attributes:
        nfe: Network evaluations; None where unknown.
        macs: Multiply-accumulates, where they are counted.
        verifier_calls: Calls of the verifier; None where unknown.
        seconds: Seconds of the search itself, most likely; None if nothing could be measured. Loading the
            model and writing figures come on top.
        low: Seconds if all goes as fast as the fastest measurement.
        high: Seconds if all goes as slowly as the slowest one.
        note: What the numbers rest on, or why there are none.
    """

    nfe: float | None = None
    macs: float | None = None
    verifier_calls: float | None = None
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.seconds is None:
            return self.note
        return (
            f"about {self.seconds:.2g} s ({self.low:.2g} to {self.high:.2g} s), {self.nfe:g} network "
            f"evaluations, {self.verifier_calls:g} verifier calls"
        )


def measure(setup: Setup) -> Speed:
    """Times a step, a decoding and a scoring: of one sample and, unless that is slow, of a batch.

    Nothing is charged to any search. A person as verifier is not asked, so that scoring takes no time.
    """
    sampler, verifier = setup.sampler, setup.verifier
    sampler.bind(Ledger())
    batch = min(CHUNK, setup.config.max_batch or CHUNK)
    single = _times(setup, 1)
    is_slow = single[0][0] * sampler.price(_start(setup, 1), 1).compute > SLOW
    batched = ([], [], []) if batch == 1 or is_slow else _times(setup, batch)
    condition = sampler.condition_of(setup.prompt)
    scored = Cost(decodes=1, verifier_calls=sum(verifier.calls(1).values()))
    compute, decode, call = (Rate.of(one, many) for one, many in zip(single, batched))
    return Speed(compute, decode, call, sampler.cost(condition, 0, sampler.num_steps) + scored)


def _start(setup: Setup, rows: int) -> State:
    condition = setup.sampler.condition_of(setup.prompt)
    return setup.sampler.init(condition, range(rows), seed=setup.config.seed)


def _times(setup: Setup, rows: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds per unit of compute, per decoding and per verifier call, for some rows at once."""
    sampler, verifier = setup.sampler, setup.verifier
    start = _start(setup, rows)
    state = sampler.advance(start, 1)  # the first time takes longer, here and below
    price = sampler.price(start, 1).compute
    compute = [_timed(lambda: sampler.advance(start, 1))[1] / price for _ in range(2)]
    has_preview = "preview" in sampler.capabilities
    if not has_preview:
        state = sampler.advance(state, sampler.num_steps - 1)
    decode = sampler.preview if has_preview else sampler.decode
    samples = [sample for sample in decode(state) if not isinstance(sample, Invalid)]
    decoding = [_timed(lambda: decode(state))[1] / rows]
    if not samples or "human" in verifier.calls(1):
        return compute, decoding, [0.0]
    prompts = [setup.prompt] * len(samples)
    asked = Asked(step=1 if has_preview else None)
    safe_scores(verifier, samples, prompts, asked=asked)
    seconds = _timed(lambda: safe_scores(verifier, samples, prompts, asked=asked))[1]
    return compute, decoding, [seconds / sum(verifier.calls(len(samples)).values())]


def cost_of(setup: Setup) -> Cost:
    """The cost of a search, found by rehearsal, with that of samples for the rest of the budget.

    Raises:
        ConfigError: If the algorithm refuses its parameters, or the budget.
    """
    context = SearchContext(
        setup.sampler,
        setup.verifier,
        setup.prompt,
        seed=setup.config.seed,
        ledger=Ledger(replace(setup.budget, seconds=None)),
        max_batch=setup.config.max_batch,
        open_sampler=setup.open_sampler,
    )
    params = dict(setup.params)
    limited = context.ledger.budget != Budget()
    tops_up = bool(setup.size) and setup.size not in params and limited
    if tops_up:
        size = largest_size(context, setup.algorithm, params, setup.size)
        if size:
            params[setup.size] = size
        elif size == 0:
            return _topped_up(context, Cost())
        else:
            tops_up = False
    stage = Rehearsal(context)
    setup.algorithm(stage, **params)
    spent = stage.ledger.spent
    return _topped_up(context, spent) if tops_up else spent


def forecast(setup: Setup, speed: Speed) -> Estimate:
    """The forecast of a search."""
    cost = cost_of(setup)
    return _within(cost, speed, setup.budget, "a measurement on this machine and a rehearsal of the search")


def forecast_from_budget(config: RunConfig, speed: Speed) -> Estimate:
    """The forecast of a search whose model is busy: what its budget allows, as plain samples.

    Raises:
        ConfigError: If the budget does not pay for one sample.
    """
    budget = Budget.parse(config.budget).resolve(speed.sample)
    n = Remaining(**{unit: getattr(budget, unit) for unit in _UNITS}).times(speed.sample)
    if n is None:
        return Estimate(
            seconds=budget.seconds, low=budget.seconds, high=budget.seconds, nfe=0, verifier_calls=0
        )
    note = "an earlier measurement and the budget alone, because a search is running"
    return _within(speed.sample * n, speed, budget, note)


def _within(cost: Cost, speed: Speed, budget: Budget, note: str) -> Estimate:
    seconds = speed.seconds(cost)
    most = budget.seconds
    low, likely, high = (
        value if most is None else min(value, most) for value in (seconds.low, seconds.likely, seconds.high)
    )
    return Estimate(cost.nfe, cost.macs, cost.verifier_calls, likely, low, high, f"rests on {note}")


def _topped_up(context: SearchContext, spent: Cost) -> Cost:
    left = context.ledger.remaining()
    left = replace(
        left,
        **{
            unit.name: getattr(left, unit.name) - getattr(spent, unit.name)
            for unit in fields(Cost)
            if unit.name in _UNITS and getattr(left, unit.name) is not None
        },
    )
    return spent + context.cost() * (left.times(context.cost()) or 0)


def _timed(work: Callable[[], Done]) -> tuple[Done, float]:
    begun = time.perf_counter()
    done = work()
    return done, time.perf_counter() - begun
