"""Trains `playground-video` and its motion judge: `python -m tts_vision.pipelines.playground.train_video`.

The video model starts from the bundled image model and learns chunks of drawn clips, each behind the one
before it (rectified flow, Liu et al. 2022). The motion judge learns from drawn clips with right and wrong
captions, and from the model's own clips with the exact checker's verdicts; its probabilities are calibrated
on clips of the model that it did not learn from. All stages resume from the work folder.

The defaults are for two cores and two hours; on an accelerator give `--device cuda`, more `--workers` and
larger batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from tts_vision.pipelines.playground import motion, motion_checker, video
from tts_vision.pipelines.playground.motion import CHUNK, CHUNKS, FRAMES, MOTIONS, Actor, MotionSpec
from tts_vision.pipelines.playground.quiet import quietly
from tts_vision.pipelines.playground.training import (
    Average,
    Budget,
    Stateful,
    build_optimisers,
    descend,
    log,
    on_device,
    save_atomically,
    set_learning_rate,
    train,
    warm_then_decay,
)
from tts_vision.pipelines.playground.video_judge import (
    MotionJudge,
    MotionJudgeConfig,
    pixels_of,
    save_judge,
    token_ids,
)
from tts_vision.pipelines.playground.world import COLOURS, SHAPES

STAGES = ("bank", "video", "own", "judge")
DEFAULTS = {"num_inference_steps": 10, "guidance_scale": 2.0}
WORDINGS_PER_CHUNK = 2
TEXTS_PER_CLIP = 4
CHANGING = 0.2  # share of clips whose motions change at the beginning of a chunk
_PIECE = 125  # clips that a worker draws at a time
_LOSSES_EVERY = 10  # steps; reading one waits for the device

Result = TypeVar("Result")


def in_workers(workers: int, work: Callable[..., Result], *arguments: Sequence[Any]) -> Iterator[Result]:
    """`map` over processes, with few results waiting at a time; in this process for one worker."""
    if workers < 2:
        yield from map(work, *arguments)
        return
    calls = list(zip(*arguments))
    with ProcessPoolExecutor(workers) as pool:
        for start in range(0, len(calls), 2 * workers):
            yield from pool.map(work, *zip(*calls[start : start + 2 * workers]))


# ------------------------------------------------------------------------------------------ the bank of clips


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


def _drawn(seed: int, count: int) -> tuple[np.ndarray, list[str]]:
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
        piece = min(_PIECE, clips)
        seeds = [seed * 1_000_003 + i for i in range(-(-clips // piece))]
        vae, latents, tokens = None, [], []
        for frames, texts in in_workers(workers, _drawn, seeds, [piece] * len(seeds)):
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
    for part in pixels.split(500):
        x = part.float().div_(127.5).sub_(1.0).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            z = vae.encode(x).latents
        parts.append((z.float() * vae.config.scaling_factor).half())
    return torch.cat(parts).unflatten(0, (-1, CHUNKS, CHUNK)).transpose(2, 3).cpu()


# ------------------------------------------------------------------------------------------- the video model


def build_network(seed: int, start: Path | None = None) -> video.VideoNetwork:
    """The network at the beginning of its training: the bundled image model, inflated, or an exported one.

    The modulations by time stay those of the image model, which they are shared with.

    Args:
        seed: Seed of the embeddings of new words.
        start: Folder of an exported model.
    """
    with quietly():
        network = video.load_network(start)[0] if start else video.inflated(*video.load_image_model(), seed)
    network.text_encoder.requires_grad_(True)
    for name, parameter in network.transformer.named_parameters():
        parameter.requires_grad_("norm1.linear" not in name)
    return network


def train_video(
    work_dir: Path,
    bank: ClipBank,
    budget: Budget,
    device: str = "cpu",
    seed: int = 11,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    caption_dropout: float = 0.1,
    first_share: float = 0.35,
    history_noise: float = 0.3,
    compiled: bool = False,
    start: Path | None = None,
    stop_after: int | None = None,
) -> tuple[video.VideoNetwork, Average]:
    """Trains transformer and text encoder on single chunks.

    Args:
        work_dir: Where the checkpoint lies.
        bank: The clips.
        budget: How long to train.
        device: Where to train; the bank is kept there.
        seed: Seed of new weights and batches.
        batch_size: Chunks a step.
        learning_rate: See `training.build_optimisers`.
        caption_dropout: Share of captions replaced by the empty one.
        first_share: Share of first chunks.
        history_noise: Most noise that is added to the chunk before, so that faults do not add up.
        compiled: Compile both models.
        start: Folder of an exported model to start from; the bundled image model by default.
        stop_after: See `training.train`.

    Returns:
        The network and its averaged weights.
    """
    network = build_network(seed, start)
    modules = network.modules()
    for module in modules.values():
        module.to(device).train()
    optimisers = build_optimisers(modules, learning_rate)
    average = Average(modules)
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    transformer: Any = network.transformer
    text_encoder: Any = network.text_encoder
    if compiled:
        transformer, text_encoder = torch.compile(transformer), torch.compile(text_encoder)
    latents = bank.latents.to(device).flatten(0, 1)
    tokens = bank.tokens.to(device).flatten(0, 1)
    empty = video.token_ids([""]).to(device)
    positions = video.rotary(network.transformer, device)
    latest, steps = {"loss": torch.zeros(()), "first": torch.zeros(()), "norm": torch.zeros(())}, 0

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal steps
        set_learning_rate(list(optimisers.values()), warm_then_decay(progress, warm=0.02, decay_from=0.5))
        # one number a step from the generator of the checkpoint: the device draws the rest
        random = on_device(generator, device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(batch_size, *shape, generator=random, device=device)

        later = 1 + (uniform() * (CHUNKS - 1)).long()
        number = torch.where(uniform() < first_share, 0, later)
        index = CHUNKS * (uniform() * (len(latents) // CHUNKS)).long() + number
        begun = (number > 0).float()
        wording = (uniform() * tokens.shape[1]).long()
        ids = torch.where(uniform(1) < caption_dropout, empty, tokens[index, wording].long())
        clean, previous = latents[index].float(), latents[(index - 1).clamp(min=0)].float()

        def noise() -> Tensor:
            return torch.randn(clean.shape, generator=random, device=device)

        previous = previous + history_noise * uniform(1, 1, 1, 1) * noise()
        target = noise() - clean
        time = torch.randn(batch_size, generator=random, device=device).sigmoid()
        mixed = clean + time[:, None, None, None, None] * target
        with torch.autocast(device, torch.bfloat16):
            text = video.encoded(text_encoder, ids)
            strip = video.conditioned(mixed, previous, begun)
            found = video.velocity(transformer, strip, time, text, positions)
        errors = (found.float() - target).square().flatten(1).mean(1)
        loss = errors.mean()
        norm = descend(loss, parameters, optimisers.values())
        average.update()
        if steps % _LOSSES_EVERY == 0:
            first = (errors * (1 - begun)).sum() / (1 - begun).sum().clamp(min=1)
            values = torch.stack([loss, first, norm]).detach().cpu()
            latest.update(zip(latest, values))
        steps += 1
        return latest

    parts: dict[str, Stateful] = {**modules, **optimisers, "average": average}
    train("video", work_dir, budget, parts, step, seed, stop_after=stop_after)
    return network, average


def trained_network(work_dir: Path) -> video.VideoNetwork:
    """The averaged network of a checkpoint, rounded as it is exported."""
    network = build_network(0)
    average = Average(network.modules())
    average.load_state_dict(_checkpoint(work_dir, "video")["average"])
    for name, module in network.modules().items():
        average.copy_to(name, module)
        module.half().float().eval().requires_grad_(False)
    return network


def _checkpoint(work_dir: Path, name: str) -> dict[str, Any]:
    return torch.load(work_dir / f"{name}.pt", map_location="cpu", weights_only=True)["parts"]


# ------------------------------------------------------------------------------------------ the judge's data


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


def _drawn_for_judge(seed: int, count: int) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
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
            plain = MotionSpec(tuple(Actor(a.shape, a.colour) for a in each.actors))
            each = plain if rng.random() < 0.08 else each
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
        piece = min(_PIECE, count)
        seeds = [seed * 1_000_003 + i for i in range(-(-count // piece))]
        made = list(in_workers(workers, _drawn_for_judge, seeds, [piece] * len(seeds)))
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
    batch_size: int = 500,
) -> JudgeClips:
    """The model's own clips for training prompts, four of each, made once and kept in the work folder.

    Half of them are drawn with the settings of a plain call, half with fewer steps and weaker guidance.

    Args:
        work_dir: Where they are kept.
        network: The trained network.
        count: How many clips.
        seed: Seed of prompts and noise.
        workers: Processes that check.
        device: Where to draw.
        batch_size: Clips drawn at once.
    """
    path = work_dir / "judge_own.pt"
    if not path.exists():
        rng = np.random.default_rng(seed)
        each = min(4, count)
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


# --------------------------------------------------------------------------------------- training the judge


class Shown(nn.Module):
    """An output that only training uses: colour and motion of each shape in each chunk.

    Args:
        width: Of the video tower.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (len(COLOURS) + 1, len(MOTIONS) + 1)
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, len(SHAPES) * sum(self.sizes))
        )

    def loss(self, seen: Tensor, shown: Tensor) -> Tensor:
        """Cross-entropy of what is known.

        Args:
            seen: States of the cells, `(b, cells, width)`.
            shown: See `JudgeClips`.
        """
        pooled = seen.unflatten(1, (CHUNKS, -1)).mean(2)
        logits = self.layers(pooled).float().unflatten(-1, (len(SHAPES), -1)).split(self.sizes, -1)
        aims = shown.long().unbind(-1)
        known = (shown >= 0).sum().clamp(min=1) / 2
        losses = [
            F.cross_entropy(x.flatten(0, -2), aim.flatten(), ignore_index=-1, reduction="sum") / known
            for x, aim in zip(logits, aims)
        ]
        return losses[0] + losses[1]


