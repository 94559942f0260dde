"""What the algorithms share: checks of parameters, and planning under a limit of time."""

from __future__ import annotations

from dataclasses import replace

from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.ledger import Remaining
from tts_vision.types import Cost


def at_least(least: float, **values: float | None) -> None:
    """Checks that each value that is given is at least `least`.

    Raises:
        ConfigError: If one is not.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{name} must be at least {least:g} but got {value:g}; raise it.")


def fraction(**values: float | None) -> None:
    """Checks that each value that is given lies between 0 and 1.

    Raises:
        ConfigError: If one does not.
    """
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{name} must be between 0 and 1 but got {value:g}; change it.")


def measured(ctx: SearchContext) -> Remaining:
    """What is left to plan with.

    A limit of time says nothing before speeds are measured: one plain sample does that, and is a
    candidate like any other.
    """
    left = ctx.remaining()
    if left.seconds is None:
        return left
    ctx.score(ctx.finish(ctx.init(1)))
    return ctx.remaining()


def check_affordable(left: Remaining, cost: Cost, sizes: str) -> None:
    """Checks that explicitly chosen `sizes` can be paid for; time, which is only a forecast, apart.

    Raises:
        ConfigError: If they cannot.
    """
    if not replace(left, seconds=None).affords(cost):
        limits = {
            "nfe": (left.nfe, cost.nfe),
            "tokens": (left.tokens, cost.tokens),
            "macs": (left.macs, cost.macs),
            "verifier calls": (left.verifier_calls, cost.verifier_calls),
        }
        limited = {unit: (has, needs) for unit, (has, needs) in limits.items() if has is not None}
        budget = " and ".join(f"{has:g} {unit}" for unit, (has, _) in limited.items())
        price = " and ".join(f"{needs:g}" for _, needs in limited.values())
        raise ConfigError(
            f"A search must fit its budget of {budget} but {sizes} costs {price}; lower it, leave it out to "
            "fill the budget, or raise the budget."
        )
