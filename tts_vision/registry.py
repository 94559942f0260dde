"""Finds algorithms, verifiers, samplers, models, correctors and evaluators by name.

A plugin is one module in the package of its kind that calls `register`; nothing else lists it. Which module
registers a name is read from its source, so that finding one plugin imports no other. Plugins of other
distributions come through the entry point group ``tts_vision.<kind>``, and a user's own file through
``file.py@name`` or ``module:attr``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias, TypeVar

from tts_vision.errors import ConfigError, UnknownNameError, did_you_mean
from tts_vision.trust import check_allowed

Kind: TypeAlias = Literal[
    "algorithm", "verifier", "features", "sampler", "model", "rewriter", "corrector", "evaluator"
]
Plugin = TypeVar("Plugin", bound=Callable[..., Any])

PACKAGES: dict[Kind, str] = {
    "algorithm": "tts_vision.algorithms",
    "verifier": "tts_vision.verifiers",
    "features": "tts_vision.verifiers",
    "sampler": "tts_vision.pipelines",
    "model": "tts_vision.pipelines",
    "rewriter": "tts_vision.rewriters",
    "corrector": "tts_vision.correctors",
    "evaluator": "tts_vision.eval.evaluators",
}
_CALL = re.compile(
    r"""\bregister\(\s*(?:kind\s*=\s*)?(["'])(?P<kind>\w+)\1\s*,"""
    r"""\s*(?:name\s*=\s*)?(?P<prefix>[fF]?)(["'])(?P<name>.+?)\4\s*[,)]"""
)


@dataclass(frozen=True)
class Entry:
    """A registered plugin.

    Attributes:
        kind: What it is.
        name: What users call it.
        target: The function or class.
        needs: Capabilities of the sampler without which an algorithm cannot run.
        wants_stochastic: Whether an algorithm is meant for samplers that add noise at each step.
        paper: Where it comes from.
        notes: Facts to show beside it (licence, checkpoint ids, capabilities).
        verifier: What scores a model's samples by default, as a `tts_vision.config.Spec`.
        features: What embeds a model's samples by default, as a `tts_vision.config.Spec`.
        size: The keyword parameter of an algorithm that sizes a search. Where the user leaves it open, the
            search finds the largest value that the budget pays for.
        asks: Questions of the verifier without which an algorithm cannot run; see `Verifier.questions`.
    """

    kind: Kind
    name: str
    target: Callable[..., Any]
    needs: frozenset[str] = frozenset()
    wants_stochastic: bool = False
    paper: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    verifier: str = ""
    features: str = ""
    size: str = ""
    asks: frozenset[str] = frozenset()

    def missing(self, capabilities: frozenset[str]) -> list[str]:
        """The needed capabilities that are not among those of a sampler."""
        return sorted(self.needs - capabilities)

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
    asks: frozenset[str] | set[str] = frozenset(),
    wants_stochastic: bool = False,
    paper: str = "",
    notes: dict[str, str] | None = None,
    verifier: str = "",
    features: str = "",
    size: str = "",
) -> Callable[[Plugin], Plugin]:
    """Registers the decorated function or class as plugin `name` of `kind`.

    Plugins of this toolkit write `kind` and `name` as literals, or `name` as an f-string, which is how
    `lookup` finds their module.

    Args:
        kind: What it is.
        name: What users call it.
        needs: As in `Entry`.
        asks: As in `Entry`.
        wants_stochastic: As in `Entry`.
        paper: As in `Entry`.
        notes: As in `Entry`.
        verifier: As in `Entry`.
        features: As in `Entry`.
        size: As in `Entry`.

    Raises:
        ConfigError: If another plugin has that name, or `size` is no keyword parameter of the target.
    """

    def decorate(target: Plugin) -> Plugin:
        if size:
            _check_size(kind, name, target, size)
        known = _ENTRIES.get((kind, name))
        if known is not None and not _same(known.target, target):
            raise ConfigError(
                f"Names of one kind must be unique but {kind} {name!r} is taken by "
                f"{known.target.__module__}; rename one of them."
            )
        _ENTRIES[kind, name] = Entry(
            kind=kind,
            name=name,
            target=target,
            needs=frozenset(needs),
            asks=frozenset(asks),
            wants_stochastic=wants_stochastic,
            paper=paper,
            notes=notes or {},
            verifier=verifier,
            features=features,
            size=size,
        )
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


def loaded(kind: Kind) -> list[Entry]:
    """The plugins of a kind that are registered so far; nothing is imported."""
    return [entry for (known, _), entry in _ENTRIES.items() if known == kind]


def outside(kind: Kind) -> bool:
    """Whether other distributions bring plugins of a kind, or some have no source: they must be imported."""
    return bool(_entry_points(kind)) or not _scan(PACKAGES[kind]).is_whole


def lookup(kind: Kind, name: str) -> Entry:
    """The plugin called `name`: a registered name, ``module:attr`` or ``file.py@name``.

    Raises:
        UnknownNameError: If there is none.
    """
    if "@" in name and name.split("@", 1)[0].endswith(".py"):
        return _from_file(kind, *name.rsplit("@", 1))
    if (kind, name) not in _ENTRIES and ":" in name:
        return _from_module(kind, *name.split(":", 1))
    found = registered(kind, name)
    if found is not None:
        return found
    names = [e.name for e in entries(kind)]
    if name not in names:
        hint = did_you_mean(name, names, "")
        raise UnknownNameError(
            f"{kind.capitalize()} must be one of {', '.join(names) or 'none (nothing is registered)'} "
            f"but got {name!r}; {hint and hint + ' '}'tts-vision list' shows all, and 'file.py@name' takes "
            "your own."
        )
    return _ENTRIES[kind, name]


def registered(kind: Kind, name: str) -> Entry | None:
    """The plugin registered as `name`, if there is one; imports only the module that registers it.

    Raises:
        UnknownNameError: If a distribution brings it that cannot be imported.
    """
    for point in _entry_points(kind):
        if point.name == name:
            _from_entry_point(kind, point)
    if (kind, name) not in _ENTRIES:
        scan = _scan(PACKAGES[kind])
        for call in scan.calls:
            if call.kind == kind and call.pattern.fullmatch(name) and (kind, name) not in _ENTRIES:
                importlib.import_module(call.module)
        if (kind, name) not in _ENTRIES and not scan.is_whole:
            _discover(PACKAGES[kind])
    return _ENTRIES.get((kind, name))


def registered_model(name: str) -> Entry | None:
    """The registered model that a name names: its own, or with what it loads behind a colon."""
    return registered("model", name) or registered("model", name.partition(":")[0])


def known_names(kind: Kind) -> list[str]:
    """Names of plugins as far as they are known without importing any."""
    found = {name for known, name in _ENTRIES if known == kind}
    found |= {point.name for point in _entry_points(kind)}
    found |= {call.name for call in _scan(PACKAGES[kind]).calls if call.kind == kind and call.is_literal}
    return sorted(found)


def default_model() -> str:
    """The model of a search that names none."""
    name: str = importlib.import_module(PACKAGES["model"]).DEFAULT_MODEL
    return name


@dataclass(frozen=True)
class _Call:
    """A call of `register` in the source of a module.

    Attributes:
        kind: What it registers.
        name: As it is written, without quotes.
        is_literal: Whether that is the name itself, and no f-string.
        module: Where it stands.
    """

    kind: str
    name: str
    is_literal: bool
    module: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches the names that it may register."""
        fixed = [self.name] if self.is_literal else re.split(r"\{[^{}]*\}", self.name)
        return re.compile(".+".join(map(re.escape, fixed)))


@dataclass(frozen=True)
class _Scan:
    """What the source of a plugin package says.

    Attributes:
        calls: All calls of `register`.
        is_whole: Whether every module has its source, and not only bytecode.
    """

    calls: tuple[_Call, ...]
    is_whole: bool


@cache
def _scan(package: str) -> _Scan:
    sources = {module: source(module) for module in public_modules(package)}
    calls = tuple(
        _Call(found["kind"], found["name"], not found["prefix"], module)
        for module, text in sources.items()
        for found in _CALL.finditer(text or "")
    )
    return _Scan(calls, None not in sources.values())


def source(module: str) -> str | None:
    """The source of a module, without importing it; None without one."""
    spec = importlib.util.find_spec(module)
    get_source = getattr(spec.loader, "get_source", None) if spec is not None else None
    try:
        text: str | None = None if get_source is None else get_source(module)
    except (ImportError, SyntaxError, UnicodeDecodeError):  # importing it says what is wrong
        return None
    return text


def public_modules(package: str) -> list[str]:
    """The modules of a plugin package in which plugins register."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return [f"{package}.{info.name}" for info in found if not info.name.startswith("_")]


@cache
def _discover(package: str) -> None:
    """Imports every public module of a plugin package; importing registers."""
    for module in public_modules(package):
        importlib.import_module(module)


def _check_size(kind: Kind, name: str, target: Callable[..., Any], size: str) -> None:
    takes = [p.name for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if size not in takes:
        raise ConfigError(
            f"What sizes a search must be a keyword parameter ({', '.join(takes) or 'there is none'}) but "
            f"{kind} {name!r} is registered with size={size!r}; name one of its own."
        )


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
    check_allowed(f"{module}:{attribute}", "run")
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownNameError(
            f"{kind.capitalize()} {module}:{attribute} must name an importable attribute but: {error}; "
            "check the spelling, and that the module is installed."
        ) from error
    return entry_of(kind, target, f"{module}:{attribute}")


def _from_file(kind: Kind, path: str, name: str) -> Entry:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UnknownNameError(f"'file.py@name' must name an existing file but got {path!r}; check the path.")
    check_allowed(f"{path}@{name}", "run")
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
    return entry_of(kind, getattr(module, name), f"{path}@{name}")


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
    except SyntaxError as error:
        raise UnknownNameError(
            f"{str(file)!r} must be a Python file that can be run but line {error.lineno} of "
            f"{Path(error.filename or file).name} is no Python ({error.msg}); repair it."
        ) from error
    except (Exception, SystemExit) as error:
        from tts_vision.failures import innermost

        raise UnknownNameError(
            f"{str(file)!r} must be a Python file that can be run but {innermost(error)} raised "
            f"{type(error).__name__}: {error}; repair it."
        ) from error
    return module


def entry_of(kind: Kind, target: Callable[..., Any], name: str = "") -> Entry:
    """The registration of a function or class, or a plain entry when it was never registered.

    Args:
        kind: What it is.
        target: The function or class.
        name: What to call one that was never registered; its own name by default.
    """
    for (known_kind, _), entry in _ENTRIES.items():
        if known_kind == kind and entry.target is target:
            return entry
    return Entry(kind, name or getattr(target, "__name__", ""), target)
