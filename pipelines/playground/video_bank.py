"""Clips that the playground's video model learns from: drawn, encoded, and kept in the work folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from tts_vision.pipelines.playground import motion, video
from tts_vision.pipelines.playground.motion import CHUNK, CHUNKS, MOTIONS, Actor, MotionSpec
from tts_vision.pipelines.playground.training import in_workers, log, save_atomically

WORDINGS_PER_CHUNK = 2
CHANGING = 0.2  # share of clips whose motions change at the beginning of a chunk
PIECE = 125  # clips that a worker draws at a time


@dataclass(frozen=True)
class ClipBank:
    """Encoded clips with their captions.

    Attributes:
        latents: Scaled latents of the chunks, float16 `(n, 4, 4, 4, 8, 8)`: clip, chunk, channel, frame.
        tokens: Captions of each chunk, uint8 `(n, 4, wordings, 20)`.
    """

    latents: Tensor
    tokens: Tensor


def changing_specs(rng: np.random.Generator, spec: MotionSpec) -> list[MotionSpec]:
    """Specs of the chunks of a clip whose motions change at the beginning of a later chunk."""
    while True:
        actors = tuple(Actor(a.shape, a.colour, MOTIONS[rng.integers(len(MOTIONS))]) for a in spec.actors)
        if not motion.is_held_out(later := MotionSpec(actors)):
            turn = int(rng.integers(1, CHUNKS))
            return [spec] * turn + [later] * (CHUNKS - turn)


def drawn_clips(seed: int, count: int) -> tuple[np.ndarray, list[str]]:
    """Clips uint8 `(count, 16, 64, 64, 3)`, and the captions of their chunks, one after the other."""
    rng = np.random.default_rng(seed)
    clips, captions = [], []
    for _ in range(count):
        spec = motion.sample_training_spec(rng)
        specs = changing_specs(rng, spec) if rng.random() < CHANGING else [spec] * CHUNKS
        clips.append(motion.sample_changing_clip(rng, specs))
        captions += [motion.sample_caption(rng, each) for each in specs for _ in range(WORDINGS_PER_CHUNK)]
    return motion.render_batch(clips), captions


@torch.no_grad()
def load_bank(work_dir: Path, clips: int, seed: int, workers: int, device: str) -> ClipBank:
    """Draws and encodes the clips to train on, once, and keeps them in the work folder.

    Args:
        work_dir: Where they are kept.
        clips: How many, rounded up to whole pieces.
        seed: Seed of the drawing.
        workers: Processes that draw.
        device: Where to encode.
    """
    path = work_dir / "video_bank.pt"
    if not path.exists():
        piece = min(PIECE, clips)
        seeds = [seed * 1_000_003 + i for i in range(-(-clips // piece))]
        vae, latents, tokens = None, [], []
        for frames, texts in in_workers(workers, drawn_clips, seeds, [piece] * len(seeds)):
            vae = vae or video.load_autoencoder().to(device)  # after the processes were forked
            latents.append(_encoded(vae, frames, device))
            tokens.append(words_of(texts).view(piece, CHUNKS, WORDINGS_PER_CHUNK, -1))
        save_atomically(path, {"latents": torch.cat(latents), "tokens": torch.cat(tokens)})
        log(work_dir, f"video: drew and encoded {len(seeds) * piece} clips")
    saved = torch.load(path, weights_only=True)
    return ClipBank(saved["latents"], saved["tokens"])


def words_of(texts: Sequence[str]) -> Tensor:
    """`video.token_ids` of captions in lower case and without marks, as uint8, many times faster."""
    tokenizer = video.build_motion_tokenizer()
    numbers, end = tokenizer.get_vocab(), tokenizer.eos_token_id
    ids = np.full((len(texts), video.MAX_TOKENS), tokenizer.pad_token_id, np.uint8)
    for row, text in zip(ids, texts):
        words = [*(numbers[word] for word in text.split()), end]
        row[-len(words) :] = words
    return torch.from_numpy(ids)


def _encoded(vae: AutoencoderTiny, frames: np.ndarray, device: str) -> Tensor:
    """Latents of clips as `ClipBank` has them, on the CPU."""
    pixels = torch.from_numpy(frames).to(device).flatten(0, 1).permute(0, 3, 1, 2)
    parts = []
    for part in pixels.split(32 if device == "cpu" else 500):  # what stays in its cache: 1.7 times as fast
        x = part.float().div_(127.5).sub_(1.0).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            z = vae.encode(x).latents
        parts.append((z.float() * vae.config.scaling_factor).half())
    return torch.cat(parts).unflatten(0, (-1, CHUNKS, CHUNK)).transpose(2, 3).cpu()
