"""The command ``compare``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tts_vision.cli.application import app, collect_garbage, explained, interrupted
from tts_vision.cli.options import (
    Algorithms,
    Guidance,
    MaxBatch,
    Model,
    NegativePrompt,
    Overrides,
    PromptFile,
    PromptTexts,
    Steps,
    plugin_names,
)
from tts_vision.cli.settings import (
    free_folder,
    generator_settings,
    pipeline_arguments,
    prompt_records,
    read_seeds,
    without_none,
)
from tts_vision.cli.tables import print_table
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError


@app.command()
def compare(
    ctx: typer.Context,
    prompts: PromptTexts = None,
    prompts_file: PromptFile = None,
    model: Model = None,
    algorithms: Algorithms = None,
    verifiers: Annotated[
        list[str] | None,
        typer.Option(
            "--verifier", "-v", help="Give once per verifier.", autocompletion=plugin_names("verifier")
        ),
    ] = None,
    evaluator: Annotated[
        str | None,
        typer.Option(
            help="A verifier that judges the outcome and never guides a search.",
            autocompletion=plugin_names("verifier"),
        ),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", "-b", help="Of each search.")] = "16x",
    seeds: Annotated[
        str, typer.Option(help="How many root seeds, from --seed on; or the seeds, such as 0-3,7.")
    ] = "1",
    seed: Annotated[int, typer.Option(help="First root seed.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; finished searches in it are not repeated.")
    ] = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    negative_prompt: NegativePrompt = None,
    max_batch: MaxBatch = None,
    overrides: Overrides = None,
) -> None:
    """Compare algorithms at one budget, beside plain sampling."""
    records = prompt_records(prompts, prompts_file)
    if not records:
        raise ConfigError(
            "A comparison needs at least one prompt but got none; give PROMPTS or --prompts FILE."
        )
    arguments = pipeline_arguments(steps, guidance_scale, negative_prompt)
    base = generator_settings("compare", overrides, arguments)
    settings = RunConfig(prompt="-", verifier="-", **without_none({"model": model}), **base)
    chosen = range(seed, seed + int(seeds)) if re.fullmatch("[0-9]{1,5}", seeds) else read_seeds(seeds)
    arms = algorithms or ["best_of_n"]
    folder = output.expanduser() if output is not None else free_folder("compare", ctx)
    typer.echo(f"comparing {', '.join(arms)} on {len(records)} prompts, into {folder}", err=True)

    from tts_vision.comparisons import Cell
    from tts_vision.comparisons import compare as run_comparison
    from tts_vision.hub import asked_once
    from tts_vision.types import Prompt

    def report(done: int, total: int, cell: Cell) -> None:
        line = f"{done}/{total}  {cell.algorithm}  {cell.score:.4f}  {cell.prompt!r} seed {cell.seed}"
        typer.echo(line, err=True)

    go_on = f"The same command with '--output {folder}' goes on."
    collect_garbage()
    try:
        with explained([*arms, *(verifiers or []), evaluator or "", settings.model], go_on), asked_once():
            comparison = run_comparison(
                settings.model,
                [Prompt(record.text, record.metadata) for record in records],
                algorithms=arms,
                output=folder,
                verifiers=verifiers,
                evaluator=evaluator,
                budget=budget,
                seeds=chosen or (),
                sampler_options=settings.sampler_options,
                model_options=settings.model_options,
                max_batch=max_batch,
                progress=report,
            )
    except KeyboardInterrupt as stop:
        raise interrupted(stop, f"Interrupted. {go_on}") from None
    print_table(comparison.table())
    typer.echo(f"{folder}/comparison.json, .csv, .png")
