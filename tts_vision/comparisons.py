"""Compares search algorithms at one budget, on many prompts and seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tts_vision.config import ModelOptions, RunConfig, SamplerOptions, live_name
from tts_vision.errors import ConfigError, SearchWarning
from tts_vision.figures import Point, draw_scaling
from tts_vision.files import replace_file
from tts_vision.folders import read_config
from tts_vision.intervals import LEAST_FOR_INTERVAL, mean_of
from tts_vision.media import open_media
from tts_vision.prompt_files import read_records
from tts_vision.resolve import Live, find_verifier, load_verifier
from tts_vision.runs.engine import run_tasks
from tts_vision.runs.executors import Done, Executor, Failed, LocalExecutor
from tts_vision.runs.grid import PLAIN, PLAIN_ALGORITHM, curve_of, grid
from tts_vision.runs.manifest import MANIFEST
from tts_vision.runs.task import Record, distinct
from tts_vision.scoring import safe_scores
from tts_vision.types import Prompt
from tts_vision.verifier import Verifier

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_MARK = "comparison.json"


@dataclass(frozen=True)
class Cell:
    """One search of a comparison.

    Attributes:
        algorithm: As it was named; "plain" for one sample without search.
        verifier: What guided the search.
        prompt: What was generated.
        seed: Root seed.
        score: The verifier's score of the best sample; NaN when there is none.
        evaluation: The evaluator's score of it; NaN without an evaluator.
        nfe: Network evaluations spent.
        macs: Multiply-accumulates of the transformer, where they are counted.
        decodes: Samples and previews decoded.
        verifier_calls: Samples scored.
        seconds: Wall-clock time.
        folder: Where the search is kept, inside the comparison's folder.
        topped_up: Share of the compute that went to independent samples, because the algorithm left it.
    """

    algorithm: str
    verifier: str
    prompt: str
    seed: int
    score: float
    evaluation: float
    nfe: float
    macs: float
    decodes: int
    verifier_calls: int
    seconds: float
    folder: str
    topped_up: float = 0.0


@dataclass(frozen=True)
class Row:
    """One algorithm under one verifier, averaged over prompts and seeds.

    Intervals are 95 % bootstrap intervals that resample prompts, or seeds where there is one prompt. Their
    ends are NaN below `LEAST_FOR_INTERVAL` of these.
    """

    algorithm: str
    verifier: str
    searches: int
    unscored: int
    score: float
    score_low: float
    score_high: float
    gain: float
    evaluation: float
    evaluation_low: float
    evaluation_high: float
    nfe: float
    macs: float
    decodes: float
    seconds: float
    topped_up: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        budget: What each search was allowed to spend.
        evaluator: What judged the best samples without guiding any search.
        cells: All searches.
        curves: The best score so far of each search.
        folder: Where all is kept.
    """

    budget: str
    evaluator: str | None
    cells: list[Cell]
    curves: list[list[Point]]
    folder: Path

    @property
    def counts_macs(self) -> bool:
        """Whether the sampler counts multiply-accumulates, because its steps differ in what they take."""
        return any(cell.macs for cell in self.cells)

    def rows(self) -> list[Row]:
        """One summary per verifier and algorithm, in the order they were given."""
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault((cell.verifier, cell.algorithm), []).append(cell)
        baseline = {
            verifier: mean_of(cell.score for cell in cells).value
            for (verifier, name), cells in groups.items()
            if name == PLAIN
        }
        return [_row(cells, baseline[verifier]) for (verifier, _), cells in groups.items()]

    def table(self) -> Table:
        """The summary for a terminal."""
        from rich.table import Table
        from rich.text import Text

        rows = self.rows()
        table = Table(
            title=f"best of {rows[0].searches} searches each, budget {self.budget}" if rows else None,
            caption=None
            if all(row.score_low == row.score_low for row in rows)
            else f"n/a: a 95 % interval needs at least {LEAST_FOR_INTERVAL} prompts",
        )
        several = len({row.verifier for row in rows}) > 1
        head = ["algorithm", *(["verifier"] if several else []), "score", "gain"]
        head += [self.evaluator] if self.evaluator else []
        unit = "GMAC" if self.counts_macs else "nfe"
        for name in [*head, unit, "seconds"]:
            table.add_column(name, justify="left" if name in {"algorithm", "verifier"} else "right")
        for row in rows:
            line = [row.algorithm, *([row.verifier] if several else [])]
            line += [_interval(row.score, row.score_low, row.score_high), f"{row.gain:+.4f}"]
            if self.evaluator:
                line.append(_interval(row.evaluation, row.evaluation_low, row.evaluation_high))
            compute = f"{row.macs / 1e9:.4g}" if self.counts_macs else f"{row.nfe:.0f}"
            table.add_row(*map(Text, [*line, compute, f"{row.seconds:.1f}"]))
        return table

    def mean_curve(self, verifier: str, algorithm: str) -> tuple[list[float], list[float]]:
        """The mean best score so far of an algorithm under a verifier.

        Returns:
            Compute spent, from where all of its searches have a score, and the scores; both empty where no
            search has any.
        """
        chosen = [
            curve
            for cell, curve in zip(self.cells, self.curves)
            if (cell.verifier, cell.algorithm) == (verifier, algorithm) and curve
        ]
        return _mean_curve(chosen) if chosen else ([], [])

    def plot(self) -> Figure:
        """The mean best score so far against network evaluations; and the evaluator's verdict."""
        from matplotlib.figure import Figure

        verifiers = list(dict.fromkeys(cell.verifier for cell in self.cells))
        panels = len(verifiers) + bool(self.evaluator)
        figure = Figure(figsize=(4.8 * panels, 3.8), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, panels))
        for axis, verifier in zip(axes, verifiers):
            for name in dict.fromkeys(cell.algorithm for cell in self.cells):
                spent, best = self.mean_curve(verifier, name)
                if spent:
                    if name == PLAIN:
                        axis.axhline(best[-1], color="gray", linestyle=":", label=name)
                    else:
                        draw_scaling(axis, spent, best, label=name)
            unit = "transformer multiply-accumulates" if self.counts_macs else "network evaluations (nfe)"
            axis.set(xlabel=unit, ylabel=f"mean best score ({verifier})")
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8)
        if self.evaluator:
            rows = self.rows()
            names = [f"{r.algorithm}\n{r.verifier}" if len(verifiers) > 1 else r.algorithm for r in rows]
            middle = np.array([row.evaluation for row in rows])
            low = middle - np.array([row.evaluation_low for row in rows])
            high = np.array([row.evaluation_high for row in rows]) - middle
            axes[-1].barh(
                names, middle, xerr=np.stack([low, high]), color="#30638e", ecolor="#222", capsize=3
            )
            axes[-1].invert_yaxis()
            axes[-1].set(xlabel=f"{self.evaluator} (never seen by the search)")
        return figure

    def save(self) -> None:
        """Writes ``comparison.json``, ``.csv`` and ``.png`` into the folder."""
        data = {
            "budget": self.budget,
            "evaluator": self.evaluator,
            "rows": [_json(asdict(row)) for row in self.rows()],
            "cells": [_json(asdict(cell)) for cell in self.cells],
        }
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(Cell.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(cell) for cell in self.cells)
        plot = self.plot()
        replace_file(
            self.folder / "comparison.csv", lambda part: part.write_text(table.getvalue()), "The table"
        )
        replace_file(
            self.folder / "comparison.png",
            lambda part: plot.savefig(part, format="png", dpi=120, metadata={"Software": None}),
            "The plot",
        )
        replace_file(self.folder / _MARK, lambda part: part.write_text(text), "The comparison")


