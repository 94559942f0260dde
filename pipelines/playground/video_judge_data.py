"""Clips that the playground's motion judge learns from: drawn ones, and the video model's own."""

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
from tts_vision.pipelines.playground.video_bank import PIECE
from tts_vision.pipelines.playground.video_judge import token_ids
from tts_vision.pipelines.playground.world import COLOURS, SHAPES

TEXTS_PER_CLIP = 4
OWN_CLIPS = 4  # of the model's clips, those of a prompt


@dataclass(frozen=True)
class JudgeClips:
    """Clips with captions that are right for some of their first chunks.

    Attributes:
        frames: uint8 `(n, 16, 64, 64, 3)`.
        tokens: Captions, uint8 `(n, k, 21)`; of the model's clips the first is that which was asked for.
        right: Whether each caption is right for the first 1, 2, 3, 4 chunks, bool `(n, k, 4)`.
        shown: What each chunk shows of each shape: colour, then motion, counted from 1, 0 if there is none,
            -1 if not known; int8 `(n, 4, 7, 2)`.
    """

    frames: Tensor
    tokens: Tensor
    right: Tensor
    shown: Tensor

    def __getitem__(self, index: Tensor | slice) -> JudgeClips:
        return JudgeClips(self.frames[index], self.tokens[index], self.right[index], self.shown[index])

    @staticmethod
    def joined(parts: Sequence[JudgeClips]) -> JudgeClips:
        """All clips of some sets."""
        fields = ("frames", "tokens", "right", "shown")
        return JudgeClips(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


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


def _shows(spec: MotionSpec, chunk: MotionSpec) -> bool:
    """Whether a drawn chunk shows what a caption asks."""
    drawn = {(a.shape, a.colour): a.motion for a in chunk.actors}
    return len(spec.actors) == len(drawn) and all(
        (a.shape, a.colour) in drawn and a.motion in (None, drawn[a.shape, a.colour]) for a in spec.actors
    )


def _shown(specs: Sequence[MotionSpec]) -> np.ndarray:
    shown = np.zeros((CHUNKS, len(SHAPES), 2), np.int8)
    for chunk, spec in enumerate(specs):
        for actor in spec.actors:
            shape = SHAPES.index(actor.shape)
            value = (list(COLOURS).index(actor.colour) + 1, MOTIONS.index(str(actor.motion)) + 1)
            shown[chunk, shape] = -1 if shown[chunk, shape].any() else value
    return shown


def drawn_with_captions(seed: int, count: int) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
    """Drawn clips, half of which change at the beginning of a chunk; captions, verdicts and `shown`."""
    rng = np.random.default_rng(seed)
    clips, texts, right, shown = [], [], [], []
    for _ in range(count):
        spec = motion.sample_training_spec(rng)
        turn = int(rng.integers(1, CHUNKS)) if rng.random() < 0.5 else CHUNKS
        later = altered(rng, spec)
        specs = [spec] * turn + [later] * (CHUNKS - turn)
        clips.append(motion.sample_changing_clip(rng, specs))
        asked = [spec, altered(rng, spec), altered(rng, spec), later if turn < CHUNKS else altered(rng, spec)]
        for each in asked:
            each = each.objects if rng.random() < 0.08 else each
            texts.append(motion.sample_caption(rng, each, still_life=0.0))
            right.append(np.logical_and.accumulate([_shows(each, chunk) for chunk in specs]))
        shown.append(_shown(specs))
    verdicts = np.stack(right).reshape(count, TEXTS_PER_CLIP, CHUNKS)
    return motion.render_batch(clips), texts, verdicts, np.stack(shown)


def _labelled(seed: int, frames: np.ndarray, prompts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Captions of the model's clips, that which was asked for first, with the exact checker's verdicts."""
    rng = np.random.default_rng(seed)
    texts, right = [], []
    for clip, prompt in zip(frames, prompts):
        spec, seen = motion.parse_spec(prompt), motion_checker.observe(clip)
        for each in [spec, *(altered(rng, spec) for _ in range(TEXTS_PER_CLIP - 1))]:
            texts.append(motion.sample_caption(rng, each, still_life=0.0))
            verdict = motion_checker.judge(seen, each)
            right.append([verdict.holds_until(chunk) for chunk in range(CHUNKS)])
    return texts, np.array(right, bool).reshape(-1, TEXTS_PER_CLIP, CHUNKS)


def load_drawn(work_dir: Path, count: int, seed: int, workers: int) -> JudgeClips:
    """Drawn clips for the judge, made once and kept in the work folder."""
    path = work_dir / "judge_drawn.pt"
    if not path.exists():
        piece = min(PIECE, count)
        seeds = [seed * 1_000_003 + i for i in range(-(-count // piece))]
        made = list(in_workers(workers, drawn_with_captions, seeds, [piece] * len(seeds)))
        frames, texts, right, shown = zip(*made)
        _keep(path, np.concatenate(frames), list(chain(*texts)), np.concatenate(right), np.concatenate(shown))
        log(work_dir, f"judge: drew {len(seeds) * piece} clips")
    return JudgeClips(**torch.load(path, weights_only=True))


def load_own(
    work_dir: Path,
    network: video.VideoNetwork,
    count: int,
    seed: int,
    workers: int,
    device: str,
    name: str = "judge_own",
    batch_size: int = 500,
) -> JudgeClips:
    """The model's own clips for training prompts, `OWN_CLIPS` of each, made once and kept in the work folder.

    Half of them are drawn with the settings of a plain call, half with fewer steps and weaker guidance.

    Args:
        work_dir: Where they are kept.
        network: The trained network.
        count: How many clips.
        seed: Seed of prompts and noise.
        workers: Processes that check.
        device: Where to draw.
        name: Of the file.
        batch_size: Clips drawn at once.
    """
    path = work_dir / f"{name}.pt"
    if not path.exists():
        rng = np.random.default_rng(seed)
        each = min(OWN_CLIPS, count)
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
        labelled = in_workers(
            workers,
            _labelled,
            [seed + 1 + piece.start for piece in pieces],
            [pixels[piece] for piece in pieces],
            [prompts[piece] for piece in pieces],
        )
        texts, right = zip(*labelled)
        verdicts = np.concatenate(right)
        _keep(
            path,
            pixels,
            list(chain(*texts)),
            verdicts,
            np.full((len(pixels), CHUNKS, len(SHAPES), 2), -1, np.int8),
        )
        shares = " ".join(f"{share:.1%}" for share in verdicts[:, 0].mean(0))
        log(work_dir, f"judge: {len(pixels)} clips of the model, right up to each chunk: {shares}")
    return JudgeClips(**torch.load(path, weights_only=True))


def _keep(path: Path, frames: np.ndarray, texts: list[str], right: np.ndarray, shown: np.ndarray) -> None:
    tokens = token_ids(texts).to(torch.uint8).view(len(frames), TEXTS_PER_CLIP, -1)
    arrays = {"frames": frames, "right": right, "shown": shown}
    save_atomically(
        path, {"tokens": tokens} | {key: torch.from_numpy(value) for key, value in arrays.items()}
    )


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
