"""Janus and FUDOKI by folder and by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_fudoki import NO_TEXT, TOWER, save_fudoki
from tiny_janus import save_janus, tiny_janus

import tts_vision
from tts_vision.config import ModelOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines import unified_models
from tts_vision.pipelines.loading import load
from tts_vision.pipelines.tokens import fudoki, fudoki_loading
from tts_vision.pipelines.tokens.fudoki import FudokiPipeline
from tts_vision.pipelines.tokens.janus import JanusPipeline
from tts_vision.pipelines.unified_models import load_fudoki, load_janus, unified_model

CPU = ModelOptions(device="cpu")


def brightness(images: Any, prompts: Any) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_janus(tmp_path_factory.mktemp("models") / "my-janus")


def test_a_folder_holds_the_pipeline(janus: Path) -> None:
    for pipe in (load(str(janus), options=CPU), load_janus(f"janus:{janus}", options=CPU)):
        assert isinstance(pipe, JanusPipeline) and pipe.name == "my-janus"
        assert pipe.settings["guidance_scale"] == 3.0, "that of its generation config"
        for ours, theirs in zip(tiny_janus()("a blue star", n=2), pipe("a blue star", n=2)):
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        assert not any(parameter.requires_grad for parameter in pipe.model.parameters())


def test_a_search_by_folder(janus: Path, tmp_path: Path) -> None:
    result = tts_vision.search(
        str(janus),
        "two red circles",
        verifier=brightness,
        budget="3x",
        output=tmp_path / "run",
    )
    assert len(result.population) == 3
    plain = [brightness([image], [])[0] for image in tiny_janus()("two red circles", n=3)]
    assert result.best.score.value == pytest.approx(max(plain))


def test_half_precision(janus: Path) -> None:
    pipe = load(str(janus), options=ModelOptions(device="cpu", dtype="bfloat16"))
    assert pipe.model.dtype == torch.bfloat16
    assert len({image.tobytes() for image in pipe("a blue star", n=2)}) == 2


def test_fudoki_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fudoki_loading.TOWERS, "tiny", TOWER)
    monkeypatch.setattr(fudoki.FudokiPipeline, "no_text", NO_TEXT)
    folder = save_fudoki(tmp_path / "fudoki")
    for pipe in (load(str(folder), options=CPU), load_fudoki(f"fudoki:{folder}", options=CPU)):
        assert isinstance(pipe, FudokiPipeline)
    (folder / "image_embedding.pt").unlink()
    assert unified_model(str(folder)) is None, "without its embedding it is another model of that kind"


def test_what_is_taken_for_one(janus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unified_model(str(janus)) is load_janus
    assert unified_model("deepseek-community/Janus-Pro-7B") is load_janus
    assert unified_model("LucasJinWang/FUDOKI") is load_fudoki
    for other in ("stabilityai/sdxl-turbo", "janus", "somebody/janus-faces-diffusion", str(tmp_path)):
        assert unified_model(other) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert unified_model(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("no json")
    assert unified_model(str(tmp_path)) is None


def test_what_cannot_be_loaded(janus: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"must load from a folder or hub id .* but '\./nowhere' does not"
    ):
        load_janus("janus:./nowhere")
    with pytest.raises(ConfigError, match="takes the options dtype and device but got lora; leave that out"):
        load(str(janus), options=ModelOptions(lora=["x"]))
    bare = save_janus(tmp_path / "bare")
    for name in ("chat_template.jinja", "chat_template.json"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(PipelineError, match="needs a processor with a chat template but that of"):
        load_janus(f"janus:{bare}", options=CPU)


def test_names_of_the_published_weights() -> None:
    assert unified_models.JANUS.startswith("deepseek-community/")
    assert fudoki_loading.HUB == unified_models.FUDOKI
