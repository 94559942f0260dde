"""The playground's visual autoregressive model: Infinity's transformer, small.

It predicts the bits of a scale from all coarser ones and learns to correct wrong ones (Han et al. 2024).
Muon for the hidden matrices (Jordan et al. 2024) and AdamW for the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from tts_vision.pipelines.playground.tokenizer import MAX_TOKENS, build_tokenizer
from tts_vision.pipelines.playground.train_tokenizers import SCHEDULE
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
from tts_vision.pipelines.var.bsq import MultiScaleBSQ
from tts_vision.pipelines.var.infinity import Infinity, InfinityConfig, initialise
from tts_vision.pipelines.var.latent_vae import LatentBSQVAE
from tts_vision.pipelines.var.pipeline import InfinityPipeline

TRANSFORMER = InfinityConfig(
    depth=6, width=256, heads=8, bits=64, chunks=2, text_dim=128, text_length=MAX_TOKENS, pool_heads=4
)
DEFAULTS = {"guidance_scale": 3.0, "tau": 0.8, "top_p": 0.0}


def build_text_encoder(seed: int) -> T5EncoderModel:
    """An untrained T5 encoder over the playground's words."""
    tokenizer = build_tokenizer("right")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TRANSFORMER.text_dim,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
        nn.init.normal_(model.shared.weight, std=0.5)
    return model


def trained(work_dir: Path, vae: LatentBSQVAE) -> InfinityPipeline:
    """The pipeline of what the stage left, with averaged weights, and its tokenizer."""
    saved = parts_of(work_dir, "var")
    transformer, text_encoder = Infinity(TRANSFORMER), build_text_encoder(0)
    modules: dict[str, nn.Module] = {"transformer": transformer, "text_encoder": text_encoder}
    average = Average(modules)
    average.load_state_dict(saved["average"])
    for name, module in modules.items():
        module.load_state_dict(saved[name])  # buffers, which no average has
        average.copy_to(name, module)
        module.eval()
    return InfinityPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_tokenizer("right"),
        schedule=SCHEDULE,
        defaults=DEFAULTS,
        name="playground-var",
    )


@torch.no_grad()
def encode_bank(work_dir: Path, bank: Bank, latents: Tensor, vae: LatentBSQVAE) -> tuple[Tensor, Tensor]:
    """Features and token ids of the whole bank, made once and kept in the work folder.

    Returns:
        Features, float16 `(n, 16, 8, 8)`, and right-padded token ids, uint8 `(n, captions, 16)`.
    """
    path = work_dir / "var_features.pt"
    if not path.exists():
        device = next(vae.parameters()).device
        chunks = [vae.features(part.float().to(device)).half().cpu() for part in latents.split(500)]
        ids = bank.token_ids("right")
        tokens = ids.to(torch.uint8).view(len(bank.captions), CAPTIONS_PER_SCENE, MAX_TOKENS)
        save_atomically(path, {"features": torch.cat(chunks), "tokens": tokens})
        log(work_dir, f"var: encoded {len(tokens)} images")
    saved = torch.load(path, weights_only=True)
    return saved["features"], saved["tokens"]


def train_var(
    work_dir: Path,
    features: Tensor,
    tokens: Tensor,
    quantizer: MultiScaleBSQ,
    budget: Budget,
    device: str = "cpu",
    seed: int = 6,
    batch_size: int = 48,
    learning_rate: float = 1e-3,
    caption_dropout: float = 0.1,
    most_flips: float = 0.25,
    stop_after: int | None = None,
) -> tuple[Infinity, T5EncoderModel, Average]:
    """Trains transformer and text encoder together.

    Args:
        work_dir: Where the checkpoint lies.
        features: Of the tokenizer's encoder, `(n, 16, 8, 8)`.
        tokens: Token ids, `(n, captions, 16)`.
        quantizer: Of the tokenizer.
        budget: How long to train.
        device: Where to train.
        seed: Seed of weights and batches.
        batch_size: Images a step.
        learning_rate: See `build_optimisers`.
        caption_dropout: Share of captions replaced by the learned embedding of no text.
        most_flips: Each scale of each image has up to this share of its bits flipped, which the scales
            after it learn to correct.
        stop_after: See `training.train`.

    Returns:
        The two models and their averaged weights.
    """
    model = initialise(Infinity(TRANSFORMER), torch.Generator().manual_seed(seed)).to(device)
    text_encoder: Any = build_text_encoder(seed)
    text_encoder.to(device)
    modules: dict[str, nn.Module] = {"transformer": model, "text_encoder": text_encoder}
    features, tokens = features.to(device), tokens.to(device)
    learner = Learner(modules, learning_rate)
    lengths = torch.tensor(SCHEDULE.lengths)
    # a coarse token decides more than a fine one, but a coarse scale has less to learn
    weights = lengths.rsqrt().repeat_interleave(lengths).to(device)
    weights = weights / weights.sum()

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        draw: Any = {"generator": on_device(generator, device), "device": device}
        index = torch.randint(len(features), (batch_size,), **draw)
        wording = torch.randint(tokens.shape[1], (batch_size,), **draw)
        ids = tokens[index, wording].long()
        dropped = torch.rand(batch_size, 1, 1, **draw) < caption_dropout

        def flip(bits: Tensor, scale: int) -> Tensor:
            share = most_flips * torch.rand(batch_size, 1, 1, **draw)
            return bits ^ (torch.rand(bits.shape, **draw) < share)

        bits, inputs, _ = quantizer.encode(features[index].float(), SCHEDULE, flip)
        mask = ids != text_encoder.config.pad_token_id
        text = text_encoder(ids, attention_mask=mask).last_hidden_state
        text = torch.where(dropped, model.uncond_text(text.shape[1]), text)
        logits = model(model.condition(text, mask), inputs, SCHEDULE)  # short rows: float32 is the faster
        gap = logits.diff(dim=-1).squeeze(-1)
        error = F.binary_cross_entropy_with_logits(gap, bits.float(), reduction="none").mean((0, 2))
        loss = (error * weights).sum()
        norm = learner.learn(loss, warm_then_decay(progress))
        scales = {f"scale{k}": e.mean() for k, e in enumerate(error.split(SCHEDULE.lengths))}
        return {"loss": loss, "norm": norm, **scales}

    train("var", work_dir, budget, learner.parts, step, seed, stop_after=stop_after)
    return model, text_encoder, learner.average
