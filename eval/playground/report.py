"""The fair table as Markdown, as JSON, and as a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from tts_vision.eval.evaluation import versions
from tts_vision.eval.playground.plan import REFERENCE
from tts_vision.eval.playground.table import FairTable, Row, Yardstick
from tts_vision.files import replace_file
from tts_vision.runs.task import json_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEM = "playground"
DRAWN = 7
"""Searches of a panel that have a colour of their own; the best ones."""
_INK = "#808080"  # reads on white and on black
_COLOURS = ("#3b82c4", "#d9793d", "#3f9e5f", "#c4506f", "#8a6fc8", "#2fa3a3", "#b08d2e")


def write(table: FairTable, folder: Path) -> list[Path]:
    """Writes the tables as Markdown and JSON, and the plot; their files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{STEM}.{suffix}" for suffix in ("md", "json", "png")]
    text = markdown(table)
    replace_file(paths[0], lambda part: part.write_text(text), "The tables")
    data = {
        "plan": asdict(table.plan),
        "rows": [{**asdict(row), "rejected": row.rejected} for row in table.rows],
        "yardsticks": [asdict(each) for each in table.yardsticks],
        "left": table.left,
        "versions": versions(),
    }
    found = json.dumps(json_value(data), indent=1) + "\n"
    replace_file(paths[1], lambda part: part.write_text(found), "The figures")
    drawn = plot(table)
    replace_file(
        paths[2],
        lambda part: drawn.savefig(
            part, format="png", dpi=110, transparent=True, metadata={"Software": None}
        ),
        "The plot",
    )
    return paths


# ----------------------------------------------------------------------------------------------- Markdown


def markdown(table: FairTable) -> str:
    """All tables, a section for each track and model."""
    settings = table.plan.settings
    guides = dict.fromkeys(f"`{settings.guide(track)}`" for track in settings.tracks)
    lines = [
        f"Guided by {' and '.join(guides)}, judged by the exact checker; at most {settings.limit} prompts of "
        f"each track, {len(settings.seeds)} seeds.",
        "",
    ]
    if table.left:
        lines += [f"{table.left} searches are missing: these are the figures of the others.", ""]
    for (track, model), rows in groupby(table.rows, key=lambda row: (row.track, row.model)):
        yardstick = next((y for y in table.yardsticks if (y.track, y.model) == (track, model)), None)
        lines += [f"### {track}, {model}", "", *_section(list(rows), yardstick)]
    lines += _refusals(table.plan.refused)
    return "\n".join(lines).rstrip() + "\n"


def _section(rows: Sequence[Row], yardstick: Yardstick | None) -> Iterator[str]:
    alone = [row for row in rows if row.search == REFERENCE and row.limit is None]
    yield from (f"`{REFERENCE}` by budget, on the prompts finished for each:", "", *_alone(alone), "")
    if yardstick is not None:
        yield from (reached(rows, yardstick), "")
    several = [row for row in rows if row.search != REFERENCE]
    for budget, limit in dict.fromkeys((row.budget, row.limit) for row in several):
        group = [row for row in rows if (row.budget, row.limit) == (budget, limit)]
        what = f"{budget} at equal compute" if limit is None else f"In {limit:g} seconds, those of {budget}"
        prompts = group[0].prompts
        yield from (f"{what}; {prompts} prompt{'s' * (prompts != 1)}:", "", *_table(group), "")


def reached(rows: Sequence[Row], yardstick: Yardstick) -> str:
    """The accuracy of the reference at its largest budget, and who has it in a quarter of the seconds."""
    timed = [row for row in rows if row.yardstick is not None and row.search != REFERENCE]
    who = [f"`{row.search}`" for row in timed if row.yardstick is not None and row.yardstick.value >= 0]
    text = (
        f"`{REFERENCE}` at {yardstick.budget} is right for {yardstick.right.percent} % in "
        f"{yardstick.seconds:.2g} s, and for {yardstick.in_a_quarter.percent} % in a quarter of that time."
    )
    if not timed:
        return text
    return (
        f"{text} As often as at {yardstick.budget} in a quarter of its seconds: {', '.join(who) or 'none'}."
    )


def _alone(rows: Sequence[Row]) -> Iterator[str]:
    yield "| budget | right, % | rejected winners, % | of these missed, % | diversity | seconds |"
    yield "|---|--:|--:|--:|--:|--:|"
    for row in rows:
        yield (
            f"| {row.budget} | {row.right.percent} | {_share(row.rejected)} | {_share(row.missed)} "
            f"| {_number(row.diversity, '.3f')} | {row.seconds:.2f} |"
        )


