"""Units of a sample: the parts that a generator makes one after the other, and settings given for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tts_vision.errors import ConfigError
from tts_vision.sampler import Sampler

Value = TypeVar("Value")
STAGES = ("scene", "motion", "ending")
"""Stages of a clip: its first unit, those between, and its last."""


def units_of(sampler: Sampler) -> tuple[int, ...]:
    """The decision step at which each unit begins: `Sampler.units`, such as the chunks of a clip.

    A generator that makes its samples as a whole is taken in single steps where its previews show the
    randomness of their own step, as those of tokens do, and else in pairs of steps, of which the second shows
    the noise of the first. No unit begins where copies could not differ any more.
    """
    if sampler.units:
        return sampler.units
    return tuple(range(0, max(sampler.last_noisy_step, 0) + 1, 1 if sampler.preview_shows_step else 2))


def by_unit(values: Sequence[Value], units: int, name: str) -> tuple[Value, ...]:
    """One value for each unit, from one each or from one for each of the three `STAGES`.

    Args:
        values: As given.
        units: Of a sample.
        name: How the setting is called, for the message.

    Raises:
        ConfigError: If they are neither.
    """
    if len(values) == units:
        return tuple(values)
    if len(values) == len(STAGES) < units:
        first, between, last = values
        return (first, *(between for _ in range(units - 2)), last)
    three = f", or {len(STAGES)}: for {', '.join(STAGES)}" if units > len(STAGES) else ""
    raise ConfigError(
        f"{name} must have one entry for each of {units} units{three}; but got {len(values)}: "
        f"{list(values)}; add or drop some."
    )


def repeated(values: Sequence[Value], units: int) -> tuple[Value, ...]:
    """One value for each unit, of which the last repeats."""
    return tuple(values[min(unit, len(values) - 1)] for unit in range(units))


def stretched(values: Sequence[Value], units: int) -> tuple[Value, ...]:
    """Values for each of some number of units, as values for another number of them, in proportion."""
    last = len(values) - 1
    return tuple(values[-(-unit * last // max(units - 1, 1))] for unit in range(units))
