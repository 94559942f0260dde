"""Searches by gradient on the playground: what they gain by their verifier, and what the exact checker says.

``python -m tts_vision.eval.gradients`` gives every algorithm the same seconds on the same prompts and seeds,
guided by ``playground_clip``, through the bundled model at its own number of steps and at few, and writes one
table; about seven minutes on an idle machine, and on a busy one the seconds mean little. It may be
interrupted and started again: finished searches are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tts_vision.comparisons import Cell, Comparison, Row, compare
from tts_vision.config import ModelOptions, SamplerOptions
from tts_vision.eval.playground import JUDGE, evaluation_prompts

ALGORITHMS = ("best_of_n", "reno", "das", "gradient_guidance")


def table(comparisons: dict[int, Comparison]) -> str:
    """Verifier's score and accuracy of the best samples, with 95 % intervals over prompts, in Markdown."""
    lines = [
        "| steps | algorithm | playground_clip | right, % | nfe | seconds |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for steps, comparison in comparisons.items():
        lines += [f"| {steps} | {row.algorithm} | {_row(row)} |" for row in comparison.rows()]
    return "\n".join(lines)


def _row(row: Row) -> str:
    score = f"{row.score:.4f} [{row.score_low:.4f}, {row.score_high:.4f}]"
    right, low, high = (100 * v for v in (row.evaluation, row.evaluation_low, row.evaluation_high))
    return f"{score} | {right:.1f} [{low:.1f}, {high:.1f}] | {row.nfe:.0f} | {row.seconds:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/gradients"), help="where everything is kept"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="what each search may take")
    parser.add_argument("--prompts", type=int, default=24, help="distinct prompts, up to 123")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[13, 4], help="of the model")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--verifier", default="playground_clip")
    parser.add_argument("--dtype", default=None, help="precision of the model, such as bfloat16")
    parser.add_argument("--device", default=None)
    parser.add_argument("--table", type=Path, default=None, help="also write the table here")
    options = parser.parse_args(arguments)

    def report(done: int, total: int, cell: Cell) -> None:
        if done % 50 == 0 or done == total:
            print(f"{done}/{total} {cell.algorithm}", flush=True)

    comparisons = {}
    for steps in options.steps:
        print(f"{steps} steps", flush=True)
        comparisons[steps] = compare(
            "playground",
            evaluation_prompts(options.prompts),
            algorithms=options.algorithms,
            verifiers=[options.verifier],
            evaluator=JUDGE,
            budget=f"seconds={options.seconds:g}",
            seeds=options.seeds,
            model_options=ModelOptions(dtype=options.dtype, device=options.device),
            # the model is small: there is memory for everything that gradients need
            sampler_options=SamplerOptions(pipeline_kwargs={"num_inference_steps": steps}, recompute=False),
            output=options.output / f"{steps}-steps",
            progress=report,
        )
    text = table(comparisons) + "\n"
    for path in filter(None, (options.output / "table.md", options.table)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
