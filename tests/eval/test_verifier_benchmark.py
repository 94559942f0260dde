"""The benchmark of verifiers: its own verifiers, its statistics, and a run at a tiny size."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from tts_vision.errors import ConfigError
from tts_vision.eval import verifiers
from tts_vision.eval.verifiers import ClipViews, Patches, agreement, agreement_table, shifted
from tts_vision.pipelines.playground import world
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import Media, Prompt
from tts_vision.verifiers.playground import PlaygroundClip

NAN = float("nan")


def drawn(*texts: str) -> list[Media]:
    """Images that show what the texts say."""
    rng = np.random.default_rng(3)
    scenes = [world.sample_scene(rng, world.parse_spec(text)) for text in texts]
    return [Image.fromarray(image) for image in world.render_batch(scenes)]


class Images:
    @pytest.fixture
    def media(self) -> list[Media]:
        return drawn("two red circles", "two blue circles", "three red squares", "a red star")


class TestPatches(Images, VerifierContract):
    @pytest.fixture
    def verifier(self) -> Patches:
        return Patches()


class TestViews(Images, VerifierContract):
    @pytest.fixture(scope="class")
    def verifier(self) -> ClipViews:
        return ClipViews(views=2)


def test_patches_see_numbers_and_colours_alone() -> None:
    media = drawn("two red circles", "two red squares", "two blue circles", "three red circles", "a red star")
    scores = Patches().score(media, [Prompt("two red circles")] * 5)
    assert [score.value for score in scores] == [1, 1, 0, 0, 0]
    (both,) = Patches().score(
        drawn("a red circle above a blue star"), [Prompt("a blue star above a red circle")]
    )
    assert both.value == 1, "blind to shapes and places"


def test_views_are_the_mean_over_shifted_copies() -> None:
    (image,) = drawn("two red circles")
    views, clip = ClipViews(views=3), PlaygroundClip()
    assert views.shifts[0] == (0, 0) and len(set(views.shifts)) == 3
    copies = [shifted(image, dx, dy) for dx, dy in views.shifts]
    expected = [score.value for score in clip.score(copies, [Prompt("two red circles")] * 3)]
    (found,) = views.score([image], [Prompt("two red circles")])
    assert found.value == pytest.approx(np.mean(expected), abs=1e-5) and len(set(expected)) == 3
    with pytest.raises(ConfigError, match="views must be at least 1 but got 0"):
        ClipViews(views=0)


def test_a_shift_moves_pixels_and_repeats_the_edge() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    moved = shifted(Image.fromarray(np.stack([pixels] * 3, -1)), 1, -1)
    assert np.asarray(moved)[..., 0].tolist() == [[4, 4, 5, 6], [8, 8, 9, 10], [8, 8, 9, 10]]


def test_agreement_is_within_prompts_and_over_all() -> None:
    truth = [np.array(row) for row in ([0.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0])]
    said = [np.array(row) for row in ([0.1, 0.3, 0.2], [5.0, 6.0, 7.0], [3.0, 3.0, 3.0])]
    row = agreement("v", "all", truth, said, ["a", "b", "a"], milliseconds=2.0)
    # 1 for the first, the second has no order, the third is all one to the verifier
    assert (row.within, row.prompts, row.samples) == (0.5, 2, 9)
    assert row.overall == pytest.approx(spearmanr(np.concatenate(truth), np.concatenate(said)).statistic)
    alone = agreement("v", "b", truth, said, ["a", "b", "a"], milliseconds=2.0)
    assert math.isnan(alone.within) and alone.prompts == 0 and alone.samples == 3
    unscored = [np.array([NAN, 0.3, 0.2]), said[1], said[2]]
    assert agreement("v", "a", truth, unscored, ["a", "b", "a"], milliseconds=2.0).within == pytest.approx(
        0.5
    )
    table = agreement_table([row, alone])
    assert "| **all** | 0.50 [" in table and "| b | - |" in table and "| ms per image | 2.0 |" in table


def test_the_benchmark_writes_its_tables_and_resumes(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    names = ("patches", "playground_clip", "cascade(patches, clip_views)")
    monkeypatch.setattr(verifiers, "GUIDES", {name: verifiers.GUIDES[name] for name in names})
    arguments = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    arguments += ["--prompts", "2", "--samples", "3", "--seconds", "0.8"]
    verifiers.main(arguments)
    text = (tmp_path / "results" / "verifiers.md").read_text()
    assert text in capsys.readouterr().out
    found = json.loads((tmp_path / "results" / "verifiers.json").read_text())
    assert [row["guide"] for row in found["guided"]] == list(names)
    assert all(row["searches"] == 2 and 0 <= row["right"] <= 1 for row in found["guided"])
    assert {row["samples"] for row in found["agreement"] if row["task"] == "all"} == {6}
    assert set(found["guided"][2]["calls"]) <= {"patches", "clip_views"}
    for name in (*names, "plain sample"):
        assert f"| {name} | " in text
    # nothing is searched a second time
    monkeypatch.setattr(verifiers, "run", None)
    verifiers.main(arguments)
    again = json.loads((tmp_path / "results" / "verifiers.json").read_text())
    assert again["guided"] == found["guided"] and again["plain"] == found["plain"]
