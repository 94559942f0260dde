"""The command ``tts-vision``."""

from __future__ import annotations

import gc
import importlib
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tts_vision.config import RunConfig, Spec, did_you_mean, override, read_yaml
from tts_vision.errors import ConfigError, SearchWarning, TTSVisionError, UnknownNameError

if TYPE_CHECKING:
    from rich.table import Table

    from tts_vision.catalogue import Listing, Setting
    from tts_vision.context import SearchContext
    from tts_vision.prompt_files import Record
    from tts_vision.registry import Kind
    from tts_vision.resolve import Live
    from tts_vision.results import Result
    from tts_vision.trace import Event

_INCOMPLETE, _USAGE, _INTERRUPTED, _TERMINATED = 1, 2, 130, 143
_EXTRA = "algorithm flags"
_MOST_SEEDS = 100_000
_KINDS: tuple[Kind, ...] = ("model", "sampler", "algorithm", "verifier", "rewriter")


class _Terminated(KeyboardInterrupt):
    """The signal SIGTERM: what ends a search in order, as Ctrl-C does."""


class _Commands(TyperGroup):
    """Tells every mistake in one clear message; takes ``--debug`` anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _spoken_warnings():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _interrupted(stop, "Interrupted.") from None
        except (TTSVisionError, ImportError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(_USAGE) from error
        except Exception as error:
            # commands and usage errors end by exceptions of typer, which is click or has its own copy of it
            if ctx.params.get("debug") or isinstance(error, (typer.Exit, typer.Abort, *_USAGE_ERRORS)):
                raise
            from tts_vision.failures import explain

            typer.echo(f"Error: {explain(error)}", err=True)
            raise typer.Exit(_USAGE) from error


# the base class of all errors that click tells by itself
_USAGE_ERRORS = tuple(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _interrupted(stop: KeyboardInterrupt, message: str) -> typer.Exit:
    """Says how a command was stopped; the exit that tells it to the shell."""
    typer.echo(message, err=True)
    return typer.Exit(_TERMINATED if isinstance(stop, _Terminated) else _INTERRUPTED)


@contextmanager
def _spoken_warnings() -> Iterator[None]:
    """While the block runs, warnings about a search are told as lines, without a place in the source."""
    show = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, SearchWarning):
            typer.echo(f"warning {message}", err=True)
        else:
            show(message, category, *args, **kwargs)

    with warnings.catch_warnings():
        warnings.simplefilter("always", SearchWarning)
        warnings.showwarning = tell
        yield


class _GenerateCommand(TyperCommand):
    """Takes the parameters of the chosen algorithm as flags beside its own options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["args"] = list(args)
        with _only_named(args):
            try:
                own, extra = self._split(args)
            except ConfigError:
                if not ctx.resilient_parsing:
                    raise
                own, extra = list(args), {}  # a line that is being completed
            ctx.meta[_EXTRA] = extra
            return super().parse_args(ctx, own)

    def invoke(self, ctx: Any) -> Any:
        with _only_named(ctx.meta["args"]):
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        name = _named_algorithm(ctx.meta["args"])
        if name is None:
            typer.echo("Parameters of an algorithm are flags too: '--algorithm NAME --help' shows them.")
        else:
            _print(_parameter_table(_algorithm(name), flags=True))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("--"):
            return found
        try:
            with _only_named(ctx.meta["args"]):
                flags = _flags_of(_named_algorithm(ctx.meta["args"]) or "best_of_n")
        except TTSVisionError:
            return found
        item = importlib.import_module(
            f"{type(ctx).__module__.rpartition('.')[0]}.shell_completion"
        ).CompletionItem
        return found + [item(flag, help=p.help) for flag, p in flags.items() if flag.startswith(incomplete)]

    def _split(self, args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The arguments that are this command's own, and the values of all other long flags."""
        takes_value = {
            name: not getattr(param, "is_flag", False)
            for param in self.params
            for name in (*param.opts, *param.secondary_opts)
        }
        takes_value |= {"--help": False, "-h": False}
        own: list[str] = []
        extra: dict[str, Any] = {}
        known: Mapping[str, Setting] | None = None
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


def _only_named(args: Sequence[str]) -> AbstractContextManager[None]:
    """Keeps a --config file that is not trusted from more than what the command line names as well."""
    words = [(*arg.partition("="), after) for arg, after in zip(args, [*args[1:], ""])]
    given = [value if equals else after for flag, equals, value, after in words if flag == "--config"]
    files = [Path(file).expanduser() for file in given]
    if not files or "--trust" in args:
        return nullcontext()
    from tts_vision.trust import allowing, is_mine, named_in

    with suppress(ConfigError):  # told when the command reads the file
        if all(is_mine(file.parent, RunConfig.load(file)) for file in files):
            return nullcontext()
    return allowing(named_in(args))


def _named_algorithm(args: Sequence[str]) -> str | None:
    """The algorithm that a command line chooses, as far as that can be told before it is parsed."""
    found: str | None = None
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if not equals and i + 1 < len(args):
            value = args[i + 1]
        if flag == "--config" and found is None:
            found = str(read_yaml(value).get("algorithm") or "best_of_n")
        elif flag in {"--algorithm", "-a"} or (flag.startswith("-a") and not flag.startswith("--")):
            return Spec.parse(value if flag in {"--algorithm", "-a"} else arg[2:]).name
        elif flag == "--set" and value.startswith("algorithm="):
            found = value.partition("=")[2]
    return None if found is None else Spec.parse(found).name


def _algorithm(name: str) -> Listing:
    """The facts of an algorithm; one of a user's own is imported for them."""
    from tts_vision.catalogue import listings, of_entry
    from tts_vision.registry import lookup

    known = next((listing for listing in listings("algorithm") if listing.name == name), None)
    return known or of_entry(lookup("algorithm", name))


def _flags_of(algorithm: str) -> Mapping[str, Setting]:
    return {_as_flag(setting.name): setting for setting in _algorithm(algorithm).parameters}


def _flag(
    name: str, known: Mapping[str, Setting], own: Iterable[str], algorithm: str
) -> tuple[str, bool | None]:
    """The parameter that a flag sets; and its value where the flag itself says it."""
    spelled = "--" + name[2:].replace("_", "-")
    if spelled in known:
        return known[spelled].name, True if known[spelled].type == "bool" else None
    positive = "--" + spelled.removeprefix("--no-")
    if spelled.startswith("--no-") and positive in known and known[positive].type == "bool":
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
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _names(*kinds: Kind) -> Callable[[str], list[str]]:
    """Completes names of plugins."""

    def complete(incomplete: str) -> list[str]:
        from tts_vision.registry import known_names

        found = {name for kind in kinds for name in known_names(kind) if "{" not in name}
        return sorted(name for name in found if name.startswith(incomplete))

    return complete


PromptTexts = Annotated[list[str] | None, typer.Argument(help="What to generate.", show_default=False)]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts", help="A file of prompts: one per line, a JSON list, JSON lines, or CSV with 'prompt'."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Registered name, folder, or hub id. (default: the bundled model)",
        autocompletion=_names("model"),
    ),
]
Algorithm = Annotated[
    str | None,
    typer.Option(
        "--algorithm",
        "-a",
        help="Search algorithm. (default: best_of_n)",
        autocompletion=_names("algorithm"),
    ),
]
Verifier = Annotated[
    str | None,
    typer.Option(
        "--verifier",
        "-v",
        help="What scores: NAME, NAME:key=value, ensemble(NAME, NAME), ... (default: the model's own, if it "
        "has one)",
        autocompletion=_names("verifier"),
    ),
]
HoldoutVerifier = Annotated[
    str | None,
    typer.Option(
        help="A verifier that judges the samples after the search and never guides it.",
        autocompletion=_names("verifier"),
    ),
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
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run the code and ask the endpoints that the configuration in a file or folder names."
    ),
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
    records = _records(prompts, prompts_file, overrides)
    if any(record.text != values.get("prompt") for record in records):
        values.pop("prompt_metadata", None)  # it was another prompt's
    flags = {"model": model, "algorithm": algorithm, "verifier": verifier}
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
    if seed is not None and seeds is not None:
        raise ConfigError(f"Seeds must be given once but got --seed {seed} and --seeds {seeds}; keep one.")
    searches = _searches(values, records, _read_seeds(seeds))
    if config is not None and not trust:
        from tts_vision.trust import check_settings

        check_settings(searches[0], repr(str(config)))
    folder = None if output is None else output.expanduser()
    if len(searches) == 1:
        own = folder or _free_folder(searches[0].prompt, ctx)
        _run(searches[0], own, resume=False, as_json=as_json, quiet=quiet)
    else:
        _run_all(searches, folder, ctx, as_json=as_json, quiet=quiet)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Output folder of a search that was stopped.")],
    trust: Trust = False,
) -> None:
    """Go on with a search that was killed or interrupted."""
    from tts_vision.folders import read_config

    _run(read_config(folder), folder, resume=True, trust=trust)


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


