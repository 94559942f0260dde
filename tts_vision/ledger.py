"""What a search may spend, and what it has spent."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace

import torch
from pydantic import BaseModel, Field

from tts_vision.errors import BudgetSpent, ConfigError
from tts_vision.types import Cost, Phase

_FORMS = "'40x', 'nfe=2000', 'seconds=60', 'verifier_calls=100', or several joined by 'and'"
_KEYS = {"times", "nfe", "seconds", "verifier_calls", "tokens", "macs"}
_TERM = re.compile(r"(?:(?P<times>[0-9.]+)\s*x|(?P<key>\w+)\s*=\s*(?P<value>[0-9.eE+]+))")


@dataclass(frozen=True)
class Budget:
    """Upper limits; a search stops before it would pass any of them. None means no limit.

    Attributes:
        nfe: Denoiser forwards, per row, guidance counted as two.
        seconds: Wall-clock time.
        verifier_calls: Samples scored.
        tokens: Tokens through a transformer, where steps differ in how many they take.
        macs: Multiply-accumulates of a transformer, where they are counted.
        times: Multiples of one plain sample's compute; `resolve` turns it into `macs` where the sampler
            counts them, else into `nfe`.
    """

    nfe: float | None = None
    seconds: float | None = None
    verifier_calls: int | None = None
    tokens: float | None = None
    macs: float | None = None
    times: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads ``"40x"``, ``"nfe=2000"``, ``"seconds=60"``, ``"verifier_calls=100"``, joined by "and".

        Samplers that count them also have ``"tokens=50000"`` and ``"macs=1e12"``.

        Raises:
            ConfigError: If the text is none of these, names a limit twice, or a limit is not positive.
        """
        limits: dict[str, float] = {}
        for term in re.split(r"\s+and\s+|\s*,\s*", text.strip()):
            match = _TERM.fullmatch(term.strip())
            key = "times" if match and match["times"] else (match["key"] if match else None)
            if match is None or key not in _KEYS:
                raise ConfigError(f"A budget must be {_FORMS} but got {text!r}; change {term!r}.")
            if key in limits:
                raise ConfigError(f"A budget names each limit once but got {text!r}; keep one {key!r}.")
            try:
                value = float(match["times"] or match["value"])
            except ValueError:
                raise ConfigError(f"A budget must be {_FORMS} but got {text!r}; change {term!r}.") from None
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"A budget must be positive but got {term!r}; give a larger number.")
            limits[key] = value
        calls = limits.pop("verifier_calls", None)
        return cls(**limits, verifier_calls=None if calls is None else int(calls))

    def resolve(self, sample: Cost) -> Budget:
        """The budget with `times` replaced by the compute of that many samples of cost `sample`.

        Raises:
            ConfigError: If the budget does not pay for one sample.
        """
        limits = {"nfe": self.nfe, "tokens": self.tokens, "macs": self.macs}
        if self.times is not None:
            unit = "macs" if sample.macs else "nfe"
            # rounding guards against 4 x 0.1-like products falling just below a whole sample
            product = round(self.times * sample.compute, 6)
            limits[unit] = min(product, limits[unit] or product)
        for unit, limit in limits.items():
            price = getattr(sample, unit)
            if limit is not None and not price:
                raise ConfigError(
                    f"A budget of {unit} needs a sampler that counts them but this one does not; use nfe or "
                    "seconds."
                )
            if limit is not None and limit < price:
                raise ConfigError(
                    f"A budget must pay for one sample, which costs {price:g} {unit}, but gives {limit:g}; "
                    "raise it to at least '1x' or use fewer inference steps."
                )
        calls = max(1, sample.verifier_calls)  # several, by a verifier that is made of others
        if self.verifier_calls is not None and self.verifier_calls < calls:
            raise ConfigError(
                f"A budget must pay for scoring one sample, which takes {calls} verifier calls, but gives "
                f"{self.verifier_calls}; raise it to {calls}."
            )
        return replace(self, nfe=limits["nfe"], tokens=limits["tokens"], macs=limits["macs"], times=None)


