"""Tiny models with random weights for the tests of visual autoregressive models."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tts_vision.pipelines.var.bsq_vae import BSQVAE, BSQVAEConfig
from tts_vision.pipelines.var.cache import CacheShape, KVCache
from tts_vision.pipelines.var.infinity import Infinity, InfinityConfig
from tts_vision.pipelines.var.schedules import Schedule
from tts_vision.pipelines.var.var import VAR, VARConfig
from tts_vision.pipelines.var.vqvae import VQVAE, VQVAEConfig

SCHEDULE = Schedule(((1, 1), (2, 2), (3, 4), (4, 6)), (4, 6))
INFINITY = InfinityConfig(
    depth=4, width=64, heads=2, bits=8, chunks=2, text_dim=24, text_length=10, pool_heads=4
)
BSQ = BSQVAEConfig(channels=8, width=8, multipliers=(1, 2, 2), groups=4)
VAR_SCHEDULE = Schedule(((1, 1), (2, 2), (3, 3), (5, 5), (6, 6)), (6, 6))
VAR_CONFIG = VARConfig(
    depth=3, width=32, heads=2, schedule=VAR_SCHEDULE, vocabulary=40, channels=8, classes=10
)
VQ = VQVAEConfig(channels=8, width=8, multipliers=(1, 2, 2), groups=4, vocabulary=40)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter away from what it starts with, of a size at which each matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim >= 2 and parameter.shape[0] > 1 else 4
            parameter.normal_(std=fan_in**-0.5, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1)
    return module.eval().requires_grad_(False)


def infinity(config: InfinityConfig = INFINITY) -> Infinity:
    return randomised(Infinity(config))


def bsq_vae(config: BSQVAEConfig = BSQ) -> BSQVAE:
    return randomised(BSQVAE(config), seed=1)


def var(config: VARConfig = VAR_CONFIG) -> VAR:
    return randomised(VAR(config), seed=2)


def vqvae(config: VQVAEConfig = VQ) -> VQVAE:
    return randomised(VQVAE(config), seed=3)


def cache_for(
    config: InfinityConfig | VARConfig, schedule: Schedule, rows: int, branches: int = 1
) -> KVCache:
    """An empty cache with room for all scales but the last."""
    shape = CacheShape(config.depth, branches, config.heads, schedule.starts[-2], config.head_dim)
    return KVCache.empty(shape, rows)


def save_t5(folder: Path, width: int = INFINITY.text_dim) -> Path:
    """A tiny T5 encoder and its tokenizer, as transformers saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "two", "red", "circles", "a", "blue", "square"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = T5Config(vocab_size=len(words), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    randomised(T5EncoderModel(config), seed=4).save_pretrained(folder)
    return folder
