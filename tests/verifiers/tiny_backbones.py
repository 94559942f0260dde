"""Backbones of a few thousand random weights, saved as the published ones are."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_dino(folder: Path) -> Path:
    """A DINO (v1): a ViT without pooler, made for 32 x 32."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(1)
    config = ViTConfig(**SIZES, intermediate_size=64, image_size=32, patch_size=8)
    assert config.layer_norm_eps == 1e-12
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def tiny_dinov2(folder: Path, *, registers: int = 0, classes: int = 0) -> Path:
    """A DINOv2, perhaps with registers, perhaps with a linear head."""
    import transformers as t

    torch.manual_seed(2)
    settings = {**SIZES, "mlp_ratio": 2, "image_size": 56, "patch_size": 14}
    if classes:
        config = t.Dinov2Config(**settings, num_labels=classes)
        model = t.Dinov2ForImageClassification(config)
        torch.nn.init.normal_(model.classifier.weight)
    elif registers:
        model = t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**settings, num_register_tokens=registers)
        )
    else:
        model = t.Dinov2Model(t.Dinov2Config(**settings))
    model.save_pretrained(folder)
    return folder


def tiny_clip(folder: Path) -> Path:
    """A CLIP whose words are spelt letter by letter."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(3)
    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: at for at, word in enumerate(words)}, merges=[])
    tokenizer.model_max_length = 77
    text = {**SIZES, "intermediate_size": 64, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1}
    vision = {**SIZES, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rename_key(source: Path, target: Path, old: str, new: str) -> Path:
    """A copy of a saved model in which one weight has another name."""
    target.mkdir()
    for file in source.iterdir():
        if file.name != "model.safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    state = load_file(source / "model.safetensors")
    state[new] = state.pop(old)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target
