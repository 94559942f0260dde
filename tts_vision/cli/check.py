"""The command ``check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tts_vision.cli.application import INCOMPLETE, app, collect_garbage, explained
from tts_vision.cli.options import Guidance, Overrides, Steps, plugin_names
from tts_vision.cli.settings import generator_settings, pipeline_arguments
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError

if TYPE_CHECKING:
    from tts_vision.self_check import Line


@app.command()
def check(
    model: Annotated[
        str,
        typer.Argument(help="Registered name, folder, or hub id.", autocompletion=plugin_names("model")),
    ],
    verifier: Annotated[
        str | None,
        typer.Option(
            "--verifier",
            "-v",
            help="What scores. (default: the model's own, if it has one)",
            autocompletion=plugin_names("verifier"),
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What to generate.")] = None,
    samples: Annotated[int, typer.Option(help="Samples for the figures on previews and scores.")] = 8,
    seed: Annotated[int, typer.Option(help="Root seed.")] = 0,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Test on your model and device that a search there keeps its promises, and what it costs.

    Takes about the time of ten samples. Exit code 1 says that a promise is broken; the text is one to paste
    into a bug report.
    """
    import json

    from tts_vision.hub import asked_once
    from tts_vision.registry import registered_model
    from tts_vision.self_check import PROMPT
    from tts_vision.self_check import check as run_check

    base = generator_settings("check", overrides, pipeline_arguments(steps, guidance_scale, None))
    settings = RunConfig(prompt=prompt or PROMPT, model=model, verifier="-", **base)
    sampler = settings.sampler_options.model_dump(exclude_defaults=True).keys() - {"pipeline_kwargs"}
    if sampler:
        raise ConfigError(
            f"A check compares with the generator's own call but --set got sampler.{min(sampler)}, which "
            "that call does not have; leave it out."
        )
    if verifier is None:
        entry = registered_model(model)
        verifier = entry.verifier or None if entry is not None else None

    def tell(line: Line) -> None:
        typer.echo(f"{line.verdict:9}{line.name}", err=True)

    collect_garbage()
    with explained([verifier or "", model], arguments=settings.sampler_options.pipeline_kwargs), asked_once():
        report = run_check(
            model,
            settings.prompt,
            verifier=verifier,
            samples=samples,
            seed=seed,
            pipeline_kwargs=settings.sampler_options.pipeline_kwargs,
            model_options=settings.model_options,
            progress=tell,
        )
    typer.echo(json.dumps(report.as_json(), indent=2) if as_json else report.text())
    if not report.holds:
        raise typer.Exit(INCOMPLETE)
