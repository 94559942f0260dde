"""The playground's visual autoregressive model: Infinity's tokenizer and transformer, small.

The tokenizer is a convolutional autoencoder with multi-scale binary spherical quantisation (Zhao et al.
2024); the transformer predicts the bits of a scale from all coarser ones and learns to correct wrong ones
(Han et al. 2024). Muon for the hidden matrices (Jordan et al. 2024) and AdamW for the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from tts_vision.pipelines.playground.tokenizer import MAX_TOKENS, build_tokenizer
from tts_vision.pipelines.playground.train_vae import reconstruction_loss
from tts_vision.pipelines.playground.training import (
    CAPTIONS_PER_SCENE,
    Average,
    Bank,
    Budget,
    Stateful,
    build_optimisers,
    log,
    save_atomically,
    set_learning_rate,
    train,
    warm_then_decay,
)
from tts_vision.pipelines.var.bsq_vae import BSQVAE, BSQVAEConfig
from tts_vision.pipelines.var.infinity import Infinity, InfinityConfig, initialise
from tts_vision.pipelines.var.pipeline import InfinityPipeline
from tts_vision.pipelines.var.schedules import Schedule

# Few tokens learn fast. A size may come twice: the second time corrects what the first got wrong.
SCHEDULE = Schedule(((1, 1), (2, 2), (3, 3), (3, 3), (4, 4), (4, 4)), (4, 4))
VAE = BSQVAEConfig(
    channels=16, patch=2, width=16, multipliers=(1, 2, 4, 8), groups=8, encoder_blocks=1, decoder_blocks=1
)
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


def train_tokenizer(
    work_dir: Path,
    bank: Bank,
    budget: Budget,
    device: str = "cpu",
    seed: int = 5,
    batch_size: int = 16,
    learning_rate: float = 1.5e-3,
    cut_off: float = 0.15,
    unquantised: float = 0.3,
    stop_after: int | None = None,
) -> BSQVAE:
    """Trains the tokenizer, or loads it when its budget is spent.

    Args:
        work_dir: Where the checkpoint lies.
        bank: Training images.
        budget: How long to train.
        device: Where to train.
        seed: Seed of weights and batches.
        batch_size: Images a step.
        learning_rate: Peak rate of AdamW.
        cut_off: Share of images that are decoded from their first scales alone, so that previews are good.
        unquantised: Share of the budget over which quantisation sets in, by and by: colours are learnt late
            where features are binary from the start.
        stop_after: See `training.train`.

    Returns:
        The model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae: Any = BSQVAE(VAE)
    vae = vae.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    for group in optimiser.param_groups:
        group["base_lr"] = learning_rate
    starts = torch.tensor(SCHEDULE.starts)

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        set_learning_rate([optimiser], warm_then_decay(progress, decay_from=0.4))
        index = torch.randint(len(bank.images), (batch_size,), generator=generator)
        x = bank.batch(index).to(device, memory_format=torch.channels_last)
        features = vae.encode(x)
        with torch.no_grad():
            bits, _, whole = vae.quantizer.encode(features, SCHEDULE)
            scales = torch.randint(1, len(SCHEDULE), (batch_size,), generator=generator)
            cut = torch.rand(batch_size, generator=generator) < cut_off
            scales = torch.where(cut, scales, len(SCHEDULE))
            partial = _summed(vae, bits, starts[scales].to(device)) if bool(cut.any()) else whole
        share = min(1.0, max(0.0, progress / unquantised - 0.5))
        plain = torch.rand(batch_size, generator=generator) >= share
        cut = cut & ~plain
        read = torch.where(plain.to(device)[:, None, None, None], features, partial)
        drawn = vae.decoder(features + (read - features).detach())  # straight through
        commitment = (features - whole).square().mean()
        loss = reconstruction_loss(drawn[~cut], x[~cut]) + 0.3 * cut_off * _pixel_error(drawn, x, cut)
        optimiser.zero_grad(set_to_none=True)
        (loss + 0.25 * commitment).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        mse = _pixel_error(drawn, x, ~cut & ~plain)
        return {"loss": loss, "mse": mse, "commitment": commitment}

    parts = {"vae": vae, "optimiser": optimiser}
    train("tokenizer", work_dir, budget, parts, step, seed, stop_after=stop_after)
    return vae.eval()


def load_tokenizer(work_dir: Path) -> BSQVAE:
    """The tokenizer as its stage left it."""
    vae = BSQVAE(VAE)
    saved = torch.load(work_dir / "tokenizer.pt", map_location="cpu", weights_only=True)
    vae.load_state_dict(saved["parts"]["vae"])
    return vae.eval()


