"""The benchmark of searches over scales runs on an untrained model, goes on, and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from untrained_var import MODEL

from tts_vision.eval import var_playground
from tts_vision.eval.playground import evaluation_prompts
from tts_vision.runs.task import slug


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    chosen = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--model", MODEL]
    return [*chosen, "--prompts", "1", "--ablation-prompts", "1", "--seeds", "0", "--jobs", "1"]


def names(table: str) -> list[str]:
    return [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]


def test_main_part(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments += ["--budget", "2x", "--seconds", "0.4"]
    var_playground.main(arguments)
    text = (tmp_path / "results" / "var_playground.md").read_text()
    assert text in capsys.readouterr().out
    searches = ["plain sample", *var_playground.main_arms("10")]
    assert names(text) == ["search", "---", *searches, "search", "---", *searches]
    data = json.loads((tmp_path / "results" / "var_playground.json").read_text())
    even, timed = data["equal MACs (2x)"], data["equal time (0.4 s)"]
    assert [row["searches"] for row in [*even, *timed]] == [1] * 12
    assert all(row["macs"] <= 2 * even[0]["macs"] * (1 + 1e-9) for row in even)
    assert all(row["seconds"] < 2 for row in timed)
    assert (tmp_path / "results" / "var_playground.png").stat().st_size > 1000
    # nothing is computed a second time
    monkeypatch.setattr("tts_vision.runner._search", None)
    var_playground.main(arguments)
    assert (tmp_path / "results" / "var_playground.md").read_text() == text


def test_ablations(arguments: list[str], tmp_path: Path) -> None:
    var_playground.main([*arguments, "--part", "ablations", "--lam", "30", "--budget", "2x"])
    text = (tmp_path / "results" / "var_playground_ablations.md").read_text()
    arms = var_playground.ablation_arms("30")
    assert names(text)[2:] == ["plain sample", *arms]
    assert "lambda 10" in arms and "lambda 30" not in arms and len(set(arms.values())) == len(arms)
    # on prompts that the main part does not have
    used = {path.parent.name for path in (tmp_path / "runs").rglob("config.yaml")}
    taken = tuple(slug(prompt.text) for prompt in evaluation_prompts(1))
    assert used and not any(name.startswith(taken) for name in used)


@pytest.mark.slow  # each process imports everything anew
def test_processes_share_the_prompts(arguments: list[str], tmp_path: Path) -> None:
    arms = {"best of n": "best_of_n", "greedy": "greedy"}
    found = [
        var_playground.Benchmark(MODEL, "playground_clip", (0,), tmp_path / str(jobs), jobs).compare(
            "x", evaluation_prompts(2), arms, "2x"
        )
        for jobs in (1, 2)
    ]
    cells = [{(c.algorithm, c.prompt): (c.score, c.macs) for c in comparison.cells} for comparison in found]
    assert cells[0] == cells[1] and len(cells[0]) == 6
    assert [row.algorithm for row in found[0].rows()] == [row.algorithm for row in found[1].rows()]