def train_judge(
    work_dir: Path,
    drawn: JudgeClips,
    own: JudgeClips,
    budget: Budget,
    config: MotionJudgeConfig | None = None,
    device: str = "cpu",
    seed: int = 13,
    batch_size: int = 16,
    own_share: float = 0.4,
    learning_rate: float = 1e-3,
    stop_after: int | None = None,
) -> tuple[MotionJudge, Average]:
    """Trains the judge on drawn clips and on those of the model.

    Args:
        work_dir: Where the checkpoint lies.
        drawn: Drawn clips.
        own: The model's clips.
        budget: How long to train.
        config: Architecture.
        device: Where to train; the clips are kept there.
        seed: Seed of weights and batches.
        batch_size: Clips a step, each with all of its captions.
        own_share: Share of the model's clips after the first fifth of the training, which has half of it.
        learning_rate: Peak rate of AdamW, see `training.build_optimisers`.
        stop_after: See `training.train`.

    Returns:
        The judge and its averaged weights.
    """
    judge, heads = build_judge(config or MotionJudgeConfig(), seed)
    modules: dict[str, nn.Module] = {"judge": judge.to(device).train(), "heads": heads.to(device)}
    optimisers = build_optimisers(modules, learning_rate)
    parameters = [p for module in modules.values() for p in module.parameters()]
    average = Average({"judge": judge}, decay=0.995)
    sets = [JudgeClips(*(x.to(device) for x in vars(each).values())) for each in (drawn, own)]
    latest, steps = {k: torch.zeros(()) for k in ("verdict", "shown", "accuracy", "asked")}, 0

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal steps
        set_learning_rate(list(optimisers.values()), warm_then_decay(progress, warm=0.03, decay_from=0.4))
        random = on_device(generator, device)
        count = max(1, round((own_share if progress > 0.2 else own_share / 2) * batch_size))
        batch = JudgeClips.joined(
            [
                each[torch.randint(len(each.frames), (n,), generator=random, device=device)]
                for each, n in zip(sets, (batch_size - count, count))
            ]
        )
        frames = pixels_of(batch.frames)
        dim = torch.rand(batch_size, 2, 1, 1, 1, 1, generator=random, device=device)
        frames = frames + 0.1 * (dim[:, 0] - 0.5)
        frames = frames + 0.08 * dim[:, 1] * torch.randn(frames.shape, generator=random, device=device)
        with torch.autocast(device, torch.bfloat16):
            seen = judge.seen(frames)
            b, k = batch.tokens.shape[:2]
            chunks = torch.arange(1, CHUNKS + 1, device=device).repeat(b * k)
            texts = batch.tokens.long().flatten(0, 1).repeat_interleave(CHUNKS, 0)
            logits = judge.said(seen.repeat_interleave(k * CHUNKS, 0), texts, chunks).float()
            shown = heads.loss(seen, batch.shown)
        right = batch.right.flatten().float()
        verdict = F.binary_cross_entropy_with_logits(logits, right)
        descend(verdict + shown, parameters, optimisers.values())
        average.update()
        if steps % _LOSSES_EVERY == 0:
            hits = ((logits > 0) == (right > 0.5)).float()
            asked = hits.view(b, k, CHUNKS)[-count:, 0].mean()
            latest.update(zip(latest, torch.stack([verdict, shown, hits.mean(), asked]).detach().cpu()))
        steps += 1
        return latest

    parts: dict[str, Stateful] = {**modules, **optimisers, "average": average}
    train("motion_judge", work_dir, budget, parts, step, seed, stop_after=stop_after)
    return judge, average