class Spent(BaseModel):
    """A reading of the ledger.

    Attributes:
        nfe, decodes, verifier_calls, tokens, macs: As in `Cost`.
        calls: Verifier calls by the verifier's name.
        asked: Those of them that were no verifier's, such as a language model's.
        seconds: Wall-clock seconds by phase.
        elapsed: Wall-clock seconds in all, overhead included.
        peak_memory: Peak bytes: allocated on the accelerator, or of the whole process without one.
    """

    nfe: float = 0
    decodes: int = 0
    verifier_calls: int = 0
    tokens: float = 0
    macs: float = 0
    calls: dict[str, int] = Field(default_factory=dict)
    asked: int = 0
    seconds: dict[str, float] = Field(default_factory=dict)
    elapsed: float = 0.0
    peak_memory: int = 0

    @property
    def compute(self) -> float:
        """What the generator computed, in the unit that compares: macs where they are counted, else nfe."""
        return self.macs or self.nfe

    @property
    def compute_unit(self) -> str:
        """The unit of `compute`, in words."""
        return "transformer multiply-accumulates" if self.macs else "network evaluations (nfe)"


@dataclass(frozen=True)
class Remaining:
    """What is left of a budget and how fast it goes: all that a plan may depend on.

    Attributes:
        nfe: Denoiser forwards left; None without a limit, as for the next four.
        verifier_calls: Samples that can still be scored.
        seconds: Wall-clock time left.
        tokens: Tokens through a transformer left.
        macs: Multiply-accumulates of a transformer left.
        seconds_per_compute: Per macs where they are counted, else per nfe, measured so far; 0 before anything
            was, as for the next two.
        seconds_per_decode: As above.
        seconds_per_call: As above.
    """

    nfe: float | None = None
    verifier_calls: float | None = None
    seconds: float | None = None
    tokens: float | None = None
    macs: float | None = None
    seconds_per_compute: float = 0.0
    seconds_per_decode: float = 0.0
    seconds_per_call: float = 0.0

    def affords(self, cost: Cost) -> bool:
        """Whether `cost` can be spent without passing a limit."""
        return (
            # sums of fractional costs may be off by rounding
            (self.nfe is None or cost.nfe <= self.nfe + 1e-6)
            and (self.tokens is None or cost.tokens <= self.tokens + 1e-6)
            and (self.macs is None or cost.macs <= self.macs * (1 + 1e-9) + 1e-6)
            and (self.verifier_calls is None or cost.verifier_calls <= self.verifier_calls)
            and (self.seconds is None or self.forecast(cost) <= self.seconds)
        )

    def times(self, each: Cost) -> int | None:
        """How many times `each` can be spent; None without a limit that it counts against.

        Under a limit of seconds with nothing measured yet, the answer is at most 1.
        """
        counts: list[float] = []
        for left, price in ((self.nfe, each.nfe), (self.tokens, each.tokens), (self.macs, each.macs)):
            if left is not None and price:
                counts.append((left * (1 + 1e-9) + 1e-6) / price)
        if self.verifier_calls is not None and each.verifier_calls:
            counts.append(self.verifier_calls / each.verifier_calls)
        if self.seconds is not None:
            forecast = self.forecast(each)
            counts.append(self.seconds / forecast if forecast else float(self.seconds > 0))
        return max(0, math.floor(min(counts))) if counts else None

    def forecast(self, cost: Cost) -> float:
        """Seconds that `cost` is likely to take."""
        return (
            cost.compute * self.seconds_per_compute
            + cost.decodes * self.seconds_per_decode
            + cost.verifier_calls * self.seconds_per_call
        )


