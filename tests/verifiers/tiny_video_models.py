"""Tiny video reward models with random weights, saved in the layout of the published checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WORDS = "two red circles a blue star the video"


def tokenizer(text: str, specials: Iterable[str], **settings: Any) -> Any:
    """A tokenizer that knows the words of `text`, and `specials` after `<unk>`, `<s>` and `</s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *dict.fromkeys(f"{text} {WORDS}".split())]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    outer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", **settings)
    outer.add_tokens(list(specials), special_tokens=True)
    return outer


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Fills all weights from a generator of its own, far enough from zero that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale


def rename_key(file: Path, old: str, new: str) -> None:
    """Renames a tensor in a file of weights."""
    state: dict[str, Tensor] = load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    state[new] = state.pop(old)
    if file.suffix == ".safetensors":
        save_file(state, file, metadata={"format": "pt"})
    else:
        torch.save(state, file)
