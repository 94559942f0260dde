"""The check that users run on their own models: it holds on sound ones, and finds what is broken."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tiny_pipelines import TINY
from tts_vision.cli import app
from tts_vision.errors import ConfigError
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.self_check import Report, check
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import Cost

ENTRY = TINY["stable_diffusion"]
SETTINGS = {**ENTRY.kwargs, "num_inference_steps": 4}


def brightness(images: Any, prompts: Any) -> list[float]:
    return [float(sum(image.convert("L").tobytes())) for image in images]


def run(**changes: Any) -> Report:
    arguments = {"verifier": brightness, "pipeline_kwargs": SETTINGS, "samples": 4}
    return check(ENTRY.build(), **(arguments | changes))


def verdicts(report: Report) -> dict[str, str]:
    return {line.name: line.verdict for line in report.lines}


def test_all_promises_hold_on_a_sound_pipeline() -> None:
    report = run()
    assert report.holds
    found = verdicts(report)
    for name in (
        *("stepwise = own call, row 0", "stepwise = own call, row 1", "whole = own call"),
        *("forked and pruned rows", "rows alone = rows together", "the same twice", "nfe by hooks"),
    ):
        assert found[name] == "holds"
    assert found["rank correlation of previews, by step"] == "measured"
    text = report.text()
    assert all(line.name in text for line in report.lines) and "dtype float32" in text


def test_half_precision_on_a_video_pipeline() -> None:
    entry = TINY["wan"]
    pipe = entry.build().to(torch.bfloat16)
    report = check(pipe, pipeline_kwargs={**entry.kwargs, "num_inference_steps": 3}, samples=3)
    assert report.holds and report.setting["dtype"] == "bfloat16"
    assert verdicts(report)["previews and verifier"] == "skipped"


def test_a_step_that_drifts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = DiffusersSampler.advance
    drift = {"latents": 0.2}

    def drifting(self: Any, state: Any, steps: int = 1) -> Any:
        ahead = advance(self, state, steps)
        return replace(ahead, latents=ahead.latents + drift["latents"] * (steps == 1))

    monkeypatch.setattr(DiffusersSampler, "advance", drifting)
    found = verdicts(run())
    assert found["stepwise = own call, row 0"] == "broken"
    assert found["whole = own call"] == "holds"


def test_rows_that_depend_on_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = DiffusersSampler.advance

    def mixing(self: Any, state: Any, steps: int = 1) -> Any:
        ahead = advance(self, state, steps)
        return replace(ahead, latents=ahead.latents + ahead.latents.mean(0) * (len(state) > 1))

    monkeypatch.setattr(DiffusersSampler, "advance", mixing)
    report = run()
    assert not report.holds
    assert verdicts(report)["rows alone = rows together"] == "broken"
    assert verdicts(report)["stepwise = own call, row 0"] == "holds"


def test_a_wrong_price_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiffusersSampler, "cost", lambda self, condition, step, steps: Cost(nfe=steps))
    assert verdicts(run())["nfe by hooks"] == "broken"


def test_a_verifier_that_tells_nothing_is_found() -> None:
    report = run(verifier=lambda images, prompts: [1.0] * len(images))
    assert [x.verdict for x in report.lines if x.name.startswith("verifier ")] == ["broken"]


def test_a_sampler_without_an_own_call_is_told() -> None:
    report = check(GaussianMixtureSampler(num_steps=4), samples=3)
    assert report.holds
    assert verdicts(report)["own call"] == "skipped"
    assert verdicts(report)["forked and pruned rows"] == "holds"


def test_few_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs at least 3 samples but got 2"):
        run(samples=2)


def test_the_command_on_the_bundled_model_and_a_saved_one(tmp_path: Any) -> None:
    done = CliRunner().invoke(app, ["check", "playground", "--steps", "3", "--samples", "3"])
    assert done.exit_code == 0, done.output
    assert "holds    nfe by hooks" in done.stdout and "verifier playground_clip" in done.stdout
    ENTRY.build().save_pretrained(tmp_path / "saved")
    words = ["check", str(tmp_path / "saved"), "--steps", "4", "--json"]
    words += [word for key, value in ENTRY.kwargs.items() for word in ("--set", f"pipeline.{key}={value}")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["holds"] is True


def test_the_command_ends_with_one_where_a_promise_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiffusersSampler, "cost", lambda self, condition, step, steps: Cost(nfe=steps))
    done = CliRunner().invoke(app, ["check", "playground", "--steps", "2", "--samples", "3"])
    assert done.exit_code == 1 and "broken   nfe by hooks" in done.stdout
    ignored = CliRunner().invoke(app, ["check", "playground", "--set", "sampler.eta=0.5"])
    assert ignored.exit_code == 2 and "--set got sampler.eta" in ignored.stderr
    bad = CliRunner().invoke(app, ["check", "nothing"])
    assert bad.exit_code == 2 and "Model must be one of" in bad.stderr
