"""The autoencoder of the playground: 64x64 pixels to 8x8x4 latents near zero mean and unit spread."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from tts_vision.pipelines.playground.training import (
    Bank,
    Budget,
    descend,
    log,
    set_learning_rate,
    train,
    warm_then_decay,
)

LATENT_CHANNELS = 4


def build_vae(width: int = 48) -> AutoencoderTiny:
    """An untrained autoencoder.

    The blocks sit at the coarse levels, where they are cheap; full resolution has plain convolutions only.

    Args:
        width: Channels of every level (the class wants one number).

    Returns:
        The model.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(5, 3, 2, 0),
        latent_channels=LATENT_CHANNELS,
    )


def reconstruction_loss(drawn: Tensor, target: Tensor) -> Tensor:
    """Pixel and edge error; the edge part is what keeps outlines sharp.

    Args:
        drawn: Decoded images, shape `(b, 3, h, w)`.
        target: True images, same shape.

    Returns:
        A scalar.
    """
    error = drawn - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.square().mean() + 0.5 * error.abs().mean() + 0.5 * edges


def train_vae(
    work_dir: Path,
    bank: Bank,
    budget: Budget,
    device: str = "cpu",
    seed: int = 1,
    width: int = 48,
    batch_size: int = 32,
    learning_rate: float = 1.5e-3,
    latent_noise: float = 0.1,
    stop_after: int | None = None,
) -> AutoencoderTiny:
    """Trains the autoencoder, or loads it when its budget is spent.

    Args:
        work_dir: Where the checkpoint lies.
        bank: Training images.
        budget: How long to train.
        device: Where to train.
        seed: Seed of weights and batches.
        width: Channels of the model.
        batch_size: Images a step.
        learning_rate: Peak rate of AdamW.
        latent_noise: Spread of the noise on latents, which teaches the decoder to bear imprecise ones.
        stop_after: See `training.train`.

    Returns:
        The model, with `scaling_factor` set so that scaled latents have unit spread.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = build_vae(width)
    vae = vae.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    for group in optimiser.param_groups:
        group["base_lr"] = learning_rate

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        set_learning_rate([optimiser], warm_then_decay(progress, decay_from=0.4))
        index = torch.randint(len(bank.images), (batch_size,), generator=generator)
        x = bank.batch(index).to(device, memory_format=torch.channels_last)
        noise = torch.randn(batch_size, LATENT_CHANNELS, 8, 8, generator=generator).to(device)
        with torch.autocast(device, torch.bfloat16):
            z = vae.encode(x).latents.float()
            drawn = vae.decode(z + latent_noise * noise).sample.float()
        loss = reconstruction_loss(drawn, x)
        spread, mean = torch.std_mean(z, dim=(0, 2, 3))
        tidy = mean.square().mean() + spread.log().square().mean()
        descend(loss + 0.05 * tidy, vae.parameters(), [optimiser])
        return {"loss": loss, "mse": (drawn - x).square().mean(), "tidy": tidy}

    train("vae", work_dir, budget, {"vae": vae, "optimiser": optimiser}, step, seed, stop_after=stop_after)
    vae.eval()
    with torch.no_grad():
        z = vae.encode(bank.batch(torch.arange(min(2048, len(bank.images)))).to(device)).latents
    vae.register_to_config(scaling_factor=round(1 / float(z.std()), 4))
    vae.scaling_factor = vae.config.scaling_factor
    spread, mean = torch.std_mean(z, dim=(0, 2, 3))
    log(
        work_dir,
        f"vae: latent means {mean.tolist()}, spreads {spread.tolist()}, {vae.config.scaling_factor=}",
    )
    return vae


def sharpen_decoder(
    work_dir: Path,
    bank: Bank,
    latents: Tensor,
    vae: AutoencoderTiny,
    budget: Budget,
    device: str = "cpu",
    seed: int = 4,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    latent_noise: float = 0.25,
    stop_after: int | None = None,
) -> AutoencoderTiny:
    """Trains the decoder further on fixed latents, so that a flow trained on them stays valid.

    Args:
        work_dir: Where the checkpoint lies.
        bank: Training images.
        latents: Their scaled latents, shape `(n, 4, 8, 8)`.
        vae: The trained autoencoder; its decoder is changed in place.
        budget: How long to train.
        device: Where to train.
        seed: Seed of the batches.
        batch_size: Images a step.
        learning_rate: Peak rate of AdamW.
        latent_noise: Largest spread of the noise on latents; each image draws its own below it.
        stop_after: See `training.train`.

    Returns:
        The same model.
    """
    decoder = vae.decoder.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(
        decoder.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
    )
    for group in optimiser.param_groups:
        group["base_lr"] = learning_rate
    scale = vae.config.scaling_factor

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        set_learning_rate([optimiser], warm_then_decay(progress, warm=0.03, decay_from=0.1))
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        z = latents[index].float()
        spread = latent_noise * torch.rand(batch_size, 1, 1, 1, generator=generator)
        z = (z + spread * torch.randn(z.shape, generator=generator)) / scale
        x = bank.batch(index).to(device, memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            drawn = decoder(z.to(device, memory_format=torch.channels_last)).float()
        loss = reconstruction_loss(drawn, x)
        descend(loss, decoder.parameters(), [optimiser])
        return {"loss": loss, "mse": (drawn - x).square().mean()}

    parts = {"decoder": decoder, "optimiser": optimiser}
    train("decoder", work_dir, budget, parts, step, seed, stop_after=stop_after)
    return vae.eval()
