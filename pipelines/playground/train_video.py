"""Trains `playground-video` and its motion judge: `python -m tts_vision.pipelines.playground.train_video`.

The video model starts from the bundled image model and learns chunks of drawn clips, each behind the one
before it (rectified flow, Liu et al. 2022). The motion judge learns from the model's own clips with the exact
checker's verdicts; its answers and those of the judge of images are weighed on clips that it did not learn
from. All stages resume from the work folder.

The defaults are for two cores and two hours; on an accelerator give `--device cuda`, more `--workers` and
larger batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tts_vision.pipelines.playground import video
from tts_vision.pipelines.playground.motion import CHUNKS
from tts_vision.pipelines.playground.quiet import quietly
from tts_vision.pipelines.playground.train_motion_judge import train_judge
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
from tts_vision.pipelines.playground.training_options import chosen_stages, training_parser
from tts_vision.pipelines.playground.video_bank import ClipBank, load_bank
from tts_vision.pipelines.playground.video_judge_data import load_own

STAGES = ("bank", "video", "own", "judge")
DEFAULTS = {"num_inference_steps": 10, "guidance_scale": 2.0}


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
    learner = Learner(modules, learning_rate)
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
        norm = learner.learn(loss, warm_then_decay(progress, warm=0.02, decay_from=0.5))
        if steps % LOSSES_EVERY == 0:
            first = (errors * (1 - begun)).sum() / (1 - begun).sum().clamp(min=1)
            values = torch.stack([loss, first, norm]).detach().cpu()
            latest.update(zip(latest, values))
        steps += 1
        return latest

    train("video", work_dir, budget, learner.parts, step, seed, stop_after=stop_after)
    return network, learner.average


def trained_network(work_dir: Path) -> video.VideoNetwork:
    """The averaged network of a checkpoint, rounded as it is exported."""
    network = build_network(0)
    average = Average(network.modules())
    average.load_state_dict(parts_of(work_dir, "video")["average"])
    for name, module in network.modules().items():
        average.copy_to(name, module)
        module.half().float().eval().requires_grad_(False)
    return network


def export_video(work_dir: Path, output: Path) -> None:
    """Writes the trained video model to `video` of a folder."""
    network = trained_network(work_dir)
    with quietly():
        image, _ = video.load_image_model()
    video.save_network(network, output / "video", DEFAULTS, image)
    log(work_dir, f"export: {output / 'video'}, {folder_size(output / 'video')} bytes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen stages.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = training_parser(__doc__, STAGES, "video_train", 0)
    parser.add_argument("--start", type=Path, help="exported video model to start from: weights/video")
    parser.add_argument("--minutes", type=float, default=75.0, help="of training the video model")
    parser.add_argument("--clips", type=int, default=20_000, help="drawn clips to train the model on")
    parser.add_argument("--first-share", type=float, default=0.35, help="share of first chunks in a step")
    parser.add_argument("--own", type=int, default=800, help="clips of the model to train the judge on")
    parser.add_argument("--unseen", type=int, default=800, help="clips to weigh and measure the judge on")
    parser.add_argument("--batch-size", type=int, default=64, help="chunks a step of the video model")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw and check")
    parser.add_argument("--compile", action="store_true", help="compile the video model")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    work_dir: Path = options.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    stages = chosen_stages(options, STAGES)
    device, workers, seed = options.device, options.workers, options.seed
    if {"bank", "video"} & set(stages):
        bank = load_bank(work_dir, options.clips, seed, workers, device)
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
        own = load_own(work_dir, "judge_own", network, options.own, seed + 12, workers, device)
        unseen = load_own(work_dir, "judge_unseen", network, options.unseen, seed + 14, workers, device)
    if "judge" in stages:
        train_judge(work_dir, options.output, own, unseen, seed + 13)


if __name__ == "__main__":
    main()
