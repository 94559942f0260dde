"""Loading checkpoints from disk in the published layout, and what goes wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_pipelines import TINY
from tts_vision.condition import Condition
from tts_vision.config import ModelOptions, SamplerOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.pipelines.loading import load

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
