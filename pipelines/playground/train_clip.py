"""The playground's CLIP: a small and fallible judge of images, in the transformers format.

Contrastive (Radford et al. 2021) on drawn images, with one altered caption of each image among the
negatives: another colour, shape, count or relation, or the colours exchanged (Yuksekgonul et al. 2023).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.tokenizer import MAX_TOKENS, build_tokenizer
from tts_vision.pipelines.playground.training import (
    Average,
    Bank,
    Budget,
    build_optimisers,
    descend,
    set_learning_rate,
    train,
    warm_then_decay,
)


def build_clip(width: int = 144, vision_layers: int = 5, text_layers: int = 3, seed: int = 3) -> CLIPModel:
    """An untrained CLIP on 8-pixel patches of 64x64 images.

    Args:
        width: Width of both towers.
        vision_layers: Layers of the image tower.
        text_layers: Layers of the text tower.
        seed: Seed of the weights.

    Returns:
        The model.
    """
    tokenizer = build_tokenizer("right")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(
            CLIPConfig(
                text_config=CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=width,
                    intermediate_size=3 * width,
                    num_hidden_layers=text_layers,
                    num_attention_heads=4,
                    max_position_embeddings=MAX_TOKENS,
                    projection_dim=96,
                    pad_token_id=tokenizer.pad_token_id,
                    bos_token_id=tokenizer.eos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                ).to_dict(),
                vision_config=CLIPVisionConfig(
                    image_size=world.SIZE,
                    patch_size=8,
                    hidden_size=width,
                    intermediate_size=3 * width,
                    num_hidden_layers=vision_layers,
                    num_attention_heads=4,
                    projection_dim=96,
                ).to_dict(),
                projection_dim=96,
            )
        )


def build_processor() -> CLIPImageProcessor:
    """The image processor that goes with the model: 64x64, pixels to [-1, 1]."""
    return CLIPImageProcessor(
        size={"shortest_edge": world.SIZE},
        crop_size={"height": world.SIZE, "width": world.SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def altered(spec: world.Spec, rng: np.random.Generator) -> world.Spec:
    """A spec that is wrong in one way.

    Args:
        spec: A true description.
        rng: Source of randomness.

    Returns:
        A description of something else.
    """
    groups, relation = list(spec.groups), spec.relation
    ways = ["shape", "count"]
    if any(group.colour for group in groups):
        ways += ["colour", "colour"]
    if relation is not None:
        ways += ["relation", "relation"]
    if len(groups) == 2 and groups[0].colour != groups[1].colour:
        ways += ["exchange", "exchange"]
    way = ways[rng.integers(len(ways))]
    k = int(rng.integers(len(groups)))
    group = groups[k]
    if way == "shape":
        others = [shape for shape in world.SHAPES if shape not in {g.shape for g in groups}]
        groups[k] = world.Group(others[rng.integers(len(others))], group.count, group.colour)
    elif way == "count":
        counts = [n for n in (1, 2, 3, 4) if n != group.count]
        groups[k] = world.Group(group.shape, counts[rng.integers(3)], group.colour)
    elif way == "colour":
        k = k if group.colour else 1 - k
        colours = [c for c in world.COLOURS if c not in {g.colour for g in groups}]
        groups[k] = world.Group(groups[k].shape, groups[k].count, colours[rng.integers(len(colours))])
    elif way == "exchange":
        a, b = groups
        groups = [world.Group(a.shape, a.count, b.colour), world.Group(b.shape, b.count, a.colour)]
    else:
        others = [r for r in world.RELATIONS if r != relation]
        relation = others[rng.integers(3)]
    return world.Spec(tuple(groups), relation)


def _soften(x: Tensor, generator: torch.Generator) -> Tensor:
    """Blurs each image by its own random amount and adds noise, as generated images are imperfect.

    Args:
        x: Images in [-1, 1], shape `(b, 3, h, w)`.
        generator: Source of randomness.

    Returns:
        Images, same shape.
    """
    amount = torch.rand(len(x), 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = (
        0.08 * torch.rand(len(x), 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
    )
    return (x + amount * (blurred - x) + noise).clamp(-1, 1)


def train_clip(
    work_dir: Path,
    bank: Bank,
    latents: Tensor,
    vae: AutoencoderTiny,
    budget: Budget,
    device: str = "cpu",
    seed: int = 3,
    width: int = 144,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    stop_after: int | None = None,
) -> tuple[CLIPModel, Average]:
    """Trains the CLIP.

    Args:
        work_dir: Where the checkpoint lies.
        bank: Training images.
        latents: Their scaled latents, shape `(n, 4, 8, 8)`.
        vae: The autoencoder; half of the images are decoded by it, from noisy latents.
        budget: How long to train.
        device: Where to train.
        seed: Seed of weights and batches.
        width: Width of both towers.
        batch_size: Images a step.
        learning_rate: See `training.build_optimisers`.
        stop_after: See `training.train`.

    Returns:
        The model and its averaged weights.
    """
    model = build_clip(width, seed=seed).train()
    nn.Module.to(model, device)
    optimisers = build_optimisers({"clip": model}, learning_rate)
    average = Average({"clip": model}, decay=0.995)
    tokenizer = build_tokenizer("right")
    scale = vae.config.scaling_factor

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        set_learning_rate(list(optimisers.values()), warm_then_decay(progress, warm=0.03, decay_from=0.3))
        index = torch.randint(len(bank.images), (batch_size,), generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        true = [bank.captions[i][rng.integers(len(bank.captions[i]))] for i in index.tolist()]
        false = [world.sample_caption(rng, altered(world.parse_spec(text), rng)) for text in true]
        x = bank.batch(index)
        half = batch_size // 2
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            z = latents[index[:half]].float()
            z = (
                z
                + 0.25
                * torch.rand(half, 1, 1, 1, generator=generator)
                * torch.randn(z.shape, generator=generator)
            ) / scale
            x[:half] = vae.decode(z.to(device)).sample.float().clamp(-1, 1).cpu()
        x = _soften(x, generator).to(device)
        words = tokenizer(true + false, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").to(
            device
        )
        with torch.autocast(device, torch.bfloat16):
            seen = model.get_image_features(pixel_values=x).pooler_output
            said = model.get_text_features(**words).pooler_output
        seen, said = F.normalize(seen.float(), dim=-1), F.normalize(said.float(), dim=-1)
        logits = model.logit_scale.exp() * seen @ said.T
        target = torch.arange(batch_size, device=device)
        # Captions repeat within a batch; an equal one is no negative.
        same = torch.tensor(np.equal.outer(np.array(true), np.array(true + false)), device=device)
        same[target, target] = False
        loss = F.cross_entropy(logits.masked_fill(same, -1e4), target)
        loss = loss + F.cross_entropy(
            logits[:, :batch_size].masked_fill(same[:, :batch_size], -1e4).T, target
        )
        descend(loss, model.parameters(), optimisers.values())
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)
        average.update()
        own = logits.diagonal()
        hard = (own > logits.diagonal(batch_size)).float().mean()
        return {"loss": loss, "batch_accuracy": (logits.argmax(1) == target).float().mean(), "pairs": hard}

    parts = {"clip": model, **optimisers, "average": average}
    train("clip", work_dir, budget, parts, step, seed, stop_after=stop_after)
    return model, average
