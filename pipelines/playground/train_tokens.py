"""The playground's generator of tokens of one scale: a small Show-o that is a discrete flow too.

A Phi with causal text and an image whose tokens all see each other (Xie et al. 2024) learns to restore images
from two kinds of corruption: masks (Chang et al. 2022), and codes moved along a metric-induced path (Shaul et
al. 2024; Wang et al. 2025). Muon for the hidden matrices (Jordan et al. 2024) and AdamW for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PhiConfig, PhiForCausalLM

from tts_vision.pipelines.playground.tokenizer import MAX_TOKENS, build_tokenizer, vocabulary
from tts_vision.pipelines.playground.tokenizer import PAD as PADDING
from tts_vision.pipelines.playground.train_tokenizers import BITS, GRID
from tts_vision.pipelines.playground.training import (
    CAPTIONS_PER_SCENE,
    Average,
    Bank,
    Budget,
    Learner,
    log,
    on_device,
    parts_of,
    save_atomically,
    train,
    warm_then_decay,
)
from tts_vision.pipelines.tokens.kinetic import Schedule, distance
from tts_vision.pipelines.tokens.latent_tokenizer import LatentTokenizer
from tts_vision.pipelines.tokens.layout import Layout
from tts_vision.pipelines.tokens.showo import ShowoPipeline

END = vocabulary()["</s>"]
TEXT = MAX_TOKENS + 2  # t2i, bos, at most 16 tokens with the closing one
TOKENS = GRID[0] * GRID[1]
LAYOUT = Layout(words=len(vocabulary()), codes=2**BITS, text_length=TEXT, bos=END, eos=END)
PAD, SOI, EOI, T2I = (LAYOUT.special(name) for name in ("[PAD]", "<|soi|>", "<|eoi|>", "<|t2i|>"))
FIRST_CODE, MASK = LAYOUT.offset, LAYOUT.mask
DEFAULTS = {"num_inference_steps": 12, "guidance_scale": 2.0}
Corruption = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Given right codes ``(B, S)``: corrupted ids of the whole vocabulary ``(B, S)`` and where to learn."""