def trained(work_dir: Path) -> InfinityPipeline:
    """The pipeline of what the stages left, with averaged weights."""
    saved = torch.load(work_dir / "var.pt", map_location="cpu", weights_only=True)["parts"]
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
        vae=load_tokenizer(work_dir),
        text_encoder=text_encoder,
        tokenizer=build_tokenizer("right"),
        schedule=SCHEDULE,
        defaults=DEFAULTS,
        name="playground-var",
    )


def _summed(vae: BSQVAE, bits: Tensor, tokens: Tensor) -> Tensor:
    """The features ``(B, C, H, W)`` of each image's first `tokens` tokens."""
    features = vae.quantizer.empty(len(bits), SCHEDULE).to(bits.device)
    for k, grid in enumerate(SCHEDULE.grids):
        more = vae.quantizer.added(features, bits[:, SCHEDULE.starts[k] : SCHEDULE.starts[k + 1]], grid)
        features = torch.where((tokens > SCHEDULE.starts[k])[:, None, None, None], more, features)
    return features


def _pixel_error(drawn: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
    """Mean squared error of chosen images; zero if there are none."""
    return (drawn[chosen] - target[chosen]).square().sum() / max(1, drawn[chosen].numel())


@torch.no_grad()
def encode_bank(work_dir: Path, bank: Bank, vae: BSQVAE, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Features and token ids of the whole bank, made once and kept in the work folder.

    Returns:
        Features, float16 `(n, 16, 8, 8)`, and right-padded token ids, uint8 `(n, captions, 16)`.
    """
    path = work_dir / "var_features.pt"
    if not path.exists():
        chunks = []
        for index in torch.arange(len(bank.images)).split(500):
            x = bank.batch(index).to(device, memory_format=torch.channels_last)
            with torch.autocast(device, torch.bfloat16):
                chunks.append(vae.encode(x).half().cpu())
        tokenizer = build_tokenizer("right")
        texts = [text for texts in bank.captions for text in texts]
        ids = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
        tokens = ids.to(torch.uint8).view(len(bank.captions), CAPTIONS_PER_SCENE, MAX_TOKENS)
        save_atomically(path, {"features": torch.cat(chunks), "tokens": tokens})
        log(work_dir, f"var: encoded {len(tokens)} images")
    saved = torch.load(path, weights_only=True)
    return saved["features"], saved["tokens"]


def train_var(
    work_dir: Path,
    features: Tensor,
    tokens: Tensor,
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
    optimisers = build_optimisers(modules, learning_rate)
    average = Average(modules)
    parameters = [p for module in modules.values() for p in module.parameters()]
    quantizer = BSQVAE(VAE).quantizer
    lengths = torch.tensor(SCHEDULE.lengths)
    # a coarse token decides more than a fine one, but a coarse scale has less to learn
    weights = lengths.rsqrt().repeat_interleave(lengths).to(device)
    weights = weights / weights.sum()

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        set_learning_rate(list(optimisers.values()), warm_then_decay(progress))
        index = torch.randint(len(features), (batch_size,), generator=generator)
        wording = torch.randint(tokens.shape[1], (batch_size,), generator=generator)
        ids = tokens[index, wording].long().to(device)
        dropped = (torch.rand(batch_size, 1, 1, generator=generator) < caption_dropout).to(device)

        def flip(bits: Tensor, scale: int) -> Tensor:
            share = most_flips * torch.rand(batch_size, 1, 1, generator=generator)
            return bits ^ (torch.rand(bits.shape, generator=generator) < share)

        bits, inputs, _ = quantizer.encode(features[index].float(), SCHEDULE, flip)
        bits, inputs = bits.to(device), inputs.to(device)
        mask = ids != text_encoder.config.pad_token_id
        text = text_encoder(ids, attention_mask=mask).last_hidden_state
        text = torch.where(dropped, model.uncond_text(text.shape[1]), text)
        logits = model(model.condition(text, mask), inputs, SCHEDULE)  # short rows: float32 is the faster
        gap = logits.diff(dim=-1).squeeze(-1)
        error = F.binary_cross_entropy_with_logits(gap, bits.float(), reduction="none").mean((0, 2))
        loss = (error * weights).sum()
        for optimiser in optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers.values():
            optimiser.step()
        average.update()
        scales = {f"scale{k}": e.mean() for k, e in enumerate(error.split(SCHEDULE.lengths))}
        return {"loss": loss, "norm": norm, **scales}

    parts: dict[str, Stateful] = {**modules, **optimisers, "average": average}
    train("var", work_dir, budget, parts, step, seed, stop_after=stop_after)
    return model, text_encoder, average
