"""The bundled visual autoregressive model: its files, its images, and searches over it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tts_vision
from tts_vision.cli import app
from tts_vision.config import ModelOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.eval import previews
from tts_vision.eval.playground import evaluation_prompts
from tts_vision.pipelines import playground
from tts_vision.pipelines.bundled import load_playground_var
from tts_vision.pipelines.playground import train_var
from tts_vision.pipelines.playground.checker import evaluate
from tts_vision.pipelines.var.pipeline import InfinityPipeline


@pytest.fixture(scope="module")
def pipe() -> InfinityPipeline:
    return load_playground_var()


def test_the_weights_are_small_and_its_transformer_is_that_of_the_script(pipe: InfinityPipeline) -> None:
    folder = playground.weights_path("var")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 20_000_000
    assert pipe.transformer.config == train_var.TRANSFORMER
    assert pipe.schedule == train_var.SCHEDULE
    assert pipe.defaults == train_var.DEFAULTS


def test_it_is_right_often_enough_to_search_for_the_rest(pipe: InfinityPipeline) -> None:
    verdicts = [
        evaluate(np.asarray(image), prompt.metadata).correct
        for prompt in evaluation_prompts(24)
        for image in pipe(prompt.text, n=4)
    ]
    assert 0.3 < np.mean(verdicts) < 0.9


def test_a_search_from_the_command_line(tmp_path: Path) -> None:
    arguments = ["generate", "three blue squares", "--model", "playground-var", "--algorithm", "tts_var"]
    result = CliRunner().invoke(app, [*arguments, "--budget", "8x", "--output", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "GMAC" in result.output
    report = json.loads((tmp_path / "run" / "result.json").read_text())
    assert report["spent"]["macs"] <= report["budget"]["macs"]
    plain = report["plain_score"]  # None if the search has pruned it
    assert plain is None or report["best"]["score"] >= plain
    # more candidates were begun than eight whole samples would have been
    trace = [json.loads(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
    assert len(next(event for event in trace if event["kind"] == "birth")["uids"]) > 8


def test_searches_find_better_images(pipe: InfinityPipeline) -> None:
    prompts = [prompt for prompt in evaluation_prompts(24) if prompt.metadata["tag"] == "counting"]
    gains = []
    for prompt in prompts:
        result = tts_vision.search(pipe, prompt.text, verifier="playground_clip", budget="8x", seed=0)
        assert result.plain is not None
        gains.append(result.best.score.value - result.plain.score.value)
    assert min(gains) >= 0 and np.mean(gains) > 0


def test_options_that_it_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes the options dtype and device but got scheduler"):
        load_playground_var(options=ModelOptions(scheduler="DDIMScheduler"))


def test_missing_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(playground.WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises(PipelineError, match="The playground's weights must be whole but"):
        load_playground_var()


def test_small_previews_are_compared_with_large_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "previews.md"
    previews.main(["--prompts", "2", "--samples", "6", "--sizes", "32", "--output", str(file)])
    text = file.read_text()
    assert text in capsys.readouterr().out
    rows = rows_of(text)
    assert [row[:3] for row in rows[:2]] == [["1 of 6", "decode", "64"], ["1 of 6", "expected", "64"]]
    assert len(rows) == 4 * 5
    full = [row for row in rows if row[1:3] == ["decode", "64"]]
    assert {row[3] for row in full} == {"1.00"}
    assert float(full[-1][4]) > float(full[0][4])
    ends = [float(row[4]) for row in rows if row[1] == "complete"]
    assert ends[2] > float(full[2][4]), "half-way, a completion says more than the sum of the scales done"


def test_rollouts_of_the_flow_are_compared_with_its_estimates(tmp_path: Path) -> None:
    file = tmp_path / "previews.md"
    previews.main(
        [
            "--model",
            "playground",
            "--prompts",
            "2",
            "--samples",
            "3",
            "--track",
            "hard",
            "--output",
            str(file),
        ]
    )
    rows = rows_of(file.read_text())
    assert [row[1] for row in rows[:4]] == ["decode", "rollout:1", "rollout:2", "rollout:4"]
    assert len(rows) == 4 * 8 and rows[-1][0] == "12 of 13"
    assert {row[3] for row in rows if row[1] == "decode"} == {"1.00"}
    # with one step left every rollout is the sample
    assert {row[4] for row in rows[-3:]} == {"1.00"}


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
