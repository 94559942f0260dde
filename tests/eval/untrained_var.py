"""A model for benchmarks, named ``untrained_var.py@model``: the playground's, smaller and untrained."""

from __future__ import annotations

import torch
from transformers import T5Config, T5EncoderModel

from tts_vision.config import ModelOptions
from tts_vision.pipelines.playground.tokenizer import build_tokenizer
from tts_vision.pipelines.var.bsq_vae import BSQVAE, BSQVAEConfig
from tts_vision.pipelines.var.infinity import Infinity, InfinityConfig, initialise
from tts_vision.pipelines.var.pipeline import InfinityPipeline
from tts_vision.pipelines.var.schedules import Schedule

MODEL = f"{__file__}@model"


def model(name: str, *, options: ModelOptions) -> InfinityPipeline:
    """Six scales like those of the playground's, smaller networks."""
    schedule = Schedule(((1, 1), (2, 2), (3, 3), (3, 3), (4, 4), (4, 4)), (4, 4))
    tokenizer = build_tokenizer("right")
    text = T5Config(
        vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = T5EncoderModel(text)
        vae = BSQVAE(BSQVAEConfig(channels=4, patch=2, width=8, multipliers=(1, 2, 2), groups=4))
    config = InfinityConfig(2, 64, 4, bits=16, chunks=1, text_dim=24, text_length=32, pool_heads=2)
    transformer = initialise(Infinity(config), torch.Generator().manual_seed(0))
    for module in (transformer, vae, encoder):
        module.eval().requires_grad_(False)
    defaults = {"guidance_scale": 1.5, "tau": 1.0, "top_p": 0.0}
    return InfinityPipeline(transformer, vae, encoder, tokenizer, schedule, defaults, "untrained-var")
