from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tts_vision.eval.geneval import speed
from tts_vision.verifiers._detections import Findings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    speed.save_reduced(folder)
    return folder


def test_all_ways_find_the_same_objects(folder: Path) -> None:
    """GenEval's steps one by one, the toolkit's code alone and in batches, on images with objects."""
    found = speed.measure(folder, side=64, images=12, batch_size=5)
    assert found.objects > 20 and min(found.loop, found.alone, found.batched) > 0
    text = speed.table([found], 12, 5)
    assert text.splitlines()[0].startswith("| side of the images | GenEval's loop, ms |")
    assert f"| {found.objects} |" in text.splitlines()[2]


def test_a_difference_is_not_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = speed.recipe

    def doubtful(*args: object) -> Findings:
        found = recipe(*args)  # type: ignore[arg-type]
        return replace(found, detections=[replace(d, score=d.score + 0.01) for d in found.detections])

    monkeypatch.setattr(speed, "recipe", doubtful)
    with pytest.raises(RuntimeError, match="Batches must find what single images give, but image"):
        speed.measure(folder, side=64, images=6, batch_size=3)
