"""The commands ``eval`` and ``report``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tts_vision.cli.application import INCOMPLETE, app, collect_garbage, explained, interrupted
from tts_vision.cli.flags import EXTRA, EvaluatorFlags
from tts_vision.cli.options import (
    Algorithms,
    BudgetText,
    Guidance,
    HoldoutVerifier,
    MaxBatch,
    Model,
    NegativePrompt,
    Overrides,
    Steps,
    Until,
    Verifier,
    plugin_names,
)
from tts_vision.cli.settings import free_folder, generator_settings, pipeline_arguments, without_none
from tts_vision.cli.tables import print_table
from tts_vision.config import RunConfig, Spec
from tts_vision.errors import ConfigError

if TYPE_CHECKING:
    from tts_vision.eval.evaluator import Evaluator
    from tts_vision.runs.executors import Executor


@app.command("eval", cls=EvaluatorFlags)
def evaluate(
    ctx: typer.Context,
    evaluator: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A benchmark, such as geneval.", autocompletion=plugin_names("evaluator")
        ),
    ],
    model: Model = None,
    algorithms: Algorithms = None,
    verifier: Verifier = None,
    holdout_verifier: HoldoutVerifier = None,
    budget: BudgetText = None,
    budget_total: Annotated[
        str | None,
        typer.Option(
            help="One budget for all searches of an algorithm, such as 4000x: what easy prompts leave by "
            "--until goes to the hard ones."
        ),
    ] = None,
    until: Until = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples of each prompt. (default: the benchmark's own number)")
    ] = None,
    seed: Annotated[int, typer.Option(help="Root seed of the first sample of each prompt.")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="Prompts to take, spread over the benchmark. (default: all)")
    ] = None,
    shard: Annotated[str, typer.Option(help="Which part of how many, such as 2/4.")] = "1/1",
    images: Annotated[
        Path | None, typer.Option(help="Judge this folder, in the benchmark's layout, instead of searching.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; what is done in it is not repeated.")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="Where searches run: local, one after the other, or ray.")
    ] = "local",
    workers: Annotated[int | None, typer.Option(help="Workers of Ray. (default: one for each GPU)")] = None,
    num_gpus: Annotated[int | None, typer.Option(help="GPUs that the workers of Ray share.")] = None,
    verifier_gpus: Annotated[
        int | None, typer.Option(help="GPUs for verifiers in processes of their own, by Ray.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of a worker of Ray. (default: those of this process)")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--ray-address", help="A Ray cluster that runs. (default: a new one)")
    ] = None,
    curves: Annotated[
        bool,
        typer.Option(
            "--curves/--no-curves",
            help="Judge also the samples that were the best for a time, for quality against spending.",
        ),
    ] = True,
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Test the judge first, where it has a test.")
    ] = True,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    negative_prompt: NegativePrompt = None,
    max_batch: MaxBatch = None,
    overrides: Overrides = None,
) -> None:
    """Run a benchmark: search for every prompt, judge the outcome beside plain samples, report.

    Further flags are the parameters of the evaluator. Exit code 1 says that something is missing or could
    not be judged; what, stands in the report.
    """
    judge = _evaluator(evaluator, ctx.meta[EXTRA])
    folder = output.expanduser() if output is not None else free_folder(f"eval {judge.name}", ctx)
    arguments = pipeline_arguments(steps, guidance_scale, negative_prompt)
    base = generator_settings("eval", overrides, arguments)
    given: dict[str, Any] = {"model": model, "verifier": verifier, "target": until}
    given |= {"holdout_verifier": holdout_verifier, "budget": budget, "max_batch": max_batch}
    command = ["tts-vision", *sys.argv[1:]]
    go_on = f"The same command with '--output {folder}' goes on."

    from tts_vision.eval.evaluation import evaluate as run_benchmark
    from tts_vision.eval.evaluation import evaluate_images
    from tts_vision.eval.tables import terminal
    from tts_vision.hub import asked_once
    from tts_vision.runs.progress import RunReport

    def note(line: str) -> None:
        typer.echo(line, err=True)

    named = [*(algorithms or []), verifier or "", model or "", evaluator]
    collect_garbage()
    try:
        with explained(named, go_on), asked_once():
            if images is not None:
                found = evaluate_images(
                    judge,
                    images.expanduser(),
                    output=folder,
                    self_test=self_test,
                    command=command,
                    note=note,
                )
            else:
                settings = RunConfig(prompt="-", seed=seed, **without_none(given), **base)
                chosen = _executor(
                    executor,
                    workers=workers,
                    num_gpus=num_gpus,
                    verifier_gpus=verifier_gpus,
                    threads=threads,
                    address=address,
                )
                note(f"evaluating on {judge.name}, into {folder}")
                with RunReport(sys.stderr) as report:
                    found = run_benchmark(
                        judge,
                        settings,
                        algorithms=algorithms or ["best_of_n"],
                        output=folder,
                        samples=samples,
                        limit=limit,
                        shard=_shard(shard),
                        total=budget_total,
                        curves=curves,
                        self_test=self_test,
                        executor=chosen,
                        command=command,
                        progress=report,
                        note=note,
                    )
    except KeyboardInterrupt as stop:
        raise interrupted(stop, f"Interrupted. {go_on}") from None
    print_table(terminal(found))
    for line in (*found.notes, *found.complaints):
        typer.echo(line, err=True)
    typer.echo(f"{folder}/evaluation.json, table.md; 'tts-vision report {folder}' makes a page")
    if not found.is_complete:
        raise typer.Exit(INCOMPLETE)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Output folders of 'eval' and 'compare'.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page. (default: report.html in the first folder)"),
    ] = None,
    most: Annotated[int, typer.Option("--images", help="Most prompts shown with their images.")] = 60,
) -> None:
    """Make one self-contained HTML page of benchmarks and comparisons: tables, curves, images."""
    from tts_vision.eval.report import write_report

    roots = [folder.expanduser() for folder in folders]
    typer.echo(str(write_report(roots, output or roots[0] / "report.html", most=most)))


def _evaluator(text: str, flags: dict[str, Any]) -> Evaluator:
    """The evaluator of a command line."""
    from tts_vision.parameters import validate
    from tts_vision.registry import lookup

    spec = Spec.parse(text)
    if spec.members:
        raise ConfigError(f"An evaluator has no members in parentheses but got {text!r}; leave them out.")
    entry = lookup("evaluator", spec.name)
    values = validate(entry.target, {**spec.params, **flags}, f"evaluator {entry.name!r}")
    with explained([spec.name]):
        made: Evaluator = entry.target(**values)
    return made


def _executor(name: str, **options: Any) -> Executor | None:
    given = {key: value for key, value in options.items() if value is not None}
    if name == "local":
        if given:
            raise ConfigError(
                f"--{next(iter(given)).replace('_', '-')} is for many workers but --executor is local; add "
                "--executor ray."
            )
        return None
    if name != "ray":
        raise ConfigError(f"--executor must be local or ray but got {name!r}; change it.")
    from tts_vision.runs.ray_executor import RayExecutor

    return RayExecutor(**given)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if match is None:
        raise ConfigError(f"--shard is written part/parts, such as 2/4, but got {text!r}; change it.")
    return int(match[1]), int(match[2])
