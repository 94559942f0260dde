"""The command ``tts-vision``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tts_vision.config import RunConfig, Spec, did_you_mean, override, read_yaml
from tts_vision.errors import ConfigError, SearchWarning, TTSVisionError, UnknownNameError

if TYPE_CHECKING:
    from rich.table import Table

    from tts_vision.parameters import Parameter
    from tts_vision.registry import Entry, Kind
    from tts_vision.results import Result
    from tts_vision.runner import Observer

_INCOMPLETE, _USAGE, _INTERRUPTED = 1, 2, 130
_EXTRA = "algorithm flags"
_KINDS: tuple[Kind, ...] = ("model", "sampler", "algorithm", "verifier", "rewriter")


class _Commands(TyperGroup):
    """Tells every mistake in one clear message; takes ``--debug`` anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(_INTERRUPTED) from None
        except (TTSVisionError, ImportError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(_USAGE) from error


class _GenerateCommand(TyperCommand):
    """Takes the parameters of the chosen algorithm as flags beside its own options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["args"] = list(args)
        own, extra = self._split(args)
        ctx.meta[_EXTRA] = extra
        return super().parse_args(ctx, own)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from tts_vision.registry import lookup

        name = _named_algorithm(ctx.meta["args"])
        if name is None:
            typer.echo("Parameters of an algorithm are flags too: '--algorithm NAME --help' shows them.")
        else:
            _print(_parameter_table(lookup("algorithm", name), flags=True))

    def _split(self, args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The arguments that are this command's own, and the values of all other long flags."""
        takes_value = {
            name: not getattr(param, "is_flag", False)
            for param in self.params
            for name in (*param.opts, *param.secondary_opts)
        }
        takes_value["--help"] = False
        own: list[str] = []
        extra: dict[str, Any] = {}
        known: Mapping[str, Parameter] | None = None
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            name, equals, value = arg.partition("=")
            if arg == "--":
                own += [arg, *rest]
                break
            if not name.startswith("--") or name in takes_value:
                own.append(arg)
                if takes_value.get(name) and not equals and rest:
                    own.append(rest.pop(0))
                continue
            if known is None:
                known = _flags_of(_named_algorithm(args) or "best_of_n")
            parameter, given = _flag(name, known, takes_value, _named_algorithm(args) or "best_of_n")
            if given is not None:
                extra[parameter] = given
            elif equals:
                extra[parameter] = value
            elif rest:
                extra[parameter] = rest.pop(0)
            else:
                raise ConfigError(f"Flag {name} needs a value but got none; write '{name} VALUE'.")
        return own, extra


def _named_algorithm(args: Sequence[str]) -> str | None:
    """The algorithm that a command line chooses, as far as that can be told before it is parsed."""
    found: str | None = None
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if not equals and i + 1 < len(args):
            value = args[i + 1]
        if flag == "--config" and found is None:
            found = str(read_yaml(value).get("algorithm", "best_of_n"))
        elif flag in {"--algorithm", "-a"}:
            return Spec.parse(value).name
        elif arg == "--set" and value.startswith("algorithm="):
            found = value.partition("=")[2]
    return None if found is None else Spec.parse(found).name


def _flags_of(algorithm: str) -> Mapping[str, Parameter]:
    from tts_vision.parameters import parameters
    from tts_vision.registry import lookup

    return {_as_flag(name): p for name, p in parameters(lookup("algorithm", algorithm).target).items()}


def _flag(
    name: str, known: Mapping[str, Parameter], own: Iterable[str], algorithm: str
) -> tuple[str, bool | None]:
    """The parameter that a flag sets; and its value where the flag itself says it."""
    spelled = "--" + name[2:].replace("_", "-")
    if spelled in known:
        return known[spelled].name, True if known[spelled].annotation is bool else None
    positive = "--" + spelled.removeprefix("--no-")
    if spelled.startswith("--no-") and positive in known and known[positive].annotation is bool:
        return known[positive].name, False
    remedy = did_you_mean(spelled, [*known, *own], "'tts-vision generate --help' shows all.")
    raise ConfigError(
        f"Flags must be options of 'generate' or parameters of algorithm {algorithm!r} "
        f"({', '.join(known) or 'it has none'}) but got {name!r}; {remedy}"
    )


def _as_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


app = typer.Typer(
    cls=_Commands,
    help="Searches for a better image or video from a generator you already have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PromptText = Annotated[str | None, typer.Argument(help="What to generate.", show_default=False)]
Model = Annotated[
    str | None, typer.Option(help="Registered name, folder, or hub id. (default: the bundled model)")
]
Algorithm = Annotated[
    str | None, typer.Option("--algorithm", "-a", help="Search algorithm. (default: best_of_n)")
]
Verifier = Annotated[
    str | None,
    typer.Option(
        "--verifier",
        "-v",
        help="What scores: NAME, NAME:key=value, ensemble(NAME, NAME), ... (default: the model's own, if it "
        "has one)",
    ),
]
HoldoutVerifier = Annotated[
    str | None,
    typer.Option(help="A verifier that judges the samples after the search and never guides it."),
]
BudgetText = Annotated[
    str | None,
    typer.Option("--budget", "-b", help="'16x', 'nfe=2000', 'seconds=60 and nfe=500', ... (default: 16x)"),
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until",
        help="Stop as soon as a sample's score reaches this, or 'satisfied' where the verifier checks "
        "demands.",
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="New folder. (default: one under outputs/)")
]
Steps = Annotated[int | None, typer.Option(help="num_inference_steps of the pipeline.")]
Guidance = Annotated[float | None, typer.Option(help="guidance_scale of the pipeline.")]
NegativePrompt = Annotated[str | None, typer.Option(help="negative_prompt of the pipeline.")]
MaxBatch = Annotated[int | None, typer.Option(help="Particles computed at once. (default: all that fit)")]
Stochastic = Annotated[
    bool | None,
    typer.Option(
        "--stochastic/--no-stochastic", help="Noise at each step. (default: as the algorithm wants)"
    ),
]
Eta = Annotated[float | None, typer.Option(help="How much noise stochastic steps add.")]
PreviewSize = Annotated[
    int | None, typer.Option(help="Longest side of previews in pixels, where the model can choose.")
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="Where the model runs.")]
Offload = Annotated[str | None, typer.Option(help="none, model or sequential.")]
Attention = Annotated[str | None, typer.Option(help="Attention back end, such as xformers.")]
Scheduler = Annotated[
    str | None, typer.Option(help="A diffusers scheduler class in place of the model's own.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting: algorithm.n=32, sampler.sde=euler, pipeline.height=512, ..."),
]


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        import tts_vision

        typer.echo(tts_vision.__version__)
        raise typer.Exit


