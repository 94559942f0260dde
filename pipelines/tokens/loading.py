"""Published checkpoints of Show-o: found by path or hub id, read safely, and fitted strictly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tts_vision.errors import PipelineError
from tts_vision.pipelines.tokens.layout import Layout
from tts_vision.pipelines.tokens.magvit import LFQ, MAGVITConfig, MAGVITv2
from tts_vision.pipelines.tokens.showo import ShowoPipeline
from tts_vision.pipelines.var.loading import fitted, locate, read_state

TOKENIZER, IMAGE_TOKENIZER = "microsoft/phi-1_5", "showlab/magvitv2"
WEIGHTS = ("pytorch_model.safetensors", "pytorch_model.bin")
LAYOUT = Layout(words=50295, codes=8192, text_length=129, bos=50256, eos=50256)
GRIDS = {"show-o": (16, 16), "show-o-512": (32, 32)}
# As the authors run them: the smaller one in PARM (Guo et al. 2025), the larger one in their demonstration.
DEFAULTS: dict[str, dict[str, Any]] = {
    "show-o": {"num_inference_steps": 18, "guidance_scale": 1.75},
    "show-o-512": {"num_inference_steps": 50, "guidance_scale": 5.0},
}
_PROJECTOR = "mm_projector."  # of images that are looked at, which generation never does


def phi_config() -> Any:
    """The published language model: Phi-1.5 with normalised queries and keys and Show-o's vocabulary."""
    from transformers import PhiConfig

    return PhiConfig(
        vocab_size=LAYOUT.size,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        hidden_act="gelu_new",
        max_position_embeddings=2048,
        layer_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        qk_layernorm=True,
        tie_word_embeddings=False,
        bos_token_id=LAYOUT.bos,
        eos_token_id=LAYOUT.eos,
        pad_token_id=None,
    )


def load_showo(
    name: str,
    path: str,
    *,
    tokenizer: str = TOKENIZER,
    image_tokenizer: str = IMAGE_TOKENIZER,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ShowoPipeline:
    """Show-o from its published checkpoints (Xie et al. 2024).

    Args:
        name: Which of `GRIDS`.
        path: The file, a folder that holds it under its published name, or a repository on the Hugging Face
            hub, such as ``showlab/show-o``.
        tokenizer: A folder or repository with the tokenizer of Phi-1.5.
        image_tokenizer: Likewise as `path` of the MAGVIT-v2 tokenizer.
        dtype: Precision of the language model; its head and the image tokenizer are in float32.
        device: Where to.

    Raises:
        PipelineError: If a file is missing, cannot be read, or does not fit.
    """
    source = locate(path, WEIGHTS, name)
    check_config(name, path, source)
    transformer = load_transformer(name, source, phi_config(), dtype=dtype, device=device)
    image_source = locate(image_tokenizer, WEIGHTS, f"{name}'s image tokenizer")
    magvit = load_magvit(name, image_source, replace(MAGVITConfig(), grid=GRIDS[name]), device=device)
    words = load_tokenizer(name, tokenizer, LAYOUT)
    return ShowoPipeline(transformer, words, magvit, LAYOUT, DEFAULTS[name], name)


def load_transformer(
    name: str, source: Path, config: Any, *, dtype: torch.dtype, device: torch.device | str
) -> Any:
    """The language model in a published file: a `PhiForCausalLM` whose keys all fit.

    Args:
        name: The model, for messages.
        source: From `locate`.
        config: Its architecture.
        dtype: Precision; its head is in float32.
        device: Where to.

    Raises:
        PipelineError: If a key is missing, unexpected, or of another shape.
    """
    from transformers import PhiForCausalLM

    state = {
        key.removeprefix("showo."): value
        for key, value in read_state(source, name).items()
        if not key.startswith(_PROJECTOR)
    }
    with torch.device("meta"):
        model = PhiForCausalLM(config)
    # its frequencies are no part of a checkpoint
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    return fitted(model, state, name, source, "model.", dtype, device)


def load_magvit(
    name: str, source: Path, config: MAGVITConfig, *, device: torch.device | str = "cpu"
) -> MAGVITv2:
    """The image tokenizer in a published file, in float32.

    Args:
        name: The model, for messages.
        source: From `locate`.
        config: Its architecture.
        device: Where to.

    Raises:
        PipelineError: If a key is missing, unexpected, or of another shape, or codes are not binary numbers.
    """
    owner = f"{name}'s image tokenizer"
    state = read_state(source, owner)
    with torch.device("meta"):
        magvit = MAGVITv2(config)
    magvit = fitted(magvit, state, owner, source, "", torch.float32, device)
    signs = LFQ(config.bits).embedding.to(device)
    if not torch.equal(magvit.quantize.embedding, signs):
        raise PipelineError(
            f"The codes of {owner!r} must be binary numbers, most significant bit first, but those in "
            f"{str(source)!r} are not; give the published checkpoint."
        )
    return magvit


def load_tokenizer(name: str, path: str, layout: Layout) -> Any:
    """The tokenizer of texts.

    Raises:
        PipelineError: If it cannot be loaded, or its ids are not those of the layout.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # every library beneath raises its own kinds
        reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0].rstrip(".")
        raise PipelineError(
            f"The tokenizer of {name!r} must load from {path!r} but: {reason}; check the name, the folder or "
            "the network."
        ) from error
    found = (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    if found != (layout.words, layout.bos, layout.eos):
        raise PipelineError(
            f"The tokenizer of {name!r} must have {layout.words} ids, begin texts with {layout.bos} and end "
            f"them with {layout.eos}, but {path!r} has {found[0]}, {found[1]} and {found[2]}; give "
            f"{TOKENIZER}."
        )
    return tokenizer


def check_config(name: str, path: str, source: Path) -> None:
    """Checks that the configuration beside published weights is that of the model; their shapes do not tell.

    Args:
        name: The model.
        path: As the user wrote it.
        source: The weights that were found.

    Raises:
        PipelineError: If it is another one's.
    """
    file = (source if source.is_dir() else source.parent) / "config.json"
    if not file.is_file() and not Path(path).expanduser().exists():
        file = locate(path, ("config.json",), f"{name}'s configuration")
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"The configuration of {name!r} must be JSON but {str(file)!r} cannot be read: {error}; download "
            "it again."
        ) from error
    height, width = GRIDS[name]
    wanted = {
        "num_vq_tokens": height * width,
        "vocab_size": LAYOUT.size,
        "llm_vocab_size": LAYOUT.words,
        "codebook_size": LAYOUT.codes,
    }
    other = {key: config[key] for key, value in wanted.items() if config.get(key, value) != value}
    if other:
        said = ", ".join(f"{key} {value}" for key, value in other.items())
        needed = ", ".join(f"{key} {wanted[key]}" for key in other)
        sizes = {h * w: known for known, (h, w) in GRIDS.items()}
        known = sizes.get(other.get("num_vq_tokens", 0))
        hint = f"load it as {known!r}" if known and len(other) == 1 else "give the published checkpoint"
        raise PipelineError(
            f"The weights of {name!r} must be of its size ({needed}) but {path!r} is configured with {said}; "
            f"{hint}."
        )
