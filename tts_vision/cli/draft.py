"""The commands ``draft`` and ``finish``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tts_vision.cli.application import app, collect_garbage, explained, interrupted
from tts_vision.cli.options import (
    Device,
    Dtype,
    Guidance,
    MaxBatch,
    Model,
    NegativePrompt,
    Offload,
    Output,
    Overrides,
    PreviewFrames,
    PreviewSize,
    Steps,
    Trust,
    Verifier,
)
from tts_vision.cli.settings import free_folder, pipeline_arguments, with_nested, without_none
from tts_vision.config import RunConfig, override
from tts_vision.errors import ConfigError, SearchWarning

if TYPE_CHECKING:
    from tts_vision.runner import Observer


@app.command()
def draft(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to generate.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Drafts.")] = 64,
    steps_done: Annotated[
        int | None, typer.Option(help="Steps of each draft. (default: a quarter of the trajectory)")
    ] = None,
    model: Model = None,
    verifier: Verifier = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", "-b", help="For drafts and finished ones. (default: all can be finished)"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Root seed.")] = 0,
    output: Output = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    negative_prompt: NegativePrompt = None,
    max_batch: MaxBatch = None,
    preview_size: PreviewSize = None,
    preview_frames: PreviewFrames = None,
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = None,
    overrides: Overrides = None,
) -> None:
    """Begin many samples, and show them as drafts on a contact sheet; 'finish' finishes the picked ones."""
    from tts_vision.drafts import ALGORITHM, SHEET, begin

    values = without_none({"prompt": prompt, "model": model, "verifier": verifier, "max_batch": max_batch})
    values |= {"algorithm": ALGORITHM, "seed": seed, "budget": budget or f"{n}x"}
    values |= {"algorithm_params": without_none({"n": n, "steps_done": steps_done})}
    loading = without_none({"dtype": dtype, "device": device, "offload": offload})
    values = with_nested(values, ("model_options",), loading)
    previews = without_none({"preview_size": preview_size, "preview_frames": preview_frames})
    values = with_nested(values, ("sampler_options",), previews)
    arguments = pipeline_arguments(steps, guidance_scale, negative_prompt)
    values = with_nested(values, ("sampler_options", "pipeline_kwargs"), arguments)
    config = RunConfig(**override(values, overrides or []))
    if config.algorithm != ALGORITHM:
        raise ConfigError(f"Drafts are made by {ALGORITHM!r} but got {config.algorithm!r}; use 'generate'.")
    folder = free_folder(prompt, ctx) if output is None else output.expanduser()
    with _reported(config, folder) as report:
        result = begin(config, output=folder, progress=report)
    spent = result.spent
    typer.echo(f"drafts  {folder / SHEET}")
    typer.echo(f"spent   {spent.nfe:g} nfe, {spent.verifier_calls} verifier calls, {spent.elapsed:.1f} s")
    typer.echo(f"next    tts-vision finish {folder} NUMBERS")


@app.command()
def finish(
    folder: Annotated[Path, typer.Argument(help="Output folder of 'draft'.")],
    numbers: Annotated[list[int], typer.Argument(help="Numbers of drafts, as on the contact sheet.")],
    trust: Trust = False,
) -> None:
    """Finish drafts, from exactly where they stand."""
    from tts_vision.drafts import finish as finish_drafts
    from tts_vision.folders import read_config

    folder = folder.expanduser()
    with _reported(read_config(folder), folder) as report:
        result = finish_drafts(folder, numbers, trust=trust, progress=report)
    by_uid = {candidate.uid: candidate for candidate in result.population}
    for number in dict.fromkeys(numbers):
        if number in by_uid:
            sample = by_uid[number]
            typer.echo(f"#{number:<6} {sample.path}  {sample.score.value:.4f}")
        else:
            typer.echo(f"#{number:<6} not finished: the budget of {result.config.budget} is spent", err=True)
    spent = result.spent
    typer.echo(
        f"spent   {spent.nfe:g} nfe, {spent.verifier_calls} verifier calls, {spent.elapsed:.1f} s in all"
    )
    if any(number not in by_uid for number in numbers):
        raise typer.Exit(1)


@contextmanager
def _reported(config: RunConfig, folder: Path) -> Iterator[Observer]:
    """Reports the progress of a search on standard error, and tells mistakes and an interrupt."""
    from tts_vision.progress import ProgressReport

    go_on = f"'tts-vision resume {folder}' goes on from where it stopped."

    def begun() -> bool:
        return (folder / "config.yaml").exists()

    arguments = config.sampler_options.pipeline_kwargs
    try:
        with (
            ProgressReport(sys.stderr) as report,
            explained([config.verifier, config.model], go_on, begun, arguments),
            warnings.catch_warnings(),
        ):
            from tts_vision.hub import asked_once

            warnings.simplefilter("ignore", SearchWarning)
            collect_garbage()
            with asked_once():
                yield report
    except KeyboardInterrupt as stop:
        message = f"Interrupted. {go_on}" if begun() else "Interrupted before the search began."
        raise interrupted(stop, message) from None
