"""Algorithms on the playground: guided by a fallible verifier, judged by the exact checker.

``python -m tts_vision.eval.playground`` runs every algorithm at every budget on the same prompts and seeds
and writes one table and one plot. The track ``easy`` has prompts of GenEval's six forms; ``hard`` has two
groups of counted, coloured shapes in a relation. It may be interrupted and started again: finished searches
are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from tts_vision.comparisons import Cell, Comparison, Row, compare, read_prompts
from tts_vision.config import ModelOptions
from tts_vision.runs.grid import PLAIN
from tts_vision.types import Prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALGORITHMS = ("best_of_n", "zero_order", "search_over_paths", "evosearch", "fk_steering")
JUDGE = "playground_oracle:graded=false"
Track: TypeAlias = Literal["easy", "hard"]
_FILES: dict[Track, str] = {"easy": "prompts.jsonl", "hard": "hard.jsonl"}


def evaluation_prompts(n: int, track: Track = "easy") -> list[Prompt]:
    """`n` distinct prompts of a track, evenly over its forms while they last.

    Args:
        n: How many at most.
        track: ``easy``: GenEval's six task forms, 123 distinct prompts. ``hard``: two groups of counted,
            coloured shapes in a relation, 150 prompts, five pairs of counts in turn.
    """
    path = Path(str(files("tts_vision.pipelines.playground").joinpath(_FILES[track])))
    by_form: dict[str, dict[str, Prompt]] = {}
    for prompt in read_prompts(path):
        by_form.setdefault(prompt.metadata["tag"], {}).setdefault(prompt.text, prompt)
    rounds = zip_longest(*(form.values() for form in by_form.values()))
    return [prompt for group in rounds for prompt in group if prompt is not None][:n]


def table(comparisons: Sequence[Comparison]) -> str:
    """Accuracy of the best samples, in percent with 95 % intervals over prompts, as a Markdown table.

    The own share is that of the compute which the algorithm itself spent; independent samples took the rest.
    """
    lines = [
        "| algorithm | "
        + " | ".join(f"{c.budget}: right, % | nfe | own share, % | seconds" for c in comparisons)
        + " |",
        "|---|" + "--:|--:|--:|--:|" * len(comparisons),
    ]
    rows = [{row.algorithm: row for row in comparison.rows()} for comparison in comparisons]
    for name in rows[0]:
        cells = [_cell(group[name]) for group in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    low, high = 100 * row.evaluation_low, 100 * row.evaluation_high
    own = f"{100 * (1 - row.topped_up):.0f}"
    return f"{100 * row.evaluation:.1f} [{low:.1f}, {high:.1f}] | {row.nfe:.0f} | {own} | {row.seconds:.1f}"


def plot(comparisons: Sequence[Comparison], title: str = "Playground") -> Figure:
    """Accuracy against budget, a line per algorithm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    rows = [{row.algorithm: row for row in comparison.rows()} for comparison in comparisons]
    for offset, name in enumerate(rows[0]):
        group = [by_name[name] for by_name in rows]
        middle = [100 * row.evaluation for row in group]
        spread = [
            [100 * (row.evaluation - row.evaluation_low) for row in group],
            [100 * (row.evaluation_high - row.evaluation) for row in group],
        ]
        if name == PLAIN:
            axis.axhline(middle[0], color="gray", linestyle=":", label="plain sample")
            continue
        # a little apart, so that intervals do not hide each other
        nfe = [row.nfe * (1 + 0.02 * (offset - 3)) for row in group]
        axis.errorbar(nfe, middle, spread, marker="o", capsize=3, label=name)
    axis.set(
        xscale="log",
        xlabel="network evaluations (nfe)",
        ylabel="right by the exact checker, %",
        title=title,
    )
    axis.legend(fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--track", choices=get_args(Track), default="easy", help="which prompts")
    parser.add_argument("--output", type=Path, help="where everything is kept; runs/MODEL-TRACK by default")
    parser.add_argument("--budgets", nargs="+", default=["4x", "16x"])
    parser.add_argument("--prompts", type=int, default=100, help="distinct prompts, up to 123 easy, 150 hard")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", choices=("playground", "playground-var"), default="playground")
    parser.add_argument(
        "--algorithms", nargs="+", default=list(ALGORITHMS), help="names, with parameters as name:key=value"
    )
    parser.add_argument("--verifier", default="playground_judge", help="the guide")
    parser.add_argument("--dtype", default=None, help="precision of the model, such as bfloat16")
    parser.add_argument("--device", default=None)
    options = parser.parse_args(arguments)
    output: Path = options.output or Path("runs") / f"{options.model}-{options.track}"

    def report(done: int, total: int, cell: Cell) -> None:
        if done % 50 == 0 or done == total:
            print(f"{done}/{total} {cell.algorithm}", flush=True)

    comparisons = []
    for budget in options.budgets:
        print(f"budget {budget}", flush=True)
        comparisons.append(
            compare(
                options.model,
                evaluation_prompts(options.prompts, options.track),
                algorithms=options.algorithms,
                verifiers=[options.verifier],
                evaluator=JUDGE,
                budget=budget,
                seeds=options.seeds,
                model_options=ModelOptions(dtype=options.dtype, device=options.device),
                output=output / budget,
                progress=report,
            )
        )
    text = table(comparisons)
    (output / "table.md").write_text(text + "\n")
    plot(comparisons, f"{options.model}, {options.track} track").savefig(output / "plot.png", dpi=120)
    print(text)
    print(f"{output / 'table.md'}  {output / 'plot.png'}")


if __name__ == "__main__":
    main()
