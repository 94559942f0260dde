"""The playground's two tokenizers of images: of several scales, and of one.

Both quantise the latents of the flow's autoencoder, which stays as it is, between two small transformers.
The first (multi-scale binary quantisation; Han et al. 2024) learns to draw every prefix of its scales, so
that coarse scales say what the image will be; the second has one grid of binary codes (Yu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from transformers import CLIPModel

from tts_vision.pipelines.latent_coder import LatentCoder
from tts_vision.pipelines.playground import weights_path
from tts_vision.pipelines.playground.train_vae import reconstruction_loss
from tts_vision.pipelines.playground.training import (
    Bank,
    Budget,
    Stateful,
    build_optimisers,
    descend,
    on_device,
    parts_of,
    set_learning_rate,
    train,
    warm_then_decay,
)
from tts_vision.pipelines.tokens.latent_tokenizer import LatentTokenizer, LatentTokenizerConfig
from tts_vision.pipelines.var.bsq import resized
from tts_vision.pipelines.var.latent_vae import LatentBSQVAE, LatentBSQVAEConfig
from tts_vision.pipelines.var.schedules import Schedule

# Few tokens learn fast. A size may come twice: the second time corrects what the first got wrong.
SCHEDULE = Schedule(((1, 1), (2, 2), (3, 3), (3, 3), (4, 4), (4, 4)), (4, 4))
GRID, BITS = (8, 8), 9
POLISH_FROM = 0.5  # share of the budget after which images count, not only latents
Coder = TypeVar("Coder", bound=LatentCoder)


def build_scales(autoencoder: AutoencoderTiny) -> LatentBSQVAE:
    """The untrained tokenizer of several scales around a trained autoencoder."""
    return _around(autoencoder, LatentBSQVAE, LatentBSQVAEConfig(16, (8, 8), _settings(autoencoder)))


def build_codes(autoencoder: AutoencoderTiny) -> LatentTokenizer:
    """The untrained tokenizer of one scale around a trained autoencoder."""
    return _around(autoencoder, LatentTokenizer, LatentTokenizerConfig(BITS, GRID, _settings(autoencoder)))


def quantised_scales(coder: LatentBSQVAE, features: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the first `scales` scales of features, with gradients straight through each sign.

    Args:
        coder: Its quantiser is used.
        features: ``(B, C, H, W)``.
        scales: ``(B,)``, how many scales each row keeps.

    Returns:
        The sums of these and of all scales, each ``(B, C, H, W)``.
    """
    quantizer = coder.quantizer
    rest, kept, whole = features, torch.zeros_like(features), torch.zeros_like(features)
    for k, grid in enumerate(SCHEDULE.grids):
        pooled = F.interpolate(rest, quantizer.size(grid), mode="area")
        code = quantizer.codes(quantizer.tokens(pooled) > 0, grid)
        code = resized(pooled + (code - pooled).detach(), features.shape[-2:])
        whole, rest = whole + code, rest - code
        kept = torch.where((scales > k)[:, None, None, None], whole, kept)
    return kept, whole


