"""Loading checkpoints from disk in the published layout, and what goes wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_pipelines import TINY
from tts_vision import hub, search
from tts_vision.condition import Condition
from tts_vision.config import ModelOptions, SamplerOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.pipelines.loading import load, prepare

ENTRY = TINY["stable_diffusion"]
CPU = ModelOptions(device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    ENTRY.build().save_pretrained(folder)
    return folder


def drawn(pipe, **kwargs) -> torch.Tensor:
    call = {**ENTRY.kwargs, "num_inference_steps": 4, **kwargs}
    sampler = DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=call))
    state = sampler.init(Condition("two red circles"), [0], seed=0)
    return sampler.advance(state, sampler.num_steps).latents


def test_a_saved_pipeline_draws_what_it_drew_before(checkpoint):
    assert torch.equal(drawn(load(str(checkpoint), options=CPU)), drawn(ENTRY.build()))


def test_precision_and_scheduler_are_chosen(checkpoint):
    pipe = load(
        str(checkpoint),
        options=ModelOptions(device="cpu", dtype="bfloat16", scheduler="EulerDiscreteScheduler"),
    )
    assert pipe.unet.dtype == torch.bfloat16
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    with pytest.raises(ConfigError, match="diffusers scheduler class but got 'EulerDiscrete'"):
        load(str(checkpoint), options=ModelOptions(device="cpu", scheduler="EulerDiscrete"))


def test_a_device_map_takes_the_place_of_a_device(checkpoint):
    pipe = load(str(checkpoint), options=ModelOptions(device_map="cpu"))
    assert torch.equal(drawn(pipe), drawn(ENTRY.build()))
    for options in ({"device": "cpu"}, {"offload": "model"}):
        with pytest.raises(ConfigError, match="device_map spreads a model over devices but got 'cpu' beside"):
            load(str(checkpoint), options=ModelOptions(device_map="cpu", **options))
    with pytest.raises(PipelineError, match="not supported"):
        load(str(checkpoint), options=ModelOptions(device_map="sideways"))


@pytest.mark.parametrize(
    ("tiny", "scheduler", "remedy"),
    [
        ("flux", "DDIMScheduler", "FlowMatchEulerDiscreteScheduler"),
        ("flux", "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
        ("stable_diffusion", "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"),
    ],
)
def test_a_scheduler_of_the_other_family_is_refused(tiny: str, scheduler: str, remedy: str) -> None:
    pipe = TINY[tiny].build()
    with pytest.raises(
        ConfigError, match=rf"scheduler must fit a model .* but got {scheduler}; use {remedy}"
    ):
        prepare(pipe, ModelOptions(scheduler=scheduler), "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"device": "gpu0"},
            "device must be a device that torch has here, .* but 'gpu0' failed with RuntimeErr",
        ),
        (
            {"lora": ("/no/such/lora",)},
            "lora must be LoRA weights for this model.* but '/no/such/lora' failed",
        ),
        ({"preview_vae": "/no/such"}, "preview_vae must be a tiny autoencoder.* but '/no/such' failed"),
        ({"scheduler": "DiffusionPipeline"}, "scheduler must name a diffusers scheduler class"),
    ],
)
def test_options_that_fail_are_told(checkpoint, options, message):
    with pytest.raises(ConfigError, match=message):
        load(str(checkpoint), options=ModelOptions(**{"device": "cpu", **options}))


def test_the_pipelines_own_check_of_its_arguments_is_told(checkpoint, tmp_path):
    for model, size in [(str(checkpoint), {"height": 63, "width": 64}), ("playground", {"height": 63})]:
        options = ModelOptions(device="cpu")
        with pytest.raises(
            ConfigError, match=r"arguments of the pipeline must be .* takes but: .*divisible by"
        ):
            search(
                model,
                "a red circle",
                verifier=lambda images, prompts: [0.0] * len(images),
                budget="1x",
                pipeline_kwargs=size,
                model_options=options,
                output=tmp_path / "x",
            )
        assert not (tmp_path / "x").exists(), "nothing was computed"


@pytest.mark.parametrize("name", ["playground:foo", "playground-var:/a/folder", "playground:"])
def test_a_bundled_model_takes_nothing_behind_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"named without more but got '{name}'; write 'playground"):
        search(name, "a red circle", budget="1x")


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(hub, "_reasons", {})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        PipelineError, match=r"'owner/name' is not on this machine and the hub does not answer \("
    ):
        load("owner/name", options=CPU)
    said = capsys.readouterr()
    assert said.out + said.err == ""


def test_lora_weights_change_the_picture(checkpoint, tmp_path):
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = ENTRY.build()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    type(pipe).save_lora_weights(tmp_path, unet_lora_layers=weights)
    with_lora = load(str(checkpoint), options=ModelOptions(device="cpu", lora=(str(tmp_path),)))
    assert not torch.allclose(drawn(with_lora), drawn(ENTRY.build()))


def test_previews_go_through_the_tiny_autoencoder(checkpoint, tmp_path):
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            upsampling_scaling_factor=2,
        ).save_pretrained(tmp_path)
    full = load(str(checkpoint), options=CPU)
    tiny = load(str(checkpoint), options=ModelOptions(device="cpu", preview_vae=str(tmp_path)))
    calls = []
    tiny.vae.register_forward_pre_hook(lambda *_: calls.append(1))
    images = []
    for pipe in (full, tiny):
        call = {**ENTRY.kwargs, "num_inference_steps": 4}
        sampler = DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=call))
        state = sampler.advance(sampler.init(Condition("two red circles"), [0], seed=0), 2)
        images.append(np.asarray(sampler.preview(state)[0]))
    assert not np.array_equal(images[0], images[1])
    assert tiny.vae is not tiny.tts_vision_preview_vae


@pytest.mark.parametrize("damage", ["truncate", "missing", "not json"])
def test_a_corrupt_checkpoint_is_one_clear_message(checkpoint, tmp_path, damage):
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "model_index.json").write_text("{")
    with pytest.raises(PipelineError, match=r"could not be loaded.*Check the name"):
        load(str(folder), options=CPU)


def test_a_single_file_and_a_missing_back_end_say_what_to_do(checkpoint, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(PipelineError, match="from_single_file"):
        load(str(file), options=CPU)
    with pytest.raises(ConfigError, match="attention must be a back end that is installed"):
        load(str(checkpoint), options=ModelOptions(device="cpu", attention="xformers"))
