"""Loading Show-o from files in the published layout and from folders, and what goes wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_showo import MAGVIT, tiny_showo
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

from tts_vision.condition import Condition
from tts_vision.config import ModelOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines import published_tokens
from tts_vision.pipelines.bundled import load_playground_masked
from tts_vision.pipelines.loading import load
from tts_vision.pipelines.playground import WEIGHTS_VARIABLE
from tts_vision.pipelines.playground.tokenizer import build_tokenizer
from tts_vision.pipelines.tokens import loading
from tts_vision.pipelines.tokens.folder import load_pipeline, save_pipeline
from tts_vision.pipelines.tokens.latent_tokenizer import LatentTokenizer, LatentTokenizerConfig
from tts_vision.pipelines.tokens.showo import ShowoPipeline

CODES = torch.randint(0, 65, (2, 16), generator=torch.Generator().manual_seed(1))


def logits(pipe: ShowoPipeline) -> Tensor:
    network = pipe.configured({})
    return network.logits(network.encode(Condition("two red circles")), CODES)


def published_state(prefix: str = "showo.") -> dict[str, Tensor]:
    """The weights of the tiny model in the published names, with the projector of images to look at."""
    state = {prefix + key: value for key, value in tiny_showo().transformer.state_dict().items()}
    return {**state, "mm_projector.0.weight": torch.zeros(3, 2), "mm_projector.2.bias": torch.zeros(3)}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Folders in the published layout, of tiny architectures in the place of the real ones."""
    pipe = tiny_showo()
    monkeypatch.setattr(loading, "LAYOUT", pipe.layout)
    monkeypatch.setattr(loading, "phi_config", lambda: pipe.transformer.config)
    monkeypatch.setattr(loading, "MAGVITConfig", lambda: MAGVIT)
    monkeypatch.setitem(loading.GRIDS, "show-o", (4, 4))
    folders = {name: tmp_path / name for name in ("show-o", "magvitv2", "words")}
    for folder in folders.values():
        folder.mkdir()
    torch.save(published_state(), folders["show-o"] / "pytorch_model.bin")
    config = {"num_vq_tokens": 16, "vocab_size": pipe.layout.size, "w_clip_vit": True, "_class_name": "Showo"}
    (folders["show-o"] / "config.json").write_text(json.dumps(config))
    magvit: torch.nn.Module = pipe.image_tokenizer  # type: ignore[assignment]
    save_file(magvit.state_dict(), folders["magvitv2"] / "pytorch_model.safetensors")
    # its begin and end are one token, as those of Phi are
    words = build_tokenizer()
    words.bos_token = "</s>"
    words.save_pretrained(folders["words"])
    return folders


def named(folders: dict[str, Path]) -> str:
    return (
        f"show-o:checkpoint={folders['show-o']},image_tokenizer={folders['magvitv2']},"
        f"tokenizer={folders['words']}"
    )


def test_published_weights_load_by_name(published: dict[str, Path]) -> None:
    pipe = published_tokens.load_showo(named(published), options=ModelOptions(dtype="float32"))
    assert torch.equal(logits(pipe), logits(replace(tiny_showo(), defaults=pipe.defaults)))
    assert pipe.sampling == {"num_inference_steps": 18} and pipe.settings["guidance_scale"] == 1.75
    pixels = pipe.configured({}).pixels(torch.arange(16)[None])
    assert torch.equal(pixels, tiny_showo().configured({}).pixels(torch.arange(16)[None]))
    assert not any(p.requires_grad for p in pipe.transformer.parameters())


def test_half_precision_keeps_the_head_and_the_rotation(published: dict[str, Path]) -> None:
    pipe = published_tokens.load_showo(named(published), options=ModelOptions(dtype="bfloat16"))
    model = pipe.transformer
    assert model.model.layers[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert model.lm_head.weight.dtype == torch.float32
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    half, full = logits(pipe), logits(replace(tiny_showo(), defaults=pipe.defaults))
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    assert float((half - full).norm() / full.norm()) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"showo.lm_head.bias": None}, r"1 missing \(lm_head.bias\)"),
        ({"showo.extra": torch.zeros(1)}, r"1 unexpected \(extra\)"),
        ({"showo.lm_head.bias": torch.zeros(7)}, r"'lm_head.bias' is \(7,\) instead of \(120,\)"),
    ],
)
def test_weights_that_do_not_fit(
    published: dict[str, Path], change: dict[str, Tensor | None], message: str
) -> None:
    state = {key: value for key, value in {**published_state(), **change}.items() if value is not None}
    torch.save(state, published["show-o"] / "pytorch_model.bin")
    with pytest.raises(PipelineError, match=message):
        published_tokens.load_showo(named(published))


