"""Loading Infinity and VAR from files in the published layouts, and what goes wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_var import (
    BSQ,
    INFINITY,
    SCHEDULE,
    VAR_CONFIG,
    VAR_SCHEDULE,
    VQ,
    bsq_vae,
    infinity,
    noise,
    save_t5,
    var,
    vqvae,
)
from torch import Tensor

from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines import published
from tts_vision.pipelines.var import infinity as infinity_module
from tts_vision.pipelines.var import var as var_module
from tts_vision.pipelines.var.bsq_vae import BSQVAE, VAES, plain_names
from tts_vision.pipelines.var.loading import (
    image_size,
    load_bsq_vae,
    load_infinity,
    load_infinity_transformer,
    load_text_encoder,
    load_var,
    load_vqvae,
)
from tts_vision.pipelines.var.schedules import schedule_for

FILE, VAE_FILE = "infinity_2b_reg.pth", "infinity_vae_d32reg.pth"
WIDE = replace(INFINITY, width=96, heads=4)


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny architectures in the place of the real ones."""
    monkeypatch.setitem(infinity_module.SIZES, "2b", INFINITY)
    monkeypatch.setitem(infinity_module.SIZES, "8b", WIDE)
    monkeypatch.setitem(VAES, "2b", BSQ)
    monkeypatch.setitem(VAES, "8b", replace(BSQ, channels=3, patch=2, multipliers=(1, 2)))
    monkeypatch.setitem(var_module.SIZES, "d16", VAR_CONFIG)
    monkeypatch.setitem(var_module.SIZES, "d20", replace(VAR_CONFIG, depth=4))
    monkeypatch.setattr("tts_vision.pipelines.var.vqvae.VQVAEConfig", lambda: VQ)


