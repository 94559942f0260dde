"""The command ``refine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tts_vision.cli.application import app, explained
from tts_vision.cli.generate import run_search
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
    Steps,
    Trust,
    Verifier,
)
from tts_vision.cli.settings import (
    free_folder,
    generator_settings,
    pipeline_arguments,
    with_nested,
    without_none,
)
from tts_vision.config import ModelOptions, SamplerOptions
from tts_vision.errors import ConfigError


@app.command()
def refine(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(help="Result folder of a search, or an image.")],
    what: Annotated[
        str | None,
        typer.Argument(
            help="Number of the sample, by default the best; of an image what it should show, by default "
            "the prompt in its metadata.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the sample should show. (default: as its search)")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Candidates beside the original.")] = 8,
    strength: Annotated[
        float | None, typer.Option(help="How far they may go from it, up to 1. (default: 0.5)")
    ] = None,
    model: Model = None,
    verifier: Verifier = None,
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help="A limit. (default: all candidates can be made)")
    ] = None,
    seed: Annotated[int, typer.Option(help="Root seed, of an image.")] = 0,
    output: Output = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    negative_prompt: NegativePrompt = None,
    max_batch: MaxBatch = None,
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = None,
    overrides: Overrides = None,
    trust: Trust = False,
) -> None:
    """Make candidates around a sample, or around an image, and keep the best; the original is one of them."""
    from contextlib import nullcontext

    from tts_vision.folders import read_config
    from tts_vision.refining import is_search, of_image, of_result, original, trusted, with_strength
    from tts_vision.resolve import Live
    from tts_vision.results import load_result
    from tts_vision.trust import trusting

    source = source.expanduser()
    loading = without_none({"dtype": dtype, "device": device, "offload": offload})
    arguments = pipeline_arguments(steps, guidance_scale, negative_prompt)
    given = generator_settings("refine", overrides, arguments)
    given = with_nested(given, ("model_options",), loading)
    settings: dict[str, Any] = without_none(
        {**given, "model": model, "verifier": verifier, "budget": budget, "max_batch": max_batch}
    )
    if "model_options" in settings:
        settings["model_options"] = ModelOptions(**settings["model_options"])
    if "sampler_options" in settings:
        settings["sampler_options"] = SamplerOptions(**settings["sampler_options"])
    if is_search(source):
        number = _number(what)
        with trusting(source, read_config(source), trust=trust):
            config = of_result(source, number, prompt=prompt, n=n, strength=strength, settings=settings)
        allowed = trusted(source, config, trust=trust)
    else:
        if what is not None and prompt is not None:
            raise ConfigError(f"A prompt must be given once but got {what!r} and {prompt!r}; keep one.")
        text = prompt if what is None else what
        config = of_image(str(source), text, n=n, strength=strength, seed=seed, settings=settings)
        allowed = nullcontext()  # type: ignore[assignment]
    folder = free_folder(config.prompt, ctx) if output is None else output.expanduser()
    with allowed:
        with explained([config.model]):
            config, live = with_strength(config, Live())
        run_search(config, folder, resume=False, live=live)
    kept = original(load_result(folder))
    if kept is not None:
        typer.echo(f"original  #{kept.uid} {kept.path}  {kept.score.value:.4f}")


def _number(text: str | None) -> int | None:
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    raise ConfigError(
        f"A result is refined by the number of a sample but got {text!r}; write another prompt as --prompt."
    )
