"""Training of the playground's motion judge, a stage of `train_video`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tts_vision.pipelines.playground.motion import CHUNKS, MOTIONS
from tts_vision.pipelines.playground.platt import fitted_line
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
from tts_vision.pipelines.playground.video_judge import MotionJudge, MotionJudgeConfig, pixels_of, save_judge
from tts_vision.pipelines.playground.video_judge_data import JudgeClips
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
    """Logits of the captions that clips were drawn for, up to each chunk, `(n, 4)`.

    Args:
        judge: The judge, in float32.
        clips: Clips of the model.
        device: Where to judge.
    """
    judge.to(device)
    found = []
    for at in torch.arange(len(clips.frames)).split(50):
        part = clips[at]
        logits = judge(pixels_of(part.frames.to(device)), part.tokens[:, :1].long().to(device))
        found.append(logits[:, 0].cpu())
    judge.to("cpu")
    return torch.cat(found)


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
    logits = answers(judge, clips, device)
    slope, offset = fitted_line(logits.flatten(), clips.right[:, 0].flatten(), penalty=1e-4)
    judge.verdict.weight.mul_(slope)
    judge.verdict.bias.mul_(slope).add_(offset)
    return slope, offset


def areas(judge: MotionJudge, clips: JudgeClips, device: str) -> list[float]:
    """Area under the curve of right against wrong clips, up to each chunk; NaN where all are alike."""
    from sklearn.metrics import roc_auc_score

    found = zip(clips.right[:, 0].T.numpy(), answers(judge, clips, device).T.numpy())
    return [roc_auc_score(right, logits) if 0 < right.mean() < 1 else math.nan for right, logits in found]


def export_judge(
    work_dir: Path, output: Path, unseen: JudgeClips, config: MotionJudgeConfig, device: str
) -> None:
    """Writes the trained judge, calibrated, to `motion_judge` of a folder."""
    judge, _ = build_judge(config, 0)
    average = Average({"judge": judge})
    average.load_state_dict(parts_of(work_dir, "motion_judge")["average"])
    average.copy_to("judge", judge)
    slope, offset = calibrate(judge.eval(), unseen, device)
    shown = ", ".join(f"{area:.2f}" for area in areas(judge, unseen, device))
    log(work_dir, f"judge: slope {slope:.2f}, offset {offset:.2f}")
    log(work_dir, f"judge: area under the curve on {len(unseen.frames)} unseen clips, by chunk: {shown}")
    save_judge(judge, output / "motion_judge")
    log(work_dir, f"export: {output / 'motion_judge'}, {folder_size(output / 'motion_judge')} bytes")
