"""Published checkpoints of Infinity and VAR: found by path or hub id, read safely, and fitted strictly."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tts_vision.config import did_you_mean
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.hub import asked_once
from tts_vision.pipelines.var import infinity, var
from tts_vision.pipelines.var.bsq_vae import BSQVAE, VAES, plain_names
from tts_vision.pipelines.var.infinity import Infinity, InfinityConfig
from tts_vision.pipelines.var.var import VAR, VARConfig
from tts_vision.pipelines.var.vqvae import VQVAE

T5 = "google/flan-t5-xl"
T5_FOLDERS = ("flan-t5-xl", "flan-t5-xl-official")
SHARD_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Published:
    """The names that a model's weights are published under, the preferred one first.

    Attributes:
        transformer: Files, or folders of shards.
        vae: Files of its tokenizer.
    """

    transformer: tuple[str, ...] = ()
    vae: tuple[str, ...] = ()


INFINITY_FILES = {
    "125m": Published(("infinity_125M_256x256.pth",), ("infinity_vae_d16.pth",)),
    "2b": Published(("infinity_2b_reg.pth",), ("infinity_vae_d32reg.pth", "infinity_vae_d32_reg.pth")),
    "8b": Published(
        ("infinity_8b_weights", "infinity_8b_512x512_weights"), ("infinity_vae_d56_f8_14_patchify.pth",)
    ),
}
VAR_FILES = {size: Published((f"var_{size}.pth",), ("vae_ch160v4096z32.pth",)) for size in var.SIZES}


@dataclass(frozen=True)
class InfinityParts:
    """The models of an Infinity, ready to run.

    Attributes:
        transformer: Its blocks in the precision asked for, the rest in float32.
        vae: In float32; half precision bands bright areas.
        text_encoder: A T5 encoder of transformers.
        tokenizer: Of the text encoder.
        image_size: The size of images that the published name says it is for; None if it says none.
    """

    transformer: Infinity
    vae: BSQVAE
    text_encoder: Any
    tokenizer: Any
    image_size: str | None = None


@dataclass(frozen=True)
class VARParts:
    """The models of a VAR, ready to run.

    Attributes:
        transformer: Its blocks in the precision asked for, the rest in float32.
        vae: In float32.
    """

    transformer: VAR
    vae: VQVAE


def load_infinity(
    size: str,
    path: str,
    *,
    vae: str | None = None,
    text_encoder: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> InfinityParts:
    """Infinity from its published checkpoints (Han et al. 2024).

    Args:
        size: Which of `infinity.SIZES`.
        path: The transformer's file or folder of shards, a folder that holds it under its published name, or
            a repository on the Hugging Face hub, such as ``FoundationVision/Infinity``.
        vae: Likewise the tokenizer's; by default beside the transformer, under its published name.
        text_encoder: A folder or repository of flan-t5-xl; by default beside the transformer, else
            ``google/flan-t5-xl``.
        dtype: Precision of the transformer's blocks and the text encoder.
        device: Where to.

    Raises:
        ConfigError: If there is no such size.
        PipelineError: If a file is missing, cannot be read, or does not fit.
    """
    owner = f"infinity-{size}"
    _size(infinity.SIZES, size, "Infinity")
    beside, files = _beside(path), _published(size)
    source = locate(path, files.transformer, owner)
    vae_source = locate(vae or beside, files.vae, f"{owner}'s VAE")
    autoencoder = load_bsq_vae(size, str(vae_source), device=device)
    transformer = load_infinity_transformer(size, str(source), dtype=dtype, device=device)
    bits, made = transformer.config.bits, autoencoder.quantizer
    if made.bits != bits:
        raise PipelineError(
            f"The VAE of {owner!r} must make tokens of {bits} bits, as its transformer predicts, but "
            f"{str(vae_source)!r} has {made.channels} channels in patches of {made.patch}x{made.patch}, "
            f"{made.bits} bits; give {' or '.join(files.vae) or 'the one it was trained on'}."
        )
    text_encoder = text_encoder or _t5_beside(beside)
    encoder, tokenizer = load_text_encoder(text_encoder, dtype=dtype, device=device)
    if encoder.config.d_model != transformer.config.text_dim:
        raise PipelineError(
            f"The text encoder of {owner!r} must have {transformer.config.text_dim} channels but "
            f"{text_encoder!r} has {encoder.config.d_model}; give flan-t5-xl."
        )
    return InfinityParts(transformer, autoencoder, encoder, tokenizer, image_size(source))


def image_size(source: Path) -> str | None:
    """The size, of `schedules.SIZES`, in the name of a published checkpoint; None if it has none."""
    side = re.search(r"_(256|512|1024)x\1(?!\d)", source.name)
    return {"256": "0.06M", "512": "0.25M", "1024": "1M"}[side[1]] if side else None


def load_infinity_transformer(
    size: str,
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Infinity:
    """Infinity's transformer alone; see `load_infinity`.

    The scales of attention are reshaped, because the training and the inference code store them with their
    axes in another order. The learned embedding of no text is cut to the model's length, or extended by
    repeating its last row. Blocks may be grouped into any number of chunks of one size.
    """
    owner, config = f"infinity-{size}", _size(infinity.SIZES, size, "Infinity")
    source = locate(path, _published(size).transformer, owner)
    state = read_state(source, owner, ("trainer", "gpt_fsdp"))
    found = infinity_config(state)
    if found is not None:
        key = (found.depth, found.width, found.heads)
        if key != (config.depth, config.width, config.heads):
            others = {(c.depth, c.width, c.heads): f"infinity-{name}" for name, c in infinity.SIZES.items()}
            raise _other_size(owner, source, _described(config), _described(found), others.get(key))
        config = replace(config, bits=found.bits)  # tokenizers of 16 to 64 bits are published
        state = regrouped(state, config)
    with torch.device("meta"):
        model = Infinity(config)
    if "cfg_uncond" in state:
        state["cfg_uncond"] = _with_rows(state["cfg_uncond"], config.text_length)
    return fitted(model, state, owner, source, "block_chunks.", dtype, device)


def load_bsq_vae(size: str, path: str, *, device: torch.device | str = "cpu") -> BSQVAE:
    """The tokenizer of an Infinity, in float32.

    Args:
        size: Of the transformer.
        path: Its file, a folder that holds it under its published name, or a repository on the hub.
        device: Where to.

    Raises:
        ConfigError: If there is no such size.
        PipelineError: If the file is missing, cannot be read, or does not fit.
    """
    _size(infinity.SIZES, size, "Infinity")
    owner, config = f"infinity-{size}'s VAE", VAES.get(size, VAES["2b"])
    source = locate(path, _published(size).vae, owner)
    state = {
        key: value
        for key, value in read_state(source, owner, ("vae",)).items()
        if not re.fullmatch(r"quantizer?\.(.+\.)?mask", key)  # powers of two, stored twice
    }
    channels, levels = _channels(state), _count(state, r"decoder\.up\.(\d+)\.")
    if channels and levels and levels != len(config.multipliers):
        ours = f"{config.channels} channels on {len(config.multipliers)} levels"
        others = {(c.channels, len(c.multipliers)): f"infinity-{name}'s VAE" for name, c in VAES.items()}
        other = others.get((channels, levels))
        raise _other_size(owner, source, ours, f"{channels} channels on {levels} levels", other)
    config = replace(config, channels=channels or config.channels)
    with torch.device("meta"):
        vae = BSQVAE(config)
    return fitted(vae, plain_names(state, vae), owner, source, "", torch.float32, device)


def load_text_encoder(
    path: str = T5, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Any, Any]:
    """A T5 encoder and its tokenizer, by transformers.

    Args:
        path: A folder or a repository on the hub.
        dtype: Precision.
        device: Where to.

    Raises:
        PipelineError: If they cannot be loaded, or weights are missing.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    model_class: Any = T5EncoderModel
    if not Path(path).expanduser().exists():
        _refuse_missing_path(path, "the text encoder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model, info = model_class.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except Exception as error:  # every library beneath raises its own kinds
        raise _unreadable("the text encoder", path, error) from error
    decoder = ("decoder.", "lm_head.")
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(decoder)]
    _check_keys("the text encoder", path, info["missing_keys"], unexpected)
    return model.to(device).eval().requires_grad_(False), tokenizer


