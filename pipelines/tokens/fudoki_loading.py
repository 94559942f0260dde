"""The published checkpoint of FUDOKI on transformers' Janus: configuration, keys, files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tts_vision.errors import PipelineError
from tts_vision.pipelines.tokens.fudoki import FudokiPipeline
from tts_vision.pipelines.var.loading import fitted, locate, read_state

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
IMAGE_EMBEDDING, TEXT_EMBEDDING = "image_embedding.pt", "text_embedding.pt"
HUB = "LucasJinWang/FUDOKI"
_FILES = ["*.json", "*.safetensors", "*.bin", "*.pt", "*.model"]

# Width, blocks, heads, patch, ratio of the hidden channels: of vision towers by their published name.
TOWERS: dict[str, tuple[int, int, int, int, float]] = {
    "siglip_large_patch16_384": (1024, 24, 16, 16, 4.0),
}

_BLOCK = r"vision_model\.vision_tower\.blocks\.(\d+)\."
_LAYER = r"model.vision_model.encoder.layers.\1."
_NAMES: tuple[tuple[str, str], ...] = (
    (_BLOCK + r"norm(\d)\.", _LAYER + r"layer_norm\2."),
    (_BLOCK + r"attn\.proj\.", _LAYER + r"self_attn.projection_layer."),
    (_BLOCK + r"attn\.(qkv)\.", _LAYER + r"self_attn.\2."),
    (_BLOCK + r"mlp\.", _LAYER + r"mlp."),
    (r"vision_model\.vision_tower\.norm\.", "model.vision_model.post_layernorm."),
    (r"vision_model\.vision_tower\.pos_embed$", "model.vision_model.embeddings.position_embedding.weight"),
    (r"vision_model\.vision_tower\.patch_embed\.proj\.", "model.vision_model.embeddings.patch_embedding."),
    (r"aligner\.layers\.0\.", "model.aligner.fc1."),
    (r"gen_aligner\.layers\.0\.", "model.generation_aligner.fc1."),
    (r"gen_embed\.", "model.generation_embeddings."),
    (r"gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
    (r"gen_head\.vision_head\.", "model.generation_head.vision_head."),
    (r"gen_vision_model\.(\w+)\.mid\.0\.", r"model.vqmodel.\1.mid.block_1."),
    (r"gen_vision_model\.(\w+)\.mid\.1\.", r"model.vqmodel.\1.mid.attn_1."),
    (r"gen_vision_model\.(\w+)\.mid\.2\.", r"model.vqmodel.\1.mid.block_2."),
    (r"gen_vision_model\.encoder\.conv_blocks\.(\d+)\.res\.", r"model.vqmodel.encoder.down.\1.block."),
    (r"gen_vision_model\.encoder\.conv_blocks\.", "model.vqmodel.encoder.down."),
    (r"gen_vision_model\.decoder\.conv_blocks\.(\d+)\.res\.", r"model.vqmodel.decoder.up.\1.block."),
    (r"gen_vision_model\.decoder\.conv_blocks\.", "model.vqmodel.decoder.up."),
    (r"gen_vision_model\.", "model.vqmodel."),
    (r"language_model\.model\.", "model.language_model."),
    (r"language_model\.lm_head\.", "lm_head."),
)
_LATER_LAYER = re.compile(r"(gen_)?aligner\.layers\.(\d+)\.")  # every second one is an activation
# The pooling of the vision tower, which Janus leaves out; statistics and frequencies that follow from others.
_UNUSED = re.compile(r"vision_model\.vision_tower\.attn_pool\.|.*codebook_used$|.*rotary_emb\.inv_freq$")


def renamed(key: str) -> str | None:
    """The key of transformers' Janus for a published one; None where the model has no such part."""
    if _UNUSED.match(key):
        return None
    later = _LATER_LAYER.match(key)
    if later and later[2] != "0":
        part = "generation_aligner" if later[1] else "aligner"
        return f"model.{part}.hidden_layers.{int(later[2]) // 2 - 1}.{key[later.end() :]}"
    for pattern, name in _NAMES:
        found, count = re.subn("^" + pattern, name, key)
        if count:
            return found
    return key


def converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under the names, and in the shapes, of transformers' Janus."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = renamed(key)
        if name is None:
            continue
        if ".self_attn.qkv." in name:  # queries, keys and values are stored together
            for part, tensor in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3)):
                found[name.replace("qkv", part)] = tensor
        elif name.endswith("position_embedding.weight") and value.ndim == 3:
            found[name] = value[0]
        else:
            found[name] = value
    return found


