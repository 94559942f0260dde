"""A tiny Janus of random weights: transformers' own classes, a grid of 4x4 tokens, images of 32x32."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from tts_vision.pipelines.tokens.janus import JanusPipeline

WORDS = ["two", "red", "circles", "and", "a", "blue", "star", "left", "of", "User", ":", "Assistant", "x"]
SPECIAL = ["<bos>", "<eos>", "<pad>", "<unk>", "<img>", "<boi>", "<eoi>"]
TEMPLATE = (
    "{% for m in messages %}User: {% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %} "
    "Assistant:"
)


def tiny_config(tied: bool = False) -> JanusConfig:
    text = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    vision = JanusVisionConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=32,
        num_image_tokens=16,
        mlp_ratio=2,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=24,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1],
        num_res_blocks=1,
        projection_dim=32,
        image_token_embed_dim=32,
        num_patches=4,
    )
    return JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, image_token_id=4, tie_word_embeddings=tied
    )


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<img>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
    )


@cache
def tiny_janus() -> JanusPipeline:
    """The pipeline; its logits are strong enough for tokens that depend on the prompt and on each other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = JanusForConditionalGeneration(tiny_config()).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        model.model.generation_head.vision_head.weight.mul_(3)
        model.model.generation_embeddings.weight.mul_(3)
        model.model.language_model.embed_tokens.weight.mul_(3)
    model.generation_config = GenerationConfig(
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        guidance_scale=3.0,
        do_sample=True,
        generation_kwargs={"boi_token_id": 5},
    )
    images = JanusImageProcessor(size={"height": 32, "width": 32}, min_size=2)
    processor = JanusProcessor(images, tokenizer(), chat_template=TEMPLATE, num_image_tokens=16)
    return JanusPipeline(model, processor, "tiny-janus")


def save_janus(folder: Path) -> Path:
    """The pipeline in a folder, as transformers saves it."""
    pipe = tiny_janus()
    pipe.model.save_pretrained(folder)
    pipe.processor.save_pretrained(folder)
    return folder
