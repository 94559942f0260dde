"""The benchmark of the toolkit's own cost compares the same images, and measures a segment."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from tts_vision.eval import overhead


def test_overhead_compares_the_same_images(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "overhead.json"
    sizes = ["--n", "2", "3", "--batch", "2", "--repeats", "1", "--models", "tiny SDXL"]
    overhead.main([*sizes, "--json", str(file)])
    rows = json.loads(file.read_text())
    assert [(row["model"], row["n"]) for row in rows] == [("tiny SDXL", 2), ("tiny SDXL", 3)]
    assert all(row["identical"] and row["ratio"] > 0 and row["folder_ratio"] > 0 for row in rows)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(rows) and printed[-1].startswith("| tiny SDXL | 3 | 2 |")


@pytest.mark.usefixtures("_few_steps")
def test_overhead_would_notice_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    other = [np.zeros((64, 64, 3), np.uint8)] * 2
    monkeypatch.setattr(overhead, "images_of", lambda result: other)
    assert not overhead.compare("playground", n=2, batch=2, repeats=1)["identical"]


@pytest.mark.usefixtures("_few_steps")
def test_a_segment_is_measured_beside_the_set_up_of_the_own_call(
    capsys: pytest.CaptureFixture[str],
) -> None:
    overhead.main(["--segments", "--models", "playground", "--repeats", "1"])
    cells = capsys.readouterr().out.splitlines()[-1].split("|")
    assert cells[1].strip() == "playground" and all(math.isfinite(float(cell)) for cell in cells[2:6])
    assert float(cells[2]) > 0 and float(cells[5]) > 0
