"""What plugins there are and what they take, read from their source: nothing heavy is imported to list them.

A plugin whose registration says more than literals, or that another distribution brings, is imported.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from tts_vision.parameters import argument_helps, parameters
from tts_vision.registry import PACKAGES, Entry, Kind, entries, loaded, outside, public_modules, source

REQUIRED = "required"


@dataclass(frozen=True)
class Setting:
    """A parameter of a plugin.

    Attributes:
        name: As in the signature.
        type: As a reader writes it.
        default: As Python writes it; "required" without one.
        help: Its entry in the docstring.
    """

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True)
class Listing:
    """A registered plugin for a reader.

    Attributes:
        kind: What it is.
        name: What users call it.
        doc: The docstring.
        needs: As in `Entry`.
        asks: As in `Entry`.
        wants_stochastic: As in `Entry`.
        accepts: Modalities that a verifier scores, where all of its kind score the same.
        paper: As in `Entry`.
        notes: As in `Entry`.
        size: As in `Entry`.
        parameters: What a user may set; what the toolkit itself passes is left out.
    """

    kind: Kind
    name: str
    doc: str = ""
    needs: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    wants_stochastic: bool = False
    accepts: tuple[str, ...] = ()
    paper: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    size: str = ""
    parameters: tuple[Setting, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.split("\n", 1)[0]

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {**asdict(self), "notes": dict(self.notes), "summary": self.summary}


def listings(kind: Kind) -> list[Listing]:
    """Every registered plugin of a kind, by name."""
    if outside(kind):
        return [of_entry(entry) for entry in entries(kind)]
    found: dict[str, Listing] = {}
    for module in public_modules(PACKAGES[kind]):
        if module in sys.modules:
            continue  # what it registered is among the loaded ones
        try:
            found |= {listing.name: listing for listing in _registered(module) if listing.kind == kind}
        except _UnknownError:
            importlib.import_module(module)
    found |= {entry.name: of_entry(entry) for entry in loaded(kind)}
    return [found[name] for name in sorted(found)]


def of_entry(entry: Entry) -> Listing:
    """The listing of a plugin that is loaded."""
    accepts = getattr(entry.target, "accepts", ()) if entry.kind == "verifier" else ()
    return Listing(
        kind=entry.kind,
        name=entry.name,
        doc=inspect.getdoc(entry.target) or "",
        needs=tuple(sorted(entry.needs)),
        asks=tuple(sorted(entry.asks)),
        wants_stochastic=entry.wants_stochastic,
        accepts=tuple(sorted(accepts)) if isinstance(accepts, (set, frozenset)) else (),
        paper=entry.paper,
        notes=entry.notes,
        size=entry.size,
        parameters=tuple(
            Setting(p.name, p.type_name, _written(p.default), p.help)
            for p in (parameters(entry.target).values() if callable(entry.target) else ())
            if p.name != "options"
        ),
    )


def _written(default: Any) -> str:
    return REQUIRED if default is inspect.Parameter.empty else str(default)


class _UnknownError(Exception):
    """Source that says something only Python can tell."""


@dataclass(frozen=True)
class _Module:
    """The top-level definitions of a module.

    Attributes:
        name: Of the module.
        tree: Its source.
        assigned: Expressions by the name they are assigned to.
        defined: Functions and classes by name.
        imported: Module and name that a name is imported from.
    """

    name: str
    tree: ast.Module
    assigned: dict[str, ast.expr]
    defined: dict[str, _Definition]
    imported: dict[str, tuple[str, str]]


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def _module(name: str) -> _Module:
    text = source(name)
    if text is None:
        raise _UnknownError(name)
    module = _Module(name, ast.parse(text), {}, {}, {})
    for node in _flat(module.tree.body):
        if isinstance(node, ast.Assign):
            module.assigned.update({t.id: node.value for t in node.targets if isinstance(t, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            module.assigned[node.target.id] = node.value
        elif isinstance(node, _Definition):
            module.defined[node.name] = node
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {a.asname or a.name: (node.module, a.name) for a in node.names}
            module.imported.update(names)
    return module


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, also those for type checkers only."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from node.body


def _registered(name: str) -> list[Listing]:
    """The plugins that the decorators of a module register.

    Raises:
        _UnknownError: If something registers in another way, or with more than literals.
    """
    if "register(" not in (source(name) or "register("):
        return []
    module = _module(name)
    found = []
    for definition in module.defined.values():
        for decorator in definition.decorator_list:
            if isinstance(decorator, ast.Call) and _is_register(decorator):
                found.append((definition, decorator))
    calls = [node for node in ast.walk(module.tree) if isinstance(node, ast.Call) and _is_register(node)]
    if len(calls) != len(found):
        raise _UnknownError(name)
    return [_listing(module, definition, call) for definition, call in found]


def _is_register(call: ast.Call) -> bool:
    called = call.func
    return (called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")) == "register"


def _listing(module: _Module, definition: _Definition, call: ast.Call) -> Listing:
    names = ("kind", "name")
    given = {**dict(zip(names, call.args)), **{k.arg or "": k.value for k in call.keywords}}
    facts = {key: _value(module, node) for key, node in given.items()}
    family = _family(module, definition)
    accepts = _attribute(family, "accepts") if facts["kind"] == "verifier" else ()
    own = next((doc for _, node in family if (doc := ast.get_docstring(node))), "")
    return Listing(
        kind=facts["kind"],
        name=facts["name"],
        doc=own,
        needs=tuple(sorted(facts.get("needs", ()))),
        asks=tuple(sorted(facts.get("asks", ()))),
        wants_stochastic=facts.get("wants_stochastic", False),
        accepts=tuple(sorted(accepts)),
        paper=facts.get("paper", ""),
        notes=facts.get("notes", {}),
        size=facts.get("size", ""),
        parameters=tuple(_settings(family)),
    )


def _settings(family: list[tuple[_Module, _Definition]]) -> Iterator[Setting]:
    """The keyword-only parameters of a function, or of the constructor of a class."""
    helps: dict[str, str] = {}
    for _, node in reversed(family):
        helps |= argument_helps(ast.get_docstring(node) or "")
    for module, node in family:
        made = node
        if isinstance(node, ast.ClassDef):
            if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                raise _UnknownError(node.name)
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
            if not methods:
                continue
            made = methods[0]
        assert not isinstance(made, ast.ClassDef)
        for argument, default in zip(made.args.kwonlyargs, made.args.kw_defaults):
            if argument.arg == "options":
                continue
            written = REQUIRED if default is None else str(_value(module, default))
            kind = "Any" if argument.annotation is None else _type(module, argument.annotation)
            yield Setting(argument.arg, kind, written, helps.get(argument.arg, ""))
        return


def _family(module: _Module, definition: _Definition) -> list[tuple[_Module, _Definition]]:
    """A function alone; a class and its bases in the order of their attributes, as far as they are ours."""
    if not isinstance(definition, ast.ClassDef):
        return [(module, definition)]
    return [pair for made in _stand_in(module, definition).__mro__ if (pair := _stood_for.get(made))]


_stood_for: dict[type, tuple[_Module, _Definition]] = {}


def _stand_in(module: _Module, definition: ast.ClassDef) -> type:
    """An empty class with the ancestry of a class in a source."""
    known = [made for made, pair in _stood_for.items() if pair == (module, definition)]
    if known:
        return known[0]
    bases = []
    for base in definition.bases:
        home, node = _find(module, base)
        if isinstance(node, ast.ClassDef):
            bases.append(_stand_in(home, node))
    made = type(definition.name, tuple(bases) or (object,), {})
    _stood_for[made] = (module, definition)
    return made


def _find(module: _Module, node: ast.expr) -> tuple[_Module, ast.AST | None]:
    """The definition or expression that a name stands for, and its module; None if it is not ours."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        home, name = ".".join(module.imported.get(node.value.id, ("", node.value.id))), node.attr
    elif isinstance(node, ast.Name):
        if found := module.defined.get(node.id) or module.assigned.get(node.id):
            return module, found
        home, name = module.imported.get(node.id, ("", ""))
    else:
        return module, None
    if not home.startswith("tts_vision."):
        return module, None
    return _find(_module(home), ast.Name(name))