@dataclass
class Ledger:
    """Charges every network evaluation, decode and verifier call before it runs.

    Attributes:
        budget: The limits, already resolved.
        spent: What has been charged since the search began, earlier sessions of it included.
        calls: The verifier calls among it by the verifier's name.
        asked: Those of them that were no verifier's; they say nothing about its speed.
        seconds: Wall-clock seconds by phase.
    """

    budget: Budget = field(default_factory=Budget)
    spent: Cost = field(default_factory=Cost)
    calls: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    _elapsed_before: float = 0.0
    _since: float = field(default_factory=lambda: time.perf_counter())
    _phases: tuple[Phase, ...] = ()
    _phase_since: float = 0.0

    @property
    def elapsed(self) -> float:
        """Wall-clock seconds since the search began."""
        return self._elapsed_before + time.perf_counter() - self._since

    def affords(self, cost: Cost) -> bool:
        """Whether `cost` can be spent without passing a limit."""
        return self.remaining().affords(cost)

    def affordable(self, each: Cost) -> int | None:
        """How many times `each` can be spent; None without a limit that it counts against."""
        return self.remaining().times(each)

    def remaining(self) -> Remaining:
        """What is left now."""
        budget, spent = self.budget, self.spent
        return Remaining(
            nfe=None if budget.nfe is None else budget.nfe - spent.nfe,
            verifier_calls=None
            if budget.verifier_calls is None
            else budget.verifier_calls - spent.verifier_calls,
            seconds=None if budget.seconds is None else budget.seconds - self.elapsed,
            tokens=None if budget.tokens is None else budget.tokens - spent.tokens,
            macs=None if budget.macs is None else budget.macs - spent.macs,
            seconds_per_compute=self._rate("denoise", spent.compute),
            seconds_per_decode=self._rate("decode", spent.decodes),
            seconds_per_call=self._rate("verify", spent.verifier_calls - self.asked),
        )

    def charge(self, cost: Cost) -> None:
        """Adds `cost` to what is spent.

        Raises:
            BudgetSpent: If that would pass a limit; nothing is charged then.
        """
        if not self.affords(cost):
            raise BudgetSpent
        self.spent = self.spent + cost

    def charge_calls(self, calls: Mapping[str, int], *, asked: bool = False) -> None:
        """Charges calls by name.

        Args:
            calls: How many of which.
            asked: Whether they are no verifier's.

        Raises:
            BudgetSpent: If they would pass a limit; nothing is charged then.
        """
        self.charge(Cost(verifier_calls=sum(calls.values())))
        for name, n in calls.items():
            self.calls[name] = self.calls.get(name, 0) + n
        self.asked += sum(calls.values()) if asked else 0

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Times the enclosed block as `name`; a phase inside another interrupts its clock."""
        self._switch_to((*self._phases, name))
        try:
            yield
        finally:
            self._switch_to(self._phases[:-1])

    def _switch_to(self, phases: tuple[Phase, ...]) -> None:
        now = time.perf_counter()
        if self._phases:
            running = self._phases[-1]
            self.seconds[running] = self.seconds.get(running, 0.0) + now - self._phase_since
        self._phases, self._phase_since = phases, now

    def read(self) -> Spent:
        """A snapshot for the trace."""
        return Spent(
            **asdict(self.spent),
            calls=dict(self.calls),
            asked=self.asked,
            seconds={k: round(v, 6) for k, v in self.seconds.items()},
            elapsed=round(self.elapsed, 6),
            peak_memory=peak_memory(),
        )

    def restore(self, spent: Spent) -> None:
        """Goes on from a recorded snapshot."""
        self.spent = Cost(**{unit.name: getattr(spent, unit.name) for unit in fields(Cost)})
        self.calls, self.seconds, self.asked = dict(spent.calls), dict(spent.seconds), spent.asked
        self._elapsed_before, self._since = spent.elapsed, time.perf_counter()

    def _rate(self, phase: Phase, done: float) -> float:
        return self.seconds.get(phase, 0.0) / done if done else 0.0


def peak_memory() -> int:
    """Peak bytes so far: allocated on the accelerator, or of the whole process without one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
