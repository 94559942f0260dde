"""Training of the playground's motion judge, a stage of `train_video`: three minutes of one core."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tts_vision.pipelines.playground.motion import parse_spec
from tts_vision.pipelines.playground.training import folder_size, log
from tts_vision.pipelines.playground.video_judge import MotionJudge, save_judge, tracks_of
from tts_vision.pipelines.playground.video_judge_data import CLIPS_PER_PROMPT, OwnClips

BATCH, RATE, DECAY = 256, 1e-2, 0.05
LEARNT = 2  # captions of a clip that tracks can tell from others: those without a wrong shape


def fit_judge(clips: OwnClips, seed: int = 0, steps: int = 1500) -> MotionJudge:
    """Learns chances of the asked motion from soft tracks of the model's clips, by AdamW.

    Args:
        clips: Clips with verdicts.
        seed: Seed of weights and batches.
        steps: Optimiser steps.
    """
    shown, texts = zip(*clips.captioned(LEARNT))
    tracked, there = tracks_of(shown, [parse_spec(text) for text in texts])
    right = clips.right[:, :LEARNT].flatten(0, 1).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = MotionJudge()
    known = tracked.transpose(1, 2)[there]
    judge.centre.copy_(known.mean((0, 1)))
    judge.spread.copy_(known.std((0, 1)) + 1e-3)
    optimiser = torch.optim.AdamW(judge.moves.parameters(), weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(tracked), (BATCH,), generator=random)
        noise = 0.1 * judge.spread * torch.randn(tracked[batch].shape, generator=random)
        chance = judge.log_chances(tracked[batch] + noise, there[batch]).exp()
        loss = F.binary_cross_entropy(chance.clamp(1e-6, 1 - 1e-6), right[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return judge.eval().requires_grad_(False)


def weigh(judge: MotionJudge, clips: OwnClips) -> Tensor:
    """Fits the regression on both logits to verdicts on clips that the judge has not learnt from.

    Args:
        judge: The judge; its last layer takes the result in.
        clips: Clips with verdicts on all captions.

    Returns:
        Both logits, ``(n, k, 4, 2)``.
    """
    from sklearn.linear_model import LogisticRegression

    logits, right = both_logits(judge, clips), clips.right
    if right.any() and not right.all():
        model = LogisticRegression(C=10.0).fit(logits.flatten(0, -2).numpy(), right.flatten().numpy())
        judge.verdict.weight.copy_(torch.from_numpy(model.coef_))
        judge.verdict.bias.copy_(torch.from_numpy(model.intercept_))
    return logits


def both_logits(judge: MotionJudge, clips: OwnClips) -> Tensor:
    """The logits of tracks and of the worst frame for each caption of clips, `(n, k, 4, 2)`."""
    from tts_vision.verifiers.playground_judge import PlaygroundJudge
    from tts_vision.verifiers.playground_motion_judge import two_logits

    images = PlaygroundJudge(device="cpu")
    rows, found = clips.captioned(), []
    for at in range(0, len(rows), 100):
        frames, texts = zip(*rows[at : at + 100])
        found.append(two_logits(judge, images, frames, texts))
    return torch.cat(found).unflatten(0, (len(clips), -1))


def areas(logits: Tensor, right: Tensor) -> list[float]:
    """Area under the curve of right against wrong clips, up to each chunk; NaN where all are alike.

    Args:
        logits: `(n, 4)`.
        right: `(n, 4)`.
    """
    from sklearn.metrics import roc_auc_score

    found = zip(right.T.numpy(), logits.T.numpy())
    return [roc_auc_score(each, logit) if 0 < each.mean() < 1 else math.nan for each, logit in found]


def areas_within(logits: Tensor, right: Tensor, each: int = CLIPS_PER_PROMPT) -> list[float]:
    """The same within a prompt, mean over the prompts whose clips differ.

    Args:
        logits: `(n, 4)`, those of a prompt after one another.
        right: `(n, 4)`.
        each: Clips of a prompt.
    """
    parts = np.array([areas(*part) for part in zip(logits.split(each), right.split(each))])
    known = [column[~np.isnan(column)] for column in parts.T]
    return [float(column.mean()) if len(column) else math.nan for column in known]


def train_judge(
    work_dir: Path, output: Path, own: OwnClips, unseen: OwnClips, seed: int, steps: int = 1500
) -> None:
    """Fits the judge and writes it to `motion_judge` of a folder.

    Its two answers are weighed on one half of the unseen clips and measured on the other.
    """
    judge = fit_judge(own, seed, steps)
    half = len(unseen) // 2 // CLIPS_PER_PROMPT * CLIPS_PER_PROMPT or len(unseen)
    weigh(judge, unseen[:half])
    (moves, frames), (offset,) = judge.verdict.weight[0].tolist(), judge.verdict.bias.tolist()
    log(
        work_dir,
        f"judge: weights of tracks {moves:.2f}, of the worst frame {frames:.2f}, offset {offset:.2f}",
    )
    rest = unseen[half:]
    if len(rest):
        logits, right = both_logits(judge, rest)[:, 0], rest.right[:, 0]
        parts = {"tracks": logits[..., 0], "worst frame": logits[..., 1]}
        for name, part in {**parts, "both": judge(logits)}.items():
            found, within = areas(part, right), areas_within(part, right)
            shown, inside = (", ".join(f"{area:.2f}" for area in each) for each in (found, within))
            log(work_dir, f"judge: area under the curve by {name}, up to each chunk: {shown}")
            log(work_dir, f"judge: within a prompt: {inside}")
    save_judge(judge, output / "motion_judge")
    log(work_dir, f"export: {output / 'motion_judge'}, {folder_size(output / 'motion_judge')} bytes")
