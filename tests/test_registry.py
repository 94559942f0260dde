"""Plugins are found by name, by file and by module; a wrong name gets a suggestion."""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tts_vision import registry
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.errors import ConfigError, UnknownNameError
from tts_vision.registry import (
    PACKAGES,
    Entry,
    Kind,
    default_model,
    entries,
    known_names,
    lookup,
    register,
    registered,
    registered_model,
)

FIRST = ("best_of_n", "evosearch", "fk_steering", "search_over_paths", "zero_order")
SIZES = {
    "beam_search": "width",
    "best_of_n": "n",
    "das": "n",
    "draft": "",
    "evosearch": "particles",
    "fk_steering": "n",
    "fusion": "rounds",
    "gradient_guidance": "n",
    "greedy": "runs",
    "parm": "n",
    "parm_pp": "n",
    "prm_search": "n",
    "prompt_search": "n",
    "raise_search": "rounds",
    "reflection_flow": "rounds",
    "reno": "iterations",
    "search_over_paths": "n",
    "tree_of_frames": "n",
    "tts_var": "n",
    "variations": "n",
    "zero_order": "n",
}


@pytest.fixture(autouse=True)
def _own_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test end with it."""
    for kind in PACKAGES:
        entries(kind)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


def test_finds_the_algorithms() -> None:
    assert {entry.name for entry in entries("algorithm")} >= set(FIRST)
    assert lookup("algorithm", "best_of_n").target is best_of_n


@pytest.mark.parametrize("name", FIRST)
def test_algorithms_say_what_they_are(name: str) -> None:
    entry = lookup("algorithm", name)
    assert "et al." in entry.summary and "arXiv" in entry.paper
    known = {"noise", "stochastic", "step_noise", "moves", "renoise", "preview", "differentiable"}
    assert entry.needs <= known


def test_every_algorithm_says_what_sizes_it() -> None:
    ours = [entry for entry in entries("algorithm") if entry.target.__module__.startswith("tts_vision.")]
    assert {entry.name: entry.size for entry in ours} == SIZES


def test_a_size_is_a_keyword_parameter() -> None:
    def mine(ctx: Any, *, n: int = 1, depth: int = 2) -> None: ...

    with pytest.raises(ConfigError, match=r"must be a keyword parameter \(n, depth\) but .* size='width'"):
        registry.register("algorithm", "mine", size="width")(mine)
    registry.register("algorithm", "mine", size="depth")(mine)
    assert lookup("algorithm", "mine").size == "depth"


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


def test_a_model_brings_its_verifier_and_features() -> None:
    @register("model", "mine", verifier="clip_score:x=1", features="clip_features")
    def mine(name: str, *, options: object = None) -> None: ...

    entry = lookup("model", "mine")
    assert (entry.verifier, entry.features) == ("clip_score:x=1", "clip_features")
    assert registered_model("mine") is registered_model("mine:/a/folder") is entry
    assert registered_model("owner/name") is None
    assert lookup("model", "diffusers").verifier == ""


def test_the_default_model_is_registered() -> None:
    entry = lookup("model", default_model())
    assert lookup("verifier", entry.verifier) and lookup("features", entry.features)


def test_an_algorithm_says_what_sizes_it() -> None:
    @register("algorithm", "mine", size="n")
    def mine(ctx: object, *, n: int | None = None, m: int = 2) -> None: ...

    assert lookup("algorithm", "mine").size == "n"
    assert lookup("algorithm", f"{__name__}:plain").size == ""


def plain(ctx: object, *, n: int | None = None) -> None:
    """A function that was never registered."""


@pytest.mark.parametrize(("size", "takes"), [("k", "n, m"), ("ctx", "n, m")])
def test_what_sizes_an_algorithm_is_a_keyword_parameter(size: str, takes: str) -> None:
    def mine(ctx: object, *, n: int | None = None, m: int = 2) -> None: ...

    with pytest.raises(ConfigError, match=rf"\({takes}\) but algorithm 'mine' is .* size='{size}'; name one"):
        register("algorithm", "mine", size=size)(mine)
    with pytest.raises(ConfigError, match="there is none"):
        register("algorithm", "mine", size=size)(lambda ctx: None)
    assert registered("algorithm", "mine") is None


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


@pytest.mark.parametrize("kind", PACKAGES)
def test_the_scan_finds_the_module_of_every_name(kind: Kind) -> None:
    scan = registry._scan(PACKAGES[kind])
    assert scan.is_whole
    found = [entry for entry in entries(kind) if entry.target.__module__.startswith(f"{PACKAGES[kind]}.")]
    assert found
    for entry in found:
        calls = [call for call in scan.calls if call.kind == kind and call.pattern.fullmatch(entry.name)]
        assert [call.module for call in calls] == [entry.target.__module__], entry.name


def in_a_new_process(code: str) -> str:
    """What a Python program prints that imports nothing of the toolkit but what it asks for."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOOKUPS: list[tuple[Kind, str, set[str]]] = [
    ("verifier", "playground_clip", {"playground"}),
    ("verifier", "parm", {"parm", "orm"}),
    ("algorithm", "best_of_n", {"best_of_n"}),
    ("model", "playground", {"bundled"}),
    ("model", "infinity-2b", {"published"}),
]


