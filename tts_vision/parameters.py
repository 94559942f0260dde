"""Parameters of plugins, read from their signatures: one source for the API, the CLI, YAML and forms."""

from __future__ import annotations

import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from tts_vision.errors import ConfigError, did_you_mean

_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*|(?=\.\d))(?P<fraction>\.\d*)?(?P<exponent>[eE][+-]?\d+)?")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


@dataclass(frozen=True)
class Parameter:
    """A keyword parameter of a plugin.

    Attributes:
        name: As in the signature.
        annotation: Its type.
        default: Its default; `inspect.Parameter.empty` when it must be given.
        help: Its entry in the ``Args:`` of the docstring; for a class without one, that of a base class.
    """

    name: str
    annotation: Any
    default: Any
    help: str

    @property
    def type_name(self) -> str:
        """The annotation as a reader writes it."""
        return _type_name(self.annotation)


def parameters(target: Callable[..., Any]) -> dict[str, Parameter]:
    """The keyword-only parameters of a plugin function, or the keyword parameters of a plugin class.

    Raises:
        ConfigError: If the target is neither.
    """
    function = target.__init__ if inspect.isclass(target) else target
    names = getattr(inspect.unwrap(function), "__globals__", {})
    helps = _helps(target)
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        raise ConfigError(
            f"A plugin must be a function or a class but got {target!r}; name one of these."
        ) from None
    found = {}
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            annotation = _hint(parameter.annotation, names)
            found[parameter.name] = Parameter(
                parameter.name, annotation, parameter.default, helps.get(parameter.name, "")
            )
    return found


def _hint(annotation: Any, names: dict[str, Any]) -> Any:
    """The type that an annotation means; Any without one, or where it is imported for type checkers only."""
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"it": annotation}), names)["it"]
    except NameError:
        return Any


def validate(target: Callable[..., Any], given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """The given values, converted to the types of the signature; strings are parsed.

    Args:
        target: The plugin.
        given: Values by parameter name.
        owner: What to call the plugin in messages, such as ``algorithm 'best_of_n'``.

    Raises:
        ConfigError: If a name is unknown, a value has the wrong type, or a required one is missing.
    """
    known = parameters(target)
    values = {}
    for name, value in given.items():
        if name not in known:
            hint = did_you_mean(name, known, "remove it.")
            takes = ", ".join(known) or "none"
            raise ConfigError(f"Parameters of {owner} are {takes} but got {name!r}; {hint}")
        values[name] = _convert(known[name], value, owner)
    required = [p.name for p in known.values() if p.default is inspect.Parameter.empty]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{owner} needs {', '.join(missing)}, which was not given; set it.")
    return values


def _convert(parameter: Parameter, value: Any, owner: str) -> Any:
    try:
        converted = convert(value, parameter.annotation)
    except ValueError as error:
        raise ConfigError(
            f"{parameter.name} of {owner} must be {parameter.type_name} but got {value!r} ({error}); "
            "change it."
        ) from None
    if not is_finite(converted) and converted != parameter.default:
        raise ConfigError(
            f"{parameter.name} of {owner} must be a finite number but got {value!r}; give an ordinary number."
        )
    return converted


def convert(value: Any, annotation: Any) -> Any:
    """`value` as a value of type `annotation`; a text is read as one.

    A setting of text takes a text as it is. Numbers, truth values, None, JSON lists and JSON objects are
    read where the type has them. A list may also be written ``1,2`` or ``[a, b]``; without brackets a list
    of texts has one item, so that commas in a prompt or a path mean what they say.

    Raises:
        ValueError: If it is no such value; says why.
    """
    adapter = _adapter(annotation)
    reason = ""
    for attempt in _readings(value, annotation) if isinstance(value, str) else (value,):
        try:
            converted = adapter.validate_python(attempt)
        except ValidationError as error:
            reason = reason or error.errors()[0]["msg"]
            continue
        if isinstance(attempt, bool) and not isinstance(converted, bool) and attempt is not converted:
            reason = reason or "a truth value is no number"
            continue
        return converted
    raise ValueError(reason)


def read_value(text: str) -> Any:
    """The value of a text where the setting declares no type, as Python and JSON read it.

    Numbers (``1e1`` is 10.0), ``true``, ``false``, ``null`` (also capitalised as in Python), JSON lists,
    objects and strings in quotes; everything else is the text itself: ``16:9``, ``no``, ``010``.
    """
    text = text.strip()
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        return float(text)
    try:
        if number := _NUMBER.fullmatch(text):
            return float(text) if number["fraction"] or number["exponent"] else int(text)
        return json.loads(text) if text[:1] in {"[", "{", '"'} else text
    except (ValueError, RecursionError):
        return text


def is_finite(value: Any) -> bool:
    """Whether no number in a value, at any depth, is NaN or infinite."""
    if isinstance(value, Mapping):
        return all(map(is_finite, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    """A validator of values of a type; classes that pydantic does not know are checked by isinstance."""
    try:
        return TypeAdapter(annotation)
    except PydanticSchemaGenerationError:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))


def _readings(text: str, annotation: Any) -> Iterator[Any]:
    """What a text may stand for, the most literal first."""
    if annotation is Any:
        yield read_value(text)
        return
    yield text
    yield read_value(text)
    if text.lower() == "none":
        yield None
    inside = text.strip()
    bracketed = inside[:1] + inside[-1:] in {"[]", "()"}
    if not bracketed and inside:
        yield [text]
    parts = (inside[1:-1] if bracketed else inside).split(",")
    yield [part.strip() for part in parts if part.strip()]


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return " | ".join(map(_type_name, typing.get_args(annotation)))
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def _helps(target: Callable[..., Any]) -> dict[str, str]:
    """What docstrings say of parameters; those of a class come before those of its bases."""
    if not inspect.isclass(target):
        return argument_helps(inspect.getdoc(target) or "")
    helps: dict[str, str] = {}
    for base in reversed(target.__mro__):
        helps |= argument_helps(inspect.cleandoc(base.__doc__ or ""))
    return helps


def argument_helps(doc: str) -> dict[str, str]:
    """The entries of a Google-style ``Args:`` section."""
    helps: dict[str, str] = {}
    name = ""
    lines = doc.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() in {"Args:", "Attributes:"}), len(lines))
    for line in lines[start + 1 :]:
        if line.strip() and not line.startswith("    "):
            break
        if line.startswith("    ") and not line.startswith("     ") and ":" in line:
            name, _, text = line.strip().partition(":")
            helps[name] = text.strip()
        elif name and line.strip():
            helps[name] += " " + line.strip()
    return helps