def train_scales(
    work_dir: Path, bank: Bank, latents: Tensor, autoencoder: AutoencoderTiny, budget: Budget, **how: Any
) -> LatentBSQVAE:
    """Trains the tokenizer of several scales; three of four images are drawn from some first scales only."""

    def quantise(coder: LatentBSQVAE, z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        features = coder.features(z)
        draw: Any = {"generator": generator, "device": z.device}
        scales = torch.randint(1, len(SCHEDULE) + 1, (len(z),), **draw)
        scales = torch.where(torch.rand(len(z), **draw) < 0.75, scales, len(SCHEDULE))
        kept, whole = quantised_scales(coder, features, scales)
        return features, kept, (features - whole.detach()).square().mean()

    return _train_coder("scales", build_scales, quantise, work_dir, bank, latents, autoencoder, budget, **how)


def train_codes(
    work_dir: Path, bank: Bank, latents: Tensor, autoencoder: AutoencoderTiny, budget: Budget, **how: Any
) -> LatentTokenizer:
    """Trains the tokenizer of one scale; some tokens are replaced at random, as a generator will err."""

    def quantise(
        coder: LatentTokenizer, z: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        features = coder.features(z)
        signs = torch.where(features > 0, 1.0, -1.0)
        commitment = (features - signs).square().mean()
        shape = (len(z), 1, *coder.grid)
        draw: Any = {"generator": generator, "device": z.device}
        share = 0.1 * torch.rand(len(z), 1, 1, 1, **draw)
        wrong = torch.rand(shape, **draw) < share
        other = torch.randint(0, 2, features.shape, **draw).to(z) * 2 - 1
        taken = torch.where(wrong, other, signs)
        return features, features + (taken - features).detach(), commitment

    return _train_coder("codes", build_codes, quantise, work_dir, bank, latents, autoencoder, budget, **how)


def load_coder(name: str, work_dir: Path, autoencoder: AutoencoderTiny) -> Any:
    """A tokenizer as its stage left it: ``scales`` or ``codes``."""
    coder = {"scales": build_scales, "codes": build_codes}[name](autoencoder)
    saved = parts_of(work_dir, name)
    coder.encoder.load_state_dict(saved["encoder"])
    coder.decoder.load_state_dict(saved["decoder"])
    return coder.eval()


def _train_coder(
    name: str,
    build: Callable[[AutoencoderTiny], Coder],
    quantise: Callable[[Coder, Tensor, torch.Generator], tuple[Tensor, Tensor, Tensor]],
    work_dir: Path,
    bank: Bank,
    latents: Tensor,
    autoencoder: AutoencoderTiny,
    budget: Budget,
    device: str = "cpu",
    seed: int = 5,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    drawn_share: float = 0.1,
    stop_after: int | None = None,
) -> Coder:
    """Trains encoder and decoder of a tokenizer.

    First on latents alone; quantisation sets in early and by and by. From `POLISH_FROM` on some images of
    each step are also drawn by the autoencoder and compared as images and as states of a perceptual network.

    Args:
        name: Of the stage.
        build: Makes the tokenizer.
        quantise: Features, quantised features with straight-through gradients, and the commitment loss.
        work_dir: Where the checkpoint lies.
        bank: Training images.
        latents: Their scaled latents ``(n, 4, 8, 8)``.
        autoencoder: Trained, and left as it is.
        budget: How long to train.
        device: Where to train.
        seed: Seed of weights and batches.
        batch_size: Images a step.
        learning_rate: See `build_optimisers`.
        drawn_share: Share of the images of a step that are drawn.
        stop_after: See `training.train`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        coder = build(autoencoder).to(device)
    modules: dict[str, nn.Module] = {"encoder": coder.encoder, "decoder": coder.decoder}
    optimisers = build_optimisers(modules, learning_rate)
    parameters = [p for module in modules.values() for p in module.parameters()]
    perceptual = CLIPModel.from_pretrained(weights_path("clip"), dtype=torch.float32).vision_model.eval()
    perceptual.to(device).requires_grad_(False)
    latents, drawn_images = latents.to(device), max(1, int(drawn_share * batch_size))

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        rate = warm_then_decay(progress)
        set_learning_rate(list(optimisers.values()), rate if progress < POLISH_FROM else 0.5 * rate)
        draw: Any = {"generator": on_device(generator, device), "device": device}
        index = torch.randint(len(latents), (batch_size,), **draw)
        z = latents[index].float()
        # narrow rows: float32 is the faster
        features, taken, commitment = quantise(coder, z, draw["generator"])
        share = min(1.0, max(0.0, (progress - 0.03) / 0.15))
        plain = torch.rand(batch_size, **draw) >= share
        taken = torch.where(plain[:, None, None, None], features, taken)
        drawn = coder.drawn(taken)
        error = drawn - z
        polishing = progress >= POLISH_FROM
        loss = error.square().mean() + 0.5 * error.abs().mean()
        loss = 0.5 * loss + commitment if polishing else loss + 0.25 * commitment
        losses = {"latent": error[~plain].square().mean().nan_to_num(), "commitment": commitment}
        if polishing:
            x = bank.batch(index[:drawn_images]).to(device)
            image = coder.pixels(drawn[:drawn_images])
            seen = _perceptual_error(perceptual, image, x)
            loss = loss + reconstruction_loss(image, x) + 0.5 * seen
            losses |= {"pixels": (image - x).square().mean(), "perceptual": seen}
        norm = descend(loss, parameters, optimisers.values())
        return {"loss": loss, "norm": norm, **losses}

    parts: dict[str, Stateful] = {**modules, **optimisers}
    train(name, work_dir, budget, parts, step, seed, stop_after=stop_after)
    return coder.eval()


def _perceptual_error(model: Any, drawn: Tensor, true: Tensor) -> Tensor:
    """Mean squared distance of the normalised states of two layers."""
    ours = model(pixel_values=drawn, output_hidden_states=True).hidden_states
    with torch.no_grad():
        wanted = model(pixel_values=true, output_hidden_states=True).hidden_states
    pairs = [
        (F.layer_norm(ours[k], ours[k].shape[-1:]), F.layer_norm(wanted[k], wanted[k].shape[-1:]))
        for k in (2, 4)
    ]
    return torch.stack([F.mse_loss(a, b) for a, b in pairs]).mean()


def _settings(autoencoder: AutoencoderTiny) -> dict[str, Any]:
    derived = {"block_out_channels"}
    return {k: v for k, v in autoencoder.config.items() if not k.startswith("_") and k not in derived}


def _around(autoencoder: AutoencoderTiny, kind: Callable[[Any], Coder], config: Any) -> Coder:
    coder = kind(config)
    coder.autoencoder.load_state_dict(autoencoder.state_dict())
    return coder