@app.command()
def compare(
    ctx: typer.Context,
    prompts: PromptTexts = None,
    prompts_file: PromptFile = None,
    model: Model = None,
    algorithms: Annotated[
        list[str] | None,
        typer.Option(
            "--algorithm",
            "-a",
            help="Give once per algorithm; parameters as name:key=value.",
            autocompletion=_names("algorithm"),
        ),
    ] = None,
    verifiers: Annotated[
        list[str] | None,
        typer.Option("--verifier", "-v", help="Give once per verifier.", autocompletion=_names("verifier")),
    ] = None,
    evaluator: Annotated[
        str | None,
        typer.Option(
            help="A verifier that judges the outcome and never guides a search.",
            autocompletion=_names("verifier"),
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
    base = override({}, overrides or [])
    if foreign := sorted(set(base) - {"model_options", "sampler_options"}):
        raise ConfigError(
            f"--set of 'compare' takes model.KEY, sampler.KEY and pipeline.KEY but got {foreign[0]!r}; "
            "parameters of an algorithm are written '--algorithm name:key=value'."
        )
    records = _records(prompts, prompts_file)
    if not records:
        raise ConfigError(
            "A comparison needs at least one prompt but got none; give PROMPTS or --prompts FILE."
        )
    base = _nested(
        base, ("sampler_options", "pipeline_kwargs"), _pipeline(steps, guidance_scale, negative_prompt)
    )
    settings = RunConfig(prompt="-", verifier="-", **_given({"model": model}), **base)
    chosen = range(seed, seed + int(seeds)) if re.fullmatch("[0-9]{1,5}", seeds) else _read_seeds(seeds)
    arms = algorithms or ["best_of_n"]
    folder = output.expanduser() if output is not None else _free_folder("compare", ctx)
    typer.echo(f"comparing {', '.join(arms)} on {len(records)} prompts, into {folder}", err=True)

    from tts_vision.comparisons import Cell
    from tts_vision.comparisons import compare as run_comparison
    from tts_vision.hub import asked_once
    from tts_vision.types import Prompt

    def report(done: int, total: int, cell: Cell) -> None:
        line = f"{done}/{total}  {cell.algorithm}  {cell.score:.4f}  {cell.prompt!r} seed {cell.seed}"
        typer.echo(line, err=True)

    go_on = f"The same command with '--output {folder}' goes on."
    _collect_garbage()
    try:
        with _explained([*arms, *(verifiers or []), evaluator or "", settings.model], go_on), asked_once():
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
        raise _interrupted(stop, f"Interrupted. {go_on}") from None
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

    from tts_vision.hub import asked_once
    from tts_vision.score_files import score_files

    with _explained(verifiers), asked_once():
        found = score_files([file.expanduser() for file in files], prompts, verifiers)
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
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Show what is there: models, samplers, algorithms, verifiers, and their parameters."""
    from tts_vision.catalogue import listings

    kinds = {name: kind for kind in _KINDS for name in (kind, f"{kind}s")}
    chosen = _KINDS if what is None or what not in kinds else (kinds[what],)
    found = [listing for kind in chosen for listing in listings(kind)]
    if what is not None and what not in kinds:
        found = [listing for listing in found if listing.name == what] or [_find(what, found, list(kinds))]
    if as_json:
        import json

        typer.echo(json.dumps([listing.as_json() for listing in found], indent=2, ensure_ascii=False))
    elif what is not None and what not in kinds:
        for listing in found:
            _print_listing(listing)
    else:
        for kind in chosen:
            _print(_kind_table(kind, [listing for listing in found if listing.kind == kind]))
        if what is None:
            typer.echo("'tts-vision list NAME' shows the parameters of one.")


def _find(what: str, known: Sequence[Listing], kinds: Sequence[str]) -> Listing:
    """A plugin of a user's own, by file or module."""
    from tts_vision.catalogue import of_entry
    from tts_vision.registry import lookup

    if "@" in what or ":" in what:
        return of_entry(lookup("algorithm", what))
    names = list(dict.fromkeys(listing.name for listing in known))
    raise UnknownNameError(
        f"'list' takes a kind ({', '.join(f'{kind}s' for kind in _KINDS)}) or a name "
        f"({', '.join(names)}) but got {what!r}; {did_you_mean(what, [*kinds, *names])}"
    )


def main() -> None:
    """Runs the command line."""

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    # importing makes many objects that all stay: looking for garbage among them takes a sixth of the start
    gc.disable()
    try:
        app()
    finally:
        gc.freeze()  # nor is anything looked for at the end


def _collect_garbage() -> None:
    """From now on, as always; what is there by now stays."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _records(
    prompts: Sequence[str] | None, file: Path | None, overrides: Sequence[str] | None = None
) -> list[Record]:
    """The prompts of a command line, in order."""
    from tts_vision.prompt_files import Record, read_records

    found = [Record(text) for text in prompts or ()] + ([] if file is None else read_records(file))
    if found and any(text.startswith("prompt=") for text in overrides or ()):
        raise ConfigError(
            f"A prompt must be given once but got {found[0].text!r} and '--set prompt=...'; keep one."
        )
    if len(prompts or ()) > 2 and all(len(text.split()) == 1 for text in prompts or ()):
        typer.echo(f"note    {len(prompts or ())} prompts of one word each; quotes make one prompt", err=True)
    return found


def _read_seeds(text: str | None) -> list[int] | None:
    """Root seeds as they are listed on a command line: ``0-3,7``."""
    if text is None:
        return None
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:\s*-\s*(\d{1,19}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + _MOST_SEEDS:
            raise ConfigError(
                f"Seeds must be numbers and ranges such as '0-3,7', at most {_MOST_SEEDS} in each, but got "
                f"{text!r}; change {part.strip()!r}."
            )
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def _searches(
    values: Mapping[str, Any], records: Sequence[Record], seeds: Sequence[int] | None
) -> list[RunConfig]:
    """The settings of each search that is asked for, each once."""
    found: dict[str, RunConfig] = {}
    asked = 0
    some: Sequence[Record | None] = records or [None]
    roots: Sequence[int | None] = seeds or [None]
    for record in some:
        for seed in roots:
            own = dict(values)
            if record is not None:
                own["prompt"] = record.text
                own["prompt_metadata"] = dict(record.metadata) or values.get("prompt_metadata") or {}
            if seed is not None:
                own["seed"] = seed
            config = RunConfig(**own)
            found.setdefault(config.hash, config)
            asked += 1
    if asked > len(found):
        typer.echo(f"note    {asked - len(found)} searches were asked for twice and count once", err=True)
    return list(found.values())


@contextmanager
def _explained(
    specs: Iterable[str],
    go_on: str = "",
    begun: Callable[[], bool] = lambda: True,
    arguments: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Unexpected errors of the block are told by whose code raised them."""
    try:
        yield
    except TTSVisionError:
        raise
    except (Exception, SystemExit) as error:
        from tts_vision.failures import explain

        named = [spec for spec in specs if spec]
        again = go_on if begun() else ""
        raise explain(error, specs=named, arguments=arguments, go_on=again) from error


def _run(
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
            _explained(specs, go_on, begun, config.sampler_options.pipeline_kwargs),
            warnings.catch_warnings(),
            _only_on_stderr() if as_json else nullcontext(),
        ):
            from tts_vision.hub import asked_once
            from tts_vision.runner import resume as continue_search
            from tts_vision.runner import run

            warnings.simplefilter("ignore", SearchWarning)  # `_tell` says it

            def observe(context: SearchContext, event: Event) -> None:
                _collect_garbage()
                if report is not None:
                    report(context, event)

            with asked_once():
                if trust is None:
                    result = run(config, live, output=folder, resume=resume, progress=observe)
                else:
                    result = continue_search(folder, trust=trust, progress=observe)
    except KeyboardInterrupt as stop:
        message = f"Interrupted. {go_on}" if begun() else "Interrupted before the search began."
        raise _interrupted(stop, message) from None
    if as_json:
        import json

        typer.echo(json.dumps(_outcome(result, folder), ensure_ascii=False))
    elif quiet:
        typer.echo(str(_best_file(folder)))
    else:
        _tell(result, folder)


def _run_all(
    searches: Sequence[RunConfig], output: Path | None, ctx: typer.Context, *, as_json: bool, quiet: bool
) -> None:
    """Runs several searches of one model, which is loaded once.

    A search that fails after others succeeded is told, and the rest go on; exit code 1 says so.
    """
    import json

    live: Live | None = None
    failed = 0
    for number, config in enumerate(searches, start=1):
        folder = _free_folder(config.prompt, ctx) if output is None else output / _folder_name(config)
        count = f"{number}/{len(searches)}  "
        try:
            if live is None:
                live = _load(config, quiet=quiet)
            _run(
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
        raise typer.Exit(_INCOMPLETE)


def _folder_name(config: RunConfig) -> str:
    """The folder of one of several searches, by what it searches for."""
    import hashlib

    words = re.sub(r"[^a-z0-9]+", "-", config.prompt.lower()).strip("-")[:40].rstrip("-") or "run"
    task = f"{config.prompt}\n{sorted(config.prompt_metadata.items(), key=repr)}"
    return f"{words}-{hashlib.sha256(task.encode()).hexdigest()[:6]}-s{config.seed}"


def _load(config: RunConfig, *, quiet: bool) -> Live:
    """The model and the verifier of several searches."""
    if not quiet:
        typer.echo(f"loading {config.model} and {config.verifier}", err=True)
    if config.holdout_verifier == config.verifier:
        raise ConfigError(
            f"A holdout must not guide the search but {config.verifier!r} is both; name another one."
        )
    with _explained([config.verifier, config.model]):
        from tts_vision.hub import asked_once
        from tts_vision.resolve import Live, fill_defaults, find_verifier, load_model, load_verifier

        fill_defaults(config)  # mistakes that need no model are told before one is loaded
        verifier = load_verifier(find_verifier(config.verifier))
        with asked_once():
            return Live(pipe=load_model(config), verifier=verifier)


@contextmanager
def _only_on_stderr() -> Iterator[None]:
    """What is printed in the block goes to standard error."""
    from contextlib import redirect_stdout

    with redirect_stdout(sys.stderr):
        yield


def _best_file(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("best.*"))), folder)


def _outcome(result: Result, folder: Path) -> dict[str, Any]:
    """The outcome of a search as one JSON object; scores that there are not are null."""
    best, plain, spent, holdout = result.best, result.plain, result.spent, result.holdout

    def number(value: float | None) -> float | None:
        return value if value is not None and value == value and abs(value) != float("inf") else None

    return {
        "folder": str(folder),
        "best": str(_best_file(folder)),
        "prompt": result.config.prompt,
        "seed": result.config.seed,
        "model": result.config.model,
        "algorithm": result.config.algorithm,
        "verifier": result.config.verifier,
        "score": number(best.score.value),
        "parts": {name: number(value) for name, value in best.score.parts.items()},
        "plain_score": None if plain is None else number(plain.score.value),
        "holdout": None
        if holdout is None
        else {
            "verifier": result.config.holdout_verifier,
            "best": number(holdout.best),
            "first": number(holdout.first),
            "spearman": number(holdout.spearman),
        },
        "target": result.config.target,
        "satisfied": result.satisfied,
        "samples": len(result.population),
        "spent": {
            "nfe": spent.nfe,
            "macs": spent.macs,
            "decodes": spent.decodes,
            "verifier_calls": spent.verifier_calls,
            "seconds": round(spent.elapsed, 3),
        },
        "budget": result.config.budget,
        "budget_spent": result.budget_spent,
        "is_preview": result.is_preview,
        "warnings": list(result.warnings),
    }


def _tell(result: Result, folder: Path) -> None:
    best, plain, spent = result.best, result.plain, result.spent
    file = _best_file(folder)
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
    inner = values.get(path[0]) or {}
    if not isinstance(inner, Mapping):
        raise ConfigError(f"{path[0]} must be names with values but got {inner!r}; correct it.")
    return {**values, path[0]: _nested(inner, path[1:], new)}


def _kind_table(kind: Kind, found: Sequence[Listing]) -> Table:
    from rich.table import Table

    table = Table(title=f"{kind}s", title_justify="left", title_style="bold")
    for head in ("name", "what", "needs" if kind == "algorithm" else "notes", "parameters"):
        table.add_column(head)
    for listing in found:
        names = ", ".join(setting.name for setting in listing.parameters)
        _add_row(table, listing.name, listing.summary, _facts(listing), names)
    return table


def _facts(listing: Listing) -> str:
    facts = [*listing.needs, *(["(stochastic steps)"] if listing.wants_stochastic else []), *listing.accepts]
    return ", ".join([*facts, *(f"{key}: {value}" for key, value in listing.notes.items())])


def _print_listing(listing: Listing) -> None:
    typer.echo(f"{listing.kind} {listing.name}")
    typer.echo(listing.doc.partition("\nArgs:")[0].strip())
    if listing.paper:
        typer.echo(f"paper: {listing.paper}")
    if facts := _facts(listing):
        typer.echo(f"{'needs' if listing.kind == 'algorithm' else 'notes'}: {facts}")
    if listing.parameters:
        _print(_parameter_table(listing, flags=listing.kind == "algorithm"))


def _parameter_table(listing: Listing, *, flags: bool) -> Table:
    from rich.table import Table

    table = Table(title=f"parameters of {listing.name}", title_justify="left", title_style="bold")
    for head in ("flag" if flags else "name", "type", "default", "meaning"):
        table.add_column(head)
    for setting in listing.parameters:
        name = _as_flag(setting.name) if flags else setting.name
        default = "fits the budget" if setting.name == listing.size else setting.default
        _add_row(table, name, setting.type, default, setting.help)
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