def build_judge(config: MotionJudgeConfig, seed: int) -> tuple[MotionJudge, Shown]:
    """An untrained judge and the output that only training uses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MotionJudge(config), Shown(config.width)


@torch.no_grad()
def calibrate(judge: MotionJudge, clips: JudgeClips, device: str) -> tuple[float, float]:
    """Fits slope and offset of the logit to the captions that clips were drawn for (Platt 1999).

    Args:
        judge: The judge, in float32; its last layer takes both in.
        clips: Clips of the model that training did not see.
        device: Where to judge.

    Returns:
        Slope and offset.
    """
    judge.to(device)
    found = []
    for at in torch.arange(len(clips.frames)).split(50):
        part = clips[at]
        logits = judge(pixels_of(part.frames.to(device)), part.tokens[:, :1].long().to(device))
        found.append(logits[:, 0].cpu())
    judge.to("cpu")
    logit, right = torch.cat(found).flatten().double(), clips.right[:, 0].flatten().double()
    centre, spread = logit.mean(), logit.std().clamp(min=1e-6)
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(line[0] * (logit - centre) / spread + line[1], right)
        (loss + 1e-4 * line.square().sum()).backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    slope = float(line[0].detach() / spread)
    offset = float(line[1].detach() - slope * centre)
    judge.verdict.weight.mul_(slope)
    judge.verdict.bias.mul_(slope).add_(offset)
    return slope, offset


def _parted(own: JudgeClips) -> tuple[JudgeClips, JudgeClips]:
    """Clips to learn from, and the last tenth, whole prompts, to calibrate on."""
    cut = max(len(own.frames) * 9 // 10 // 4 * 4, 1)
    return own[slice(0, cut)], own[slice(min(cut, len(own.frames) - 1), None)]


# --------------------------------------------------------------------------------------------------- the runs


def export_video(work_dir: Path, output: Path) -> None:
    """Writes the trained video model to `video` of a folder."""
    network = trained_network(work_dir)
    with quietly():
        image, _ = video.load_image_model()
    video.save_network(network, output / "video", DEFAULTS, image)
    _log_size(work_dir, output / "video")


def export_judge(
    work_dir: Path, output: Path, unseen: JudgeClips, config: MotionJudgeConfig, device: str
) -> None:
    """Writes the trained judge, calibrated, to `motion_judge` of a folder."""
    judge, _ = build_judge(config, 0)
    average = Average({"judge": judge})
    average.load_state_dict(_checkpoint(work_dir, "motion_judge")["average"])
    average.copy_to("judge", judge)
    slope, offset = calibrate(judge.eval(), unseen, device)
    log(work_dir, f"judge: slope {slope:.2f}, offset {offset:.2f}")
    save_judge(judge, output / "motion_judge")
    _log_size(work_dir, output / "motion_judge")


def _log_size(work_dir: Path, folder: Path) -> None:
    log(work_dir, f"export: {folder}, {sum(file.stat().st_size for file in folder.iterdir())} bytes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen stages.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--work-dir", type=Path, default=Path("video_train"), help="data, checkpoints, log")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("weights"))
    parser.add_argument("--start", type=Path, help="exported video model to start from: weights/video")
    parser.add_argument("--minutes", type=float, default=75.0, help="of training the video model")
    parser.add_argument("--minutes-judge", type=float, default=30.0, help="of training the judge")
    parser.add_argument("--steps", type=int, help="train each by this many steps, not by the clock")
    parser.add_argument("--clips", type=int, default=20_000, help="drawn clips to train the model on")
    parser.add_argument("--first-share", type=float, default=0.35, help="share of first chunks in a step")
    parser.add_argument("--judge-clips", type=int, default=4_000, help="drawn clips to train the judge on")
    parser.add_argument("--own", type=int, default=1_500, help="clips of the model to train the judge on")
    parser.add_argument("--batch-size", type=int, default=64, help="chunks a step of the video model")
    parser.add_argument("--batch-size-judge", type=int, default=16, help="clips a step of the judge")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw and check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the video model")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    work_dir: Path = options.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    stages = STAGES if options.stage == "all" else (options.stage,)
    device, workers, seed = options.device, options.workers, options.seed
    config = MotionJudgeConfig()
    if {"bank", "video"} & set(stages):
        bank = load_bank(work_dir, options.clips, seed, workers, device)
    if "judge" in stages:
        drawn = load_drawn(work_dir, options.judge_clips, seed + 1, workers)
    if "video" in stages:
        train_video(
            work_dir,
            bank,
            Budget(options.minutes, options.steps),
            device=device,
            seed=seed + 11,
            batch_size=options.batch_size,
            first_share=options.first_share,
            compiled=options.compile,
            start=options.start,
        )
        export_video(work_dir, options.output)
    if {"own", "judge"} & set(stages):
        network, _ = video.load_network(options.output / "video")
        own, unseen = _parted(load_own(work_dir, network, options.own, seed + 12, workers, device))
    if "judge" in stages:
        train_judge(
            work_dir,
            drawn,
            own,
            Budget(options.minutes_judge, options.steps),
            config,
            device=device,
            seed=seed + 13,
            batch_size=options.batch_size_judge,
        )
        export_judge(work_dir, options.output, unseen, config, device)


if __name__ == "__main__":
    main()
