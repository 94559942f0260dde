"""Trust: what a configuration from somebody else may do, and what it may not."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import Answer, serving
from typer.testing import CliRunner

import tts_vision
from toy_plugins import MODEL, VERIFIER
from tts_vision import RunConfig, search
from tts_vision.cli import app
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.folders import read_config
from tts_vision.registry import lookup
from tts_vision.replays import replay
from tts_vision.results import load_result
from tts_vision.runner import run
from tts_vision.trace import Event
from tts_vision.trust import allowing, demands, is_mine, named_in, remember

EVIL = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from toy_plugins import *
def verifier(images, prompts, *, x: float = 1.0):
    return [x * sum(image.getpixel((0, 0))) for image in images]
rewriter = lambda text, n: ["a circle"][:n]
corrector = lambda ctx, rejected, n: ctx.init(n)
def algorithm(ctx, *, n: int = 1):
    state = ctx.finish(ctx.init(n))
    ctx.score(state)
    return state
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A file of code that leaves a mark when it is run."""
    path = tmp_path / "evil.py"
    path.write_text(EVIL.format(mark=str(tmp_path / "ran")))
    return path


def ran() -> bool:
    """Whether the code was run since this was last asked."""
    mark = Path("ran")
    if mark.exists():
        mark.unlink()
        return True
    return False


class Stopped(Exception):
    """Ends a search in a test."""


def stop(context: SearchContext, event: Event) -> None:
    if event.what == "advance":
        raise Stopped


def begun(folder: Path, **settings: Any) -> Path:
    """A folder of a search that was stopped."""
    config = RunConfig(**{"prompt": "a", "model": MODEL, "verifier": VERIFIER, "budget": "2x", **settings})
    with pytest.raises(Stopped):
        run(config, output=folder, progress=stop, figures=False)
    return folder


def strangers(folder: Path, name: str = "theirs") -> Path:
    """The folder as it comes from somebody else."""
    shutil.copytree(folder, folder.with_name(name))
    return folder.with_name(name)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fresh(evil: Path) -> None:
    """Makes the file run again when it is loaded."""
    evil.write_text(evil.read_text() + "\n")
    os.utime(evil, ns=(0, int(evil.stat().st_mtime_ns + 1e9 * len(evil.read_text()))))


WITHIN = "ensemble(jpeg_compressibility, cascade({evil}@verifier, jpeg_incompressibility))"
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("@model", {"model": "{evil}@model"}),
    ("@algorithm", {"algorithm": "{evil}@algorithm"}),
    ("@verifier", {"verifier": "{evil}@verifier"}),
    (
        "@verifier",
        {"verifier": "ensemble({evil}@verifier, cascade({evil}@first_coordinate, jpeg_compressibility))"},
    ),
    ("@first_coordinate", {"holdout_verifier": "{evil}@first_coordinate"}),
    ("@rewriter", {"algorithm": "prompt_search", "algorithm_params": {"rewriter": "{evil}@rewriter"}}),
    (
        "@corrector",
        {
            "algorithm": "reflection_flow",
            "algorithm_params": {"n": 1, "rounds": 0, "corrector": "{evil}@corrector"},
        },
    ),
]


@pytest.mark.parametrize(("what", "settings"), SETTINGS)
def test_code_of_a_stranger_is_not_run(
    what: str, settings: dict[str, Any], evil: Path, tmp_path: Path
) -> None:
    settings = json.loads(json.dumps(settings).replace("{evil}", str(evil)))
    # only what is asked about is code in this configuration
    registered = {"model": "playground", "verifier": "jpeg_compressibility"}
    mine = begun(tmp_path / "mine", **{**registered, "budget": "1x", **settings})
    assert ran()
    theirs = strangers(mine)
    before = tree(theirs)
    fresh(evil)
    message = rf"registered plugins alone, .* '{theirs}' would .*run {evil}{what}.*; read it, and if you"
    with pytest.raises(ConfigError, match=message):
        tts_vision.resume(theirs)
    result = CliRunner().invoke(app, ["resume", str(theirs)])
    assert result.exit_code == 2 and f"run {evil}{what}" in " ".join(result.stderr.split())
    result = CliRunner().invoke(app, ["generate", "--config", str(theirs / "config.yaml"), "-o", "out"])
    assert result.exit_code == 2 and f"run {evil}{what}" in " ".join(result.stderr.split())
    assert not ran() and tree(theirs) == before and not Path("out").exists()
    # one's own search needs no such word, and then neither does a folder that was trusted
    fresh(evil)
    tts_vision.resume(mine)
    assert ran() or what == "@rewriter", "its answer is recorded"
    with pytest.raises(Stopped):
        tts_vision.resume(theirs, trust=True, progress=stop)
    tts_vision.resume(theirs)


