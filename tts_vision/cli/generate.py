"""The commands ``generate``, ``resume`` and ``replay``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tts_vision.cli.application import INCOMPLETE, app, collect_garbage, explained, interrupted
from tts_vision.cli.flags import EXTRA, AlgorithmFlags
from tts_vision.cli.options import (
    Algorithm,
    Attention,
    BudgetText,
    Device,
    Dtype,
    Eta,
    Guidance,
    HoldoutVerifier,
    MaxBatch,
    Model,
    NegativePrompt,
    Offload,
    Output,
    Overrides,
    PreviewFrames,
    PreviewSize,
    PromptFile,
    PromptTexts,
    Scheduler,
    Steps,
    Stochastic,
    Trust,
    Until,
    Verifier,
)
from tts_vision.cli.outcomes import best_file, outcome_json, tell_outcome
from tts_vision.cli.settings import (
    free_folder,
    opened_images,
    pipeline_arguments,
    prompt_records,
    read_seeds,
    searches_of,
    with_nested,
    without_none,
)
from tts_vision.config import RunConfig, Spec, override, read_yaml
from tts_vision.errors import ConfigError, SearchWarning, TTSVisionError

if TYPE_CHECKING:
    from tts_vision.context import SearchContext
    from tts_vision.resolve import Live
    from tts_vision.trace import Event


@app.command(cls=AlgorithmFlags)
def generate(
    ctx: typer.Context,
    prompts: PromptTexts = None,
    prompts_file: PromptFile = None,
    model: Model = None,
    algorithm: Algorithm = None,
    verifier: Verifier = None,
    holdout_verifier: HoldoutVerifier = None,
    budget: BudgetText = None,
    until: Until = None,
    seed: Annotated[int | None, typer.Option(help="Root seed. (default: 0)")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Several root seeds, such as 0-3,7: a search for each.")
    ] = None,
    output: Output = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    negative_prompt: NegativePrompt = None,
    max_batch: MaxBatch = None,
    stochastic: Stochastic = None,
    eta: Eta = None,
    preview_size: PreviewSize = None,
    preview_frames: PreviewFrames = None,
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = None,
    attention: Attention = None,
    scheduler: Scheduler = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML settings, such as a result's config.yaml.")
    ] = None,
    trust: Trust = False,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object per search on standard output, and nothing else.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only the path of the best sample, and mistakes.")
    ] = False,
) -> None:
    """Search for the best sample of a prompt, or of each of several.

    Further flags are the parameters of the algorithm.
    """
    values = {} if config is None else read_yaml(config)
    chosen = [algorithm] if algorithm is not None else []
    chosen += [text.partition("=")[2] for text in overrides or [] if text.startswith("algorithm=")]
    if chosen and Spec.parse(chosen[-1]).name != values.get("algorithm", "best_of_n"):
        values.pop("algorithm_params", None)  # they were another algorithm's
    records = prompt_records(prompts, prompts_file, overrides)
    if any(record.text != values.get("prompt") for record in records):
        values.pop("prompt_metadata", None)  # it was another prompt's
    flags = {"model": model, "algorithm": algorithm, "verifier": verifier}
    flags |= {"holdout_verifier": holdout_verifier, "target": until}
    values |= without_none({**flags, "budget": budget, "seed": seed, "max_batch": max_batch})
    pipeline = pipeline_arguments(steps, guidance_scale, negative_prompt)
    sampler = without_none({"stochastic": stochastic, "eta": eta})
    sampler |= without_none({"preview_size": preview_size, "preview_frames": preview_frames})
    loading = {"dtype": dtype, "device": device, "offload": offload}
    loading |= {"attention": attention, "scheduler": scheduler}
    values = with_nested(values, ("model_options",), without_none(loading))
    values = with_nested(values, ("sampler_options",), sampler)
    values = with_nested(values, ("sampler_options", "pipeline_kwargs"), pipeline)
    plain, images = opened_images(overrides or [])
    values = with_nested(override(values, plain), ("sampler_options", "pipeline_kwargs"), images)
    values = with_nested(values, ("algorithm_params",), ctx.meta[EXTRA])
    if seed is not None and seeds is not None:
        raise ConfigError(f"Seeds must be given once but got --seed {seed} and --seeds {seeds}; keep one.")
    searches = searches_of(values, records, read_seeds(seeds))
    if config is not None and not trust:
        from tts_vision.trust import check_settings

        check_settings(searches[0], repr(str(config)))
    folder = None if output is None else output.expanduser()
    if len(searches) == 1:
        own = folder or free_folder(searches[0].prompt, ctx)
        run_search(searches[0], own, resume=False, as_json=as_json, quiet=quiet)
    else:
        _run_all(searches, folder, ctx, as_json=as_json, quiet=quiet)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Output folder of a search that was stopped.")],
    trust: Trust = False,
) -> None:
    """Go on with a search that was killed or interrupted."""
    from tts_vision.folders import read_config

    run_search(read_config(folder), folder, resume=True, trust=trust)


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(help="Output folder of a finished search.")],
    trust: Trust = False,
) -> None:
    """Make the best sample again, from its seed and lineage alone."""
    from tts_vision.replays import replay as make_again

    again = make_again(folder, trust=trust)
    steps = " -> ".join(f"{a.origin} #{a.uid}" for a in again.lineage)
    typer.echo(f"{again.path}  ({steps})")
    typer.echo(
        "same pixels as the best sample"
        if again.max_difference == 0
        else f"differs from the best sample by at most {again.max_difference} of 255"
    )


def run_search(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool,
    live: Live | None = None,
    trust: bool | None = None,
    as_json: bool = False,
    quiet: bool = False,
    count: str = "",
) -> None:
    """Runs a search with a progress report, and tells its outcome.

    Args:
        config: The search.
        folder: Its output folder.
        resume: Whether to go on with what the folder holds.
        live: Objects in the place of names.
        trust: Whether the folder's configuration is trusted, where it is what the search is taken from.
        as_json: Tell the outcome as one JSON object.
        quiet: Tell no progress, and of the outcome the path of the best sample.
        count: Which search it is of how many.
    """
    from tts_vision.progress import ProgressReport

    if not quiet:
        prompt = config.prompt if len(config.prompt) <= 60 else f"{config.prompt[:59]}…"
        settings = f"{config.algorithm}, {config.budget}, {config.model}"
        typer.echo(f"{count}{prompt!r} ({settings}), into {folder}", err=True)
    go_on = f"'tts-vision resume {folder}' goes on from where it stopped."

    def begun() -> bool:
        return (folder / "config.yaml").exists()

    specs = [config.algorithm, config.verifier, config.holdout_verifier or "", config.model]
    try:
        with (
            ProgressReport(sys.stderr) if not quiet else nullcontext() as report,
            explained(specs, go_on, begun, config.sampler_options.pipeline_kwargs),
            warnings.catch_warnings(),
            _only_on_stderr() if as_json else nullcontext(),
        ):
            from tts_vision.hub import asked_once
            from tts_vision.runner import resume as continue_search
            from tts_vision.runner import run

            warnings.simplefilter("ignore", SearchWarning)  # `tell_outcome` says it

            def observe(context: SearchContext, event: Event) -> None:
                collect_garbage()
                if report is not None:
                    report(context, event)

            with asked_once():
                if trust is None:
                    result = run(config, live, output=folder, resume=resume, progress=observe)
                else:
                    result = continue_search(folder, trust=trust, progress=observe)
    except KeyboardInterrupt as stop:
        message = f"Interrupted. {go_on}" if begun() else "Interrupted before the search began."
        raise interrupted(stop, message) from None
    if as_json:
        import json

        typer.echo(json.dumps(outcome_json(result, folder), ensure_ascii=False))
    elif quiet:
        typer.echo(str(best_file(folder)))
    else:
        tell_outcome(result, folder)


def _run_all(
    searches: Sequence[RunConfig], output: Path | None, ctx: typer.Context, *, as_json: bool, quiet: bool
) -> None:
    """Runs several searches of one model, which is loaded once.

    A search that fails after others succeeded is told, and the rest go on; exit code 1 says so.
    """
    import json

    from tts_vision.runs.task import search_name
    from tts_vision.types import Prompt

    live: Live | None = None
    failed = 0
    for number, config in enumerate(searches, start=1):
        prompt = Prompt(config.prompt, config.prompt_metadata)
        name = search_name((), prompt, config.seed)
        folder = free_folder(config.prompt, ctx) if output is None else output / name
        count = f"{number}/{len(searches)}  "
        try:
            if live is None:
                live = _load(config, quiet=quiet)
            run_search(
                config,
                folder,
                resume=output is not None,
                live=live,
                as_json=as_json,
                quiet=quiet,
                count=count,
            )
        except TTSVisionError as error:
            if failed == number - 1:
                raise
            failed += 1
            typer.echo(f"Error: {count}{config.prompt!r}, seed {config.seed}: {error}", err=True)
            if as_json:
                facts = {"folder": str(folder), "prompt": config.prompt, "seed": config.seed}
                typer.echo(json.dumps({**facts, "error": str(error)}, ensure_ascii=False))
    if failed:
        raise typer.Exit(INCOMPLETE)


def _load(config: RunConfig, *, quiet: bool) -> Live:
    """The model and the verifier of several searches."""
    if not quiet:
        typer.echo(f"loading {config.model} and {config.verifier}", err=True)
    if config.holdout_verifier == config.verifier:
        raise ConfigError(
            f"A holdout must not guide the search but {config.verifier!r} is both; name another one."
        )
    with explained([config.verifier, config.model]):
        from tts_vision.hub import asked_once
        from tts_vision.loaded import Models
        from tts_vision.resolve import fill_defaults

        fill_defaults(config)  # mistakes that need no model are told before one is loaded
        with asked_once():
            return Models().live(config)


@contextmanager
def _only_on_stderr() -> Iterator[None]:
    """What is printed in the block goes to standard error."""
    from contextlib import redirect_stdout

    with redirect_stdout(sys.stderr):
        yield
