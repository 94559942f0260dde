"""The tables of a benchmark, as Markdown and for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tts_vision.eval.statistics import Arm
from tts_vision.intervals import Figure

if TYPE_CHECKING:
    from rich.table import Table

    from tts_vision.eval.evaluation import Evaluation


def markdown(evaluation: Evaluation) -> str:
    """Figures, costs, notes and complaints."""
    lines = [f"# {evaluation.settings['benchmark']}", ""]
    lines += [f"    {' '.join(evaluation.command)}", ""] if evaluation.command else []
    names = [arm.name for arm in evaluation.arms]
    lines += _table("figure", names, figure_rows(evaluation.arms))
    if costs := cost_rows(evaluation.arms):
        lines += ["", *_table("cost of a search", names, costs)]
    for title, found in (("Notes", evaluation.notes), ("Missing or not judged", evaluation.complaints)):
        lines += ["", f"{title}:", "", *(f"- {line}" for line in found)] if found else []
    versions = ", ".join(f"{name} {value}" for name, value in evaluation.versions.items())
    return "\n".join([*lines, "", versions, ""])


def terminal(evaluation: Evaluation) -> Table:
    """Figures and costs."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=str(evaluation.settings["benchmark"]), title_justify="left")
    table.add_column("")
    for arm in evaluation.arms:
        table.add_column(Text(arm.name), justify="right")
    figures = figure_rows(evaluation.arms)
    for i, row in enumerate([*figures, *cost_rows(evaluation.arms)]):
        table.add_row(*map(Text, row), end_section=i == len(figures) - 1)
    return table


def figure_rows(arms: Sequence[Arm]) -> list[list[str]]:
    """A row for each figure: its label and its value in each arm."""
    labels = dict.fromkeys(label for arm in arms for label in arm.figures)
    rows = [[label, *(written(arm.figures.get(label)) for arm in arms)] for label in labels]
    rows += _row("rejected winners", arms, lambda arm: arm.rejected, "{:.3f}")
    rows += _row("held-out score", arms, lambda arm: arm.holdout, "{:.4f}")
    rows += _row(
        "area under quality by seconds",
        arms,
        lambda arm: math.nan if arm.by_seconds is None else arm.by_seconds.area,
        "{:.3f}",
    )
    return rows


def cost_rows(arms: Sequence[Arm], *, phases: bool = True) -> list[list[str]]:
    """A row for each cost of a search, its seconds by phase included; none where nothing was searched for."""
    if all(math.isnan(arm.nfe) for arm in arms):
        return []
    rows = [
        *_row("samples", arms, lambda arm: float(arm.samples), "{:.0f}"),
        *_row("nfe", arms, lambda arm: arm.nfe, "{:.0f}"),
        *_row("GMAC", arms, lambda arm: arm.macs / 1e9 or math.nan, "{:.4g}"),
        *_row("verifier calls", arms, lambda arm: arm.verifier_calls, "{:.1f}"),
        *_row("seconds", arms, lambda arm: arm.seconds, "{:.2f}"),
    ]
    for phase in dict.fromkeys(phase for arm in arms for phase in arm.phases if phases):
        rows += _row(f"  {phase}", arms, partial(_seconds, phase), "{:.2f}")
    return rows + _row("topped up, %", arms, lambda arm: 100 * arm.topped_up, "{:.0f}")


def _seconds(phase: str, arm: Arm) -> float:
    return arm.phases.get(phase, 0.0) if arm.phases else math.nan


def written(figure: Figure | None) -> str:
    """A value with its interval."""
    return "-" if figure is None else figure.written()


def _row(label: str, arms: Sequence[Arm], value: Callable[[Arm], float], form: str) -> list[list[str]]:
    """The row of a number, if any arm has it."""
    values = [value(arm) for arm in arms]
    if all(map(math.isnan, values)):
        return []
    return [[label, *("-" if math.isnan(v) else form.format(v) for v in values)]]


def _table(corner: str, heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {corner} | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
