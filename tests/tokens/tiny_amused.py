"""A tiny aMUSEd of random weights: diffusers' own classes, a grid of 4x4 tokens."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tiny_pipelines import _clip_tokenizer

CODES, MASK = 32, 35


def tiny_amused() -> Any:
    """The pipeline; its logits are strong enough for codes that depend on the prompt and on each other."""
    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    text = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    transformer = UVit2DModel(
        hidden_size=16,
        cond_embed_dim=16,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=16,
        vocab_size=40,
        codebook_size=CODES,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        sample_size=4,
    )
    for weight in transformer.parameters():
        if weight.ndim >= 2:
            torch.nn.init.normal_(weight, std=0.5)
    vqvae = VQModel(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        latent_channels=4,
        num_vq_embeddings=CODES,
        norm_num_groups=4,
        lookup_from_codebook=True,
    )
    torch.nn.init.normal_(vqvae.quantize.embedding.weight)
    scheduler = AmusedScheduler(mask_token_id=MASK)
    for module in (text, transformer, vqvae):
        module.eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = AmusedPipeline(vqvae, tokenizer, text, transformer, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe
