"""TTS-VAR on the playground's autoregressive model, against other searches and against parts of itself.

``python -m tts_vision.eval.var_playground`` compares searches over scales on the same prompts and seeds: at
equal multiply-accumulates of the transformer, and in as many seconds as best of n takes for these. Searches
are guided by ``playground_clip`` and judged by the exact checker. ``--part ablations`` varies what the paper
varies (clusters, potential, lambda, where selections stand) on prompts that the main part does not use. Each
part writes a table and a plot. It may be interrupted and started again: finished searches are kept.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_vision.comparisons import Comparison, compare
from tts_vision.eval.playground import JUDGE, evaluation_prompts
from tts_vision.results import replace_file
from tts_vision.runs.grid import PLAIN
from tts_vision.types import Prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TTS_VAR = "tts_var:features=playground_features"
BASELINE = "best_of_n"


def main_arms(lam: str) -> dict[str, str]:
    """The searches of the main part, by what tables call them."""
    return {
        "best of n": BASELINE,
        "beam search": "beam_search",
        "FK steering": f"fk_steering:lam={lam}",
        "plain resampling": f"tts_var:clustering=false,lam={lam}",
        "TTS-VAR": f"{TTS_VAR},lam={lam}",
    }


def ablation_arms(lam: str) -> dict[str, str]:
    """TTS-VAR and what differs from it in one respect; scales are those of the playground's six."""
    lambdas = [value for value in ("3", "10", "30", "100") if value != lam]
    return {
        f"TTS-VAR (value, lambda {lam})": f"{TTS_VAR},lam={lam}",
        "without clusters": f"tts_var:clustering=false,lam={lam}",
        **{f"potential {name}": f"{TTS_VAR},lam={lam},potential={name}" for name in ("max", "sum", "diff")},
        **{f"lambda {value}": f"{TTS_VAR},lam={value}" for value in lambdas},
        "selections one scale earlier": f"{TTS_VAR},lam={lam},cluster_scales=[1],resample_scales=[2,3]",
        "late selections only": f"{TTS_VAR},lam={lam},cluster_scales=[3],resample_scales=[4]",
        "one resampling only": f"{TTS_VAR},lam={lam},cluster_scales=[],resample_scales=[4]",
    }


@dataclass(frozen=True)
class Benchmark:
    """What all comparisons share.

    Attributes:
        model: Name of the model.
        verifier: What guides.
        seeds: Root seeds.
        output: Where searches are kept.
        jobs: Processes, each with one thread and a share of the prompts.
    """

    model: str
    verifier: str
    seeds: tuple[int, ...]
    output: Path
    jobs: int

    def compare(self, name: str, prompts: Sequence[Prompt], arms: dict[str, str], budget: str) -> Comparison:
        """One comparison, whose searches are called as `arms` call them."""
        folder = self.output / name
        shares = [list(prompts[i :: self.jobs]) for i in range(self.jobs)]
        tasks = [
            (self, share, list(arms.values()), budget, folder / f"share-{i + 1}-of-{self.jobs}")
            for i, share in enumerate(shares)
            if share
        ]
        if len(tasks) == 1:
            parts = [_share(tasks[0])]
        else:
            # forks of a process that has computed already may hang
            with ProcessPoolExecutor(len(tasks), mp_context=get_context("spawn")) as pool:
                parts = list(pool.map(_share, tasks))
        order = [PLAIN, *arms.values()]
        cells = [cell for part in parts for cell in part.cells]
        cells.sort(key=lambda cell: order.index(cell.algorithm))  # stable, so prompts stay in order
        return Comparison(budget, JUDGE, cells, [], folder)


def _share(task: tuple[Benchmark, list[Prompt], list[str], str, Path]) -> Comparison:
    import torch

    benchmark, prompts, algorithms, budget, output = task
    if benchmark.jobs > 1:
        torch.set_num_threads(1)
    return compare(
        benchmark.model,
        prompts,
        algorithms=algorithms,
        verifiers=[benchmark.verifier],
        evaluator=JUDGE,
        budget=budget,
        seeds=benchmark.seeds,
        output=output,
    )


