"""The command ``tts-vision``: the group of its commands, how mistakes are told, how it ends."""

from __future__ import annotations

import gc
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError, SearchWarning, TTSVisionError

INCOMPLETE, _USAGE, _INTERRUPTED, _TERMINATED = 1, 2, 130, 143


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
            raise interrupted(stop, "Interrupted.") from None
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


def interrupted(stop: KeyboardInterrupt, message: str) -> typer.Exit:
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


app = typer.Typer(
    cls=_Commands,
    help="Searches for a better image or video from a generator you already have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def collect_garbage() -> None:
    """From now on, as always; what is there by now stays."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@contextmanager
def explained(
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


def only_named(args: Sequence[str]) -> AbstractContextManager[None]:
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
