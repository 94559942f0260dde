"""Training of the playground's motion judge, a stage of `train_video`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tts_vision.pipelines.playground.motion import CHUNKS, MOTIONS
from tts_vision.pipelines.playground.training import (
    LOSSES_EVERY,
    Average,
    Budget,
    Learner,
    folder_size,
    log,
    on_device,
    parts_of,
    train,
    warm_then_decay,
)
from tts_vision.pipelines.playground.video import build_motion_tokenizer
from tts_vision.pipelines.playground.video_judge import (
    Blend,
    MotionJudge,
    MotionJudgeConfig,
    pixels_of,
    save_judge,
)
from tts_vision.pipelines.playground.video_judge_data import OWN_CLIPS, JudgeClips
from tts_vision.pipelines.playground.world import COLOURS, SHAPES


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
    learner = Learner(modules, learning_rate, averaged="judge", decay=0.995)
    sets = [JudgeClips(*(x.to(device) for x in vars(each).values())) for each in (drawn, own)]
    latest, steps = {k: torch.zeros(()) for k in ("verdict", "shown", "accuracy", "asked")}, 0

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal steps
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
        learner.learn(verdict + shown, warm_then_decay(progress, warm=0.03, decay_from=0.4))
        if steps % LOSSES_EVERY == 0:
            hits = ((logits > 0) == (right > 0.5)).float()
            asked = hits.view(b, k, CHUNKS)[-count:, 0].mean()
            latest.update(zip(latest, torch.stack([verdict, shown, hits.mean(), asked]).detach().cpu()))
        steps += 1
        return latest

    train("motion_judge", work_dir, budget, learner.parts, step, seed, stop_after=stop_after)
    return judge, learner.average


def build_judge(config: MotionJudgeConfig, seed: int) -> tuple[MotionJudge, Shown]:
    """An untrained judge and the output that only training uses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MotionJudge(config), Shown(config.width)


@torch.no_grad()
def answers(judge: MotionJudge, clips: JudgeClips, device: str) -> Tensor:
    """Both logits of the captions that clips were drawn for, up to each chunk, `(n, 4, 2)`.

    Args:
        judge: The judge, in float32.
        clips: Clips of the model.
        device: Where to judge.
    """
    from tts_vision.verifiers.playground_judge import PlaygroundJudge
    from tts_vision.verifiers.playground_motion_judge import two_logits

    images, judge = PlaygroundJudge(device=device), judge.to(device)
    texts = build_motion_tokenizer().batch_decode(clips.tokens[:, 0].long(), skip_special_tokens=True)
    found = [
        two_logits(judge, images, clips.frames[at], [texts[i] for i in at])
        for at in torch.arange(len(clips.frames)).split(50)
    ]
    judge.to("cpu")
    return torch.cat(found)


def fitted_blend(logits: Tensor, right: Tensor) -> Blend:
    """The logistic regression of verdicts on both logits.

    Args:
        logits: `(n, 4, 2)`.
        right: `(n, 4)`.
    """
    from sklearn.linear_model import LogisticRegression

    if right.all() or not right.any():
        return Blend(1.0, 1.0, 0.0)  # nothing to tell apart
    model = LogisticRegression(C=10.0).fit(logits.flatten(0, -2).numpy(), right.flatten().numpy())
    (motion, frame), (offset,) = model.coef_[0].tolist(), model.intercept_.tolist()
    return Blend(motion, frame, offset)


def areas(logits: Tensor, right: Tensor) -> list[float]:
    """Area under the curve of right against wrong clips, up to each chunk; NaN where all are alike.

    Args:
        logits: `(n, 4)`.
        right: `(n, 4)`.
    """
    from sklearn.metrics import roc_auc_score

    found = zip(right.T.numpy(), logits.T.numpy())
    return [roc_auc_score(each, logit) if 0 < each.mean() < 1 else math.nan for each, logit in found]


def areas_within(logits: Tensor, right: Tensor, each: int) -> list[float]:
    """The same within a prompt, mean over the prompts whose clips differ.

    Args:
        logits: `(n, 4)`, those of a prompt after one another.
        right: `(n, 4)`.
        each: Clips of a prompt.
    """
    parts = [areas(*part) for part in zip(logits.split(each), right.split(each))]
    return np.nanmean(np.array(parts), 0).tolist()


def export_judge(
    work_dir: Path, output: Path, unseen: JudgeClips, config: MotionJudgeConfig, device: str
) -> None:
    """Writes the trained judge to `motion_judge` of a folder.

    Its answers are weighed on one half of the unseen clips and measured on the other.
    """
    judge, _ = build_judge(config, 0)
    average = Average({"judge": judge})
    average.load_state_dict(parts_of(work_dir, "motion_judge")["average"])
    average.copy_to("judge", judge)
    logits, right = answers(judge.eval(), unseen, device), unseen.right[:, 0].bool()
    half = len(logits) // 2 // OWN_CLIPS * OWN_CLIPS
    blend = fitted_blend(logits[:half], right[:half])
    log(work_dir, f"judge: {blend}")
    for name, part in (("motion", logits[..., 0]), ("worst frame", logits[..., 1]), ("both", blend(logits))):
        found, within = areas(part[half:], right[half:]), areas_within(part[half:], right[half:], OWN_CLIPS)
        shown, inside = (", ".join(f"{area:.2f}" for area in each) for each in (found, within))
        log(work_dir, f"judge: area under the curve of {name}, by chunk: {shown}; within a prompt: {inside}")
    save_judge(judge, blend, output / "motion_judge")
    log(work_dir, f"export: {output / 'motion_judge'}, {folder_size(output / 'motion_judge')} bytes")