def _table(rows: Sequence[Row]) -> Iterator[str]:
    macs = any(row.macs for row in rows)
    quarter = any(row.yardstick is not None for row in rows)
    heads = ["search", "right, %", f"less {REFERENCE}"]
    heads += ["less its yardstick"] if quarter else []
    heads += ["area, %", "rejected winners, %", "of these missed, %", "diversity", "own share, %"]
    heads += ["GMAC" if macs else "nfe", "verifier calls", "seconds"]
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "--:|" * (len(heads) - 1)
    for row in rows:
        cells = [row.search, row.right.percent, row.difference.written(100, "+.1f")]
        cells += [row.yardstick.written(100, "+.1f")] if row.yardstick is not None else []
        cells += [_share(row.area), _share(row.rejected), _share(row.missed)]
        cells += [_number(row.diversity, ".3f"), _number(100 * row.own, ".0f")]
        cells += [f"{row.macs / 1e9:.3g}" if macs else f"{row.nfe:.0f}"]
        cells += [f"{row.verifier_calls:.1f}", f"{row.seconds:.2f}"]
        yield "| " + " | ".join(cells) + " |"


def _refusals(refused: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    by_reason: dict[tuple[str, str], list[str]] = {}
    for model, found in refused.items():
        for name, reason in found.items():
            by_reason.setdefault((model, reason), []).append(f"`{name}`")
    if by_reason:
        yield from ("### Does not apply, or failed when it was tried", "")
    for (model, reason), names in by_reason.items():
        yield f"- {model}: {', '.join(names)}: {reason}"


def _share(value: float) -> str:
    return _number(100 * value, ".1f")


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


# --------------------------------------------------------------------------------------------------- plot


def plot(table: FairTable) -> Figure:
    """Accuracy against seconds, a panel for each track and model; transparent, for pages of any colour."""
    from matplotlib.figure import Figure

    tracks = list(dict.fromkeys(row.track for row in table.rows))
    models = list(dict.fromkeys(row.model for row in table.rows))
    size = (4.6 * max(1, len(models)), 3.3 * max(1, len(tracks)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(max(1, len(tracks)), max(1, len(models)), squeeze=False)
    for line, track in zip(panels, tracks):
        for axis, model in zip(line, models):
            own = [row for row in table.rows if (row.track, row.model) == (track, model)]
            if not own:
                axis.set_axis_off()
                continue
            _panel(axis, own)
            axis.set_title(f"{track}, {Path(model).name}", color=_INK, fontsize=10)
    for axis in panels[-1]:
        axis.set_xlabel("seconds of a search", color=_INK)
    for axis in panels[:, 0]:
        axis.set_ylabel("right by the exact checker, %", color=_INK)
    return figure


def _panel(axis: Axes, rows: Sequence[Row]) -> None:
    """One line for each search; the intervals of the reference are shaded."""
    from matplotlib.ticker import LogLocator

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.tick_params(colors=_INK, which="both", labelsize=8)
    axis.spines[:].set_color(_INK)
    axis.grid(color=_INK, alpha=0.25, linewidth=0.5)
    alone = [row for row in rows if row.search == REFERENCE and row.limit is None]
    seconds = [row.seconds for row in alone]
    axis.plot(
        seconds, [100 * row.right.value for row in alone], "o-", color=_INK, label=REFERENCE, linewidth=2
    )
    low = [100 * row.right.low for row in alone]
    axis.fill_between(seconds, low, [100 * row.right.high for row in alone], color=_INK, alpha=0.15)
    timed = any(row.limit is not None for row in rows)  # else at equal compute
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if (row.limit is not None) == timed and row.search != REFERENCE:
            lines.setdefault(row.search, []).append(row)
    best = sorted(lines, key=lambda name: -lines[name][-1].right.value)[:DRAWN]
    for name, group in lines.items():
        colour = _COLOURS[best.index(name)] if name in best else _INK
        axis.plot(
            [row.seconds for row in group],
            [100 * row.right.value for row in group],
            ".-",
            color=colour,
            label=name if name in best else None,
            linewidth=1.2 if name in best else 0.6,
            alpha=1 if name in best else 0.5,
        )
    if rows:
        axis.legend(fontsize=6.5, labelcolor=_INK, framealpha=0)