def _attribute(family: list[tuple[_Module, _Definition]], name: str) -> Any:
    """The value of a class attribute; empty where instances set it."""
    for module, node in family:
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and statement.value is not None:
                targets: list[ast.expr] = [statement.target]
            else:
                targets = statement.targets if isinstance(statement, ast.Assign) else []
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return _value(module, statement.value)  # type: ignore[attr-defined]  # both have one
    return ()


_CALLS: dict[str, Any] = {call.__name__: call for call in (frozenset, set, dict, tuple, list, sorted, str)}
_METHODS = {"join", "keys", "values", "items"}
_EXPRESSIONS = (
    *(ast.Constant, ast.Name, ast.Attribute, ast.Call, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Starred),
    *(ast.JoinedStr, ast.FormattedValue, ast.UnaryOp, ast.BinOp, ast.GeneratorExp, ast.ListComp),
)


class _Opaque:
    """A function, a class or something of another package, of which nothing is known."""

    def __repr__(self) -> str:
        raise _UnknownError("a name of another kind")


def _value(module: _Module, node: ast.AST) -> Any:
    """The value of an expression of literals and of names for such, as importing the module would find it."""
    names: dict[str, Any] = dict(_CALLS)
    found = _eval(module, node, names)
    if _is_opaque(found):
        raise _UnknownError(ast.unparse(node))
    return found


