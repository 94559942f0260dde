"""Parameters are read from signatures; values are converted and checked against them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest

from tts_vision.errors import ConfigError
from tts_vision.parameters import parameters, validate
from tts_vision.registry import lookup


class Point:
    """A class that pydantic does not know."""


def plugin(
    ctx: object,
    *,
    n: int | None = None,
    tau: float = 0.9,
    steps: list[int] | None = None,
    mode: Literal["max", "diff"] = "max",
    flag: bool = False,
    label: str = "",
    words: list[str] | None = None,
    weight: float | Literal["auto"] = "auto",
    limit: float = math.inf,
    table: dict[str, float] | None = None,
    free: Any = None,
    owner: Path | None = None,
    unknown: Missing = None,  # noqa: F821
    custom: Point | None = None,
    required: int,
) -> None:
    """A plugin.

    Args:
        n: How many:
            more help on a second line.
        tau: A cosine.
        required: Must be given.

    Raises:
        ConfigError: Never.
    """


class Base:
    """What plugins have in common.

    Args:
        x: A number.
        y: A height.
        z: A depth.

    Raises:
        ConfigError: Never.
    """


class Middle(Base):
    def __init__(self, *, x: float = 1.0, y: float = 1.0) -> None: ...


class Heir(Middle):
    """A class that explains only what is its own.

    Args:
        y: A height that counts from below.
        w: A time.
    """

    def __init__(self, *, w: float = 1.0, x: float = 1.0, y: float = 1.0, v: float = 1.0) -> None: ...


class Plugin:
    """A class.

    Args:
        x: A coordinate.
    """

    def __init__(self, *, x: float = 1.0) -> None: ...


def test_reads_signatures() -> None:
    found = parameters(plugin)
    assert list(found)[:6] == ["n", "tau", "steps", "mode", "flag", "label"]
    assert found["n"].help == "How many: more help on a second line."
    assert (found["tau"].default, found["tau"].help, found["tau"].type_name) == (0.9, "A cosine.", "float")
    assert found["steps"].help == "" and found["steps"].type_name == "list[int] | None"
    assert found["required"].help == "Must be given."
    assert found["weight"].type_name == "float | Literal['auto']"
    assert (found["owner"].type_name, found["table"].type_name) == ("Path | None", "dict[str, float] | None")
    assert found["unknown"].annotation is Any, "its type is imported for type checkers only"


def test_reads_classes() -> None:
    assert parameters(Plugin)["x"].help == "A coordinate."
    assert validate(Plugin, {"x": "2"}, "class") == {"x": 2.0}


def test_a_class_inherits_the_help_of_parameters() -> None:
    found = {name: parameter.help for name, parameter in parameters(Heir).items()}
    assert found == {"w": "A time.", "x": "A number.", "y": "A height that counts from below.", "v": ""}
    assert {p.name: p.help for p in parameters(Middle).values()} == {"x": "A number.", "y": "A height."}


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("n", "12", 12),
        ("n", "none", None),
        ("n", None, None),
        ("tau", "0.5", 0.5),
        ("tau", 1, 1.0),
        ("steps", "0,20, 30", [0, 20, 30]),
        ("steps", "[0, 20]", [0, 20]),
        ("steps", "(5)", [5]),
        ("steps", "", []),
        ("steps", [1, 2], [1, 2]),
        ("steps", "none", None),
        ("mode", "diff", "diff"),
        ("flag", "true", True),
        ("flag", "no", False),
        ("label", "none", "none"),
        ("label", "1,2", "1,2"),
        ("label", "010", "010"),
        ("label", "1e1", "1e1"),
        ("label", "[a]", "[a]"),
        ("label", " a ", " a "),
        ("n", "1e1", 10),
        ("n", "010", 10),
        ("n", "null", None),
        ("tau", "1e1", 10.0),
        ("words", "a, b: c", ["a, b: c"]),
        ("words", "[a, b]", ["a", "b"]),
        ("words", '["a, b", "no"]', ["a, b", "no"]),
        ("weight", "auto", "auto"),
        ("weight", "1e-1", 0.1),
        ("limit", "inf", math.inf),
        ("table", '{"a": 1}', {"a": 1.0}),
        ("table", "null", None),
        ("free", "1e1", 10.0),
        ("free", "16:9", "16:9"),
        ("owner", "/a b", Path("/a b")),
    ],
)
def test_converts(name: str, given: object, value: object) -> None:
    converted = validate(plugin, {name: given, "required": 1}, "p")[name]
    assert converted == value and type(converted) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"taux": 1}, r"Parameters of algorithm 'p' are n, tau.* but got 'taux'; did you mean 'tau'\?"),
        ({"zzz": 1}, "but got 'zzz'; remove it"),
        ({"n": "many"}, "n of algorithm 'p' must be int | None but got 'many'"),
        ({"n": 1.5}, "must be int"),
        ({"n": True}, r"n of algorithm 'p' must be int \| None but got True \(a truth value is no number\)"),
        ({"n": "9" * 5000}, "must be int"),
        (
            {"tau": "nan"},
            "tau of algorithm 'p' must be a finite number but got 'nan'; give an ordinary number",
        ),
        ({"tau": math.inf}, "tau of algorithm 'p' must be a finite number but got inf"),
        ({"limit": "-inf"}, "limit of algorithm 'p' must be a finite number"),
        ({"weight": "nan"}, "weight of algorithm 'p' must be a finite number"),
        ({"steps": "[" * 9999}, "steps of algorithm 'p' must be"),
        ({"custom": "x"}, r"custom of algorithm 'p' must be .*Point \| None but got 'x'"),
        ({"mode": "min"}, "mode of algorithm 'p' must be .*'max', 'diff'.* but got 'min'"),
        ({"steps": "1,x"}, "steps of algorithm 'p' must be"),
        ({}, "algorithm 'p' needs required, which was not given"),
    ],
)
def test_rejects(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(plugin, given, "algorithm 'p'")


@pytest.mark.parametrize("target", [3, "text", None])
def test_a_plugin_is_a_function_or_a_class(target: Any) -> None:
    with pytest.raises(ConfigError, match="must be a function or a class but got"):
        parameters(target)


@pytest.mark.parametrize("name", ["best_of_n", "zero_order", "search_over_paths", "evosearch", "fk_steering"])
def test_every_parameter_of_an_algorithm_is_typed_and_explained(name: str) -> None:
    target = lookup("algorithm", name).target
    found = parameters(target)
    assert found
    for parameter in found.values():
        assert parameter.help.endswith("."), parameter.name
    defaults = {parameter.name: parameter.default for parameter in found.values()}
    assert validate(target, defaults, name) == defaults
