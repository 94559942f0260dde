"""Finds algorithms, verifiers, samplers and models by name.

A plugin is one module in the package of its kind that calls `register`; nothing else lists it. Plugins
of other distributions come through the entry point group ``tts_vision.<kind>``, and a user's own file
through ``file.py@name`` or ``module:attr``.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias, TypeVar

from tts_vision.errors import ConfigError, UnknownNameError

Kind: TypeAlias = Literal["algorithm", "verifier", "features", "sampler", "model"]
Plugin = TypeVar("Plugin", bound=Callable[..., Any])

PACKAGES: dict[Kind, str] = {
    "algorithm": "tts_vision.algorithms",
    "verifier": "tts_vision.verifiers",
    "features": "tts_vision.verifiers",
    "sampler": "tts_vision.pipelines",
    "model": "tts_vision.pipelines",
}


@dataclass(frozen=True)
class Entry:
    """A registered plugin.

    Attributes:
        kind: What it is.
        name: What users call it.
        target: The function or class.
        needs: Capabilities of the sampler without which an algorithm cannot run; ``"a or b"`` where either
            will do.
        wants_stochastic: Whether an algorithm is meant for samplers that add noise at each step.
        paper: Where it comes from.
        notes: Facts to show beside it (licence, checkpoint ids, capabilities).
    """

    kind: Kind
    name: str
    target: Callable[..., Any]
    needs: frozenset[str] = frozenset()
    wants_stochastic: bool = False
    paper: str = ""
    notes: dict[str, str] = field(default_factory=dict)

    def missing(self, capabilities: frozenset[str]) -> list[str]:
        """What is needed of a sampler with these capabilities and not among them."""
        return sorted(need for need in self.needs if capabilities.isdisjoint(need.split(" or ")))

    @property
    def summary(self) -> str:
        """The first line of the target's docstring."""
        return (inspect.getdoc(self.target) or "").split("\n", 1)[0]


_ENTRIES: dict[tuple[Kind, str], Entry] = {}


def register(
    kind: Kind,
    name: str,
    *,
    needs: frozenset[str] | set[str] = frozenset(),
    wants_stochastic: bool = False,
    paper: str = "",
    notes: dict[str, str] | None = None,
) -> Callable[[Plugin], Plugin]:
    """Registers the decorated function or class as plugin `name` of `kind`.

    Raises:
        ConfigError: If another plugin has that name.
    """

    def decorate(target: Plugin) -> Plugin:
        known = _ENTRIES.get((kind, name))
        if known is not None and not _same(known.target, target):
            raise ConfigError(
                f"Names of one kind must be unique but {kind} {name!r} is taken by "
                f"{known.target.__module__}; rename one of them."
            )
        entry = Entry(kind, name, target, frozenset(needs), wants_stochastic, paper, notes or {})
        _ENTRIES[kind, name] = entry
        return target

    return decorate


def entries(kind: Kind) -> list[Entry]:
    """Every registered plugin of a kind, by name."""
    _discover(PACKAGES[kind])
    for point in _entry_points(kind):
        try:
            _from_entry_point(kind, point)
        except UnknownNameError as error:
            warnings.warn(str(error), stacklevel=2)
    return sorted((e for (k, _), e in _ENTRIES.items() if k == kind), key=lambda e: e.name)


def lookup(kind: Kind, name: str) -> Entry:
    """The plugin called `name`: a registered name, ``module:attr`` or ``file.py@name``.

    Raises:
        UnknownNameError: If there is none.
    """
    if "@" in name and name.split("@", 1)[0].endswith(".py"):
        return _from_file(kind, *name.rsplit("@", 1))
    if (kind, name) not in _ENTRIES and ":" in name:
        return _from_module(kind, *name.split(":", 1))
    for point in _entry_points(kind):
        if point.name == name:
            _from_entry_point(kind, point)
    if (kind, name) not in _ENTRIES:
        names = [e.name for e in entries(kind)]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UnknownNameError(
                f"{kind.capitalize()} must be one of {', '.join(names) or 'none (nothing is registered)'} "
                f"but got {name!r}; {hint}'tts-vision list' shows all, and 'file.py@name' takes your own."
            )
    return _ENTRIES[kind, name]


@cache
def _discover(package: str) -> None:
    """Imports every public module of a plugin package; importing registers."""
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__):
        if not info.name.startswith("_"):
            importlib.import_module(f"{package}.{info.name}")


@cache
def _entry_points(kind: Kind) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"tts_vision.{kind}"))


def _same(a: Callable[..., Any], b: Callable[..., Any]) -> bool:
    """Whether two targets are one definition, perhaps imported again."""
    modules = {a.__module__, b.__module__}
    return a.__qualname__ == b.__qualname__ and (len(modules) == 1 or "__main__" in modules)


def _from_entry_point(kind: Kind, point: EntryPoint) -> None:
    if (kind, point.name) in _ENTRIES:
        return
    try:
        target = point.load()
    except Exception as error:
        raise UnknownNameError(
            f"{kind.capitalize()} {point.name!r} must be importable from {point.value!r} but: {error}; "
            "repair or remove the distribution that brings it."
        ) from error
    _ENTRIES.setdefault((kind, point.name), Entry(kind, point.name, target))


def _from_module(kind: Kind, module: str, attribute: str) -> Entry:
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownNameError(
            f"{kind.capitalize()} {module}:{attribute} must name an importable attribute but: {error}; "
            "check the spelling, and that the module is installed."
        ) from error
    return _entry_of(kind, target, f"{module}:{attribute}")


def _from_file(kind: Kind, path: str, name: str) -> Entry:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UnknownNameError(f"'file.py@name' must name an existing file but got {path!r}; check the path.")
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    module_name = f"tts_vision_user_{file.stem}_{digest}"
    module = _load(module_name, file, file.stat().st_mtime_ns)
    if (kind, name) in _ENTRIES and _ENTRIES[kind, name].target.__module__ == module_name:
        return _ENTRIES[kind, name]
    if not hasattr(module, name):
        raise UnknownNameError(
            f"{path!r} must define or register {name!r} but has "
            f"{[n for n in vars(module) if not n.startswith('_')]}; check the name after '@'."
        )
    return _entry_of(kind, getattr(module, name), f"{path}@{name}")


@cache
def _load(module_name: str, file: Path, modified: int) -> ModuleType:
    """The file as a module; run again only when it changed."""
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        raise UnknownNameError(
            f"{str(file)!r} must be a Python file that can be run but: {type(error).__name__}: {error}; "
            "repair it."
        ) from error
    return module


def _entry_of(kind: Kind, target: Callable[..., Any], name: str) -> Entry:
    """The registration of a target, or a plain entry when it was never registered."""
    for (known_kind, _), entry in _ENTRIES.items():
        if known_kind == kind and entry.target is target:
            return entry
    return Entry(kind, name, target)
