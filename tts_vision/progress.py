"""Shows how a search gets on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.text import Text

if TYPE_CHECKING:
    from typing_extensions import Self

    from tts_vision.context import SearchContext
    from tts_vision.trace import Event

SECONDS_BETWEEN_LINES = 10.0
"""How often lines come where there is no terminal."""


class Report:
    """Writes how something gets on to a stream, where that is a terminal with a bar; a context manager.

    Args:
        stream: Where to write.
        columns: Of the bar.
    """

    def __init__(self, stream: TextIO, columns: Sequence[ProgressColumn]) -> None:
        self._stream = stream
        self._console = Console(file=stream)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.add_task("starting", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class ProgressReport(Report):
    """Observes a search and reports the best score so far, what is spent, and the time left.

    Use it as a context manager, and pass it as ``progress`` to a search.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, (_Bar(self._read), _Words(self._read)))
        self._context: SearchContext | None = None
        self._last_line: float | None = None

    def __call__(self, context: SearchContext, event: Event) -> None:
        """Takes note of an event."""
        self._context = context
        now = time.monotonic()
        if self._last_line is None:
            self._last_line = now
        if self._bar is None and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(status(context), file=self._stream, flush=True)

    def _read(self) -> SearchContext | None:
        return self._context


class _Bar(ProgressColumn):
    """The part of the budget that is used up, as of now."""

    def __init__(self, read: Callable[[], SearchContext | None]) -> None:
        super().__init__()
        self._read = read

    def render(self, task: Task) -> ProgressBar:
        context = self._read()
        return ProgressBar(total=1.0, completed=fraction_spent(context) if context else 0.0, width=30)


class _Words(ProgressColumn):
    """The state of the search in words, as of now."""

    def __init__(self, read: Callable[[], SearchContext | None]) -> None:
        super().__init__()
        self._read = read

    def render(self, task: Task) -> Text:
        context = self._read()
        return Text(status(context) if context else "starting")


def status(context: SearchContext) -> str:
    """The state of a search in one line."""
    part = fraction_spent(context)
    limit, spent = context.ledger.budget.nfe, context.ledger.spent.nfe
    words = [f"best {_best(context)}", f"{spent:g}/{limit:g} nfe" if limit else f"{spent:g} nfe"]
    words.append(f"{clock(context.ledger.elapsed)} gone")
    if part > 0:
        words.append(f"{clock(context.ledger.elapsed * (1 - part) / part)} left")
    return ", ".join(words)


def fraction_spent(context: SearchContext) -> float:
    """The part of the budget that is used up, by the limit closest to its end; 0 without limits."""
    budget, spent = context.ledger.budget, context.ledger.spent
    parts = [0.0]
    for unit in ("nfe", "tokens", "macs", "verifier_calls"):
        limit = getattr(budget, unit)
        if limit:
            parts.append(getattr(spent, unit) / limit)
    if budget.seconds:
        parts.append(context.ledger.elapsed / budget.seconds)
    return min(1.0, max(parts))


def _best(context: SearchContext) -> str:
    best = context.best or context.best_preview
    if best is None or math.isnan(best.score.value):
        return "-"
    return f"{best.score.value:.4f}" + ("" if context.best else " (preview)")


def clock(seconds: float) -> str:
    """Minutes and seconds; hours where there are any."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d}:{int(seconds % 60):02d}"
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
