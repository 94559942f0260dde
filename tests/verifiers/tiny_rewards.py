"""Reward models of a few thousand random weights, saved in the layout of the published ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samples import some_images
from tts_vision.verifiers._rewards import PixelReward

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = ["two", "three", "red", "blue", "circle", "circles", "star", "a", "left", "of"]
LONG = " ".join(["two red circles left of a blue star"] * 40)


def open_clip_config(*, quick_gelu: bool = False, image_size: int = 32) -> dict[str, Any]:
    """ViT-H-14's configuration at reduced width and depth."""
    import open_clip

    config = open_clip.get_model_config("ViT-H-14")
    config["embed_dim"] = 16
    config["vision_cfg"] |= {
        "image_size": image_size,
        "patch_size": 8,
        "width": 32,
        "head_width": 16,
        "layers": 2,
    }
    config["text_cfg"] |= {"width": 32, "heads": 2, "layers": 2}
    return config | ({"quick_gelu": True} if quick_gelu else {})


def tiny_open_clip(folder: Path, *, quick_gelu: bool = False, **preprocess: Any) -> Path:
    """A CLIP of open_clip as its hub repositories are laid out: configuration and weights."""
    import open_clip

    torch.manual_seed(4)
    folder.mkdir(parents=True)
    config = open_clip_config(quick_gelu=quick_gelu)
    settings = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    state = shaken(open_clip.CLIP(**config)).state_dict()
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def shaken(model: nn.Module) -> nn.Module:
    """The model with weights large enough for its output to depend on its input."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.add_(torch.randn_like(weight) * 0.08)
            elif name.endswith("bias"):
                weight.add_(torch.randn_like(weight) * 0.02)
    return model


def tiny_siglip(folder: Path) -> Path:
    """A SigLIP with its sentencepiece tokenizer and image processor."""
    import sentencepiece
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipTokenizer

    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS), *WORDS, "abcdefghijklmnopqrstuvwxyz"] * 4),
        model_prefix=str(folder / "spiece"),
        vocab_size=80,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"))
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    torch.manual_seed(5)
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    model = shaken(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-1.5)
    model.save_pretrained(folder)
    return folder


def bert_tokenizer(folder: Path) -> Path:
    """A folder with BERT's vocabulary file, of few words."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(97, 123)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = dict.fromkeys([*special, *WORDS, *letters, *(f"##{letter}" for letter in letters)])
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


def rename_key_in_file(source: Path, target: Path, old: str, new: str) -> Path:
    """A copy of a file of weights in which one weight has another name."""
    if source.suffix == ".safetensors":
        state = load_file(source)
        state[new] = state.pop(old)
        save_file(state, target)
        return target
    saved = torch.load(source, weights_only=True)
    state = saved.get("state_dict", saved)
    state[new] = state.pop(old)
    torch.save(saved, target)
    return target


def odd_images() -> list[Image.Image]:
    """RGBA, grey, palette, a single pixel, and very wide: all can be scored."""
    (base,) = some_images(1)
    return [
        base.convert("RGBA"),
        base.convert("L"),
        base.convert("P"),
        Image.new("RGB", (1, 1), "red"),
        base.resize((90, 3)),
    ]


def as_pixels(media: list[Image.Image]) -> Tensor:
    """Images of one size as ``(B, 3, H, W)`` float64 in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(m) for m in media])).permute(0, 3, 1, 2).double() / 255


def doubled(verifier: PixelReward, *models: nn.Module) -> None:
    """Puts a loaded verifier into float64, which finite differences need."""
    for model in models:
        model.double()
    verifier.dtype = torch.float64


def check_slopes(rewards: Callable[[Tensor], Tensor], pixels: Tensor) -> None:
    """Checks gradients in float64 against central differences along random directions."""
    torch.manual_seed(6)
    x = (0.2 + 0.6 * pixels).requires_grad_()
    found = rewards(x)
    assert found.dtype == torch.float64 and found.shape == (len(x),)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert all(row.abs().max() > 0 for row in gradient)
    with torch.no_grad():
        for _ in range(3):
            direction = torch.randn_like(x)
            h = 1e-5
            rise = (rewards(x + h * direction) - rewards(x - h * direction)) / (2 * h)
            slope = (gradient * direction).flatten(1).sum(1)
            assert torch.allclose(rise, slope, rtol=1e-4, atol=1e-7), (rise, slope)
