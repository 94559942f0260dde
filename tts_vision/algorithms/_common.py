"""Checks of parameters that the algorithms share."""

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
