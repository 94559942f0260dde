"""What the catalogue reads in the source is what importing a plugin finds."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tts_vision import catalogue, registry
from tts_vision.catalogue import REQUIRED, Listing, listings, of_entry
from tts_vision.registry import PACKAGES, Kind, entries, register

FROM_SOURCE = """
import sys
from tts_vision.catalogue import listings
for kind in sys.argv[1:]:
    for listing in listings(kind):
        print(repr(listing))
print([m for m in ("torch", "numpy", "scipy", "diffusers") if m in sys.modules])
"""


def test_the_source_says_what_importing_says() -> None:
    """Of every bundled plugin of every kind; nothing heavy is imported for it."""
    done = subprocess.run(
        [sys.executable, "-c", FROM_SOURCE, *PACKAGES], capture_output=True, text=True, check=True
    )
    *read, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    found = [entry for kind in PACKAGES for entry in entries(kind)]
    own = [entry for entry in found if entry.target.__module__.startswith("tts_vision.")]
    assert sorted(read) == sorted(repr(of_entry(entry)) for entry in own)


PLUGINS = {
    "plain": '''
        from tts_vision.registry import register
        from typing import Literal, TypeAlias

        Mode: TypeAlias = Literal["a", "b"]
        NOTES = {"x": "y"}

        @register("algorithm", "plain", needs={"noise"}, notes={**NOTES, "z": f"{1 + 1}"}, size="n")
        def plain(ctx, *, n: int | None = None, mode: Mode = "a", must: "list[float]", options=None):
            """Plain.

            Args:
                n: How many.
            """
        ''',
    "classes": '''
        from tts_vision.registry import register
        from unknown_package import Base  # never imported

        class Mine:
            """Mine.

            Args:
                x: Of mine.
            """

            def __init__(self, *, x: float = -1.0, y: str = "a"): ...

        @register("algorithm", "heir")
        class Heir(Mine, Base):
            """Heir.

            Args:
                y: Of the heir.
            """
        ''',
    "silent": """
        import unknown_package  # never imported
        """,
    "computed": """
        from tts_vision.registry import register

        for size in "ab":
            register("algorithm", f"computed-{size}", paper=size.upper())(lambda ctx, *, n=1: None)
        """,
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"listed_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    for module, text in PLUGINS.items():
        (tmp_path / name / f"{module}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "algorithm", name)
    monkeypatch.setattr(registry, "_ENTRIES", {})
    return name


def by_name(kind: Kind) -> dict[str, Listing]:
    return {listing.name: listing for listing in listings(kind)}


def test_literals_are_read_and_the_rest_is_imported(package: str) -> None:
    found = by_name("algorithm")
    assert sorted(found) == ["computed-a", "computed-b", "heir", "plain"]
    plain = found["plain"]
    assert (plain.summary, plain.needs, plain.size) == ("Plain.", ("noise",), "n")
    assert plain.notes == {"x": "y", "z": "2"}
    settings = {s.name: (s.type, s.default, s.help) for s in plain.parameters}
    assert settings == {
        "n": ("int | None", "None", "How many."),
        "mode": ("Literal['a', 'b']", "a", ""),
        "must": ("list[float]", REQUIRED, ""),
    }
    heir = {s.name: (s.type, s.default, s.help) for s in found["heir"].parameters}
    assert heir == {"x": ("float", "-1.0", "Of mine."), "y": ("str", "a", "Of the heir.")}
    assert found["computed-b"].paper == "B"
    imported = {m for m in sys.modules if m.startswith(f"{package}.")}
    assert imported == {f"{package}.computed"}, "what says more than literals"


def test_plugins_registered_here_are_listed(package: str) -> None:
    @register("algorithm", "here", wants_stochastic=True)
    def here(ctx: object, *, n: int = 1) -> None:
        """Here."""

    assert by_name("algorithm")["here"].wants_stochastic


def test_plugins_of_other_distributions_are_imported(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, value = "third", "third_party:target"

        def load(self) -> object:
            return test_literals_are_read_and_the_rest_is_imported

    monkeypatch.setattr(registry, "_entry_points", lambda kind: (Point(),))
    Path(sys.path[0], package, "classes.py").unlink()
    Path(sys.path[0], package, "silent.py").unlink()
    assert {"plain", "third"} <= set(by_name("algorithm"))


@pytest.mark.parametrize("text", ["f(1)", "x.y", "[i for i in z if i]", "lambda: 1", "1 if a else 2", "len"])
def test_what_only_python_can_tell_is_not_guessed(text: str, package: str, tmp_path: Path) -> None:
    source = "from tts_vision.registry import register\n"
    source += f'@register("algorithm", "odd", notes={text})\ndef odd(): ...\n'
    (tmp_path / package / "odd.py").write_text(source)
    with pytest.raises(catalogue._UnknownError):
        catalogue._registered(f"{package}.odd")