@app.command(cls=_GenerateCommand)
def generate(
    ctx: typer.Context,
    prompt: PromptText = None,
    model: Model = None,
    algorithm: Algorithm = None,
    verifier: Verifier = None,
    holdout_verifier: HoldoutVerifier = None,
    budget: BudgetText = None,
    until: Until = None,
    seed: Annotated[int | None, typer.Option(help="Root seed. (default: 0)")] = None,
    output: Output = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    negative_prompt: NegativePrompt = None,
    max_batch: MaxBatch = None,
    stochastic: Stochastic = None,
    eta: Eta = None,
    preview_size: PreviewSize = None,
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = None,
    attention: Attention = None,
    scheduler: Scheduler = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML settings, such as a result's config.yaml.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Search for the best sample of a prompt.

    Further flags are the parameters of the algorithm.
    """
    values = {} if config is None else read_yaml(config)
    if algorithm is not None and Spec.parse(algorithm).name != values.get("algorithm"):
        values.pop("algorithm_params", None)  # they were another algorithm's
    flags = {"prompt": prompt, "model": model, "algorithm": algorithm, "verifier": verifier}
    flags |= {"holdout_verifier": holdout_verifier, "target": until}
    values |= _given({**flags, "budget": budget, "seed": seed, "max_batch": max_batch})
    pipeline = _pipeline(steps, guidance_scale, negative_prompt)
    sampler = _given({"stochastic": stochastic, "eta": eta, "preview_size": preview_size})
    loading = {"dtype": dtype, "device": device, "offload": offload}
    loading |= {"attention": attention, "scheduler": scheduler}
    values = _nested(values, ("model_options",), _given(loading))
    values = _nested(values, ("sampler_options",), sampler)
    values = _nested(values, ("sampler_options", "pipeline_kwargs"), pipeline)
    values = _nested(override(values, overrides or []), ("algorithm_params",), ctx.meta[_EXTRA])
    settings = RunConfig(**values)
    _run(settings, output or _free_folder(settings.prompt, ctx), resume=False)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Output folder of a search that was stopped.")],
) -> None:
    """Go on with a search that was killed or interrupted."""
    from tts_vision.results import read_config

    _run(read_config(folder), folder, resume=True)


@app.command()
def replay(folder: Annotated[Path, typer.Argument(help="Output folder of a finished search.")]) -> None:
    """Make the best sample again, from its seed and lineage alone."""
    from tts_vision.replays import replay as make_again

    again = make_again(folder)
    steps = " -> ".join(f"{a.origin} #{a.uid}" for a in again.lineage)
    typer.echo(f"{again.path}  ({steps})")
    typer.echo(
        "same pixels as the best sample"
        if again.max_difference == 0
        else f"differs from the best sample by at most {again.max_difference} of 255"
    )


@app.command()
def compare(
    ctx: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts.", show_default=False)] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", help="A file: a prompt per line, or JSON lines with 'prompt'.")
    ] = None,
    model: Model = None,
    algorithms: Annotated[
        list[str] | None,
        typer.Option("--algorithm", "-a", help="Give once per algorithm; parameters as name:key=value."),
    ] = None,
    verifiers: Annotated[
        list[str] | None, typer.Option("--verifier", "-v", help="Give once per verifier.")
    ] = None,
    evaluator: Annotated[
        str | None, typer.Option(help="A verifier that judges the outcome and never guides a search.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", "-b", help="Of each search.")] = "16x",
    seeds: Annotated[int, typer.Option(help="How many root seeds, from --seed on.")] = 1,
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
    from tts_vision.comparisons import Cell, read_prompts
    from tts_vision.comparisons import compare as run_comparison
    from tts_vision.types import Prompt

    base = override({}, overrides or [])
    if foreign := sorted(set(base) - {"model_options", "sampler_options"}):
        raise ConfigError(
            f"--set of 'compare' takes model.KEY, sampler.KEY and pipeline.KEY but got {foreign[0]!r}; "
            "parameters of an algorithm are written '--algorithm name:key=value'."
        )
    texts = [Prompt(text) for text in prompts or []] + (read_prompts(prompts_file) if prompts_file else [])
    if not texts:
        raise ConfigError(
            "A comparison needs at least one prompt but got none; give PROMPTS or --prompts FILE."
        )
    base = _nested(
        base, ("sampler_options", "pipeline_kwargs"), _pipeline(steps, guidance_scale, negative_prompt)
    )
    settings = RunConfig(prompt="-", verifier="-", **_given({"model": model}), **base)
    folder = output or _free_folder("compare", ctx)

    def report(done: int, total: int, cell: Cell) -> None:
        line = f"{done}/{total}  {cell.algorithm}  {cell.score:.4f}  {cell.prompt!r} seed {cell.seed}"
        typer.echo(line, err=True)

    try:
        comparison = run_comparison(
            settings.model,
            texts,
            algorithms=algorithms or ["best_of_n"],
            output=folder,
            verifiers=verifiers,
            evaluator=evaluator,
            budget=budget,
            seeds=range(seed, seed + seeds),
            sampler_options=settings.sampler_options,
            model_options=settings.model_options,
            max_batch=max_batch,
            progress=report,
        )
    except KeyboardInterrupt:
        typer.echo(f"Interrupted. The same command with '--output {folder}' goes on.", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    _print(comparison.table())
    typer.echo(f"{folder}/comparison.json, .csv, .png")


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Images and clips.")],
    prompts: Annotated[
        list[str], typer.Option("--prompt", "-p", help="One for all files, or one per file in their order.")
    ],
    verifiers: Annotated[
        list[str], typer.Option("--verifier", "-v", help="What scores. Give once per verifier.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Score images and clips that you have, by any verifiers.

    Exit code 1 says that something could not be scored; why is told on standard error.
    """
    import json

    from rich.table import Table

    from tts_vision.score_files import score_files

    found = score_files(files, prompts, verifiers)
    if as_json:
        typer.echo(json.dumps([file.as_json() for file in found], indent=2, ensure_ascii=False))
    else:
        table = Table()
        table.add_column("file")
        for name in found[0].scores:
            table.add_column(name, justify="right")
        for file in found:
            values = [s.value for s in file.scores.values()]
            _add_row(table, str(file.path), *(f"{v:.4f}" if v == v else "unscored" for v in values))
        _print(table)
    complaints = [line for file in found for line in file.complaints]
    for line in complaints:
        typer.echo(line, err=True)
    if complaints:
        raise typer.Exit(_INCOMPLETE)


@app.command("verifier-bench")
def verifier_bench(
    verifiers: Annotated[list[str], typer.Option("--verifier", "-v", help="Give once per verifier.")],
    images: Annotated[int, typer.Option(help="Samples that are timed.")] = 32,
    size: Annotated[int, typer.Option(help="Height and width of the samples.")] = 512,
    frames: Annotated[int, typer.Option(help="Frames of a clip, for verifiers of clips.")] = 16,
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option("--batch-size", help="Give once per size to try; the default otherwise."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Measure samples per second and memory of verifiers, on random samples, each in its own process.

    Exit code 1 says that one could not be measured; why is told on standard error.
    """
    import json
    from dataclasses import asdict

    from rich.table import Table

    from tts_vision.verifier_bench import Measurement, bench

    found = []
    failed = False
    for row in bench(verifiers, images=images, size=size, frames=frames, batch_sizes=batch_sizes or ()):
        if isinstance(row, Measurement):
            found.append(row)
        else:
            failed = True
            typer.echo(str(row), err=True)
    if as_json:
        rows = [{**asdict(row), "per_second": row.per_second} for row in found]
        typer.echo(json.dumps(rows, indent=2))
    elif found:
        table = Table()
        for head in ("verifier", "scored", "per second", "loading, s", "peak, MB", "risen by, MB"):
            table.add_column(head, justify="left" if head == "verifier" else "right")
        for row in found:
            kind = "clips" if row.kind == "video" else "images"
            scored = f"{row.samples - row.unscored} of {row.samples} {kind}"
            memory = [f"{value / 2**20:.0f}" for value in (row.peak_memory, row.own_memory)]
            _add_row(table, row.verifier, scored, f"{row.per_second:.2f}", f"{row.loading:.2f}", *memory)
        _print(table)
    if failed:
        raise typer.Exit(_INCOMPLETE)


@app.command("list")
def list_plugins(
    what: Annotated[
        str | None, typer.Argument(help="A kind (models, samplers, algorithms, verifiers) or a name.")
    ] = None,
) -> None:
    """Show what is there: models, samplers, algorithms, verifiers, and their parameters."""
    from tts_vision.registry import entries, lookup

    kinds = {name: kind for kind in _KINDS for name in (kind, f"{kind}s")}
    if what is None or what in kinds:
        for kind in _KINDS if what is None else (kinds[what],):
            _print(_kind_table(kind, entries(kind)))
        if what is None:
            typer.echo("'tts-vision list NAME' shows the parameters of one.")
        return
    found = [entry for kind in _KINDS for entry in entries(kind) if entry.name == what]
    if not found and ("@" in what or ":" in what):
        found = [lookup("algorithm", what)]
    if not found:
        names = [entry.name for kind in _KINDS for entry in entries(kind)]
        raise UnknownNameError(
            f"'list' takes a kind ({', '.join(f'{kind}s' for kind in _KINDS)}) or a name "
            f"({', '.join(names)}) but "
            f"got {what!r}; {did_you_mean(what, [*kinds, *names])}"
        )
    for entry in found:
        _print_entry(entry)


def main() -> None:
    """Runs the command line."""
    app()


def _run(config: RunConfig, folder: Path, *, resume: bool) -> None:
    """Runs a search with a progress report, and tells its outcome."""
    from tts_vision.progress import ProgressReport
    from tts_vision.runner import run

    going_on = f"'tts-vision resume {folder}' goes on from where it stopped."
    try:
        with ProgressReport(sys.stderr) as report, warnings.catch_warnings():
            warnings.simplefilter("ignore", SearchWarning)  # `_tell` says it
            observe: Observer = report
            result = run(config, output=folder, resume=resume, progress=observe)
    except KeyboardInterrupt:
        begun = (folder / "config.yaml").exists()
        typer.echo(f"Interrupted. {going_on}" if begun else "Interrupted before the search began.", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    except TTSVisionError:
        raise
    except Exception as error:
        raise TTSVisionError(
            f"A search must run to its end but stopped with {type(error).__name__}: {error}. {going_on} "
            "'--debug' shows the traceback."
        ) from error
    _tell(result, folder)


def _tell(result: Result, folder: Path) -> None:
    best, plain, spent = result.best, result.plain, result.spent
    file = next(iter(sorted(folder.glob("best.*"))), folder)
    compared = ""
    if plain is not None and plain.score.value == plain.score.value:
        compared = f"  (plain sample {plain.score.value:.4f}, {best.score.value - plain.score.value:+.4f})"
    limit = f" of {result.budget.nfe:g}" if result.budget.nfe else ""
    typer.echo(f"best    {file}")
    typer.echo(f"score   {best.score.value:.4f} by {result.config.verifier}{compared}")
    if best.score.parts:
        typer.echo("        " + ", ".join(f"{name} {value:.4f}" for name, value in best.score.parts.items()))
    if (holdout := result.holdout) is not None:
        name, ranks = result.config.holdout_verifier, holdout.spearman
        agree = "" if ranks is None else f"; rank agreement with the guide {ranks:.2f}"
        typer.echo(f"holdout {holdout.best:.4f} by {name}  (first sample {holdout.first:.4f}{agree})")
        if holdout.fell:
            typer.echo(f"warning {holdout.warning(result.config.verifier, str(name))}")
    if result.satisfied is not None:
        typer.echo(f"target  {result.config.target}: {'satisfied' if result.satisfied else 'not satisfied'}")
    extra = result.topped_up
    typer.echo(
        f"spent   {spent.nfe:g}{limit} nfe, {spent.verifier_calls} verifier calls, {spent.elapsed:.1f} s; "
        f"{len(result.population)} samples"
        + (f", {extra.samples} of them independent, for the rest of the budget" if extra.samples else "")
    )
    if spent.macs:
        most = f" of {result.budget.macs / 1e9:.4g}" if result.budget.macs else ""
        typer.echo(
            f"        {spent.macs / 1e9:.4g}{most} GMAC, {spent.tokens:g} tokens, {spent.decodes} decodes"
        )
    for message in result.warnings:
        typer.echo(f"warning {message}")
    if result.is_preview:
        typer.echo("note    the budget ended before a sample was finished: this is a preview")
    elif result.budget_spent:
        typer.echo("note    the budget ended the search before its algorithm did: this is the best so far")


def _free_folder(text: str, ctx: typer.Context) -> Path:
    """A new folder under ``outputs/`` for this text; making it claims it, so that no other command takes it.

    It is removed when the command ends and nothing was written to it.
    """
    import itertools
    import re

    from tts_vision.files import storage
    from tts_vision.locks import remove_empty

    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].rstrip("-") or "run"
    outputs = Path("outputs")
    made = [] if outputs.exists() else [outputs]
    with storage(outputs, "The result folder"):
        outputs.mkdir(exist_ok=True)
        for number in itertools.count(1):
            folder = outputs / f"{words}-{number:03d}"
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue
    ctx.call_on_close(lambda: remove_empty(folder, *made))
    return folder


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _pipeline(steps: int | None, guidance: float | None, negative: str | None) -> dict[str, Any]:
    return _given({"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative})


def _nested(values: Mapping[str, Any], path: Sequence[str], new: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with `new` ones added to the group at `path`."""
    if not new:
        return dict(values)
    if not path:
        return {**values, **new}
    return {**values, path[0]: _nested(values.get(path[0]) or {}, path[1:], new)}


def _kind_table(kind: Kind, found: Sequence[Entry]) -> Table:
    from rich.table import Table

    table = Table(title=f"{kind}s", title_justify="left", title_style="bold")
    for head in ("name", "what", "needs" if kind == "algorithm" else "notes", "parameters"):
        table.add_column(head)
    for entry in found:
        facts = _facts(entry)
        _add_row(table, entry.name, entry.summary, facts, ", ".join(_parameters_of(entry)))
    return table


def _facts(entry: Entry) -> str:
    facts = sorted(entry.needs)
    facts += ["(stochastic steps)"] if entry.wants_stochastic else []
    facts += sorted(getattr(entry.target, "accepts", ())) if entry.kind == "verifier" else []
    return ", ".join([*facts, *(f"{key}: {value}" for key, value in entry.notes.items())])


def _parameters_of(entry: Entry) -> Mapping[str, Parameter]:
    """What a user may set by name; what the toolkit itself passes is left out."""
    from tts_vision.parameters import parameters

    return {name: p for name, p in parameters(entry.target).items() if name != "options"}


def _print_entry(entry: Entry) -> None:
    import inspect

    typer.echo(f"{entry.kind} {entry.name}")
    typer.echo(inspect.cleandoc(entry.target.__doc__ or "").partition("\nArgs:")[0].strip())
    if entry.paper:
        typer.echo(f"paper: {entry.paper}")
    if facts := _facts(entry):
        typer.echo(f"{'needs' if entry.kind == 'algorithm' else 'notes'}: {facts}")
    if _parameters_of(entry):
        _print(_parameter_table(entry, flags=entry.kind == "algorithm"))


def _parameter_table(entry: Entry, *, flags: bool) -> Table:
    import inspect

    from rich.table import Table

    table = Table(title=f"parameters of {entry.name}", title_justify="left", title_style="bold")
    for head in ("flag" if flags else "name", "type", "default", "meaning"):
        table.add_column(head)
    for name, p in _parameters_of(entry).items():
        default = "required" if p.default is inspect.Parameter.empty else str(p.default)
        default = "fits the budget" if name == entry.size else default
        _add_row(table, _as_flag(name) if flags else name, p.type_name, default, p.help)
    return table


def _add_row(table: Table, *cells: str) -> None:
    """A row of plain text: brackets, as in ``list[int]``, are no markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells))


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console()
    # a pipe has no width of its own
    (console if console.is_terminal else Console(width=160)).print(table)


if __name__ == "__main__":
    main()