def test_other_sizes_and_other_parts_are_told(published: dict[str, Path]) -> None:
    config = published["show-o"] / "config.json"
    config.write_text(json.dumps({"num_vq_tokens": 1024}))
    with pytest.raises(
        PipelineError, match=r"\(num_vq_tokens 16\) but .* with num_vq_tokens 1024; load it as 's"
    ):
        published_tokens.load_showo(named(published))
    config.write_text("{")
    with pytest.raises(PipelineError, match="configuration of 'show-o' must be JSON"):
        published_tokens.load_showo(named(published))
    config.unlink()
    build_tokenizer().save_pretrained(published["words"])
    with pytest.raises(
        PipelineError, match=r"must have 45 ids, begin texts with 1 .* 45, None and 1; give micro"
    ):
        published_tokens.load_showo(named(published))
    with pytest.raises(PipelineError, match="tokenizer of 'show-o' must load from"):
        published_tokens.load_showo(f"{named(published)}/none")
    with pytest.raises(PipelineError, match="must be an existing path or a hub id"):
        published_tokens.load_showo("show-o:/no/such/folder")
    with pytest.raises(
        ConfigError, match="A part of show-o must be one of checkpoint, image_tokenizer, token"
    ):
        published_tokens.load_showo("show-o:vae=x")
    with pytest.raises(ConfigError, match="takes the options dtype and device but got lora"):
        published_tokens.load_showo(named(published), options=ModelOptions(lora="x"))


def test_codes_that_are_no_binary_numbers_are_refused(published: dict[str, Path]) -> None:
    state = dict(tiny_showo().image_tokenizer.state_dict())  # type: ignore[attr-defined]
    state["quantize.embedding"] = state["quantize.embedding"].flip(1).contiguous()
    save_file(state, published["magvitv2"] / "pytorch_model.safetensors")
    with pytest.raises(PipelineError, match="must be binary numbers, most significant bit first"):
        published_tokens.load_showo(named(published))


def test_the_published_key_groups() -> None:
    """On the meta device: 1.45 billion parameters, in the groups that the authors publish."""
    with torch.device("meta"):
        model = PhiForCausalLM(loading.phi_config())
    keys = {f"showo.{key}" for key in model.state_dict()}
    parts = [f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "dense", "q_layernorm", "k_layernorm")]
    parts += ["input_layernorm", "mlp.fc1", "mlp.fc2"]
    kinds = ("weight", "bias")
    expected = {f"showo.model.layers.{i}.{p}.{k}" for i in range(24) for p in parts for k in kinds}
    expected |= {"showo.model.embed_tokens.weight"}
    expected |= {f"showo.{p}.{k}" for p in ("model.final_layernorm", "lm_head") for k in kinds}
    assert keys == expected
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (58498, 2048)
    assert shapes["model.layers.23.self_attn.q_layernorm.weight"] == (64,)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.45e9, rel=0.01)
    rotary = model.model.layers[0].self_attn.rotary_ndims
    assert (rotary, model.config.hidden_act, model.config.layer_norm_eps) == (32, "gelu_new", 1e-5)


def latent_showo() -> ShowoPipeline:
    """A tiny Show-o whose images are tokenized as those of the bundled model."""
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    config = LatentTokenizerConfig(
        channels=6,
        grid=(4, 4),
        autoencoder={**channels, **blocks},
        width=16,
        heads=2,
        encoder_blocks=1,
        decoder_blocks=1,
        latent_size=(8, 8),
    )
    torch.manual_seed(0)
    return replace(tiny_showo(), image_tokenizer=LatentTokenizer(config).eval(), name="latent")