def build_model(seed: int) -> PhiForCausalLM:
    """An untrained Show-o."""
    config = PhiConfig(
        vocab_size=LAYOUT.size,
        hidden_size=224,
        intermediate_size=784,
        num_hidden_layers=6,
        num_attention_heads=7,
        max_position_embeddings=256,
        qk_layernorm=True,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=None,
        use_cache=False,
        attention_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PhiForCausalLM(config)
        nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
        nn.init.normal_(model.lm_head.weight, std=0.02)
    return model


def text_blocks(ids: Tensor, pad: int) -> Tensor:
    """Right-padded word ids ``(B, 16)`` as left-padded text blocks ``(B, 18)``."""
    lengths = (ids != pad).sum(1)
    blocks = torch.full((len(ids), TEXT), PAD)
    places = torch.arange(TEXT)[None] - (TEXT - 2 - lengths[:, None])
    blocks = torch.where(places == 0, T2I, torch.where(places == 1, END, blocks))
    words = ids.gather(1, (places - 2).clamp(0, ids.shape[1] - 1))
    return torch.where(places >= 2, words, blocks)


def attention_mask(blocks: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Show-o's additive mask ``(B, 1, L, L)``: causal text; an image that sees itself and all text."""
    length = TEXT + TOKENS + 2
    there: Any = {"device": blocks.device}
    real = F.pad(blocks != PAD, (0, length - TEXT), value=True)
    image = torch.arange(length, **there) >= TEXT
    every = torch.ones(length, length, dtype=torch.bool, **there)
    allowed = every.tril() | (image[:, None] & image[None])
    allowed = allowed[None] & real[:, None] | torch.eye(length, dtype=torch.bool, **there)[None]
    return torch.zeros(allowed.shape, **there).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def masked(codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A share of the tokens of each image masked, by MaskGIT's cosine schedule."""
    draw: Any = {"generator": generator, "device": codes.device}
    share = torch.cos(0.5 * math.pi * torch.rand(len(codes), 1, **draw))
    most = (share * codes.shape[1]).round().clamp(min=1)
    rank = torch.rand(codes.shape, **draw).argsort(1).argsort(1)
    hidden = rank < most
    return torch.where(hidden, MASK, codes + FIRST_CODE), hidden


def jumped(codebook: Tensor, schedule: Schedule | None = None) -> Corruption:
    """Codes moved along FUDOKI's metric-induced path to a time drawn evenly.

    Args:
        codebook: Embeddings of the codes ``(V, D)``.
        schedule: Of the path.
    """
    distances, schedule = distance(codebook, codebook), schedule or Schedule()

    def corrupt(codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        times = torch.rand(len(codes), generator=generator, device=codes.device).clamp(max=1 - 1e-4)
        beta = torch.tensor([schedule.beta(time) for time in times.tolist()], device=codes.device)
        p = (-beta[:, None, None] * distances[codes]).softmax(-1)
        drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view_as(codes)
        return drawn + FIRST_CODE, torch.ones_like(codes, dtype=torch.bool)

    return corrupt


def either(first: Corruption, second: Corruption, share: float = 0.35) -> Corruption:
    """Corrupts each image in one of two ways: by the second with probability `share`."""

    def corrupt(codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        (a, at_a), (b, at_b) = first(codes, generator), second(codes, generator)
        chosen = torch.rand(len(codes), 1, generator=generator, device=codes.device) < share
        return torch.where(chosen, b, a), torch.where(chosen, at_b, at_a)

    return corrupt


@torch.no_grad()
def encode_bank(work_dir: Path, bank: Bank, latents: Tensor, coder: LatentTokenizer) -> tuple[Tensor, Tensor]:
    """Codes and text blocks of the whole bank, made once and kept in the work folder.

    Returns:
        Codes, int16 `(n, 64)`, and text blocks, int16 `(n, captions, 18)`.
    """
    path = work_dir / "codes_of_bank.pt"
    if not path.exists():
        device = next(coder.parameters()).device
        codes = [
            coder.ids(coder.features(part.float().to(device))).short().cpu() for part in latents.split(500)
        ]
        ids = bank.token_ids("right")
        blocks = text_blocks(ids, vocabulary()[PADDING]).short()
        save_atomically(
            path, {"codes": torch.cat(codes), "blocks": blocks.view(-1, CAPTIONS_PER_SCENE, TEXT)}
        )
        log(work_dir, f"tokens: encoded {len(blocks)} captions")
    saved = torch.load(path, weights_only=True)
    return saved["codes"], saved["blocks"]


def train_tokens(
    work_dir: Path,
    codes: Tensor,
    blocks: Tensor,
    corrupt: Corruption,
    budget: Budget,
    device: str = "cpu",
    seed: int = 7,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    caption_dropout: float = 0.1,
    stop_after: int | None = None,
) -> tuple[PhiForCausalLM, Average]:
    """Trains a generator of tokens.

    Args:
        work_dir: Where the checkpoint lies.
        codes: Of the bank, `(n, 64)`.
        blocks: Text blocks, `(n, captions, 18)`.
        corrupt: Corrupts codes for the model to restore.
        budget: How long to train.
        device: Where to train.
        seed: Seed of weights and batches.
        batch_size: Images a step.
        learning_rate: See `build_optimisers`.
        caption_dropout: Share of captions replaced by the empty one.
        stop_after: See `training.train`.

    Returns:
        The model and its averaged weights.
    """
    model: Any = build_model(seed)
    model.to(device)
    learner = Learner({"model": model}, learning_rate)
    empty = text_blocks(torch.tensor([[END] + [0] * (MAX_TOKENS - 1)]), 0)[0]
    ends = torch.tensor([SOI, EOI], device=device)
    codes, blocks, empty = codes.to(device), blocks.to(device), empty.to(device)

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        draw: Any = {"generator": on_device(generator, device), "device": device}
        index = torch.randint(len(codes), (batch_size,), **draw)
        wording = torch.randint(blocks.shape[1], (batch_size,), **draw)
        text = blocks[index, wording].long()
        dropped = torch.rand(batch_size, 1, **draw) < caption_dropout
        text = torch.where(dropped, empty, text)
        right = codes[index].long()
        image, wanted = corrupt(right, draw["generator"])
        soi, eoi = ends.expand(batch_size, 2).split(1, 1)
        ids = torch.cat((text, soi, image, eoi), 1)
        with torch.autocast(device, torch.bfloat16):
            hidden = model.model(input_ids=ids, attention_mask=attention_mask(text)).last_hidden_state
            hidden = hidden[:, TEXT + 1 : -1]
            logits = model.lm_head(hidden)[..., FIRST_CODE:MASK]
        loss = F.cross_entropy(logits.float()[wanted], right[wanted])
        norm = learner.learn(loss, warm_then_decay(progress))
        return {"loss": loss, "norm": norm}

    train("tokens", work_dir, budget, learner.parts, step, seed, stop_after=stop_after)
    return model, learner.average


def trained(work_dir: Path, coder: LatentTokenizer) -> ShowoPipeline:
    """The pipeline of what the stage left, with averaged weights, and its tokenizer of images."""
    model = build_model(0)
    average = Average({"model": model})
    saved = parts_of(work_dir, "tokens")
    average.load_state_dict(saved["average"])
    average.copy_to("model", model)
    model.eval().requires_grad_(False)
    return ShowoPipeline(model, build_tokenizer("right"), coder, LAYOUT, DEFAULTS, "playground-masked")
