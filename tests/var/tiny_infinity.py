"""A tiny Infinity of random weights: real classes, five scales, images of 32x32."""

from __future__ import annotations

from functools import cache

import torch
from transformers import T5Config, T5EncoderModel

from tts_vision.pipelines.playground.tokenizer import build_tokenizer
from tts_vision.pipelines.var.bsq_vae import BSQVAE, BSQVAEConfig
from tts_vision.pipelines.var.infinity import Infinity, InfinityConfig, initialise
from tts_vision.pipelines.var.pipeline import InfinityPipeline
from tts_vision.pipelines.var.schedules import Schedule

SCHEDULE = Schedule(((1, 1), (2, 2), (3, 2), (3, 3), (4, 4)), (8, 8))
CONFIG = InfinityConfig(4, 64, 4, bits=16, chunks=2, text_dim=24, text_length=16, pool_heads=2)


@cache
def tiny_infinity(schedule: Schedule | None = SCHEDULE) -> InfinityPipeline:
    """The pipeline; its logits are strong enough for bits that depend on the prompt and on each other."""
    tokenizer = build_tokenizer("right")
    text = T5Config(
        vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = T5EncoderModel(text)
        vae = BSQVAE(BSQVAEConfig(channels=4, patch=2, width=8, multipliers=(1, 2, 2), groups=4))
    model = initialise(Infinity(CONFIG), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for linear in (model.shared_ada_lin[1], model.head_nm["ada_lin"][1], model.head):
            linear.weight.mul_(50)
        for block in model.blocks:
            block.ada_gss[:, :, :2] = 1.0
    for module in (model, vae, text_encoder):
        module.eval().requires_grad_(False)
    defaults = {"guidance_scale": 2.0, "tau": 1.0, "top_p": 0.0}
    return InfinityPipeline(model, vae, text_encoder, tokenizer, schedule, defaults, "tiny-infinity")