def test_a_finished_search_of_a_stranger_is_read_and_not_replayed(evil: Path, tmp_path: Path) -> None:
    search(f"{evil}@model", "a", verifier=f"{evil}@verifier", budget="2x", output=tmp_path / "mine")
    theirs = strangers(tmp_path / "mine")
    ran()
    fresh(evil)
    assert load_result(theirs).best.uid == tts_vision.resume(theirs).best.uid
    assert CliRunner().invoke(app, ["resume", str(theirs)]).exit_code == 0
    with pytest.raises(ConfigError, match=rf"would run {evil}@model and run {evil}@verifier; read it"):
        replay(theirs)
    assert CliRunner().invoke(app, ["replay", str(theirs)]).exit_code == 2
    assert not ran() and not (theirs / "replay.png").exists()
    assert CliRunner().invoke(app, ["replay", str(theirs), "--trust"]).exit_code == 0
    assert replay(tmp_path / "mine").max_difference == 0


def test_modules_are_code_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text(EVIL.format(mark=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(tmp_path)
    theirs = strangers(begun(tmp_path / "mine", verifier="evil_module:verifier"))
    assert ran()
    monkeypatch.delitem(__import__("sys").modules, "evil_module")
    with pytest.raises(ConfigError, match=r"run evil_module:verifier"):
        tts_vision.resume(theirs)
    assert not ran()


@pytest.mark.parametrize(
    "settings",
    [
        {"verifier": "vlm_judge:base_url={url},model=m"},
        {"verifier": "ensemble(jpeg_compressibility, tournament:base_url={url},model=m,key_variable=SECRET)"},
        {"holdout_verifier": "checklist:base_url={url},model=m,key_variable=SECRET"},
        {"algorithm": "prompt_search", "algorithm_params": {"rewriter": "chat:base_url={url},model=m"}},
    ],
)
def test_a_stranger_gets_no_request_and_no_secret(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "the key")
    monkeypatch.setenv("OPENAI_API_KEY", "the key")
    with serving(lambda request: Answer("a red circle\na blue circle")) as server:
        settings = json.loads(json.dumps(settings).replace("{url}", server.base_url))
        config = RunConfig(**{"prompt": "a", "verifier": "jpeg_compressibility", "budget": "1x", **settings})
        Path("theirs").mkdir()
        Path("theirs/config.yaml").write_text(config.dump())
        secret = ".*send the content of the environment variable SECRET" if "SECRET" in str(settings) else ""
        with pytest.raises(ConfigError, match=rf"would ask {server.base_url}{secret}"):
            tts_vision.resume("theirs")
        for line in (["resume", "theirs"], ["generate", "--config", "theirs/config.yaml"]):
            result = CliRunner().invoke(app, line)
            assert result.exit_code == 2 and f"ask {server.base_url}" in result.stderr
        assert not server.requests and sorted(os.listdir("theirs")) == ["config.yaml"]


def test_a_key_goes_to_no_address_but_by_ones_own_word(tmp_path: Path) -> None:
    from tts_vision.chat import ChatEndpoint

    ChatEndpoint("http://localhost:1/v1", "m", owner="x", key_variable="SECRET")
    with allowing({"http://localhost:1/v1"}):
        ChatEndpoint("http://localhost:1/v1", "m", owner="x")
        with pytest.raises(ConfigError, match="send the content of the environment variable SECRET"):
            ChatEndpoint("http://localhost:1/v1", "m", owner="x", key_variable="SECRET")
        with pytest.raises(ConfigError, match="ask http://localhost:2/v1"):
            ChatEndpoint("http://localhost:2/v1", "m", owner="x")


def test_a_trace_names_no_code_either(evil: Path, tmp_path: Path) -> None:
    """A generator that a trace names is opened by name when the sample is made again."""
    search("playground", "a red circle", verifier="jpeg_compressibility", budget="1x", output=tmp_path / "x")
    trace = tmp_path / "x" / "trace.jsonl"
    trace.write_text(trace.read_text().replace('"sampler":""', f'"sampler":"{evil}@model"'))
    with pytest.raises(ConfigError, match=rf"would run {evil}@model"):
        replay(tmp_path / "x")
    assert not ran()


def test_a_folder_is_ones_own_by_its_place_its_settings_and_the_key(evil: Path, tmp_path: Path) -> None:
    mine = begun(tmp_path / "mine", verifier=f"{evil}@verifier")
    config = read_config(mine)
    assert is_mine(mine, config)
    assert not is_mine(strangers(mine), config)
    assert not is_mine(mine, config.model_copy(update={"seed": 1}))
    key, (mark,) = tmp_path / "state/tts-vision/key", (tmp_path / "state/tts-vision/folders").iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32
    assert not [path for path in mine.rglob("*") if path.is_file() and key.read_bytes() in path.read_bytes()]
    signature = mark.read_text()
    for forged in ("", signature[:-1] + ("0" if signature[-1] != "0" else "1")):
        mark.write_text(forged)
        assert not is_mine(mine, config)
    mark.write_text(signature)
    assert is_mine(mine, config)
    key.chmod(0o644)
    assert not is_mine(mine, config), "a key that others can read says nothing"
    key.chmod(0o600)
    key.write_bytes(b"k" * 32)
    assert not is_mine(mine, config)


def test_ordinary_searches_leave_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search("playground", "a red circle", budget="1x", output=tmp_path / "x")
    assert not (tmp_path / "state").exists()
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nothing")
    remember(tmp_path, RunConfig(prompt="a", model="a.py@b", verifier="v"))  # without a home, --trust remains


def test_settings_that_name_plugins_alone_need_no_trust(tmp_path: Path) -> None:
    config = RunConfig(
        prompt="file.py@x or http://a:b",
        model="playground",
        verifier="ensemble(jpeg_compressibility, playground_clip):how=zscore",
        algorithm="prompt_search",
        algorithm_params={"rewrites": ["style:anime", "see http://example.com"], "rewriter": "phrasings"},
    )
    assert demands(config.plain()) == {}
    with allowing(()):
        assert lookup("algorithm", "evosearch").name == "evosearch"


# The command line


@pytest.fixture
def theirs(evil: Path, tmp_path: Path) -> Path:
    """A configuration of a stranger's, whose algorithm, model and verifier are code."""
    path = tmp_path / "theirs.yaml"
    settings = {"prompt": "a", "budget": "2x", "model": f"{evil}@model"}
    settings |= {"verifier": f"{evil}@verifier", "algorithm": f"{evil}@algorithm"}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    "line",
    [
        ["generate", "--config", "{file}"],
        ["generate", "--config={file}", "--n", "3"],
        ["generate", "--config", "{file}", "--help"],
        ["generate", "--n", "3", "--config", "{file}", "--set", "seed=3"],
        ["generate", "--config", "{file}", "--config", "{other}", "--n", "3"],
        ["generate", "--config", "{file}", "--algorithm", "best_of_n", "--model", "playground"],
    ],
)
def test_no_way_of_reading_a_configuration_runs_its_code(
    line: list[str], theirs: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("prompt: a\n")
    line = [word.replace("{file}", str(theirs)).replace("{other}", str(other)) for word in line]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2 and "would run" in " ".join(result.stderr.split()), result.output
    assert not ran() and not Path("outputs").exists()


def test_what_the_command_line_names_is_trusted(theirs: Path, evil: Path) -> None:
    def ok(*line: str) -> None:
        result = CliRunner().invoke(app, list(line))
        assert result.exit_code == 0, result.output

    ok("generate", "--config", str(theirs), "--trust", "-o", "a")
    assert ran()
    named = ["--model", f"{evil}@model", "-v", f"{evil}@verifier:x=2", "-a", f"{evil}@algorithm"]
    ok("generate", "--config", str(theirs), *named, "-o", "b")
    ok("generate", "--config", str(theirs), *named[:4], "--set", f"algorithm={evil}@algorithm", "-o", "c")
    # the configuration of one's own search
    ok("generate", "--config", "b/config.yaml", "--seed", "3", "-o", "d")
    ok("resume", "d")
    ok("replay", "d")
    Path("elsewhere").mkdir()
    shutil.copy("b/config.yaml", "elsewhere/config.yaml")
    result = CliRunner().invoke(app, ["generate", "--config", "elsewhere/config.yaml", "-o", "e"])
    assert result.exit_code == 2 and f"run {evil}@model" in " ".join(result.stderr.split())


def test_names_on_a_command_line() -> None:
    url = "http://localhost:8000/v1"
    line = ["generate", "a.py@b", "-v", f"ensemble(c.py@d:x=1, vlm_judge:base_url={url},key_variable=K)"]
    line += [
        "--set",
        "verifier.base_url=http://e/v1",
        "--algorithm=m:f",
        "--rewriter",
        "chat:base_url=http://g",
    ]
    found = named_in(line)
    assert {"a.py@b", "c.py@d", url, "K", "http://e/v1", "m:f", "http://g"} <= found
    assert not {"b", "c.py", "d"} & found
    named_in(["(", "", "a(b", "="])


@pytest.mark.parametrize(
    ("kind", "name"), [("verifier", "os:system"), ("algorithm", "/tmp/x.py@y"), ("model", "a.b:c")]
)
def test_lookups_ask_first(kind: Any, name: str, tmp_path: Path) -> None:
    with allowing(()), pytest.raises(ConfigError, match=rf"would run {name}|must name an existing file"):
        lookup(kind, name)
