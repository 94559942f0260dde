"""Says whose code raised an unexpected error, and whether going on would raise it again."""

from __future__ import annotations

import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

from tts_vision.errors import TTSVisionError

_MACHINE = re.compile(r"memory|cuda|device|driver|disk|space left|connection|timed? ?out", re.IGNORECASE)
# where the toolkit calls algorithms
_CALLERS = ("tts_vision.runner", "tts_vision.rehearsal")
_GROUPS = ("algorithm", "verifier", "features", "sampler", "model", "rewriter", "corrector")


@dataclass(frozen=True)
class Place:
    """A line of code.

    Attributes:
        file: The file.
        line: Its number.
        function: Name of the function.
        module: Name of the module.
    """

    file: str
    line: int
    function: str
    module: str

    def __str__(self) -> str:
        return f"{_short(self.file)}:{self.line}, in {self.function}"


def explain(
    error: BaseException,
    *,
    specs: Iterable[str] = (),
    arguments: Mapping[str, Any] | None = None,
    go_on: str = "",
) -> TTSVisionError:
    """An unexpected error as one that a user can act on.

    Args:
        error: What was raised.
        specs: The names of the plugins that ran, such as ``mine.py@search``.
        arguments: Arguments of the pipeline that the user gave.
        go_on: How to go on where going on may help.
    """
    what = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")
    places = list(_places(error))
    mine = next((place for place in reversed(places) if _is_users(place)), None)
    repeats = f" {go_on} Until then that repeats the error." if go_on else ""
    if mine is not None:
        return TTSVisionError(
            f"{_owner(mine, specs)} must run to its end but {mine} raised {what}; repair it there.{repeats} "
            "'--debug' shows the traceback."
        )
    if spec := _wrongly_called(error, specs, places):
        return TTSVisionError(
            f"{spec!r} must take the arguments of its kind (an algorithm 'f(ctx, *, ...)', a verifier "
            f"'f(images, prompts)') but calling it raised {what}; change its signature."
        )
    last = places[-1] if places else None
    where = "" if last is None else f" in {last.module.partition('.')[0]} ({last})"
    if _may_pass(error):
        return TTSVisionError(
            f"A computation must run to its end but stopped{where} with {what}. Free what it lacks: memory, "
            f"disk, the device, the network. {go_on or 'Then run it again.'} '--debug' shows the traceback."
        )
    if arguments and any(place.module.startswith("diffusers.") for place in places):
        given = ", ".join(f"{name}={value!r}"[:60] for name, value in arguments.items())
        return TTSVisionError(
            f"The arguments of the pipeline must be ones that it can take, but with {given} it raised {what}"
            f"{where}; change them (--set pipeline.KEY=VALUE).{repeats} '--debug' shows the traceback."
        )
    return TTSVisionError(
        f"Settings must be ones that the libraries beneath can take, but {what} was raised{where}; check the "
        f"settings of the model and the pipeline.{repeats} '--debug' shows the traceback; without a wrong "
        "setting it is a fault of tts-vision."
    )


def innermost(error: BaseException) -> Place | None:
    """The innermost line of a user's own code that an error passed, or the innermost of all without one."""
    places = list(_places(error))
    return next((place for place in reversed(places) if _is_users(place)), places[-1] if places else None)


def _places(error: BaseException) -> Iterator[Place]:
    """Where an error passed, outermost first."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield Place(frame.f_code.co_filename, line, frame.f_code.co_name, _module_of(frame))


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_users(place: Place) -> bool:
    """Whether a place is neither in the toolkit nor in a library; packages of plugins are no libraries."""
    package = place.module.partition(".")[0]
    if package == "tts_vision" or place.file.startswith("<"):
        return False
    if package in _plugin_packages():
        return True
    return not any(Path(place.file).is_relative_to(folder) for folder in _library_folders())


@cache
def _library_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names]
    folders += [*site.getsitepackages(), site.getusersitepackages(), f"{sys.base_prefix}/lib"]
    return tuple(Path(folder) for folder in folders if folder)


@cache
def _plugin_packages() -> frozenset[str]:
    points = [point for group in _GROUPS for point in entry_points(group=f"tts_vision.{group}")]
    return frozenset(re.split(r"[.:]", point.value)[0] for point in points) - {"tts_vision"}


def _owner(place: Place, specs: Iterable[str]) -> str:
    """What the code at a place is called: the plugin whose file or module it is."""
    for spec in specs:
        name = spec.partition(":")[0] if "@" in spec else spec
        file, at, _ = name.rpartition("@")
        is_file = bool(at) and Path(file).expanduser().resolve() == Path(place.file).resolve()
        if is_file or (not at and spec.startswith(f"{place.module}:")):
            return f"Your {name!r}"
    return "Your code"


def _wrongly_called(error: BaseException, specs: Iterable[str], places: Sequence[Place]) -> str:
    """The plugin of the user's that cannot be called as its kind is; empty if that is not the error."""
    names = {re.split(r"[@:]", spec)[1]: spec for spec in specs if re.search(r"\.py@|^[\w.]+:", spec)}
    if not isinstance(error, TypeError) or not names:
        return ""
    called = re.match(r"([\w.<>]+)\(\) (takes|missing|got)", str(error))
    if called:
        return names.get(called[1].rpartition(".")[2], "")
    # functions that are not written in Python leave no place
    inside = places[-1].module if places else ""
    return next(iter(names.values())) if inside in _CALLERS else ""


def _may_pass(error: BaseException) -> bool:
    """Whether an error may be of the machine and not of the settings: running again may not raise it."""
    if isinstance(error, (OSError, MemoryError, EOFError)):
        return True
    of_torch = isinstance(error, RuntimeError) and not isinstance(
        error, (RecursionError, NotImplementedError)
    )
    return of_torch and _MACHINE.search(f"{type(error).__name__} {error}") is not None


def _short(file: str) -> str:
    """A path as short as it can be said here."""
    path = Path(file)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