def _eval(module: _Module, node: ast.AST, names: dict[str, Any]) -> Any:
    bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for part in ast.walk(node):
        if isinstance(part, ast.expr) and not isinstance(part, _EXPRESSIONS):
            raise _UnknownError(ast.unparse(part))
        if isinstance(part, ast.Attribute) and part.attr not in _METHODS:
            raise _UnknownError(ast.unparse(part))
        if isinstance(part, ast.Name) and part.id not in bound and part.id not in _CALLS:
            home, found = _find(module, part)
            names[part.id] = _eval(home, found, dict(_CALLS)) if isinstance(found, ast.expr) else _Opaque()
    code = compile(ast.Expression(node), module.name, "eval")  # type: ignore[arg-type]  # an expression
    try:
        return eval(code, {"__builtins__": {}, **names})
    except Exception as error:  # of opaque values
        raise _UnknownError(ast.unparse(node)) from error


def _is_opaque(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_is_opaque(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_is_opaque, value))
    return isinstance(value, _Opaque)


def _type(module: _Module, node: ast.expr) -> str:
    """A type as `Parameter.type_name` writes it."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return f"{_type(module, node.left)} | {_type(module, node.right)}"
    if isinstance(node, ast.Constant):
        return "None" if node.value is None else _type(module, ast.parse(str(node.value), mode="eval").body)
    if isinstance(node, ast.Subscript):
        if ast.unparse(node.value).rpartition(".")[2] == "Literal":
            values = _value(module, node.slice)
            return f"Literal[{', '.join(map(repr, values if isinstance(values, tuple) else (values,)))}]"
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return f"{_type(module, node.value)}[{', '.join(_type(module, item) for item in items)}]"
    home, found = _find(module, node)
    if isinstance(found, ast.expr):
        return _type(home, found)
    name = ast.unparse(node).rpartition(".")[2]
    if isinstance(node, ast.Name) and (hasattr(builtins, name) or name in {"Any", "Path"}):
        return name
    raise _UnknownError(name)
