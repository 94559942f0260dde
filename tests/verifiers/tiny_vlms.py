"""Tiny vision-language models with random weights, saved as their published checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = (
    "yes Yes YES no No NO first First FIRST second Second SECOND the user asks an assistant system "
    "You are a helpful assistant. Does this figure show the picture of two red circles? "
    "Please answer yes or no "
)


def tokenizer(specials: list[str]) -> Any:
    """A byte-level tokenizer, trained on the spot, in which the words of answers are tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([TEXT, *TEXT.split()] * 2, trainer)
    outer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    outer.add_tokens([*SPECIALS, *specials], special_tokens=True)
    return outer


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Fills all weights from a generator of its own, far enough from zero that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale


def qwen_vl(folder: Path, *, chat: bool = True) -> Path:
    """A Qwen2.5-VL."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    words = tokenizer(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    ids = words.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            "bos_token_id": None,
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        eos_token_id=ids("<|im_end|>"),
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    randomise(model)
    model.save_pretrained(folder)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>") if chat else None,
    ).save_pretrained(folder)
    return folder


def idefics3(folder: Path) -> Path:
    """An Idefics3, which SmolVLM is one of; it splits an image into tiles."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    words = tokenizer(["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"])
    config = Idefics3Config(
        text_config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(words),
            "pad_token_id": words.pad_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=words.pad_token_id,
    )
    model = Idefics3ForConditionalGeneration(config)
    randomise(model)
    model.save_pretrained(folder)
    Idefics3Processor(
        image_processor=Idefics3ImageProcessor(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=words,
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)
    return folder


def llava_next(folder: Path, *, shards: int = 2, tied: bool = False) -> Path:
    """A LLaVA-OneVision in the layout of LLaVA-NeXT: its key names, its config.json, in shards."""
    words = tokenizer([])
    language, tower, rest = llava_parts(len(words), tied)
    state = {key: value for key, value in language.state_dict().items() if not (tied and "lm_head" in key)}
    for key, value in tower.state_dict().items():
        inner = key.removeprefix("vision_model.")  # older versions of transformers have it in the key
        state[f"model.vision_tower.vision_tower.vision_model.{inner}"] = value
    state |= rest
    folder.mkdir(exist_ok=True)
    for i in range(shards):
        some = {key: state[key].clone() for key in sorted(state)[i::shards]}
        save_file(some, folder / f"model-{i + 1:05}-of-{shards:05}.safetensors", metadata={"format": "pt"})
    settings = {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres_max_9",
        "use_sliding_window": False,
        **LLAVA_LANGUAGE,
        "vocab_size": language.config.vocab_size,
        "tie_word_embeddings": tied,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 20, "top_p": 0.8}))
    words.save_pretrained(folder)
    return folder


LLAVA_LANGUAGE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 50000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}


def llava_parts(tokens: int, tied: bool = False) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """What a LLaVA-OneVision is made of: language model, vision tower, and the tensors between them."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

    settings = {**LLAVA_LANGUAGE, "vocab_size": tokens + 5, "tie_word_embeddings": tied}
    language = Qwen2ForCausalLM(Qwen2Config(**settings))
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        )
    )
    randomise(language, 1)
    if not tied:  # its answers are often yes or no
        ids = tokenizer([]).convert_tokens_to_ids
        head = language.lm_head.weight.data
        head[ids("yes")] *= 20.0
        head[ids("no")] = 0.7 * head[ids("yes")]
    randomise(tower, 2)
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "model.mm_projector.0.weight": (32, 32),
        "model.mm_projector.0.bias": (32,),
        "model.mm_projector.2.weight": (32, 32),
        "model.mm_projector.2.bias": (32,),
        "model.image_newline": (32,),
    }
    rest = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return language.eval(), tower.eval(), rest


def rename_key(file: Path, old: str, new: str) -> None:
    """Renames the one tensor whose name ends with `old`, in a file of weights."""
    state = load_file(file)
    (key,) = (key for key in state if key.endswith(old))
    state[key.removesuffix(old) + new] = state.pop(key)
    save_file(state, file, metadata={"format": "pt"})
