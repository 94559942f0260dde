"""A tiny Show-o of random weights: real classes, a grid of 4x4 tokens, images of 64x64."""

from __future__ import annotations

from functools import cache

import torch
from transformers import PhiConfig, PhiForCausalLM

from tts_vision.pipelines.playground.tokenizer import build_tokenizer
from tts_vision.pipelines.tokens.layout import Layout
from tts_vision.pipelines.tokens.magvit import MAGVITConfig, MAGVITv2
from tts_vision.pipelines.tokens.showo import ShowoPipeline

MAGVIT = MAGVITConfig(
    grid=(4, 4),
    bits=6,
    width=8,
    encoder_multipliers=(1, 1, 1, 2, 2),
    encoder_blocks=(1, 1, 1, 1, 1),
    decoder_multipliers=(1, 1, 1, 2, 2),
    decoder_blocks=(1, 1, 1, 1, 1),
    groups=4,
)
DEFAULTS = {"num_inference_steps": 5, "guidance_scale": 1.0, "temperature": 2.0}


def layout_of_tiny(tokenizer: object) -> Layout:
    end = tokenizer.convert_tokens_to_ids("</s>")  # type: ignore[attr-defined]
    return Layout(words=len(tokenizer), codes=64, text_length=18, bos=end, eos=end)  # type: ignore[arg-type]


@cache
def tiny_showo() -> ShowoPipeline:
    """The pipeline; its logits are strong enough for codes that depend on the prompt and on each other."""
    tokenizer = build_tokenizer()
    layout = layout_of_tiny(tokenizer)
    config = PhiConfig(
        vocab_size=layout.size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        qk_layernorm=True,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = PhiForCausalLM(config)
        for weight in transformer.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.6)
        image_tokenizer = MAGVITv2(MAGVIT)
    for module in (transformer, image_tokenizer):
        module.eval().requires_grad_(False)
    return ShowoPipeline(transformer, tokenizer, image_tokenizer, layout, DEFAULTS, "tiny-showo")
