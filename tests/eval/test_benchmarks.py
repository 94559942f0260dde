"""The benchmark scripts run, resume, and say what they measured."""

from __future__ import annotations

import json

import numpy as np

from tts_vision.eval import overhead, playground


def test_prompts_are_distinct_and_even_over_the_forms():
    prompts = playground.evaluation_prompts(24)
    assert len({prompt.text for prompt in prompts}) == 24
    forms = [prompt.metadata["tag"] for prompt in prompts]
    assert {forms.count(form) for form in set(forms)} == {4}
    assert all("include" in prompt.metadata for prompt in prompts)


def test_the_benchmark_writes_a_table_and_a_plot_and_resumes(tmp_path, capsys, monkeypatch):
    arguments = ["--output", str(tmp_path), "--budgets", "2x", "--prompts", "2", "--seeds", "0"]
    arguments += ["--algorithms", "best_of_n", "zero_order"]
    playground.main(arguments)
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    names = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert names == ["plain", "best_of_n", "zero_order"]
    assert (tmp_path / "plot.png").stat().st_size > 1000
    # nothing is computed a second time
    monkeypatch.setattr("tts_vision.runner._search", None)
    playground.main(arguments)
    assert (tmp_path / "table.md").read_text() == table


def test_overhead_compares_the_same_images(tmp_path, capsys):
    file = tmp_path / "overhead.json"
    overhead.main(["--n", "3", "--batch", "2", "--repeats", "1", "--json", str(file)])
    rows = json.loads(file.read_text())
    assert [row["model"] for row in rows] == ["playground", "tiny SDXL"]
    assert all(row["identical"] and row["ratio"] > 0 for row in rows)
    assert "tiny SDXL" in capsys.readouterr().out


def test_overhead_would_notice_other_images(monkeypatch):
    monkeypatch.setattr(overhead, "toolkit", lambda *_: [np.zeros((64, 64, 3), np.uint8)] * 2)
    assert not overhead.compare("playground", n=2, batch=2, repeats=1)["identical"]