def load_var(
    size: str,
    path: str,
    *,
    vae: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> VARParts:
    """VAR from its published checkpoints (Tian et al. 2024).

    Args:
        size: Which of `var.SIZES`.
        path: The transformer's file, a folder that holds it under its published name, or a repository on the
            Hugging Face hub, such as ``FoundationVision/var``.
        vae: Likewise the tokenizer's; by default beside the transformer, under its published name.
        dtype: Precision of the transformer's blocks.
        device: Where to.

    Raises:
        ConfigError: If there is no such size.
        PipelineError: If a file is missing, cannot be read, or does not fit.
    """
    owner, config = f"var-{size}", _size(var.SIZES, size, "VAR")
    source = locate(path, VAR_FILES[size].transformer, owner)
    state = read_state(source, owner, ("trainer", "var_wo_ddp"))
    for buffer in ("lvl_1L", "attn_bias_for_masking"):  # which follow from the schedule
        state.pop(buffer, None)
    found = var_config(state)
    if found is not None:
        key = (found[0], found[1], found[3])
        if key != (config.depth, config.width, config.schedule.starts[-1]):
            ours = f"{_described(config)}, {config.schedule.starts[-1]} tokens"
            theirs = f"{found[0]} blocks of {found[1]} channels with {found[2]} heads, {found[3]} tokens"
            others = {(c.depth, c.width, c.schedule.starts[-1]): f"var-{n}" for n, c in var.SIZES.items()}
            raise _other_size(owner, source, ours, theirs, others.get(key))
    with torch.device("meta"):
        model = VAR(config)
    transformer = fitted(model, state, owner, source, "blocks.", dtype, device)
    return VARParts(transformer, load_vqvae(vae or _beside(path), device=device))


def load_vqvae(path: str, *, device: torch.device | str = "cpu") -> VQVAE:
    """The tokenizer of all VARs, in float32.

    Args:
        path: Its file, a folder that holds it under its published name, or a repository on the hub.
        device: Where to.

    Raises:
        PipelineError: If the file is missing, cannot be read, or does not fit.
    """
    owner = "VAR's VAE"
    source = locate(path, VAR_FILES["d16"].vae, owner)
    state = read_state(source, owner, ("trainer", "vae_local"))
    state.pop("quantize.ema_vocab_hit_SV", None)  # statistics of the training
    with torch.device("meta"):
        vae = VQVAE()
    return fitted(vae, state, owner, source, "", torch.float32, device)


def locate(path: str, names: Sequence[str], owner: str) -> Path:
    """A file of weights, or a folder of shards.

    Args:
        path: The file or folder itself, a folder that holds one of `names`, or a repository on the hub.
        names: Published names, the preferred one first; those without an ending are folders of shards.
        owner: The model, for messages.

    Raises:
        PipelineError: If it is not there and cannot be downloaded.
    """
    here = Path(path).expanduser()
    if here.is_file() or _index(here) is not None:
        return here
    wanted = " or ".join(names) or "a file that is named by its path, because none is published"
    if here.is_dir():
        for name in names:
            if (here / name).exists():
                return here / name
        held = ", ".join(sorted(p.name for p in here.iterdir())[:5]) or "nothing"
        raise PipelineError(
            f"The folder of {owner!r} must hold {wanted} but {path!r} holds {held}; give the path of the "
            "file itself."
        )
    _refuse_missing_path(path, owner)
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    doubt = ""
    with asked_once():
        for name in names:
            try:
                if Path(name).suffix:
                    return Path(hf_hub_download(path, name))
                folder = Path(snapshot_download(path, allow_patterns=f"{name}/*")) / name
                if folder.exists():
                    return folder
            except LocalEntryNotFoundError:  # the hub was not reached, and another name may be in its cache
                doubt = ", as far as is known without the hub, which did not answer"
            except EntryNotFoundError:
                continue
            except Exception as error:  # the hub's client raises a dozen kinds
                raise _unreadable(owner, f"{path}/{name}", error) from error
    raise PipelineError(
        f"The repository of {owner!r} must hold {wanted} but {path!r} does not{doubt}; download the file and "
        "give its path."
    )


def read_state(path: Path, owner: str, wrappers: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors in a file or a folder of shards, on the CPU; pickles are read with ``weights_only=True``.

    Args:
        path: A safetensors or PyTorch file, or a folder with an index of shards.
        owner: The model, for messages.
        wrappers: Keys under which training code nests the tensors, if it does.

    Raises:
        PipelineError: If a file is missing or cannot be read, or holds no mapping of tensors.
    """
    if path.is_dir():
        return _read_shards(path, owner)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # pickle, zip and safetensors each have their own
        raise _unreadable(owner, str(path), error) from error
    for wrapper in wrappers:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        held = (
            f"a mapping with {', '.join(map(str, list(state)[:3]))}"
            if isinstance(state, Mapping)
            else type(state).__name__
        )
        raise PipelineError(
            f"The weights of {owner!r} must map names to tensors but {str(path)!r} holds {held}; give the "
            "published file."
        )
    return dict(state)


def infinity_config(state: Mapping[str, Tensor]) -> InfinityConfig | None:
    """The architecture that an Infinity transformer's weights show; None if they are incomplete."""
    places = _places(state)
    per_chunk = max((block for _, block in places), default=-1) + 1
    chunks = max((chunk for chunk, _ in places), default=-1) + 1
    first = min(places.values(), default="")
    needed = (
        *("lvl_embed.weight", "word_embed.weight", "cfg_uncond", "text_proj_for_sos.ca.mat_q"),
        f"{first}sa.scale_mul_1H11",
    )
    if not places or len(places) != chunks * per_chunk or any(key not in state for key in needed):
        return None
    levels, words, uncond, pool, scales = (state[key] for key in needed)
    return InfinityConfig(
        depth=len(places),
        width=levels.shape[1],
        heads=scales.numel(),
        bits=words.shape[1],
        chunks=chunks,
        text_dim=uncond.shape[1],
        text_length=uncond.shape[0],
        pool_heads=pool.shape[1],
        levels=levels.shape[0],
    )


def var_config(state: Mapping[str, Tensor]) -> tuple[int, int, int, int] | None:
    """Blocks, channels, heads and tokens of a VAR transformer's weights; None if they are incomplete."""
    scales, places = state.get("blocks.0.attn.scale_mul_1H11"), state.get("pos_1LC")
    if scales is None or places is None:
        return None
    return _count(state, r"blocks\.(\d+)\."), places.shape[2], scales.numel(), places.shape[1]


def regrouped(state: Mapping[str, Tensor], config: InfinityConfig) -> dict[str, Tensor]:
    """Weights of an Infinity with its blocks named by the chunks of `config`, whatever theirs are.

    The scales of attention get the shape of the model, if they have as many elements.
    """
    per_chunk = config.depth // config.chunks
    names = {
        old: f"block_chunks.{number // per_chunk}.module.{number % per_chunk}."
        for number, (_, old) in enumerate(sorted(_places(state).items()))
    }
    named = {}
    for key, value in state.items():
        match = _BLOCK.match(key)
        key = names[match[0]] + key[match.end() :] if match else key
        if key.endswith("scale_mul_1H11") and value.numel() == config.heads:
            value = value.reshape(1, config.heads, 1, 1)
        named[key] = value
    return named


_BLOCK = re.compile(r"(?:block_chunks\.(\d+)\.module|blocks)\.(\d+)\.")


def _places(state: Mapping[str, Tensor]) -> dict[tuple[int, int], str]:
    """How the names of each block's weights begin, by its chunk and its number there."""
    matches = (_BLOCK.match(key) for key in state)
    return {(int(m[1] or 0), int(m[2])): m[0] for m in matches if m}


Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)


def _size(sizes: Mapping[str, Config], size: str, family: str) -> Config:
    if size not in sizes:
        raise ConfigError(
            f"The size of {family} must be one of {', '.join(sizes)} but got {size!r}; "
            f"{did_you_mean(size, sizes)}"
        )
    return sizes[size]


def _published(size: str) -> Published:
    return INFINITY_FILES.get(size, Published())


def _described(config: InfinityConfig | VARConfig) -> str:
    return f"{config.depth} blocks of {config.width} channels with {config.heads} heads"


def _other_size(owner: str, path: Path, ours: str, theirs: str, name: str | None) -> PipelineError:
    what = f"{name!r} ({theirs})" if name else f"another model ({theirs})"
    return PipelineError(
        f"The weights of {owner!r} must be of its size ({ours}) but {str(path)!r} holds {what}; give the "
        f"file of this size{f', or load it as {name!r}' if name else ''}."
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number that stands in names."""
    matches = (re.match(pattern, key) for key in state)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def _channels(state: Mapping[str, Tensor]) -> int:
    """Channels of the features that a decoder reads; 0 if it is incomplete."""
    for name in ("decoder.conv_in.conv.weight", "decoder.conv_in.weight"):
        if name in state:
            return state[name].shape[1]
    return 0


def _with_rows(rows: Tensor, length: int) -> Tensor:
    """The first `length` rows; the last one stands for any that lack."""
    return torch.cat((rows[:length], rows[-1:].expand(max(0, length - len(rows)), -1)))


def fitted(
    module: Module,
    state: Mapping[str, Tensor],
    owner: str,
    path: Path,
    blocks: str,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Module:
    """A module on the meta device with weights: every key must fit, none may be missing.

    Args:
        module: Gets the tensors themselves.
        state: Tensors by name.
        owner: The model, for messages.
        path: Where they are from, for messages.
        blocks: How the names begin that take `dtype`; all others are in float32.
        dtype: Of the blocks.
        device: Where to.

    Raises:
        PipelineError: If a key is missing, unexpected, or of another shape; names them.
    """
    wanted = module.state_dict()
    _check_keys(owner, str(path), wanted.keys() - state.keys(), state.keys() - wanted.keys())
    other = [key for key in sorted(wanted) if wanted[key].shape != state[key].shape]
    if other:
        key = other[0]
        raise PipelineError(
            f"The weights of {owner!r} must have the shapes of its model but in {str(path)!r} {key!r} is "
            f"{tuple(state[key].shape)} instead of {tuple(wanted[key].shape)} ({len(other)} differ); give "
            "the checkpoint of this model size."
        )
    cast = {
        key: value.to(device, dtype if blocks and key.startswith(blocks) else torch.float32)
        for key, value in state.items()
    }
    module.load_state_dict(cast, assign=True)
    return module.eval().requires_grad_(False)


def _check_keys(owner: str, path: str, missing: Collection[str], unexpected: Collection[str]) -> None:
    parts = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if parts:
        raise PipelineError(
            f"The weights of {owner!r} must fit its model key by key but in {path!r} there are "
            f"{' and '.join(parts)}; give the published checkpoint of this model."
        )


def _index(folder: Path) -> Path | None:
    """The index of the shards in a folder, if it is one."""
    return next((folder / name for name in SHARD_INDEXES if (folder / name).is_file()), None)


def _read_shards(folder: Path, owner: str) -> dict[str, Tensor]:
    """The tensors of all shards, which must hold the tensors that their index names and no others."""
    index = _index(folder)
    if index is None:
        raise PipelineError(
            f"The weights of {owner!r} must be a file, or shards with {' or '.join(SHARD_INDEXES)}, but "
            f"{str(folder)!r} has no index; download the folder again."
        )
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(owner, str(index), error) from error
    state: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise PipelineError(
                f"The weights of {owner!r} must be whole but {str(folder)!r} lacks the shard {name}; "
                "download it."
            )
        state.update(read_state(folder / name, owner))
    _check_keys(owner, str(folder), weight_map.keys() - state.keys(), state.keys() - weight_map.keys())
    return state


def _beside(path: str) -> str:
    """Where a model's other parts are looked for: in its folder, or its repository."""
    here = Path(path).expanduser()
    return str(here.parent) if here.is_file() or _index(here) is not None else path


def _t5_beside(folder: str) -> str:
    """The text encoder in a folder, else the published one."""
    here = Path(folder).expanduser()
    return next((str(here / name) for name in T5_FOLDERS if (here / name).is_dir()), T5)


def _refuse_missing_path(path: str, owner: str) -> None:
    """Refuses a source that can only be a path, and is not there, before a hub is asked for it."""
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise PipelineError(
            f"The weights of {owner!r} must be an existing path or a hub id 'owner/name' but got {path!r}; "
            "check the path."
        )


def _unreadable(owner: str, what: str, error: Exception) -> PipelineError:
    reason = str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
    return PipelineError(
        f"The weights of {owner!r} must load from {what!r} but: {reason}; check that it is whole, or, if it "
        "is to be downloaded, its name and the network."
    )
