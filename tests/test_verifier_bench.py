"""The benchmark of verifiers: what is measured, in which process, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tts_vision.cli import app
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.verifier_bench import Measurement, bench, measure

runner = CliRunner()

MINE = '''
import os, signal
import numpy as np
from tts_vision.errors import VerifierError
from tts_vision.model_verifier import LazyModel
from tts_vision.types import Score
from tts_vision.verifier import ALONE, Verifier

LOG = []

class batched(LazyModel, Verifier):
    """Notes what it gets; cannot score every second sample."""
    name, accepts = "batched", frozenset({"image"})
    def __init__(self, *, batch_size: int = 3):
        super().__init__(device="cpu", batch_size=batch_size)
    def _load(self):
        LOG.append("load")
    def score(self, media, prompts, asked=ALONE):
        LOG.append((len(media), media[0].size, np.asarray(media[0]).tobytes()))
        return [Score(value=float("nan") if i % 2 else 1.0, reason="blind") for i in range(len(media))]

class clips:
    name, accepts = "clips", frozenset({"video"})
    def score(self, media, prompts):
        return [Score(value=float(len(clip.frames))) for clip in media]

class greedy:
    """Takes 200 MB."""
    name, accepts = "greedy", frozenset({"image"})
    def load(self):
        self.held = np.ones(25_000_000)
    def score(self, media, prompts):
        return [Score(value=0.0) for _ in media]

class heavy:
    name, accepts = "heavy", frozenset({"image"})
    def load(self):
        raise VerifierError("'heavy' needs its weights; download them first.")
    def score(self, media, prompts):
        return []

class killed(greedy):
    name = "killed"
    def load(self):
        os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture(autouse=True)
def _mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)


def log() -> list[Any]:
    from tts_vision.registry import lookup

    return lookup("verifier", "mine.py@batched").target.__init__.__globals__["LOG"]  # type: ignore[misc]


def test_samples_are_timed_after_a_first_batch_and_apart_from_loading(monkeypatch: Any) -> None:
    now = iter([0.0, 5.0, 100.0, 102.0])  # loading, then the samples
    log().clear()
    monkeypatch.setattr("tts_vision.verifier_bench.time.perf_counter", lambda: next(now))
    found = measure("mine.py@batched", images=4, size=6, frames=1)
    assert (found.loading, found.seconds, found.per_second) == (5, 2, 2)
    assert (found.kind, found.samples, found.unscored) == ("image", 4, 2)
    loaded, first, timed = log()
    assert loaded == "load" and first[:2] == (3, (6, 6)) and timed[:2] == (4, (6, 6))
    assert first[2] != timed[2], "no sample is scored twice"


def test_verifiers_of_clips_get_clips() -> None:
    found = measure("mine.py@clips", images=2, size=4, frames=7)
    assert (found.kind, found.unscored) == ("video", 0)


def test_each_has_a_process_of_its_own_which_may_die() -> None:
    names = ["greedy", "killed", "heavy", "clips"]
    greedy, killed, heavy, clips = bench([f"mine.py@{name}" for name in names], images=2, size=8, frames=2)
    assert isinstance(greedy, Measurement) and isinstance(clips, Measurement)
    # a peak never falls, so it would still be there in the same process
    assert greedy.own_memory > 180e6 > clips.own_memory
    assert greedy.peak_memory > clips.peak_memory > 50e6
    assert greedy.loading > 0 and greedy.per_second > 0
    assert isinstance(heavy, VerifierError) and isinstance(killed, VerifierError)
    assert str(heavy).endswith("could not be measured: 'heavy' needs its weights; download them first.")
    assert "its process was killed by signal 9, perhaps for want of memory" in str(killed)


@pytest.mark.parametrize(
    ("verifiers", "options", "message"),
    [
        (["clipp"], {}, "got 'clipp'"),
        (["mine.py@clips"], {"images": 0}, "images must be at least 1 but got 0"),
        (["mine.py@clips"], {"size": 0}, "size must be at least 1 but got 0"),
        (["mine.py@clips"], {"frames": -1}, "frames must be at least 1 but got -1"),
        (["mine.py@clips"], {"batch_sizes": [2]}, "Parameters of verifier .* got 'batch_size'"),
        ([], {}, "needs at least one verifier"),
    ],
)
def test_mistakes_are_told_at_once(verifiers: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench(verifiers, **options)


def test_the_command_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_this_process(verifier: str, images: int, size: int, frames: int) -> Measurement | VerifierError:
        try:
            return measure(verifier, images=images, size=size, frames=frames)
        except VerifierError as error:
            return error

    monkeypatch.setattr("tts_vision.verifier_bench._in_own_process", in_this_process)
    args = ["verifier-bench", "-v", "mine.py@batched", "--batch-size", "1", "--batch-size", "2"]
    args += ["--images", "3", "--size", "8"]
    result = runner.invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "mine.py@batched:batch_size=1" in result.stdout and "mine.py@batched:batch_size=2" in result.stdout
    assert "2 of 3 images" in result.stdout and "per second" in result.stdout
    result = runner.invoke(
        app, ["verifier-bench", "-v", "mine.py@heavy", "-v", "mine.py@clips", "--json", "--size", "8"]
    )
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert row["verifier"] == "mine.py@clips" and row["samples"] == 32 and row["per_second"] > 0
    assert "'heavy' needs its weights" in result.stderr
    result = runner.invoke(app, ["verifier-bench", "-v", "clipp"])
    assert result.exit_code == 2 and "got 'clipp'" in result.stderr
