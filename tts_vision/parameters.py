"""Parameters of plugins, read from their signatures: one source for the API, the CLI, YAML and forms."""

from __future__ import annotations

import difflib
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tts_vision.errors import ConfigError


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
        text = getattr(self.annotation, "__name__", None) if isinstance(self.annotation, type) else None
        return text or str(self.annotation).replace("typing.", "").replace("collections.abc.", "")


def parameters(target: Callable[..., Any]) -> dict[str, Parameter]:
    """The keyword-only parameters of a plugin function, or the keyword parameters of a plugin class."""
    function = target.__init__ if inspect.isclass(target) else target
    names = getattr(inspect.unwrap(function), "__globals__", {})
    helps = _helps(target)
    found = {}
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            # one by one: the types of other arguments may be imported for type checkers only
            written = {} if parameter.annotation is parameter.empty else {"it": parameter.annotation}
            hints = typing.get_type_hints(SimpleNamespace(__annotations__=written), names)
            found[parameter.name] = Parameter(
                parameter.name, hints.get("it", Any), parameter.default, helps.get(parameter.name, "")
            )
    return found


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
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it."
            takes = ", ".join(known) or "none"
            raise ConfigError(f"Parameters of {owner} are {takes} but got {name!r}; {hint}")
        values[name] = _convert(known[name], value, owner)
    required = [p.name for p in known.values() if p.default is inspect.Parameter.empty]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{owner} needs {', '.join(missing)}, which was not given; set it.")
    return values


def _convert(parameter: Parameter, value: Any, owner: str) -> Any:
    adapter: TypeAdapter[Any] = TypeAdapter(parameter.annotation)
    attempts = [value]
    if isinstance(value, str):
        # "0,20,30" and "[0, 20, 30]" both mean a list on a command line
        attempts += [None] if value.lower() in {"none", "null"} else []
        attempts += _json_list(value)
        attempts += [[part.strip() for part in value.strip("[]() ").split(",") if part.strip()]]
    error: ValidationError | None = None
    for attempt in attempts:
        try:
            return adapter.validate_python(attempt)
        except ValidationError as failure:
            error = error or failure
    assert error is not None
    reason = error.errors()[0]["msg"]
    raise ConfigError(
        f"{parameter.name} of {owner} must be {parameter.type_name} but got {value!r} ({reason}); change it."
    )


def _helps(target: Callable[..., Any]) -> dict[str, str]:
    """What docstrings say of parameters; those of a class come before those of its bases."""
    if not inspect.isclass(target):
        return _argument_helps(inspect.getdoc(target) or "")
    helps: dict[str, str] = {}
    for base in reversed(target.__mro__):
        helps |= _argument_helps(inspect.cleandoc(base.__doc__ or ""))
    return helps


def _json_list(text: str) -> list[Any]:
    """The JSON list that a text is, as the only attempt; none if it is no such list."""
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else None
    except ValueError:
        value = None
    return [value] if isinstance(value, list) else []


def _argument_helps(doc: str) -> dict[str, str]:
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
