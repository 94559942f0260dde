"""Clips that the playground's motion judge learns from: the model's own, with the checker's verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from tts_vision.pipelines.playground import motion, motion_checker, video
from tts_vision.pipelines.playground.motion import CHUNK, CHUNKS, FRAMES, MOTIONS, Actor, MotionSpec
from tts_vision.pipelines.playground.training import in_workers, log, save_atomically
from tts_vision.pipelines.playground.world import COLOURS, SHAPES

CLIPS_PER_PROMPT = 4
TEXTS_PER_CLIP = 4
"""That which was asked for, the same without motions, and two with one thing wrong."""


@dataclass(frozen=True)
class OwnClips:
    """Clips of the model with captions that are right for some of their first chunks.

    Attributes:
        frames: uint8 `(n, 16, 64, 64, 3)`, those of a prompt after one another.
        texts: Captions, `TEXTS_PER_CLIP` of each clip.
        right: Whether each caption is right for the first 1, 2, 3, 4 chunks, bool `(n, k, 4)`.
    """

    frames: Tensor
    texts: list[list[str]]
    right: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, part: slice) -> OwnClips:
        return OwnClips(self.frames[part], self.texts[part], self.right[part])

    def captioned(self, captions: int = TEXTS_PER_CLIP) -> list[tuple[Tensor, str]]:
        """Each clip with each of its first captions."""
        return [(clip, text) for clip, texts in zip(self.frames, self.texts) for text in texts[:captions]]


def altered(rng: np.random.Generator, spec: MotionSpec) -> MotionSpec:
    """A training spec with one thing wrong: shape, colour, motion, or those of two objects exchanged."""
    while True:
        actors = list(spec.actors)
        k = int(rng.integers(len(actors)))
        shape, colour, way = actors[k].shape, actors[k].colour, actors[k].motion
        kind = rng.integers(5 if len(actors) == 2 else 3)
        if kind == 0:
            shape = SHAPES[rng.integers(len(SHAPES))]
        elif kind == 1:
            colour = list(COLOURS)[rng.integers(len(COLOURS))]
        elif kind == 2:
            way = MOTIONS[rng.integers(len(MOTIONS))]
        else:
            other = actors[1 - k]
            actors[1 - k] = Actor(
                other.shape, *((colour, other.motion) if kind == 3 else (other.colour, way))
            )
            colour, way = (other.colour, way) if kind == 3 else (colour, other.motion)
        actors[k] = Actor(shape, colour, way)
        changed = MotionSpec(tuple(actors))
        apart = len({(a.shape, a.colour) for a in actors}) == len(actors)
        if apart and set(actors) != set(spec.actors) and not motion.is_held_out(changed):
            return changed


def labelled(seed: int, frames: np.ndarray, prompts: Sequence[str]) -> tuple[list[list[str]], np.ndarray]:
    """Captions of clips, that which was asked for first, with the exact checker's verdicts."""
    rng = np.random.default_rng(seed)
    texts, right = [], []
    for clip, prompt in zip(frames, prompts):
        spec, seen = motion.parse_spec(prompt), motion_checker.observe(clip)
        asked = [spec, spec.objects, *(altered(rng, spec) for _ in range(TEXTS_PER_CLIP - 2))]
        texts.append([motion.caption(each) for each in asked])
        verdicts = [motion_checker.judge(seen, each) for each in asked]
        right.append([[verdict.holds_until(chunk) for chunk in range(CHUNKS)] for verdict in verdicts])
    return texts, np.array(right, bool)


def load_own(
    work_dir: Path,
    name: str,
    network: video.VideoNetwork,
    count: int,
    seed: int,
    workers: int,
    device: str,
    batch_size: int = 500,
) -> OwnClips:
    """The model's own clips for training prompts, `CLIPS_PER_PROMPT` of each, made once and kept.

    Half of them are drawn with the settings of a plain call, half with fewer steps and weaker guidance.

    Args:
        work_dir: Where they are kept.
        name: Of the file.
        network: The trained network.
        count: How many clips.
        seed: Seed of prompts and noise.
        workers: Processes that check.
        device: Where to draw.
        batch_size: Clips drawn at once.
    """
    path = work_dir / f"{name}.pt"
    if not path.exists():
        rng = np.random.default_rng(seed)
        each = min(CLIPS_PER_PROMPT, count)
        asked = [motion.caption(motion.sample_training_spec(rng)) for _ in range(-(-count // each))]
        prompts = [text for text in asked for _ in range(each)]
        vae = video.load_autoencoder().to(device)
        for module in network.modules().values():
            module.to(device)
        frames = []
        for start in range(0, len(prompts), batch_size):
            usual = start % (2 * batch_size) == 0 or len(prompts) <= batch_size
            steps, guidance = (10, 2.0) if usual else (6, 1.5)
            part = prompts[start : start + batch_size]
            frames.append(own_clips(network, vae, part, steps, guidance, seed + start).cpu().numpy())
        pixels = np.concatenate(frames)
        pieces = [slice(i, i + 50) for i in range(0, len(prompts), 50)]
        found = in_workers(
            workers,
            labelled,
            [seed + 1 + piece.start for piece in pieces],
            [pixels[piece] for piece in pieces],
            [prompts[piece] for piece in pieces],
        )
        texts, right = zip(*found)
        verdicts = np.concatenate(right)
        clips = {"frames": torch.from_numpy(pixels), "right": torch.from_numpy(verdicts)}
        save_atomically(path, {"texts": list(chain(*texts)), **clips})
        shares = " ".join(f"{share:.1%}" for share in verdicts[:, 0].mean(0))
        log(work_dir, f"{name}: {len(pixels)} clips of the model, right up to each chunk: {shares}")
    return OwnClips(**torch.load(path, weights_only=True))


@torch.no_grad()
def own_clips(
    network: video.VideoNetwork,
    vae: AutoencoderTiny,
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    seed: int,
) -> Tensor:
    """Clips of the model, in bfloat16 where that is safe: uint8 `(n, 16, 64, 64, 3)` on its device."""
    device = network.transformer.device
    guided = video.Guided(network, guidance, video.rotary(network.transformer, device))
    random = torch.Generator(device).manual_seed(seed)
    shape = (len(prompts), video.CHANNELS, CHUNK, video.SIDE, video.SIDE)
    chunks: list[Tensor] = []
    with torch.autocast(device.type, torch.bfloat16):
        texts = guided.texts(prompts)
        for _ in range(CHUNKS):
            noise = torch.randn(shape, generator=random, device=device)
            chunks.append(guided.euler(texts, noise, chunks[-1] if chunks else None, steps)[0])
    latents = torch.cat(chunks, 2).transpose(1, 2).flatten(0, 1) / vae.config.scaling_factor
    pixels = torch.cat([vae.decode(part).sample for part in latents.float().split(1000)])
    frames = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return frames.unflatten(0, (len(prompts), FRAMES))
