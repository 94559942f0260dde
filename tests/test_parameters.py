"""Parameters are read from signatures; values are converted and checked against them."""

from __future__ import annotations

from typing import Literal

import pytest

from tts_vision.errors import ConfigError
from tts_vision.parameters import parameters, validate
from tts_vision.registry import lookup


def plugin(
    ctx: object,
    *,
    n: int | None = None,
    tau: float = 0.9,
    steps: list[int] | None = None,
    mode: Literal["max", "diff"] = "max",
    flag: bool = False,
    label: str = "",
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
    assert list(found) == ["n", "tau", "steps", "mode", "flag", "label", "required"]
    assert found["n"].help == "How many: more help on a second line."
    assert (found["tau"].default, found["tau"].help, found["tau"].type_name) == (0.9, "A cosine.", "float")
    assert found["steps"].help == "" and found["steps"].type_name == "list[int] | None"
    assert found["required"].help == "Must be given."


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
        ({"mode": "min"}, "mode of algorithm 'p' must be .*'max', 'diff'.* but got 'min'"),
        ({"steps": "1,x"}, "steps of algorithm 'p' must be"),
        ({}, "algorithm 'p' needs required, which was not given"),
    ],
)
def test_rejects(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(plugin, given, "algorithm 'p'")


@pytest.mark.parametrize("name", ["best_of_n", "zero_order", "search_over_paths", "evosearch", "fk_steering"])
def test_every_parameter_of_an_algorithm_is_typed_and_explained(name: str) -> None:
    target = lookup("algorithm", name).target
    found = parameters(target)
    assert found
    for parameter in found.values():
        assert parameter.help.endswith("."), parameter.name
    defaults = {parameter.name: parameter.default for parameter in found.values()}
    assert validate(target, defaults, name) == defaults