@pytest.mark.parametrize("make", [tiny_showo, latent_showo])
def test_a_folder_holds_everything(make: object, tmp_path: Path) -> None:
    pipe: ShowoPipeline = make()  # type: ignore[operator]
    save_pipeline(pipe, tmp_path / "pipe")
    again = load_pipeline(tmp_path / "pipe")
    assert (again.name, again.layout, dict(again.defaults)) == (pipe.name, pipe.layout, dict(pipe.defaults))
    assert again("a red star", n=2)[1].tobytes() == pipe("a red star", n=2)[1].tobytes()  # type: ignore[union-attr]
    save_pipeline(pipe, tmp_path / "small", dtype=torch.bfloat16)
    small = load_pipeline(tmp_path / "small", dtype=torch.bfloat16)
    assert small.transformer.model.layers[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert small.transformer.model.rotary_emb.inv_freq.dtype == torch.float32
    assert float((logits(small) - logits(pipe)).norm() / logits(pipe).norm()) < 0.1
    weights = (tmp_path / "small" / "transformer" / "model.safetensors").stat().st_size
    assert weights < 0.6 * (tmp_path / "pipe" / "transformer" / "model.safetensors").stat().st_size


def test_folders_that_are_not_whole_are_told(tmp_path: Path) -> None:
    class Flow(ShowoPipeline):
        family = "discrete_flow"  # type: ignore[misc]

    save_pipeline(tiny_showo(), tmp_path)
    with pytest.raises(PipelineError, match="of the family 'discrete_flow' but holds one of 'masked'"):
        load_pipeline(tmp_path, Flow)
    (tmp_path / "transformer" / "model.safetensors").unlink()
    with pytest.raises(PipelineError, match=r"transformer/model.safetensors' must hold the weights of this"):
        load_pipeline(tmp_path)
    (tmp_path / "pipeline.json").unlink()
    with pytest.raises(PipelineError, match=r"must have pipeline.json but .* cannot be read"):
        load_pipeline(tmp_path)
    pipe = replace(tiny_showo(), image_tokenizer=OtherTokenizer())
    with pytest.raises(PipelineError, match="one of MAGVITv2, LatentTokenizer but got OtherTokenizer"):
        save_pipeline(pipe, tmp_path)


class OtherTokenizer:
    """An image tokenizer of another kind."""

    grid = (4, 4)

    def codebook(self) -> Tensor:
        return torch.zeros(64, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        return torch.zeros(len(pixels), 16, dtype=torch.long)

    def decode(self, codes: Tensor) -> Tensor:
        return torch.zeros(len(codes), 3, 8, 8)


def test_the_small_model_has_the_published_layout() -> None:
    """45 words, ten special tokens, the codes, the mask; a text block of 18 ids."""
    pipe = tiny_showo()
    config: PhiConfig = pipe.transformer.config
    assert (pipe.layout.words, pipe.layout.offset, pipe.layout.text_length) == (45, 55, 18)
    assert config.vocab_size == 55 + 64 + 1 and pipe.layout.bos == pipe.layout.eos == 1
    assert pipe.layout.prompt(pipe.tokenizer, "red circle")[:2] == [50, 1]


def test_the_bundled_model_loads_or_says_what_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises(
        PipelineError, match=r"The playground's tokens weights must lie in .*tokens, which does"
    ):
        load_playground_masked()
    save_pipeline(tiny_showo(), tmp_path / "tokens")
    pipe = load_playground_masked(options=ModelOptions(dtype="float32"))
    assert torch.equal(logits(pipe), logits(tiny_showo()))
    with pytest.raises(
        ConfigError, match="A bundled model is named without more but got 'playground-masked:x'"
    ):
        load_playground_masked("playground-masked:x")
    (tmp_path / "tokens" / "image_tokenizer" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(PipelineError, match="The playground's weights must be whole but"):
        load_playground_masked()


def test_a_folder_or_a_hub_id_is_recognised(published: dict[str, Path], tmp_path: Path) -> None:
    save_pipeline(tiny_showo(), tmp_path / "own")
    pipe = load(str(tmp_path / "own"), options=ModelOptions(dtype="float32", device="cpu"))
    assert torch.equal(logits(pipe), logits(tiny_showo()))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="takes the options dtype and device but got compile"):
        load(str(tmp_path / "own"), options=ModelOptions(compile=True))
    (tmp_path / "other").mkdir()
    for folder, tokens, name in [("show-o", 256, "show-o"), ("other", 1024, "show-o-512")]:
        (tmp_path / folder / "config.json").write_text(json.dumps({"num_vq_tokens": tokens}))
        assert published_tokens.token_model(str(tmp_path / folder)).args == (name,)  # type: ignore[union-attr]
    assert published_tokens.token_model("showlab/show-o-w-clip-vit-512x512").args == ("show-o-512",)  # type: ignore[union-attr]
    assert published_tokens.token_model("stabilityai/sdxl-turbo") is None
    assert published_tokens.token_model(str(published["words"])) is None
