"""Errors a user can act on. Each message gives the rule, the value, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TTSVisionError(Exception):
    """Base of every error that names something the user can change."""


class ConfigError(TTSVisionError, ValueError):
    """A parameter, prompt, budget or folder that cannot be used as given."""


class UnknownNameError(ConfigError):
    """A name that no registered algorithm, verifier or model has."""


class CapabilityError(TTSVisionError):
    """An algorithm asks a sampler for something that it cannot do."""


class ForkError(CapabilityError):
    """A particle would be duplicated although nothing later could make the copies differ."""


class VerifierError(TTSVisionError):
    """A verifier that breaks its contract (not one that fails on a sample)."""


class PipelineError(TTSVisionError):
    """A pipeline that cannot be loaded, or whose loop cannot be driven step by step."""


class StorageError(TTSVisionError):
    """The result folder cannot be written or read."""


class BusyError(StorageError):
    """Another process writes to the folder."""


class BudgetSpent(Exception):
    """The next operation would exceed the budget. Ends a search; never reaches the user."""


class TargetReached(Exception):
    """A finished sample reached the target. Ends a search; never reaches the user."""


class StopSearch(BaseException):
    """Raised by an observer or an answer: ends a search with its best so far, to be continued later.

    It is no `Exception`, so that no algorithm or verifier takes it for a failure. Never reaches the user.
    """


class SearchWarning(UserWarning):
    """Something about a search that the user should know, and may change."""


class HoldoutWarning(SearchWarning):
    """The guiding verifier rose while the one that was held out fell."""


def did_you_mean(name: str, names: Iterable[str], otherwise: str = "use one of these.") -> str:
    """The remedy for a wrong name."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise
