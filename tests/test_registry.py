"""Plugins are found by name, by file and by module; a wrong name gets a suggestion."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tts_vision import registry
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.errors import ConfigError, UnknownNameError
from tts_vision.registry import Entry, entries, lookup, register

FIRST = ("best_of_n", "evosearch", "fk_steering", "search_over_paths", "zero_order")


@pytest.fixture(autouse=True)
def _own_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test end with it."""
    entries("algorithm")
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


def test_finds_the_algorithms() -> None:
    assert {entry.name for entry in entries("algorithm")} >= set(FIRST)
    assert lookup("algorithm", "best_of_n").target is best_of_n


@pytest.mark.parametrize("name", FIRST)
def test_algorithms_say_what_they_are(name: str) -> None:
    entry = lookup("algorithm", name)
    assert "et al." in entry.summary and "arXiv" in entry.paper
    known = {"noise", "stochastic", "step_noise", "renoise", "preview", "tokens"}
    assert all(set(need.split(" or ")) <= known for need in entry.needs)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("best_of_m", "did you mean 'best_of_n'"),
        ("evo_search", "did you mean 'evosearch'"),
        ("qqq", "but got 'qqq'; 'tts"),
    ],
)
def test_suggests_near_names(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError, match=hint) as error:
        lookup("algorithm", name)
    assert "zero_order" in str(error.value)


def test_registers_with_its_facts() -> None:
    @register(
        "algorithm", "mine", needs={"noise"}, wants_stochastic=True, paper="P", notes={"licence": "MIT"}
    )
    def mine() -> None:
        """First line.

        Second.
        """

    entry = lookup("algorithm", "mine")
    assert entry == Entry("algorithm", "mine", mine, frozenset({"noise"}), True, "P", {"licence": "MIT"})
    assert entry.summary == "First line."


def test_names_are_unique() -> None:
    with pytest.raises(
        ConfigError, match=r"algorithm 'best_of_n' is taken by tts_vision\.algorithms\.best_of_n"
    ):

        @register("algorithm", "best_of_n")
        def other() -> None: ...


def test_same_name_of_another_kind_is_fine() -> None:
    @register("verifier", "best_of_n")
    def verifier() -> None: ...

    assert lookup("verifier", "best_of_n").target is verifier
    assert lookup("algorithm", "best_of_n").target is best_of_n


FILE = '''
from tts_vision.registry import register

@register("algorithm", "registered", paper="P")
def function():
    """Registered."""

def plain():
    """Plain."""
'''


def test_file_at_name(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(FILE)
    assert lookup("algorithm", f"{path}@plain").summary == "Plain."
    registered = lookup("algorithm", f"{path}@registered")
    assert (registered.summary, registered.paper) == ("Registered.", "P")
    assert lookup("algorithm", f"{path}@function") == registered


def test_a_file_is_run_again_only_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(FILE)
    first = lookup("algorithm", f"{path}@registered").target
    assert lookup("algorithm", f"{path}@registered").target is first
    path.write_text(FILE.replace("Registered.", "Changed."))
    os.utime(path, ns=(1, 1))
    assert lookup("algorithm", f"{path}@registered").summary == "Changed."


def test_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(f'def f():\n    """{folder}"""\n')
    assert lookup("verifier", f"{tmp_path}/a/own.py@f").summary == "a"
    assert lookup("verifier", f"{tmp_path}/b/own.py@f").summary == "b"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py@f", "must name an existing file but got 'missing.py'"),
        ("{path}@g", "must define or register 'g' but has .*'f'"),
        ("no.such.module:f", "must name an importable attribute"),
        ("math:no_such", "must name an importable attribute"),
    ],
)
def test_rejects(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "own.py"
    path.write_text("def f(): ...\n")
    with pytest.raises(UnknownNameError, match=message):
        lookup("verifier", name.format(path=path))


def test_a_file_that_cannot_be_imported_says_so(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_at_all\n")
    with pytest.raises(UnknownNameError, match="no_such_module_at_all"):
        lookup("verifier", f"{path}@f")
    path.write_text("def f(:\n")
    with pytest.raises(UnknownNameError, match="invalid syntax"):
        lookup("verifier", f"{path}@f")


def test_module_and_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module_xyz.py").write_text('def f():\n    """From a module."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert lookup("verifier", "own_module_xyz:f").summary == "From a module."
    assert lookup("algorithm", "tts_vision.algorithms.best_of_n:best_of_n").name == "best_of_n"
    sys.modules.pop("own_module_xyz")


class Point:
    """An entry point."""

    def __init__(self, name: str, target: Any) -> None:
        self.name, self.target, self.value = name, target, "third_party:target"

    def load(self) -> Any:
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def third_party() -> None:
        """From another distribution."""

    monkeypatch.setattr(registry, "_entry_points", lambda kind: (Point("third", third_party),))
    assert lookup("algorithm", "third").summary == "From another distribution."


def test_a_broken_entry_point_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entry_points", lambda kind: (Point("bad", ImportError("no torch_xyz")),))
    with pytest.warns(UserWarning, match="no torch_xyz"):
        assert {entry.name for entry in entries("algorithm")} >= set(FIRST)
    assert lookup("algorithm", "best_of_n").target is best_of_n
    with pytest.raises(
        UnknownNameError, match="'bad' must be importable from 'third_party:target' but: no torch_xyz"
    ):
        lookup("algorithm", "bad")
