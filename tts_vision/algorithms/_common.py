"""Checks of parameters, and steps of a trajectory, that the algorithms share."""

from __future__ import annotations

from tts_vision.errors import ConfigError


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


def resampling_steps(num_steps: int, start: float, every: float, end: float) -> list[int]:
    """The steps at shares `start`, `start + every`, ... up to `end` of a trajectory.

    Raises:
        ConfigError: If the shares are no increasing sequence.
    """
    fraction(start=start, every=every, end=end)
    if not every > 0 or end < start:
        raise ConfigError(
            f"Resampling must go from start to a later end in positive strides but got start={start:g}, "
            f"every={every:g}, end={end:g}; the paper uses 0.2, 0.2, 0.8."
        )
    count = int((end - start) / every + 1e-9) + 1
    steps = {round((start + i * every) * num_steps) for i in range(count)}
    return sorted(steps & set(range(1, num_steps)))


def check_steps(steps: list[int], num_steps: int) -> list[int]:
    """The steps, if they increase and lie inside the trajectory.

    Raises:
        ConfigError: If they do not.
    """
    if sorted(set(steps)) != steps or any(not 1 <= step < num_steps for step in steps):
        raise ConfigError(
            f"resample_steps must increase and lie between 1 and {num_steps - 1} but got {steps}; "
            "reorder or drop some."
        )
    return steps