def compare(
    pipe_or_id: Any,
    prompts: Sequence[str | Prompt],
    *,
    algorithms: Sequence[str],
    output: Path | str,
    verifiers: Sequence[str] | None = None,
    evaluator: str | None = None,
    budget: str = "16x",
    seeds: Sequence[int] = (0,),
    pipeline_kwargs: Mapping[str, Any] | None = None,
    sampler_options: SamplerOptions | None = None,
    model_options: ModelOptions | None = None,
    max_batch: int | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int, Cell], None] | None = None,
) -> Comparison:
    """Runs every algorithm under every verifier on every prompt and seed, and plain sampling beside them.

    Each search is kept in a folder of its own; called again with the same `output`, finished searches
    are read and unfinished ones continued.

    Args:
        pipe_or_id: As in `search`.
        prompts: What to generate. A prompt that is given twice counts once, with a warning.
        algorithms: Names, with parameters as ``name:key=value``.
        output: Where to keep everything.
        verifiers: What guides; by default what the model is registered with. Values of those that compare
            samples, such as an ensemble's ranks, say nothing from one search to another.
        evaluator: A verifier that judges the best samples and never guides a search.
        budget: What each search may spend.
        seeds: Root seeds.
        pipeline_kwargs: As in `search`.
        sampler_options: As in `search`.
        model_options: As in `search`.
        max_batch: As in `search`.
        executor: Where the searches are carried out; by default one after the other in this process.
        progress: Called after each new search with the number done, their total, and the search.

    Raises:
        ConfigError: If something cannot be used as given; found before the first search starts.
    """
    root = Path(output).expanduser()
    _check_output(root)
    if not prompts or not algorithms or not seeds:
        raise ConfigError(
            f"A comparison needs prompts, algorithms and seeds but got {len(prompts)}, {len(algorithms)} and "
            f"{len(seeds)}; give at least one of each."
        )
    named = isinstance(pipe_or_id, (str, Path))
    options = sampler_options or SamplerOptions()
    kwargs = {**options.pipeline_kwargs, **(pipeline_kwargs or {})}
    base = RunConfig(
        prompt="-",
        model=str(pipe_or_id) if named else live_name(pipe_or_id),
        model_options=model_options or ModelOptions(),
        sampler_options=options.model_copy(update={"pipeline_kwargs": kwargs}),
        verifier=next(iter(verifiers or ()), None),  # type: ignore[arg-type]  # None becomes the default
        budget=budget,
        max_batch=max_batch,
    )
    tasks = grid(
        base,
        _distinct(prompts),
        arms={PLAIN: PLAIN_ALGORITHM, **{name: name for name in algorithms}},
        verifiers=list(dict.fromkeys(verifiers or [base.verifier])),
        seeds=list(dict.fromkeys(seeds)),
    )
    judge = None if evaluator is None else load_verifier(find_verifier(evaluator))
    live = None if named else Live(pipe=pipe_or_id)
    verifier_of = {task.name: task.config.verifier for task in tasks}

    def cell_of(record: Record) -> Cell:
        value = math.nan if judge is None or evaluator is None else _evaluate(judge, evaluator, record, root)
        return _cell(record, verifier_of[record.name], value)

    cells: dict[str, Cell] = {}

    def report(done: int, total: int, search: Done) -> None:
        if isinstance(search, Failed):
            raise search.error
        cells[search.name] = cell_of(search)
        if progress is not None:
            progress(done, total, cells[search.name])

    run = run_tasks(tasks, root, executor=executor or LocalExecutor(live), progress=report)
    cells = {r.name: cells.get(r.name) or cell_of(r) for r in run.records}
    comparison = Comparison(
        budget, evaluator, list(cells.values()), [curve_of(record) for record in run.records], root
    )
    comparison.save()
    return comparison