def saved(state: object, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return str(path)


def logits(model) -> Tensor:
    condition = model.condition(noise(2, 5, 24, seed=11))
    return model(condition, noise(2, SCHEDULE.starts[-1] - 1, INFINITY.bits, seed=12), SCHEDULE)


def published_vae(vae: BSQVAE | None = None) -> dict[str, Tensor]:
    """An autoencoder's weights in the published names."""
    state = {}
    for key, value in (vae or bsq_vae()).state_dict().items():
        layer, kind = key.rsplit(".", 1)
        state[f"{layer}.{'norm' if 'norm' in layer.rsplit('.', 1)[-1] else 'conv'}.{kind}"] = value
    for twice in ("quantizer", "quantize"):
        state[f"{twice}.lfq.mask"] = 2 ** torch.arange(7, -1, -1)
    return state


def flat(state: dict[str, Tensor], chunks: int) -> dict[str, Tensor]:
    """An Infinity's weights with its 4 blocks, which are in 2 chunks, in another number of them."""
    named = {}
    for key, value in state.items():
        if key.startswith("block_chunks."):
            _, chunk, _, number, rest = key.split(".", 4)
            i, each = int(chunk) * 2 + int(number), 4 // chunks
            key = (
                f"blocks.{i}.{rest}" if chunks == 1 else f"block_chunks.{i // each}.module.{i % each}.{rest}"
            )
        named[key] = value
    return named


def sharded(state: dict[str, Tensor], folder: Path, kind: str) -> Path:
    """Weights as two shards and their index, as Hugging Face saves them."""
    folder.mkdir(parents=True)
    stem, index = (
        ("model", ".safetensors.index") if kind == "safetensors" else ("pytorch_model", ".bin.index")
    )
    keys = sorted(state)
    shards = {f"{stem}-0000{i + 1}-of-00002.{kind}": keys[i::2] for i in range(2)}
    for name, held in shards.items():
        part = {key: state[key].contiguous() for key in held}
        if kind == "safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
    weight_map = {key: name for name, held in shards.items() for key in held}
    (folder / f"{stem}{index}.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_the_transformer_in_its_published_file(tmp_path):
    model = load_infinity_transformer("2b", saved(infinity().state_dict(), tmp_path / FILE))
    assert torch.equal(logits(model), logits(infinity()))
    assert not model.training and not any(p.requires_grad or p.is_meta for p in model.parameters())


def test_a_checkpoint_of_the_training_code_is_unwrapped(tmp_path):
    nested = {"epoch": 3, "trainer": {"gpt_fsdp": infinity().state_dict(), "config": {"a": 1}}}
    assert torch.equal(
        logits(load_infinity_transformer("2b", saved(nested, tmp_path / "ar-ckpt.pth"))), logits(infinity())
    )


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_shards(tmp_path, kind):
    folder = sharded(infinity().state_dict(), tmp_path / "weights", kind)
    assert torch.equal(logits(load_infinity_transformer("2b", str(folder))), logits(infinity()))
    shard = next(folder.glob("*-00002-of-00002*"))
    shard.unlink()
    with pytest.raises(PipelineError, match=rf"lacks the shard {shard.name}; download it"):
        load_infinity_transformer("2b", str(folder))


def test_a_shard_without_a_tensor_that_the_index_promises(tmp_path):
    folder = sharded(infinity().state_dict(), tmp_path / "weights", "bin")
    shard = next(folder.glob("*-00001-of-00002*"))
    part = torch.load(shard, weights_only=True)
    lost = sorted(part)[3]
    del part[lost]
    torch.save(part, shard)
    with pytest.raises(PipelineError, match=rf"there are 1 missing \({lost}\)"):
        load_infinity_transformer("2b", str(folder))


@pytest.mark.parametrize("chunks", [1, 4])
def test_blocks_in_other_chunks_find_their_places(tmp_path, chunks):
    path = saved(flat(infinity().state_dict(), chunks), tmp_path / FILE)
    assert torch.equal(logits(load_infinity_transformer("2b", path)), logits(infinity()))


def test_chunks_of_unequal_size_are_refused_by_name(tmp_path):
    state = flat(infinity().state_dict(), 4)
    moved = {key.replace("block_chunks.3.module.0", "block_chunks.2.module.1"): v for key, v in state.items()}
    with pytest.raises(
        PipelineError, match=r"missing \(block_chunks\..* and .* unexpected \(block_chunks\.2"
    ):
        load_infinity_transformer("2b", saved(moved, tmp_path / FILE))


def test_scales_of_attention_are_reshaped(tmp_path):
    state = {
        key: value.transpose(1, 2) if key.endswith("scale_mul_1H11") else value
        for key, value in infinity().state_dict().items()
    }
    assert state["block_chunks.0.module.0.sa.scale_mul_1H11"].shape == (1, 1, 2, 1)
    assert torch.equal(
        logits(load_infinity_transformer("2b", saved(state, tmp_path / FILE))), logits(infinity())
    )


@pytest.mark.parametrize("rows", [4, 10, 13])
def test_the_embedding_of_no_text_gets_the_models_length(tmp_path, rows):
    state = infinity().state_dict()
    state["cfg_uncond"] = noise(rows, 24)
    got = load_infinity_transformer("2b", saved(state, tmp_path / FILE)).cfg_uncond
    assert got.shape == (10, 24)
    assert torch.equal(got[: min(rows, 10)], state["cfg_uncond"][:10])
    assert torch.equal(got[rows:], state["cfg_uncond"][-1:].expand(max(0, 10 - rows), -1))


def test_a_renamed_a_missing_and_an_unexpected_key_are_named(tmp_path):
    state = infinity().state_dict()
    state["block_chunks.1.module.0.sa.mat_qkv.kernel"] = state.pop(
        "block_chunks.1.module.0.sa.mat_qkv.weight"
    )
    message = (
        r"'infinity-2b' must fit its model key by key .* "
        r"1 missing \(block_chunks.1.module.0.sa.mat_qkv.weight\) "
        r"and 1 unexpected \(block_chunks.1.module.0.sa.mat_qkv.kernel\)"
    )
    with pytest.raises(PipelineError, match=message):
        load_infinity_transformer("2b", saved(state, tmp_path / FILE))
    state = infinity().state_dict()
    del state["word_embed.weight"]
    with pytest.raises(PipelineError, match=r"1 missing \(word_embed.weight\)"):
        load_infinity_transformer("2b", saved(state, tmp_path / FILE))


def test_another_shape_is_named(tmp_path):
    state = infinity().state_dict()
    state["head.bias"] = noise(17)
    with pytest.raises(PipelineError, match=r"'head.bias' is \(17,\) instead of \(16,\) \(1 differ\)"):
        load_infinity_transformer("2b", saved(state, tmp_path / FILE))


def test_a_checkpoint_of_another_size_names_both(tmp_path):
    path = saved(infinity(WIDE).state_dict(), tmp_path / FILE)
    message = (
        r"'infinity-2b' must be of its size \(4 blocks of 64 channels with 2 heads\) but .* 'infinity-8b' "
        r"\(4 blocks of 96 channels with 4 heads\); give the file of this size, or load it as 'infinity-8b'"
    )
    with pytest.raises(PipelineError, match=message):
        load_infinity_transformer("2b", path)
    path = saved(infinity(replace(INFINITY, depth=6)).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        PipelineError, match=r"holds another model \(6 blocks .*; give the file of this size\.$"
    ):
        load_infinity_transformer("2b", path)


def test_precision_is_that_of_the_blocks(tmp_path):
    path = saved({k: v.double() for k, v in infinity().state_dict().items()}, tmp_path / FILE)
    model = load_infinity_transformer("2b", path, dtype=torch.bfloat16)
    kinds = {
        ("block_chunks" in key, value.dtype)
        for key, value in (*model.named_parameters(), *model.named_buffers())
        if "text_proj" not in key
    }
    assert kinds == {(True, torch.bfloat16), (False, torch.float32)}
    assert 0 < (logits(model) - logits(infinity())).abs().max() < 0.1 * logits(infinity()).abs().max()


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_tokenizer_with_and_without_wrapped_layers(tmp_path, wrapped):
    state = published_vae() if wrapped else {**bsq_vae().state_dict(), "quantize.mask": torch.arange(8)}
    vae = load_bsq_vae("2b", saved({"vae": state, "step": 5}, tmp_path / VAE_FILE))
    features = noise(1, 8, 4, 4)
    assert torch.equal(vae.decode(features), bsq_vae().decode(features))
    assert torch.equal(vae.encode(noise(1, 3, 16, 16)), bsq_vae().encode(noise(1, 3, 16, 16)))


def test_wrapped_names_are_one_to_one():
    vae, state = bsq_vae(), published_vae()
    assert "decoder.up.1.block.0.conv1.conv.weight" in state
    assert "decoder.up.1.block.0.norm1.norm.weight" in state
    assert "decoder.up.2.upsample.conv.conv.weight" in state
    assert "encoder.down.0.downsample.conv.conv.bias" in state
    assert "encoder.down.1.block.0.nin_shortcut.conv.weight" in state
    ours = vae.state_dict()
    named = plain_names(state, vae)
    assert named.keys() - ours.keys() == {"quantizer.lfq.mask", "quantize.lfq.mask"}
    assert all(torch.equal(named[key], value) for key, value in ours.items())
    assert plain_names(ours, vae) == ours  # plain names stay, those of resampling too


def test_tokenizers_that_do_not_fit_are_named(tmp_path):
    state = published_vae()
    state["decoder.mid.block_1.norm1.gain"] = state.pop("decoder.mid.block_1.norm1.norm.weight")
    message = (
        r"1 missing \(decoder.mid.block_1.norm1.weight\) and 1 unexpected \(decoder.mid.block_1.norm1.gain\)"
    )
    with pytest.raises(PipelineError, match=message):
        load_bsq_vae("2b", saved({"vae": state}, tmp_path / VAE_FILE))
    state = {**published_vae(), "quantizer.project_in.weight": noise(2, 2)}
    with pytest.raises(PipelineError, match=r"1 unexpected \(quantizer.project_in.weight\)"):
        load_bsq_vae("2b", saved({"vae": state}, tmp_path / VAE_FILE))
    path = saved({"vae": published_vae(bsq_vae(VAES["8b"]))}, tmp_path / VAE_FILE)
    message = (
        r"of its size \(8 channels on 3 levels\) but .* \"infinity-8b's VAE\" \(3 channels on 2 levels\)"
    )
    with pytest.raises(PipelineError, match=message):
        load_bsq_vae("2b", path)


def test_a_folder_is_searched_for_the_published_names(tmp_path):
    saved(infinity().state_dict(), tmp_path / FILE)
    saved({"vae": published_vae()}, tmp_path / "infinity_vae_d32_reg.pth")
    save_t5(tmp_path / "flan-t5-xl")
    parts = load_infinity("2b", str(tmp_path))
    assert torch.equal(logits(parts.transformer), logits(infinity()))
    assert parts.vae.quantizer.bits == parts.transformer.config.bits == 8
    ids = parts.tokenizer("two red circles", return_tensors="pt").input_ids
    assert ids.tolist() == [[3, 4, 5, 1]]
    assert parts.text_encoder(ids).last_hidden_state.shape == (1, 4, 24)
    beside = load_infinity("2b", str(tmp_path / FILE))
    assert torch.equal(logits(beside.transformer), logits(infinity()))


def test_parts_are_given_one_by_one(tmp_path):
    path = str(sharded(infinity().state_dict(), tmp_path / "a" / "weights", "safetensors"))
    vae = saved({"vae": published_vae()}, tmp_path / "b" / "any.pth")
    t5 = str(save_t5(tmp_path / "c"))
    parts = load_infinity("2b", path, vae=vae, text_encoder=t5, dtype=torch.bfloat16)
    assert parts.text_encoder.dtype == torch.bfloat16
    assert parts.vae.decoder.conv_in.weight.dtype == torch.float32
    with pytest.raises(
        PipelineError, match=r"must hold infinity_vae_d32reg.pth or .*_d32_reg.pth but .* holds weights;"
    ):
        load_infinity("2b", path, text_encoder=t5)
    with pytest.raises(PipelineError, match=r"must have 24 channels but .* has 16; give flan-t5-xl"):
        load_infinity("2b", path, vae=vae, text_encoder=str(save_t5(tmp_path / "d", width=16)))


def test_a_tokenizer_of_other_bits_names_both(tmp_path):
    saved(infinity().state_dict(), tmp_path / FILE)
    saved({"vae": published_vae(bsq_vae(replace(BSQ, channels=12)))}, tmp_path / VAE_FILE)
    message = (
        r"tokens of 8 bits, .* has 12 channels in patches of 1x1, 12 bits; give infinity_vae_d32reg.pth or"
    )
    with pytest.raises(PipelineError, match=message):
        load_infinity("2b", str(tmp_path), text_encoder=str(tmp_path))


def test_bits_are_those_of_the_checkpoint(tmp_path):
    path = saved(infinity(replace(INFINITY, bits=12)).state_dict(), tmp_path / FILE)
    assert load_infinity_transformer("2b", path).config.bits == 12
    path = saved({"vae": published_vae(bsq_vae(replace(BSQ, channels=12)))}, tmp_path / VAE_FILE)
    assert load_bsq_vae("2b", path).quantizer.bits == 12


class Hub:
    """A repository on a disk in the place of the Hugging Face hub."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        self.folder, self.asked = folder, []
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)

    def download(self, repository: str, name: str) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.asked.append((repository, name))
        if not (self.folder / name).exists():
            raise LocalEntryNotFoundError(name)
        return str(self.folder / name)

    def snapshot(self, repository: str, allow_patterns: str) -> str:
        self.asked.append((repository, allow_patterns))
        return str(self.folder)


def test_a_repository_on_the_hub(tmp_path, monkeypatch):
    saved(infinity().state_dict(), tmp_path / FILE)
    saved({"vae": published_vae()}, tmp_path / "infinity_vae_d32_reg.pth")
    sharded(infinity(WIDE).state_dict(), tmp_path / "infinity_8b_512x512_weights", "bin")
    hub = Hub(tmp_path, monkeypatch)
    parts = load_infinity("2b", "some/where", text_encoder=str(save_t5(tmp_path / "t5")))
    assert torch.equal(logits(parts.transformer), logits(infinity()))
    assert hub.asked == [("some/where", name) for name in (FILE, VAE_FILE, "infinity_vae_d32_reg.pth")]
    hub.asked.clear()
    assert load_infinity_transformer("8b", "some/where").config == WIDE
    assert [name for _, name in hub.asked] == ["infinity_8b_weights/*", "infinity_8b_512x512_weights/*"]
    with pytest.raises(PipelineError, match=r"must hold var_d16.pth but 'some/where' does not"):
        load_var("d16", "some/where")


def test_paths_that_are_not_there(tmp_path):
    with pytest.raises(
        PipelineError, match=r"'infinity-2b' must be an existing path or a hub id .* '/no/where'"
    ):
        load_infinity("2b", "/no/where")
    with pytest.raises(
        PipelineError, match=r"must hold infinity_2b_reg.pth but .* holds nothing; give the path"
    ):
        load_infinity("2b", str(tmp_path))
    with pytest.raises(
        PipelineError, match=r"must hold a file that is named by its path, because none is published"
    ):
        load_infinity("layer16", str(tmp_path))
    with pytest.raises(PipelineError, match="the text encoder' must be an existing path or a hub id"):
        load_text_encoder("/no/where")


def test_names_of_sizes():
    with pytest.raises(ConfigError, match=r"Infinity must be one of 125m, .* but got '2B'; "):
        load_infinity("2B", "/no/where")
    with pytest.raises(ConfigError, match=r"VAR must be one of d16, .* but got 'd18'; did you mean 'd1?\w+'"):
        load_var("d18", "/no/where")


def test_files_that_hold_something_else(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(PipelineError, match=r"must load from '.*cut.pth' but: .*; check that it is whole"):
        load_infinity_transformer("2b", str(tmp_path / "cut.pth"))
    with pytest.raises(PipelineError, match=r"must map names to tensors but .* holds a mapping with epoch"):
        load_infinity_transformer("2b", saved({"epoch": 1}, tmp_path / "other.pth"))
    with pytest.raises(PipelineError, match=r"must map names to tensors but .* holds list"):
        load_infinity_transformer("2b", saved([1], tmp_path / "list.pth"))
    with pytest.raises(PipelineError, match="Weights only load failed"):  # code in a pickle is not run
        load_infinity_transformer("2b", saved({"model": Path("x")}, tmp_path / "code.pth"))


def test_a_text_encoder_without_a_weight_is_refused(tmp_path):
    from safetensors.torch import load_file

    folder = save_t5(tmp_path / "t5")
    state = load_file(folder / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    state["decoder.block.0.layer.0.SelfAttention.q.weight"] = (
        state[name] + 1
    )  # published files have a decoder
    state["lm_head.weight"] = state["shared.weight"].clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    load_text_encoder(str(folder))
    del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PipelineError, match=rf"1 missing \({name}\)"):
        load_text_encoder(str(folder))


def published_var(model=None) -> dict[str, Tensor]:
    lengths = torch.tensor(VAR_SCHEDULE.lengths)
    buffers = {
        "lvl_1L": torch.arange(5).repeat_interleave(lengths)[None],
        "attn_bias_for_masking": torch.zeros(1, 1, VAR_SCHEDULE.starts[-1], VAR_SCHEDULE.starts[-1]),
    }
    return {**(model or var()).state_dict(), **buffers}


def test_var_and_its_tokenizer(tmp_path):
    saved(published_var(), tmp_path / "var_d16.pth")
    hits = {"quantize.ema_vocab_hit_SV": torch.zeros(5, 40)}
    saved({**vqvae().state_dict(), **hits}, tmp_path / "vae_ch160v4096z32.pth")
    parts = load_var("d16", str(tmp_path), dtype=torch.bfloat16)
    assert parts.transformer.blocks[0].attn.proj.weight.dtype == torch.bfloat16
    assert parts.transformer.head.weight.dtype == parts.vae.quant_conv.weight.dtype == torch.float32
    labels, given = torch.tensor([3, 10]), noise(2, VAR_SCHEDULE.starts[-1] - 1, 8)
    model, ours = load_var("d16", str(tmp_path / "var_d16.pth")).transformer, var()
    assert torch.equal(model(model.condition(labels), given), ours(ours.condition(labels), given))
    assert torch.equal(parts.vae.decode(noise(1, 8, 6, 6)), vqvae().decode(noise(1, 8, 6, 6)))
    nested = saved({"trainer": {"var_wo_ddp": published_var()}}, tmp_path / "ckpt.pth")
    assert torch.equal(load_var("d16", nested).transformer.pos_1LC, var().pos_1LC)


def test_vars_that_do_not_fit_are_named(tmp_path):
    saved(vqvae().state_dict(), tmp_path / "vae_ch160v4096z32.pth")
    state = published_var()
    state["blocks.1.attn.bias"] = state.pop("blocks.1.attn.q_bias")
    with pytest.raises(
        PipelineError, match=r"missing \(blocks.1.attn.q_bias\) .* unexpected \(blocks.1.attn.bias\)"
    ):
        load_var("d16", saved(state, tmp_path / "var_d16.pth"))
    other = saved(published_var(var(replace(VAR_CONFIG, depth=4))), tmp_path / "var_d16.pth")
    message = (
        r"'var-d16' must be of its size \(3 blocks of 32 channels with 2 heads, 75 tokens\) but .* 'var-d20' "
        r"\(4 blocks of 32 channels with 2 heads, 75 tokens\); .* load it as 'var-d20'"
    )
    with pytest.raises(PipelineError, match=message):
        load_var("d16", other)
    state = vqvae().state_dict()
    del state["quantize.embedding.weight"]
    with pytest.raises(PipelineError, match=r"\"VAR's VAE\" .* 1 missing \(quantize.embedding.weight\)"):
        load_vqvae(saved(state, tmp_path / "vae.pth"))


def test_the_size_of_images_is_that_in_the_published_name(tmp_path):
    vae = bsq_vae(replace(BSQ, channels=2, patch=2, multipliers=(1, 2)))
    saved({"vae": published_vae(vae)}, tmp_path / "infinity_vae_d56_f8_14_patchify.pth")
    save_t5(tmp_path / "flan-t5-xl")
    small = sharded(infinity(WIDE).state_dict(), tmp_path / "infinity_8b_512x512_weights", "safetensors")
    assert load_infinity("8b", str(tmp_path)).image_size == "0.25M"
    text_encoder = str(tmp_path / "flan-t5-xl")
    alone = load_infinity("8b", str(small), vae=str(tmp_path), text_encoder=text_encoder)
    assert alone.image_size == "0.25M"
    pipe = published.load_infinity(f"infinity-8b:{tmp_path}")
    assert pipe.configured({}).schedule == schedule_for(1.0, "0.25M")
    assert pipe.configured({"size": "1M"}).schedule == schedule_for(1.0)
    sharded(infinity(WIDE).state_dict(), tmp_path / "infinity_8b_weights", "safetensors")
    assert load_infinity("8b", str(tmp_path)).image_size is None, "the larger one is preferred"
    assert published.load_infinity(f"infinity-8b:{tmp_path}").configured({}).schedule == schedule_for(1.0)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("infinity_125M_256x256.pth", "0.06M"),
        ("infinity_8b_512x512_weights", "0.25M"),
        ("mine_1024x1024.pth", "1M"),
        ("infinity_2b_reg.pth", None),
        ("mine_512x256.pth", None),
        ("mine_512x5120.pth", None),
    ],
)
def test_sizes_in_names(name, size):
    assert image_size(Path(name)) == size
