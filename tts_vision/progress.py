"""Shows how a search gets on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tts_vision.context import SearchContext
from tts_vision.trace import Event

_SECONDS_BETWEEN_LINES = 10.0


class ProgressReport:
    """Observes a search and reports the best score so far, what is spent, and the time left.

    Use it as a context manager, and pass it as ``progress`` to a search.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stream = stream
        self._last_line = time.monotonic()

    def __enter__(self) -> ProgressReport:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[spent]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("best   -", total=1.0, spent="", left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, context: SearchContext, event: Event) -> None:
        """Takes note of an event."""
        part = fraction_spent(context)
        left = _time_left(context, part)
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                completed=part,
                description=f"best {_best(context)}",
                spent=_spent(context),
                left=f"{left} left" if left else "",
            )
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            tail = f", {left} left" if left else ""
            print(f"best {_best(context)}, {_spent(context)}{tail}", file=self._stream, flush=True)


def fraction_spent(context: SearchContext) -> float:
    """The part of the budget that is used up, by the limit closest to its end; 0 without limits."""
    budget, spent = context.ledger.budget, context.ledger.spent
    parts = [0.0]
    if budget.nfe:
        parts.append(spent.nfe / budget.nfe)
    if budget.verifier_calls:
        parts.append(spent.verifier_calls / budget.verifier_calls)
    if budget.seconds:
        parts.append(context.ledger.elapsed / budget.seconds)
    return min(1.0, max(parts))


def _time_left(context: SearchContext, part: float) -> str:
    if part <= 0:
        return ""
    seconds = context.ledger.elapsed * (1 - part) / part
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _best(context: SearchContext) -> str:
    best = context.best or context.best_preview
    if best is None or math.isnan(best.score.value):
        return "  -"
    return f"{best.score.value:.4f}" + ("" if context.best else " (preview)")


def _spent(context: SearchContext) -> str:
    limit = context.ledger.budget.nfe
    return f"{context.ledger.spent.nfe:g}" + (f"/{limit:g}" if limit else "") + " nfe"
