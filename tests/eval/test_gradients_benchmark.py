"""The benchmark of searches by gradient runs at a tiny size, resumes, and gradients do climb there."""

from __future__ import annotations

import pytest

from tts_vision import search
from tts_vision.config import SamplerOptions
from tts_vision.eval import gradients


def test_the_benchmark_writes_a_table_and_resumes(tmp_path, capsys, monkeypatch):
    arguments = ["--output", str(tmp_path), "--seconds", "0.3", "--prompts", "1", "--steps", "2", "3"]
    arguments += [
        "--algorithms",
        "best_of_n",
        "gradient_guidance",
        "--table",
        str(tmp_path / "results" / "gradients.md"),
    ]
    gradients.main(arguments)
    table = (tmp_path / "results" / "gradients.md").read_text()
    assert table in capsys.readouterr().out and table == (tmp_path / "table.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    names = ["plain", "best_of_n", "gradient_guidance"]
    assert cells == [[steps, name] for steps in ("2", "3") for name in names]
    # nothing is computed a second time
    monkeypatch.setattr("tts_vision.runner._search", None)
    gradients.main(arguments)
    assert (tmp_path / "table.md").read_text() == table


@pytest.mark.parametrize(
    ("algorithm", "params", "steps"),
    [
        ("reno", {"n": 2, "iterations": 5, "lr": 10.0}, 2),
        ("gradient_guidance", {"n": 3}, 5),
        ("das", {"n": 3}, 5),
    ],
)
def test_gradients_raise_the_playgrounds_clip(algorithm, params, steps):
    def run(name, params):
        return search(
            "playground",
            "two red circles",
            algorithm=name,
            algorithm_params=params,
            verifier="playground_clip",
            budget="nfe=2000",
            seed=1,
            sampler_options=SamplerOptions(
                pipeline_kwargs={"num_inference_steps": steps}, recompute=False, stochastic=algorithm == "das"
            ),
        )

    guided = run(algorithm, params)
    assert any(event.what == "gradient" for event in guided.trace)
    plain = run("best_of_n", {"n": params["n"]})
    # as many trajectories, with and without gradients
    assert guided.best.score.value > plain.best.score.value