@pytest.fixture(scope="module")
def looked_up() -> list[str]:
    """For each lookup, in a process that has imported no plugin: the name, and the modules of its package."""
    asked = [(kind, name, f"{PACKAGES[kind]}.") for kind, name, _ in LOOKUPS]
    printed = in_a_new_process(
        f"""
        import os, sys
        import torch  # once for all, before the processes part
        from tts_vision.registry import lookup
        for kind, name, package in {asked!r}:
            assert not [module for module in sys.modules if module.startswith(package)]
            if not os.fork():
                found = lookup(kind, name).name
                print(found, *(m for m in sys.modules if m.startswith(package)), flush=True)
                os._exit(0)
            assert os.wait()[1] == 0
        """
    )
    return printed.splitlines()


@pytest.mark.parametrize(("index", "name", "plugins"), [(i, *each[1:]) for i, each in enumerate(LOOKUPS)])
def test_lookup_imports_one_plugin(index: int, name: str, plugins: set[str], looked_up: list[str]) -> None:
    package = PACKAGES[LOOKUPS[index][0]]
    found, *modules = looked_up[index].split()
    assert found == name
    every = {call.module.removeprefix(f"{package}.") for call in registry._scan(package).calls}
    assert {module.removeprefix(f"{package}.") for module in modules} & every == plugins


def test_whether_a_name_is_registered_is_told_without_plugins() -> None:
    printed = in_a_new_process(
        """
        import sys
        from tts_vision.registry import PACKAGES, known_names, registered
        assert {"playground", "diffusers"} <= set(known_names("model"))
        print(registered("model", "owner/name"), registered("verifier", "qqq"), registered("model", "var"))
        print([m for m in sys.modules if any(m.startswith(p + ".") for p in PACKAGES.values())])
        """
    )
    assert printed.splitlines() == ["None None None", "[]"]


def test_known_names_are_literals_registrations_and_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    register("algorithm", "mine")(lambda: None)
    monkeypatch.setattr(registry, "_entry_points", lambda kind: (Point("third", ImportError("no")),))
    assert {*FIRST, "mine", "third"} <= set(known_names("algorithm"))


PLUGINS = {
    "apart": """
        from tts_vision import registry

        @registry.register(
            'algorithm',
            'apart',
            paper='P',
        )
        def apart(): ...
        """,
    "by_keyword": """
        from tts_vision.registry import register

        register(kind="algorithm", name="by_keyword")(lambda: None)
        """,
    "patterns": """
        from tts_vision.registry import register

        for size in "ab":
            register("algorithm", f"pattern.{size}-x")(len)
        """,
    "pretends": '''
        """Only says register("algorithm", "apart") and register("algorithm", "missing")."""
        ''',
    "hidden": """
        from tts_vision.registry import register

        NAME = "hidden"
        register("algorithm", NAME)(lambda: None)
        """,
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package of plugins, which takes the place of the algorithms."""
    name = f"plugins_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    for module, text in PLUGINS.items():
        (tmp_path / name / f"{module}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "algorithm", name)
    return name


def modules_of(package: str) -> set[str]:
    return {module.removeprefix(f"{package}.") for module in sys.modules if module.startswith(f"{package}.")}


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("apart", {"apart"}),
        ("by_keyword", {"by_keyword"}),
        ("pattern.b-x", {"patterns"}),
        ("hidden", set(PLUGINS)),
    ],
)
def test_every_way_to_register_is_found(package: str, name: str, modules: set[str]) -> None:
    assert lookup("algorithm", name).name == name
    assert modules_of(package) == modules


def test_a_module_that_only_speaks_of_a_name_does_not_register_it(package: str) -> None:
    assert registered("algorithm", "missing") is None
    assert registered("algorithm", "pattern_b-x") is None
    assert modules_of(package) == {"pretends"}
    with pytest.raises(UnknownNameError, match="got 'missing'"):
        lookup("algorithm", "missing")


def test_plugins_without_source_are_found(package: str, tmp_path: Path) -> None:
    for module in ("hidden", "by_keyword"):
        source = tmp_path / package / f"{module}.py"
        py_compile.compile(str(source), cfile=str(source.with_suffix(".pyc")))
        source.unlink()
    assert not registry._scan(package).is_whole
    assert registered("algorithm", "apart") and modules_of(package) == {"apart"}
    assert registered("algorithm", "by_keyword") and lookup("algorithm", "hidden").name == "hidden"


def test_plugins_in_an_archive_are_found(package: str, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "plugins"), "zip", tmp_path, package)
    printed = in_a_new_process(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path / "plugins.zip")!r})
        from tts_vision import registry
        registry.PACKAGES["algorithm"] = {package!r}
        print(registry.lookup("algorithm", "apart").paper, registry._scan({package!r}).is_whole)
        print(*(module for module in sys.modules if module.startswith({package + "."!r})))
        """
    )
    assert printed.splitlines() == ["P True", f"{package}.apart"]
