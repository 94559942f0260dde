"""The check on a GPU runs on tiny models without one, finds what is broken, and says where it cannot run."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from tts_vision.eval import gpu_check
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler

TINY = ["--tiny", "--device", "cpu", "--dtypes", "bfloat16"]


def test_it_writes_all_tables(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "gpu.json"), "--output", str(tmp_path / "gpu.md")]
    assert gpu_check.main([*TINY, "--models", "Flux", *files]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["sound"] and found["left out"] == ["Flux offloaded: needs an accelerator"]
    assert "broken" not in {line["verdict"] for line in found["promises"]}
    assert [row["rows"] for row in found["batches"]] == [1, 2]
    assert [row["max_batch"] for row in found["searches"]] == [1, 3, 4]
    assert {row["nfe"] for row in found["searches"]} == {4 * 3}
    assert [row["setting"].split()[0] for row in found["settings"]] == ["as", "compiled"]
    assert all(row["difference, of 255"] == 0 for row in found["settings"])
    assert (tmp_path / "gpu.md").read_text() == capsys.readouterr().out.removesuffix("\n")


def test_it_ends_with_one_where_a_promise_is_broken(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = DiffusersSampler.advance

    def drifting(self: Any, state: Any, steps: int = 1) -> Any:
        ahead = advance(self, state, steps)
        return replace(ahead, latents=ahead.latents + 0.3 * (steps == 1))

    monkeypatch.setattr(DiffusersSampler, "advance", drifting)
    assert gpu_check.main([*TINY, "--models", "Flux", "--json", str(tmp_path / "gpu.json")]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["sound"] and found["settings"][0]["difference, of 255"] > 0


def test_it_says_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 0
    assert capsys.readouterr().out.startswith("skipped: torch finds no GPU here")


def test_it_begins_nothing_when_its_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([*TINY, "--seconds", "0"]) == 0
    assert "- Wan in bfloat16: no time left" in capsys.readouterr().out


def test_compiling_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(TimeoutError, match="not finished in 1 s"), gpu_check._no_longer_than(1):
        while True:
            time.sleep(0.01)


@pytest.mark.parametrize(("name", "millions"), [("SDXL", 575), ("Flux", 1310), ("Wan", 397)])
def test_models_have_the_widths_of_the_published_ones(name: str, millions: int) -> None:
    pipe = gpu_check.MODELS[name].build(False, torch.device("meta"))
    denoiser = gpu_check._denoiser(pipe)
    assert round(gpu_check._millions(denoiser)) == millions
    widths = {"SDXL": 1280, "Flux": 3072, "Wan": 1536}
    assert max(p.shape[0] for n, p in denoiser.named_parameters() if "to_q" in n) == widths[name]


def test_parts_that_are_loaded_in_float32_stay_in_it() -> None:
    pipe = gpu_check.MODELS["Wan"].build(True, torch.device("cpu"))
    gpu_check.cast(pipe, torch.float16)
    kinds = {name: p.dtype for name, p in pipe.transformer.named_parameters()}
    assert kinds["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert kinds["blocks.0.attn1.to_q.weight"] == torch.float16
