"""Unexpected errors are told by whose code raised them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tts_vision import failures
from tts_vision.errors import TTSVisionError
from tts_vision.failures import explain
from tts_vision.ledger import Budget
from tts_vision.registry import lookup


def raised(function: Callable[..., Any], *args: Any) -> Exception:
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def users(tmp_path: Path, body: str) -> tuple[str, Callable[..., Any]]:
    """A function in a user's file, and how it is named on a command line."""
    file = tmp_path / "mine.py"
    file.write_text(f"import json\ndef mine(*args):\n    {body}\n")
    spec = f"{file}@mine"
    return spec, lookup("algorithm", spec).target


def test_the_innermost_line_of_the_user_is_named(tmp_path: Path) -> None:
    spec, mine = users(tmp_path, "return json.loads('{')")
    error = explain(raised(mine), specs=["best_of_n", f"{spec}:n=1"], go_on="Do go on.")
    assert isinstance(error, TTSVisionError)
    assert str(error).startswith(
        f"Your '{spec}' must run to its end but {tmp_path}/mine.py:3, in mine raised JSONDec"
    )
    assert "repair it there. Do go on. Until then that repeats the error." in str(error)


def test_code_called_back_by_a_library_is_found(tmp_path: Path) -> None:
    _, mine = users(tmp_path, "raise RuntimeError('CUDA out of memory, says mine')")
    message = str(explain(raised(np.vectorize(mine), [1, 2])))
    assert message.startswith(
        f"Your code must run to its end but {tmp_path}/mine.py:3, in mine raised RuntimeError"
    )


def test_plugins_of_other_packages_are_no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_plugin_packages", lambda: frozenset({"json"}))
    error = json_error()
    assert "json/decoder.py:" in str(explain(error)) and str(explain(error)).startswith("Your code must run")


def json_error() -> Exception:
    error = raised(json.loads, "{")
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next  # without the frame of this test
    return error


def test_an_error_of_libraries_names_the_library() -> None:
    message = str(explain(json_error(), go_on="Do go on."))
    assert "JSONDecodeError: Expecting property name" in message and "was raised in json (" in message
    assert "Do go on. Until then that repeats the error." in message


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (RuntimeError("CUDA error: device-side assert"), True),
        (torch.OutOfMemoryError("out of memory"), True),
        (OSError("No space left on device"), True),
        (MemoryError(), True),
        (ConnectionResetError("reset"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RecursionError("maximum recursion depth, connection"), False),
        (ValueError("memory_format"), False),
        (AssertionError(), False),
    ],
)
def test_errors_of_the_machine_may_pass(error: Exception, passes: bool) -> None:
    message = str(explain(error, go_on="Do go on."))
    assert ("Free what it lacks" in message) == passes
    assert "Do go on." in message and ("repeats the error" in message) != passes
    assert type(error).__name__ in message


def test_a_plugin_that_cannot_be_called_is_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def search(): ...\n")
    spec = f"{file}@search"
    error = raised(lookup("algorithm", spec).target, None)
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    while error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
    assert str(explain(error, specs=[spec])).startswith(f"'{spec}' must take the arguments of its kind")
    assert "its kind" not in str(explain(error, specs=["other.py@find"]))


def test_errors_of_the_toolkit_name_no_user() -> None:
    error = raised(Budget.parse, None)
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    message = str(explain(error))
    assert "was raised in tts_vision (" in message and "ledger.py:" in message
