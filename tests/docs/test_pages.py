"""The Python blocks and the command lines of README and documentation run as they stand on the page."""

from __future__ import annotations

import glob
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import typer
from typer.testing import CliRunner

import tts_vision
from pages import DOCS, PAGES, ROOT, blocks, commands
from tiny_pipelines import TINY
from tts_vision.cli import app
from tts_vision.config import RunConfig
from tts_vision.registry import lookup
from tts_vision.resolve import find_verifier

SCRIPTS = [page for page in PAGES if any(b.language == "python" and not b.example for b in blocks(page))]
COMMANDS = list(dict.fromkeys(tuple(words) for page in PAGES for words in commands(page)))


def name_of(value: Any) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else " ".join(value)


@pytest.fixture(autouse=True)
def _in_a_folder_with_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").symlink_to(DOCS)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _tiny_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny pipeline with random weights, on the CPU, in the place of any published one."""
    from diffusers import DiffusionPipeline

    def from_pretrained(name: str) -> Any:
        pipe = TINY["stable_diffusion_xl"].build()
        pipe.to = lambda device: pipe
        return pipe

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)


@pytest.mark.usefixtures("_tiny_weights", "_few_steps")
@pytest.mark.parametrize("page", SCRIPTS, ids=name_of)
def test_python_blocks_run(page: Path) -> None:
    matplotlib.use("agg")
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and not block.example:
            source = "\n" * (block.line - 1) + block.code
            exec(compile(source, str(page), "exec"), names)


@pytest.mark.parametrize("words", COMMANDS, ids=name_of)
def test_command_lines_are_understood(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    asked: list[RunConfig] = []
    monkeypatch.setattr(
        "tts_vision.cli.generate.run_search", lambda config, *args, **kwargs: asked.append(config)
    )
    context = command.make_context(words[0], list(words[1:]))
    if words[0] == "generate":
        command.invoke(context)
        lookup("algorithm", asked[0].algorithm)
        find_verifier(asked[0].verifier)
        if asked[0].holdout_verifier:
            find_verifier(asked[0].holdout_verifier)


def is_local(words: tuple[str, ...]) -> bool:
    """Whether a command needs nothing but the bundled models."""
    model = words[words.index("--model") + 1] if "--model" in words else "playground"
    return model.startswith(("playground", "docs/")) and not any(w.startswith("vlm_judge") for w in words)


@pytest.mark.usefixtures("_few_steps")
@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words[0] == "generate" and is_local(words)], ids=name_of
)
def test_searches_on_bundled_models_run(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*words, "--budget", "3x", "--output", "out"])
    assert result.exit_code == 0, result.output
    assert list(Path("out").glob("best.*"))


@pytest.mark.usefixtures("_few_steps")
def test_commands_on_a_result_folder_run() -> None:
    words = [words for words in COMMANDS if words[0] in {"resume", "replay", "score"}]
    folders = {
        word for command in words for word in command if word.startswith("outputs/") and "*" not in word
    }
    for folder in folders:
        tts_vision.search("playground", "two red circles", budget="2x", output=folder)
    shutil.copy(next(Path("outputs").glob("*/best.png")), "best.png")
    for command in words:
        args = [path for word in command for path in (sorted(glob.glob(word)) if "*" in word else [word])]
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 0, (args, result.output)


def test_the_demo_prints_what_the_front_page_says() -> None:
    shown = next(block.code for block in blocks(ROOT / "README.md") if block.code.startswith("best    "))
    prompt = "two red circles left of a blue star"
    result = CliRunner().invoke(app, ["generate", prompt, "--algorithm", "evosearch", "--seed", "2"])
    # seconds differ, and scores may differ in the last digit between processors
    number = re.compile(r"[0-9.]+ s;|\d\.\d+")
    assert number.sub("N", result.stdout) == number.sub("N", shown)
