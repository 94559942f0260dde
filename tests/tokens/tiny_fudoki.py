"""A tiny FUDOKI of random weights, and its checkpoint in the published layout."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_janus import tiny_config, tiny_janus
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from tts_vision.pipelines.tokens.fudoki import FudokiPipeline

TOWER = (16, 2, 2, 8, 2.0)  # width, blocks, heads, patch, ratio of tiny_janus
NO_TEXT = 39
SPECIAL = ["<bos>", "<eos>", "<pad>", "<unk>", "<begin_of_image>", "<end_of_image>"]
WORDS = [
    "two",
    "red",
    "circles",
    "a",
    "blue",
    "star",
    "User",
    "Assistant",
    ":",
    "yes",
    "no",
    "Yes",
    "?",
    "image",
]


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def embeddings() -> tuple[Tensor, Tensor]:
    """Of image tokens and of texts."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(24, 8, generator=generator), torch.randn(40, 6, generator=generator)


@cache
def tiny_fudoki() -> FudokiPipeline:
    """The pipeline, with the weights of the tiny Janus."""
    image, text = embeddings()
    return FudokiPipeline(tiny_janus().model, tokenizer(), image, text, "tiny-fudoki", NO_TEXT)


def published_config() -> dict[str, Any]:
    """A configuration as the authors write it."""
    text = tiny_config().text_config
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    keys += ("num_key_value_heads", "max_position_embeddings")
    mlp = {"depth": 2, "n_embed": 32, "projector_type": "mlp_gelu"}
    return {
        "model_type": "multi_modality",
        "language_config": {"model_type": "llama", **{key: getattr(text, key) for key in keys}},
        "vision_config": {
            "cls": "CLIPVisionTower",
            "params": {"image_size": 32, "model_name": "tiny", "select_feature": "same", "select_layer": -1},
        },
        "aligner_config": {"cls": "MlpProjector", "params": {**mlp, "input_dim": 16}},
        "gen_aligner_config": {"cls": "MlpProjector", "params": {**mlp, "input_dim": 8}},
        "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 24, "n_embed": 8}},
        "gen_head_config": {
            "cls": "vision_head",
            "params": {"image_token_embed": 32, "image_token_size": 24, "n_embed": 32},
        },
    }