def table(comparison: Comparison, arms: dict[str, str]) -> str:
    """Accuracy of the best samples with 95 % intervals over prompts, their scores, and their costs.

    The own share is that of the compute which the search itself spent; independent samples took the rest.
    """
    lines = [
        "| search | right, % | verifier's score | GMAC | own share, % | decodes | verifier calls | seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    calls = {arm: [c.verifier_calls for c in comparison.cells if c.algorithm == arm] for arm in _specs(arms)}
    names = {spec: name for name, spec in arms.items()}
    for row in comparison.rows():
        name = names.get(row.algorithm, "plain sample")
        low, high = 100 * row.evaluation_low, 100 * row.evaluation_high
        mean_calls = sum(calls[row.algorithm]) / len(calls[row.algorithm])
        lines.append(
            f"| {name} | {100 * row.evaluation:.1f} [{low:.1f}, {high:.1f}] "
            f"| {row.score:.4f} | {row.macs / 1e9:.3g} | {100 * (1 - row.topped_up):.0f} "
            f"| {row.decodes:.1f} | {mean_calls:.1f} "
            f"| {row.seconds:.2f} |"
        )
    return "\n".join(lines)


def plot(comparisons: dict[str, Comparison], arms: dict[str, str]) -> Figure:
    """Accuracy of each search, a panel per comparison; the line is a plain sample."""
    from matplotlib.figure import Figure

    names = {spec: name for name, spec in arms.items()}
    figure = Figure(figsize=(4.6 * len(comparisons) + 0.8, 0.34 * len(arms) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(comparisons), sharey=True, squeeze=False)[0]
    for axis, (title, comparison) in zip(panels, comparisons.items()):
        rows = {row.algorithm: row for row in comparison.rows()}
        axis.axvline(100 * rows.pop(PLAIN).evaluation, color="gray", linestyle=":", label="plain sample")
        middle = [100 * row.evaluation for row in rows.values()]
        spread = [
            [100 * (row.evaluation - row.evaluation_low) for row in rows.values()],
            [100 * (row.evaluation_high - row.evaluation) for row in rows.values()],
        ]
        axis.errorbar(
            middle, [names[spec] for spec in rows], xerr=spread, fmt="o", color="#30638e", capsize=3
        )
        axis.set(title=title, xlabel="right by the exact checker, %")
        axis.legend(fontsize=8)
    panels[0].invert_yaxis()
    return figure


def write(folder: Path, stem: str, text: str, figure: Figure, data: dict[str, Any]) -> None:
    """The table as Markdown and JSON, and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    found = json.dumps(_plain(data), indent=2) + "\n"
    replace_file(folder / f"{stem}.md", lambda part: part.write_text(text + "\n"), "The table")
    replace_file(folder / f"{stem}.json", lambda part: part.write_text(found), "The results")
    replace_file(folder / f"{stem}.png", lambda part: figure.savefig(part, format="png", dpi=120), "The plot")
    print(text)
    print(f"{folder / stem}.md  {folder / stem}.json  {folder / stem}.png", flush=True)


def run_main(
    benchmark: Benchmark, prompts: list[Prompt], arms: dict[str, str], budget: str, seconds: float | None
) -> tuple[str, dict[str, Comparison]]:
    """At equal multiply-accumulates, then at equal seconds: by default those that best of n took."""
    even = benchmark.compare(f"macs-{budget}", prompts, arms, budget)
    if seconds is None:
        seconds = next(row.seconds for row in even.rows() if row.algorithm == BASELINE)
    # two digits, so that a benchmark that goes on asks for the same
    limit = f"{seconds:.2g}"
    timed = benchmark.compare(f"seconds-{limit}", prompts, arms, f"seconds={limit}")
    text = (
        f"{len(prompts)} prompts, {len(benchmark.seeds)} seeds; guided by {benchmark.verifier}, judged by "
        f"the exact checker.\n\nAt equal multiply-accumulates of the transformer, {budget} those of one "
        f"sample:\n\n{table(even, arms)}\n\nIn {limit} seconds each, loading apart:\n\n{table(timed, arms)}"
    )
    return text, {f"equal MACs ({budget})": even, f"equal time ({limit} s)": timed}


def run_ablations(
    benchmark: Benchmark, prompts: list[Prompt], arms: dict[str, str], budget: str
) -> tuple[str, dict[str, Comparison]]:
    """Variants of TTS-VAR at equal multiply-accumulates."""
    found = benchmark.compare(f"ablations-{budget}", prompts, arms, budget)
    text = (
        f"Variants of TTS-VAR at {budget} the multiply-accumulates of one sample: {len(prompts)} prompts, "
        f"{len(benchmark.seeds)} seeds; guided by {benchmark.verifier}, judged by the exact checker.\n\n"
        f"{table(found, arms)}"
    )
    return text, {f"equal MACs ({budget})": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["main", "ablations", "all"], default="main")
    parser.add_argument("--output", type=Path, default=Path("runs/var_playground"), help="keeps searches")
    parser.add_argument("--results", type=Path, default=Path("eval/results"), help="where the tables go")
    parser.add_argument("--budget", default="4x", help="of the main part's first half, and of ablations")
    parser.add_argument("--seconds", type=float, default=None, help="of its second half")
    parser.add_argument("--prompts", type=int, default=100, help="of the main part, up to 123")
    parser.add_argument("--ablation-prompts", type=int, default=23, help="that follow, while they last")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lam", default="auto", help="of all resampling: a number, or auto")
    parser.add_argument("--jobs", type=int, default=2, help="processes with one thread each")
    parser.add_argument("--model", default="playground-var")
    parser.add_argument("--verifier", default="playground_clip")
    options = parser.parse_args(arguments)

    benchmark = Benchmark(
        options.model, options.verifier, tuple(options.seeds), options.output, max(1, options.jobs)
    )
    prompts = evaluation_prompts(options.prompts + options.ablation_prompts)
    settings = {key: value for key, value in vars(options).items() if key not in {"output", "results"}}
    for part in ("main", "ablations") if options.part == "all" else (options.part,):
        if part == "main":
            arms, stem = main_arms(options.lam), "var_playground"
            chosen = prompts[: options.prompts]
            text, comparisons = run_main(benchmark, chosen, arms, options.budget, options.seconds)
        else:
            arms, stem = ablation_arms(options.lam), "var_playground_ablations"
            # at the end of the set, which may be smaller than what was asked for
            chosen = prompts[-options.ablation_prompts :]
            text, comparisons = run_ablations(benchmark, chosen, arms, options.budget)
        data = {
            "settings": settings,
            "arms": arms,
            **{title: [asdict(row) for row in found.rows()] for title, found in comparisons.items()},
        }
        write(options.results, stem, text, plot(comparisons, arms), data)


def _specs(arms: dict[str, str]) -> list[str]:
    return [PLAIN, *arms.values()]


def _plain(value: Any) -> Any:
    """The value as JSON has it: no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    main()
