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


def test_prompts_of_the_hard_track_are_other_ones_with_counts_in_turn():
    prompts = playground.evaluation_prompts(10, "hard")
    counts = [tuple(entry["count"] for entry in prompt.metadata["include"][::-1]) for prompt in prompts]
    assert counts == [(3, 1), (1, 3), (2, 2), (2, 1), (1, 2)] * 2
    every = playground.evaluation_prompts(1000, "hard")
    assert len(every) == 150
    assert not {prompt.text for prompt in every} & {p.text for p in playground.evaluation_prompts(1000)}


def test_the_hard_track_is_guided_by_the_judge_and_judged_by_the_checker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--track", "hard", "--algorithms", "best_of_n", "fk_steering", "--budgets", "2x"]
    playground.main([*arguments, "--prompts", "1", "--seeds", "0"])
    root = tmp_path / "runs" / "playground-hard"
    lines = (root / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["plain", "best_of_n", "fk_steering"]
    configs = [json.loads(file.read_text())["config"] for file in root.rglob("result.json")]
    assert {config["verifier"] for config in configs} == {"playground_judge"}
    (prompt,) = {config["prompt"] for config in configs}
    assert prompt == playground.evaluation_prompts(1, "hard")[0].text


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
