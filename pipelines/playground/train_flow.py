"""The text-to-image flow of the playground: a CogView4 transformer on 16 latent tokens, with its own text
encoder.

Rectified flow (Liu et al. 2022) with logit-normal times (Esser et al. 2024), dropped captions for
classifier-free guidance (Ho & Salimans 2022), Muon for the hidden matrices (Jordan et al. 2024) and AdamW
for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn
from transformers import GlmConfig, GlmModel

from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.tokenizer import MAX_TOKENS, build_tokenizer
from tts_vision.pipelines.playground.train_vae import LATENT_CHANNELS
from tts_vision.pipelines.playground.training import (
    CAPTIONS_PER_SCENE,
    Average,
    Bank,
    Budget,
    Learner,
    log,
    save_atomically,
    train,
    warm_then_decay,
)

LATENT_SIZE = 8


@dataclass(frozen=True)
class FlowSize:
    """Architecture of the flow.

    Attributes:
        heads: Attention heads of the transformer, 32 channels each.
        layers: Blocks of the transformer.
        time_dim: Width of the time embedding that modulates each block.
        text_dim: Width of the text encoder.
        text_layers: Layers of the text encoder; the pipeline reads the last but one, so one is idle.
    """

    heads: int = 8
    layers: int = 6
    time_dim: int = 128
    text_dim: int = 128
    text_layers: int = 4


def build_flow(size: FlowSize, seed: int) -> tuple[CogView4Transformer2DModel, GlmModel]:
    """An untrained transformer and text encoder.

    Modulations, gates and the output start at zero, so that each block starts as the identity.

    Args:
        size: Architecture.
        seed: Seed of the weights.

    Returns:
        Both models.
    """
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = CogView4Transformer2DModel(
            patch_size=2,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=size.layers,
            attention_head_dim=32,
            num_attention_heads=size.heads,
            text_embed_dim=size.text_dim,
            time_embed_dim=size.time_dim,
            condition_dim=32,
            sample_size=LATENT_SIZE,
        )
        text_encoder = GlmModel(
            GlmConfig(
                vocab_size=len(tokenizer),
                hidden_size=size.text_dim,
                intermediate_size=2 * size.text_dim,
                num_hidden_layers=size.text_layers,
                num_attention_heads=4,
                num_key_value_heads=4,
                head_dim=size.text_dim // 4,
                max_position_embeddings=1024,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                use_cache=False,
            )
        )
        nn.init.normal_(text_encoder.embed_tokens.weight, std=0.5)
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
    for layer in (transformer.norm_out.linear, transformer.proj_out, transformer.patch_embed.text_proj):
        nn.init.zeros_(layer.bias)
    for layer in (transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(layer.weight)
    return transformer, text_encoder


@torch.no_grad()
def encode_bank(
    work_dir: Path, bank: Bank, vae: AutoencoderTiny, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Latents and token ids of the whole bank, made once and kept in the work folder.

    Args:
        work_dir: Where they are kept.
        bank: The images.
        vae: The trained autoencoder.
        device: Where to encode.

    Returns:
        Scaled latents, float16 `(n, 4, 8, 8)`, and left-padded token ids, uint8 `(n, captions, 16)`.
    """
    path = work_dir / "latents.pt"
    if not path.exists():
        chunks = []
        for index in torch.arange(len(bank.images)).split(500):
            x = bank.batch(index).to(device, memory_format=torch.channels_last)
            with torch.autocast(device, torch.bfloat16):
                z = vae.encode(x).latents
            chunks.append((z.float() * vae.config.scaling_factor).half().cpu())
        ids = bank.token_ids("left")
        tokens = ids.to(torch.uint8).view(len(bank.captions), CAPTIONS_PER_SCENE, MAX_TOKENS)
        save_atomically(path, {"latents": torch.cat(chunks), "tokens": tokens})
        log(work_dir, f"flow: encoded {len(tokens)} images")
    saved = torch.load(path, weights_only=True)
    return saved["latents"], saved["tokens"]


def train_flow(
    work_dir: Path,
    latents: Tensor,
    tokens: Tensor,
    budget: Budget,
    size: FlowSize | None = None,
    device: str = "cpu",
    seed: int = 2,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    caption_dropout: float = 0.1,
    compiled: bool = False,
    stop_after: int | None = None,
) -> tuple[CogView4Transformer2DModel, GlmModel, Average]:
    """Trains transformer and text encoder together.

    Args:
        work_dir: Where the checkpoint lies.
        latents: Scaled latents, shape `(n, 4, 8, 8)`.
        tokens: Token ids, shape `(n, captions, 16)`.
        budget: How long to train.
        size: Architecture.
        device: Where to train.
        seed: Seed of weights and batches.
        batch_size: Images a step.
        learning_rate: See `build_optimisers`.
        caption_dropout: Share of captions replaced by the empty one.
        compiled: Compile the transformer, which needs a C++ compiler.
        stop_after: See `training.train`.

    Returns:
        The two models and their averaged weights.
    """
    transformer, text_encoder = build_flow(size or FlowSize(), seed)
    modules: dict[str, nn.Module] = {"transformer": transformer, "text_encoder": text_encoder}
    for module in modules.values():
        module.to(device)
    learner = Learner(modules, learning_rate)
    empty = build_tokenizer()("", padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    predict = torch.compile(transformer) if compiled else transformer

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        wording = torch.randint(tokens.shape[1], (batch_size,), generator=generator)
        ids = tokens[index, wording].long()
        dropped = torch.rand(batch_size, 1, generator=generator) < caption_dropout
        ids = torch.where(dropped, empty, ids).to(device)
        clean = latents[index].float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        time = torch.randn(batch_size, generator=generator).sigmoid().to(device)
        mixed = clean + time[:, None, None, None] * (noise - clean)
        with torch.autocast(device, torch.bfloat16):
            text = text_encoder(ids, output_hidden_states=True).hidden_states[-2]
            velocity = predict(
                mixed, text, 1000 * time, *_size_conditions(batch_size, device), return_dict=False
            )[0]
        loss = (velocity.float() - (noise - clean)).square().mean()
        norm = learner.learn(loss, warm_then_decay(progress))
        return {"loss": loss, "norm": norm}

    train(
        "flow",
        work_dir,
        budget,
        learner.parts,
        step,
        seed,
        stop_after=stop_after,
    )
    return transformer, text_encoder, learner.average


def _size_conditions(batch_size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """CogView4's original size, target size and crop corner, as its pipeline passes them: each `(b, 2)`."""
    whole = torch.full((batch_size, 2), float(world.SIZE), device=device)
    return whole, whole, torch.zeros_like(whole)


def build_pipeline(
    transformer: CogView4Transformer2DModel, text_encoder: GlmModel, vae: AutoencoderTiny
) -> CogView4Pipeline:
    """Puts the trained parts into a diffusers pipeline.

    Args:
        transformer: The flow.
        text_encoder: Its text encoder.
        vae: The autoencoder.

    Returns:
        The pipeline; its scheduler walks the times that training saw, without shifting them.
    """
    return CogView4Pipeline(
        tokenizer=build_tokenizer(),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
    )
