"""Deferred modules: what may be asked of them without loading them, and that they are the real ones after."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tts_vision import startup
from tts_vision.startup import _Deferred, hasten, settle

SOURCES = {
    "__init__": """
        runs = globals().get("runs", 0) + 1
        noted = []
        from .part import Thing, work
        from . import other

        def allow_in_graph(function):
            noted.append(function)
            return function

        def disable(function=None, recursive=True):
            if function is None:
                return lambda given: disable(given, recursive)
            call = lambda *args: ("disabled", function(*args))
            return call

        def anything(): return "anything"
        __version__ = "1.2"
        """,
    "part": """
        runs = globals().get("runs", 0) + 1

        class Thing:
            def __init__(self, x=1): self.x = x

        def work(x): return x + 1
        """,
    "other": "import heavy_counter; heavy_counter.runs.append(1)",
}


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that is deferred, with one deferred part."""
    name = "heavy_package"
    (tmp_path / name).mkdir()
    for module, text in SOURCES.items():
        (tmp_path / name / f"{module}.py").write_text(textwrap.dedent(text))
    (tmp_path / "heavy_counter.py").write_text("runs = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(startup, "_DEFERRED", {name: ("Later",), f"{name}.part": ("Thing", "work")})
    monkeypatch.setattr(startup, "_MARKS", {name: ("allow_in_graph", "disable")})
    monkeypatch.setattr(sys, "meta_path", [startup._Finder(), *sys.meta_path])
    yield name
    for module in [m for m in sys.modules if m.startswith("heavy_")]:
        del sys.modules[module]


def is_deferred(name: str) -> bool:
    return type(sys.modules[name]) is _Deferred


def test_importing_and_naming_load_nothing(heavy: str) -> None:
    package = importlib.import_module(heavy)
    part = importlib.import_module(f"{heavy}.part")
    thing, work = part.Thing, part.work
    assert is_deferred(heavy) and is_deferred(f"{heavy}.part")
    assert package.part is part
    assert not isinstance(3, thing) and not issubclass(int, thing)
    assert importlib.util.find_spec(heavy) is not None
    assert inspect.getmodule(test_importing_and_naming_load_nothing) is sys.modules[__name__]
    assert not hasattr(package, "__wrapped__")
    assert is_deferred(heavy) and is_deferred(f"{heavy}.part")
    assert work(1) == 2
    assert not is_deferred(heavy) and not is_deferred(f"{heavy}.part")
    assert package.runs == part.runs == 1
    assert isinstance(part.Thing(), thing) and isinstance(thing(), part.Thing)
    assert package.Thing is part.Thing and importlib.import_module(heavy) is package


def test_asking_for_anything_else_loads(heavy: str) -> None:
    package = importlib.import_module(heavy)
    assert package.anything() == "anything" and package.runs == 1
    assert type(importlib.import_module(f"{heavy}.part")) is not _Deferred


@pytest.mark.parametrize("name", ["__version__", "anything"])
def test_attributes_are_those_of_the_real_module(heavy: str, name: str) -> None:
    assert getattr(importlib.import_module(heavy), name)
    with pytest.raises(AttributeError):
        getattr(importlib.import_module(heavy), "no_such_" + name)


def test_another_part_loads_the_package_once(heavy: str) -> None:
    importlib.import_module(heavy)
    other = importlib.import_module(f"{heavy}.other")
    assert other is sys.modules[f"{heavy}.other"]
    assert importlib.import_module("heavy_counter").runs == [1], "a part is not run twice"
    assert other.__spec__ is not None and other.__spec__.loader is not None
    assert importlib.import_module(heavy).runs == 1


def test_a_class_may_be_derived_from_a_deferred_one(heavy: str) -> None:
    thing = importlib.import_module(f"{heavy}.part").Thing

    class Mine(thing):  # type: ignore[misc, valid-type]
        pass

    assert Mine(3).x == 3 and isinstance(Mine(), thing)
    assert Mine.__mro__[1] is importlib.import_module(f"{heavy}.part").Thing


def test_marks_are_made_when_the_module_is_loaded(heavy: str) -> None:
    package = importlib.import_module(heavy)

    @package.allow_in_graph
    class Kept: ...

    @package.disable
    def plain(x: int) -> int:
        return x

    @package.disable(recursive=False)
    def called(x: int) -> int:
        return -x

    assert is_deferred(heavy)
    assert (plain(1), called(1), plain.__name__) == (1, -1, "plain")
    assert package.noted == [Kept]
    assert (plain(1), called(1)) == (("disabled", 1), ("disabled", -1))
    assert package.allow_in_graph(int) is int and package.noted == [Kept, int]


def test_garbage_is_collected_as_before_once_a_search_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = gc.get_threshold()
    try:
        hasten()
        hasten()
        assert sum(isinstance(finder, startup._Finder) for finder in sys.meta_path) == 1
        assert gc.get_threshold()[0] > 50 * before[0]
        settle()
        assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_search_needs_none_of_the_deferred_modules(tmp_path: Path) -> None:
    printed = in_a_new_process(
        f"""
        import sys
        sys.argv = ["tts-vision", "generate", "a red circle", "-b", "1x", "-o", {str(tmp_path / "x")!r}, "-q"]
        from tts_vision import cli, startup
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code
        there = [name for name in startup._DEFERRED if name in sys.modules]
        print([name for name in there if type(sys.modules[name]) is not startup._Deferred])
        print([name for name in ("torch._dynamo", "scipy.stats") if name in there])
        """
    )
    assert printed.splitlines()[1:] == ["[]", "['torch._dynamo', 'scipy.stats']"]


def test_deferred_libraries_work_when_they_are_used() -> None:
    """The compiler, after classes were marked for it; statistics; a LoRA library."""
    printed = in_a_new_process(
        """
        from tts_vision import startup
        startup.hasten()
        import sys, torch
        from diffusers.models.attention import BasicTransformerBlock
        import transformers.masking_utils

        @torch.compiler.disable
        def alone(x):
            return x + 1

        assert type(sys.modules["torch._dynamo"]) is startup._Deferred
        compiled = torch.compile(lambda x: alone(x) * 2, backend="eager")
        print(compiled(torch.ones(1)).item(), type(sys.modules["torch._dynamo"]) is startup._Deferred)
        from torch._dynamo import trace_rules
        print(id(BasicTransformerBlock) in trace_rules._allowed_callable_ids)
        import scipy.stats
        from scipy.stats import rankdata
        print(scipy.stats.rankdata([3, 1]).tolist() == rankdata([3, 1]).tolist(), scipy.stats.norm.cdf(0))
        """
    )
    assert printed.splitlines() == ["4.0 False", "True", "True 0.5"]