def published_names(
    *, text_layers: int, tower_layers: int, levels: int, blocks: int, biased_shortcuts: tuple[str, ...]
) -> dict[str, str]:
    """Each name in the authors' modules, and the tensor of transformers' Janus that it is.

    Written down from the layout of the modules, module by module; ``qkv`` stands for three tensors.
    """
    names: dict[str, str] = {}

    def pair(ours: str, theirs: str, *kinds: str) -> None:
        for kind in kinds or ("weight", "bias"):
            names[f"{ours}.{kind}"] = f"{theirs}.{kind}"

    pair("language_model.model.embed_tokens", "model.language_model.embed_tokens", "weight")
    for i in range(text_layers):
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            pair(
                f"language_model.model.layers.{i}.{part}", f"model.language_model.layers.{i}.{part}", "weight"
            )
        for part in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            pair(
                f"language_model.model.layers.{i}.{part}", f"model.language_model.layers.{i}.{part}", "weight"
            )
        for part in ("input_layernorm", "post_attention_layernorm"):
            pair(
                f"language_model.model.layers.{i}.{part}", f"model.language_model.layers.{i}.{part}", "weight"
            )
    pair("language_model.model.norm", "model.language_model.norm", "weight")
    pair("language_model.lm_head", "lm_head", "weight")

    tower, theirs = "vision_model.vision_tower", "model.vision_model"
    names[f"{tower}.pos_embed"] = f"{theirs}.embeddings.position_embedding.weight"
    pair(f"{tower}.patch_embed.proj", f"{theirs}.embeddings.patch_embedding")
    for i in range(tower_layers):
        block, layer = f"{tower}.blocks.{i}", f"{theirs}.encoder.layers.{i}"
        pair(f"{block}.norm1", f"{layer}.layer_norm1")
        pair(f"{block}.attn.qkv", f"{layer}.self_attn.qkv")
        pair(f"{block}.attn.proj", f"{layer}.self_attn.projection_layer")
        pair(f"{block}.norm2", f"{layer}.layer_norm2")
        pair(f"{block}.mlp.fc1", f"{layer}.mlp.fc1")
        pair(f"{block}.mlp.fc2", f"{layer}.mlp.fc2")
    pair(f"{tower}.norm", f"{theirs}.post_layernorm")
    pair("aligner.layers.0", "model.aligner.fc1")
    pair("aligner.layers.2", "model.aligner.hidden_layers.0")
    pair("gen_aligner.layers.0", "model.generation_aligner.fc1")
    pair("gen_aligner.layers.2", "model.generation_aligner.hidden_layers.0")
    pair("gen_embed", "model.generation_embeddings", "weight")
    pair("gen_head.output_mlp_projector", "model.generation_head.proj_out")
    pair("gen_head.vision_head", "model.generation_head.vision_head")

    vq, hf = "gen_vision_model", "model.vqmodel"

    def residual(ours: str, theirs: str) -> None:
        for part in ("norm1", "conv1", "norm2", "conv2"):
            pair(f"{ours}.{part}", f"{theirs}.{part}")
        if ours in biased_shortcuts:
            pair(f"{ours}.nin_shortcut", f"{theirs}.nin_shortcut")

    def attention(ours: str, theirs: str) -> None:
        for part in ("norm", "q", "k", "v", "proj_out"):
            pair(f"{ours}.{part}", f"{theirs}.{part}")

    for side, stack, count in (("encoder", "down", blocks), ("decoder", "up", blocks + 1)):
        for part in ("conv_in", "norm_out", "conv_out"):
            pair(f"{vq}.{side}.{part}", f"{hf}.{side}.{part}")
        residual(f"{vq}.{side}.mid.0", f"{hf}.{side}.mid.block_1")
        attention(f"{vq}.{side}.mid.1", f"{hf}.{side}.mid.attn_1")
        residual(f"{vq}.{side}.mid.2", f"{hf}.{side}.mid.block_2")
        for i in range(levels):
            lowest = i == (levels - 1 if side == "encoder" else 0)
            for j in range(count):
                residual(f"{vq}.{side}.conv_blocks.{i}.res.{j}", f"{hf}.{side}.{stack}.{i}.block.{j}")
                if lowest:
                    attention(f"{vq}.{side}.conv_blocks.{i}.attn.{j}", f"{hf}.{side}.{stack}.{i}.attn.{j}")
            if i < levels - 1:
                scale = "downsample" if side == "encoder" else "upsample"
                pair(f"{vq}.{side}.conv_blocks.{i}.{scale}.conv", f"{hf}.{side}.{stack}.{i}.{scale}.conv")
    pair(f"{vq}.quantize.embedding", f"{hf}.quantize.embedding", "weight")
    pair(f"{vq}.quant_conv", f"{hf}.quant_conv")
    pair(f"{vq}.post_quant_conv", f"{hf}.post_quant_conv")
    return names


def published_state(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Weights of transformers' Janus under the authors' names, with what the authors store beside them."""
    found: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        if ".qkv." in theirs:
            parts = [state[theirs.replace("qkv", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[ours] = torch.cat(parts)
        elif ours.endswith("pos_embed"):
            found[ours] = state[theirs][None]
        else:
            found[ours] = state[theirs]
    width = found["vision_model.vision_tower.norm.weight"].shape[0]
    found["vision_model.vision_tower.attn_pool.latent"] = torch.zeros(1, 1, width)
    found["gen_vision_model.quantize.codebook_used"] = torch.zeros(65536)
    return {key: value.contiguous().clone() for key, value in found.items()}


def tiny_names() -> dict[str, str]:
    return published_names(text_layers=2, tower_layers=2, levels=4, blocks=1, biased_shortcuts=())


def save_fudoki(folder: Path) -> Path:
    """The checkpoint as it is published: weights, configuration, tokenizer and pickled embeddings."""
    folder.mkdir(parents=True, exist_ok=True)
    state = published_state(tiny_janus().model.state_dict(), tiny_names())
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(published_config()))
    tokenizer().save_pretrained(folder)
    for name, rows in zip(("image_embedding.pt", "text_embedding.pt"), embeddings()):
        module = nn.Embedding(*rows.shape)
        module.weight = nn.Parameter(rows, requires_grad=False)
        torch.save(module, folder / name)
    return folder
