"""The public interface for plugin authors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tts_vision import plugins

MINE = """
from tts_vision.plugins import ALONE, BatchedVerifier, Score, Verifier


class Plain(Verifier):
    name, accepts = "mine_plain", frozenset({"image"})

    def score(self, media, prompts, asked=ALONE):
        return [Score(value=float(image.width)) for image in media]


class Model(BatchedVerifier):
    name = "mine_model"

    def _load(self):
        self.scale = 2.0

    def _score_batch(self, samples, prompts):
        return [Score(value=self.scale * image.height) for image in samples]
"""


def test_every_name_is_there_and_described() -> None:
    assert len(plugins.__all__) == len(set(plugins.__all__))
    for name in plugins.__all__:
        assert getattr(plugins, name) is not None
        assert f"`{name}`" in (plugins.__doc__ or ""), f"{name} is not described"


@pytest.mark.parametrize("name", ["Plain", "Model"])
def test_a_file_that_imports_it_is_a_plugin(name: str, tmp_path: Path) -> None:
    from PIL import Image

    from tts_vision.resolve import find_verifier, load_verifier

    path = tmp_path / "mine_plugin.py"
    path.write_text(MINE)
    verifier = load_verifier(find_verifier(f"{path}@{name}"))
    assert isinstance(verifier, plugins.Verifier)
    (score,) = verifier.score([Image.new("RGB", (6, 3))], [plugins.Prompt("a")])
    assert score.value == 6.0


def test_importing_it_loads_no_plugin() -> None:
    code = "import sys, tts_vision.plugins; print([m for m in sys.modules if '.verifiers.' in m])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