def read_prompts(path: Path | str) -> list[Prompt]:
    """Prompts from a file of text, JSON or CSV, as `tts_vision.prompt_files.read_records` reads it.

    Raises:
        ConfigError: If the file is no such file.
    """
    return [Prompt(record.text, record.metadata) for record in read_records(path)]


def _distinct(prompts: Iterable[str | Prompt]) -> list[Prompt]:
    """Each prompt once, in order; says which were given more often."""
    found, repeated = distinct(given if isinstance(given, Prompt) else Prompt(given) for given in prompts)
    twice = [repr(prompt.text) for prompt in repeated]
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        warnings.warn(
            f"{', '.join(twice[:3])}{more} {'was' if len(twice) == 1 else 'were'} given more than once and "
            f"{'counts' if len(twice) == 1 else 'count'} once; use several seeds for several samples of one.",
            SearchWarning,
            stacklevel=3,
        )
    return found


def _check_output(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise ConfigError(f"An output must be a folder but {str(root)!r} is a file; choose another.")
    held = [path.name for path in root.iterdir()] if root.exists() else []
    if held and _MARK not in held and MANIFEST not in held and not any(root.glob("*/*/*/config.yaml")):
        raise ConfigError(
            f"The folder of a comparison must be new, empty or that of one before but {str(root)!r} holds "
            f"{', '.join(sorted(held)[:3])}; choose another --output."
        )


def _evaluate(judge: Verifier, evaluator: str, record: Record, root: Path) -> float:
    """The evaluator's score of the best sample, kept beside it; NaN without one."""
    sample = record.path(root)
    if sample is None:
        return math.nan
    path = root / record.name / "evaluation.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("evaluator") != evaluator:
        config = read_config(root / record.name)
        prompt = Prompt(config.prompt, config.prompt_metadata)
        score = safe_scores(judge, [open_media(sample)], [prompt])[0]
        known = {"evaluator": evaluator, "value": repr(score.value), "reason": score.reason}
        replace_file(path, lambda part: part.write_text(json.dumps(known)), "The evaluation")
    return float(known["value"])


def _cell(record: Record, verifier: str, evaluation: float) -> Cell:
    return Cell(
        algorithm=record.arm,
        verifier=verifier,
        prompt=record.prompt,
        seed=record.seed,
        score=record.score,
        evaluation=evaluation,
        nfe=record.nfe,
        macs=record.macs,
        decodes=record.decodes,
        verifier_calls=record.verifier_calls,
        seconds=record.elapsed,
        folder=record.name,
        topped_up=record.topped_up,
    )


def _row(cells: Sequence[Cell], plain_score: float) -> Row:
    groups = _by_prompt(cells).values()
    score = mean_of([cell.score for cell in group] for group in groups)
    evaluation = mean_of([cell.evaluation for cell in group] for group in groups)
    return Row(
        algorithm=cells[0].algorithm,
        verifier=cells[0].verifier,
        searches=len(cells),
        unscored=sum(math.isnan(cell.score) for cell in cells),
        score=score.value,
        score_low=score.low,
        score_high=score.high,
        gain=score.value - plain_score,
        evaluation=evaluation.value,
        evaluation_low=evaluation.low,
        evaluation_high=evaluation.high,
        nfe=float(np.mean([cell.nfe for cell in cells])),
        macs=float(np.mean([cell.macs for cell in cells])),
        decodes=float(np.mean([cell.decodes for cell in cells])),
        seconds=float(np.mean([cell.seconds for cell in cells])),
        topped_up=float(np.mean([cell.topped_up for cell in cells])),
    )


def _by_prompt(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.prompt, []).append(cell)
    return groups


def _mean_curve(curves: Sequence[Sequence[Point]]) -> tuple[list[float], list[float]]:
    """The mean of step functions, from where all of them have begun."""
    grid = sorted({point.compute for curve in curves for point in curve})
    start = max(curve[0].compute for curve in curves)
    spent = [compute for compute in grid if compute >= start]
    columns = []
    for curve in curves:
        at = np.searchsorted([point.compute for point in curve], spent, side="right") - 1
        columns.append(np.array([point.best for point in curve])[at])
    return spent, np.mean(columns, axis=0).tolist()


def _interval(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f} [n/a]" if math.isnan(low) else f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _json(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