def janus_config(config: Mapping[str, Any], state: Mapping[str, Tensor], owner: str) -> Any:
    """The configuration of transformers' Janus for a published one and the weights beside it.

    Sizes of the image tokenizer are published nowhere but in its code, and are read from the weights.

    Raises:
        PipelineError: If it is of another kind.
    """
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

    try:
        tower = config["vision_config"]["params"]
        width, layers, heads, patch, ratio = TOWERS[tower["model_name"]]
        aligner, gen_aligner = (config[key]["params"] for key in ("aligner_config", "gen_aligner_config"))
        head, tokens = config["gen_head_config"]["params"], config["gen_vision_config"]["params"]
        text = LlamaConfig(**{**config["language_config"], "tie_word_embeddings": False})
        encoder, decoder = "gen_vision_model.encoder.", "gen_vision_model.decoder."
        base = state[encoder + "conv_in.weight"].shape[0]
        levels = 1 + _highest(state, re.escape(encoder) + r"conv_blocks\.(\d+)\.")
        blocks = 1 + _highest(state, re.escape(encoder) + r"conv_blocks\.0\.res\.(\d+)\.")
        out = [
            state[f"{encoder}conv_blocks.{i}.res.{blocks - 1}.conv2.weight"].shape[0] for i in range(levels)
        ]
        vq = JanusVQVAEConfig(
            embed_dim=tokens["n_embed"],
            num_embeddings=tokens["image_token_size"],
            latent_channels=state[decoder + "conv_in.weight"].shape[1],
            base_channels=base,
            channel_multiplier=[channels // base for channels in out],
            num_res_blocks=blocks,
            projection_dim=gen_aligner["n_embed"],
            num_hidden_layers=gen_aligner.get("depth", 1),
            image_token_embed_dim=head["n_embed"],
        )
        vision = JanusVisionConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=tower["image_size"],
            patch_size=patch,
            mlp_ratio=ratio,
            projection_dim=aligner["n_embed"],
            depth=aligner.get("depth", 1),
            num_image_tokens=(tower["image_size"] // patch) ** 2,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise PipelineError(
            f"The configuration of {owner!r} must be that of a Janus in its authors' layout, with its image "
            f"tokenizer and a vision tower among {', '.join(TOWERS)}, but {error} is missing or unknown; "
            f"give the published folder or {HUB}."
        ) from error
    return JanusConfig(text_config=text, vision_config=vision, vq_config=vq, tie_word_embeddings=False)


def load_fudoki(
    path: str = HUB,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    name: str = "fudoki",
) -> FudokiPipeline:
    """FUDOKI from its published checkpoint; every key must fit.

    Args:
        path: A folder, or a repository on the Hugging Face hub.
        dtype: Precision of the language model; all else is in float32.
        device: Where to.
        name: Shown in reports.

    Raises:
        PipelineError: If a file is missing, cannot be read, or does not fit.
    """
    folder = _folder(path, name)
    source = locate(str(folder), WEIGHTS, name)
    state = read_state(source, name)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(name, str(folder / "config.json"), error) from error
    model = _loaded(janus_config(config, state, name), converted(state), name, source, dtype, device)
    image = read_embedding(folder / IMAGE_EMBEDDING, name)
    wanted = model.config.vq_config.num_embeddings
    if len(image) != wanted:
        raise PipelineError(
            f"{IMAGE_EMBEDDING} of {name!r} must have a row for each of {wanted} image tokens but has "
            f"{len(image)}; give the published file."
        )
    text = folder / TEXT_EMBEDDING
    return FudokiPipeline(
        model,
        _tokenizer(folder, name),
        image.to(device),
        read_embedding(text, name) if text.is_file() else None,
        name,
    )


def read_embedding(path: Path, owner: str) -> Tensor:
    """The rows of an embedding, published as a pickled module; nothing but tensors is read from it.

    Raises:
        PipelineError: If it is missing or holds anything else.
    """
    try:
        with torch.serialization.safe_globals([nn.Embedding]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and zip have their own
        raise _unreadable(owner, str(path), error) from error
    weight = getattr(found, "weight", found)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise PipelineError(
            f"{path.name} of {owner!r} must hold an embedding but holds {type(found).__name__}; give the "
            "published file."
        )
    return weight.detach().float()


def _loaded(
    config: Any,
    state: Mapping[str, Tensor],
    owner: str,
    source: Path,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Any:
    """transformers' Janus with weights."""
    from transformers import JanusForConditionalGeneration

    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    inner = model.model
    # what follows from the configuration is no part of a checkpoint
    inner.language_model.rotary_emb = type(inner.language_model.rotary_emb)(config=config.text_config)
    places = inner.vision_model.embeddings.position_embedding.num_embeddings
    inner.vision_model.embeddings.position_ids = torch.arange(places)[None]
    fitted(model, state, owner, source, "model.language_model.", dtype, device)
    placed: Any = model
    return placed.to(device)


def _tokenizer(folder: Path, owner: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # every library beneath raises its own kinds
        raise _unreadable(f"{owner}'s tokenizer", str(folder), error) from error


def _folder(path: str, owner: str) -> Path:
    """The folder of the checkpoint, downloaded if it is not here."""
    here = Path(path).expanduser()
    if here.is_dir():
        return here
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise PipelineError(
            f"The weights of {owner!r} must be a folder or a hub id 'owner/name' but got {path!r}; check the "
            "path."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=_FILES))
    except Exception as error:  # the hub's client raises a dozen kinds
        raise _unreadable(owner, path, error) from error


def _highest(state: Mapping[str, Tensor], pattern: str) -> int:
    numbers = [int(match[1]) for key in state if (match := re.match(pattern, key))]
    if not numbers:
        raise KeyError(pattern)
    return max(numbers)


def _unreadable(owner: str, what: str, error: Exception) -> PipelineError:
    reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0].rstrip(".")
    return PipelineError(
        f"{owner!r} must load from {what!r} but: {reason}; check that it is whole, or, if it is to be "
        "downloaded, its name and the network."
    )
