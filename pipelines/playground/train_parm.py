"""Trains the playground's step verifier: `python -m tts_vision.pipelines.playground.train_parm`.

Draws paths of `playground-masked` for training prompts, keeps previews, continues each several times, and
labels them by the exact checker (`step_data`): a preview is *clear* in so far as it shows the objects of the
finished images, it has *potential* in so far as these are right. Every other chunk of prompts has completed
previews instead of plain ones. Then trains `StepJudge` on them from the weights of the judge, chooses by
prompts of their own when to stop, calibrates the answers on these prompts, and exports it. All stages resume
from the work folder. With a GPU, and in 45 minutes of two cores:

    python -m tts_vision.pipelines.playground.train_parm --device cuda --workers 14
    python -m tts_vision.pipelines.playground.train_parm --prompts 4320 --continuations 0 --held-out 160 \\
        --minutes 10 --mean-with pipelines/playground/weights/parm
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipForImageTextRetrieval

from tts_vision.config import ModelOptions
from tts_vision.pipelines.playground import judge_data, weights_path, world
from tts_vision.pipelines.playground.quiet import quietly
from tts_vision.pipelines.playground.step_data import (
    StepExamples,
    draw_trees,
    forks,
    sample_prompt,
    save_labelled,
)
from tts_vision.pipelines.playground.step_judge import Answers, StepJudge
from tts_vision.pipelines.playground.tokenizer import build_tokenizer, vocabulary
from tts_vision.pipelines.playground.train_clip import build_processor
from tts_vision.pipelines.playground.train_judge import rescale, weathered
from tts_vision.pipelines.playground.training import (
    Average,
    Budget,
    Learner,
    Stateful,
    folder_size,
    log,
    on_device,
    parts_of,
    save_atomically,
    tidy,
    train,
    warm_then_decay,
)
from tts_vision.pipelines.playground.training_options import chosen_stages, training_parser

STAGES = ("draw", "train", "export")
_BEST = "best.pt"
_CHECKED = 1000  # images at once
_LEFT, _RIGHT = (vocabulary()[word] for word in ("left", "right"))


@dataclass(frozen=True)
class Amounts:
    """How many paths to draw.

    Attributes:
        prompts: Prompts.
        paths: Paths of each.
        previews: Previews of each path.
        continuations: Continuations of each preview.
        chunk: Prompts that are drawn as one batch; previews of every other batch are completed.
        evenly: Whether previews are those of the same steps of all paths, evenly spaced; else of random ones.
    """

    prompts: int
    paths: int
    previews: int
    continuations: int
    chunk: int
    evenly: bool = False


TRAINED = Amounts(prompts=6000, paths=2, previews=3, continuations=4, chunk=120)
HELD_OUT = Amounts(prompts=240, paths=8, previews=3, continuations=4, chunk=20, evenly=True)


# ------------------------------------------------------------------------------------------------- the data


def load_steps(
    work_dir: Path,
    name: str,
    amounts: Amounts,
    seed: int,
    *,
    device: str,
    dtype: Literal["float32", "bfloat16"],
    workers: int,
    barred: set[world.Spec],
) -> StepExamples:
    """Labelled steps, drawn once and kept in the work folder, chunk by chunk.

    Args:
        work_dir: The folder.
        name: Of the files.
        amounts: How many.
        seed: Of prompts and paths.
        device: Where paths are drawn.
        dtype: Of the model that draws them.
        workers: Processes that label; 1 is this one.
        barred: Prompts that are not drawn. Those that are come in.
    """
    rng = np.random.default_rng(seed)
    specs: list[world.Spec] = []
    while len(specs) < amounts.prompts:
        if (spec := sample_prompt(rng)) not in barred:
            specs.append(spec)
    barred |= set(specs)
    starts = range(0, amounts.prompts, amounts.chunk)
    paths = [work_dir / f"{name}-{i:04d}.pt" for i in starts]
    todo = [(i, path) for i, path in zip(starts, paths) if not path.exists()]
    if todo:
        pipe = _load_generator(device, dtype)
        context = multiprocessing.get_context("spawn")  # a forked process cannot use what CUDA has begun
        pool = ProcessPoolExecutor(workers, context) if workers > 1 else None
        labelled: list[Future[None]] = []
        for i, path in todo:
            some = specs[i : i + amounts.chunk]
            own = np.random.default_rng([seed, i])
            steps = int(pipe.defaults["num_inference_steps"])
            step = forks(own, len(some), amounts.paths, steps, amounts.previews)
            if amounts.evenly:
                step[:] = np.linspace(0, steps, amounts.previews + 2)[1:-1].round()
            completed = i // amounts.chunk % 2 == 1
            trees = draw_trees(pipe, some, step, amounts.continuations, int(own.integers(2**62)), completed)
            if pool is None:
                save_labelled(path, seed + i, some, trees)
            else:
                labelled.append(pool.submit(save_labelled, path, seed + i, some, trees))
        for each in labelled:
            each.result()
        if pool is not None:
            pool.shutdown()
        log(work_dir, f"parm: drew {len(specs)} prompts, {name}")
    return StepExamples.load(paths)


def _load_generator(device: str, dtype: Literal["float32", "bfloat16"]) -> Any:
    """The masked model."""
    from tts_vision.pipelines.bundled import load_playground_masked

    with quietly():
        return load_playground_masked(options=ModelOptions(device=device, dtype=dtype))


def mirrored(images: Tensor, tokens: Tensor, known: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
    """Examples seen in a mirror: left and right change places in images and captions."""

    def turned(grid: Tensor) -> Tensor:
        side = judge_data.GRID
        return grid.unflatten(1, (side, side)).flip(2).flatten(1, 2)

    swapped = torch.where(tokens == _LEFT, _RIGHT, torch.where(tokens == _RIGHT, _LEFT, tokens))
    return images.flip(2), swapped, turned(known), turned(cells)


# --------------------------------------------------------------------------------------------- the training


class Heads(nn.Module):
    """Outputs that only training uses.

    They say of each word how probably the outcome will meet it, of each token whether it is known, and
    which shape and colour is centred in each cell.

    Args:
        width: Width of both towers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hoped = nn.Linear(width, 1)
        self.known = nn.Linear(width, 1)
        self.shape = nn.Linear(width, len(world.SHAPES) + 1)
        self.colour = nn.Linear(width, len(world.COLOURS) + 1)


class Best:
    """The averaged weights with the lowest loss on prompts of their own.

    Args:
        average: The weights.
    """

    def __init__(self, average: Average) -> None:
        self.loss = math.inf
        self.shadow = {key: value.clone() for key, value in average.shadow.items()}

    def offer(self, loss: float, average: Average) -> None:
        """Takes the present average if its loss is lower."""
        if loss < self.loss:
            self.loss = loss
            self.shadow = {key: value.clone() for key, value in average.shadow.items()}

    def state_dict(self) -> dict[str, Any]:
        """What to save."""
        return {"loss": self.loss, "shadow": self.shadow}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Takes back what was saved."""
        self.loss = state_dict["loss"]
        for key, value in state_dict["shadow"].items():
            self.shadow[key].copy_(value)


def read_all(model: StepJudge, pixels: Tensor, tokens: Tensor) -> tuple[Answers, Tensor, Tensor]:
    """Answers about several captions of each image, and the states that they are read from.

    Args:
        model: The step verifier.
        pixels: Images in [-1, 1], ``(b, 3, 64, 64)``.
        tokens: Captions, ``(b, k, t)``, padded with zeros.

    Returns:
        Answers, whose fields have the axes ``(b, k)`` first; states of the words ``(b, k, t, width)``, and of
        the cells ``(b, 64, width)``.
    """
    b, k, t = tokens.shape
    seen = model.vision_model(pixel_values=pixels).last_hidden_state
    said = model.text_encoder(
        input_ids=tokens.flatten(0, 1),
        attention_mask=(tokens != 0).flatten(0, 1),
        encoder_hidden_states=seen.repeat_interleave(k, 0),
    ).last_hidden_state.view(b, k, t, -1)
    return model.read(said), said, seen[:, 1:]


def pixels_of(images: Tensor) -> Tensor:
    """Images ``(b, 64, 64, 3)`` as the model takes them: float32 in [-1, 1], ``(b, 3, 64, 64)``."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def soft_loss(logits: Tensor, share: Tensor) -> Tensor:
    """The cross-entropy of logits of no and yes ``(..., 2)`` with the probability of yes ``(...)``."""
    difference = logits.float()[..., 1] - logits.float()[..., 0]
    return F.binary_cross_entropy_with_logits(difference, share)


def train_parm(
    work_dir: Path,
    steps: StepExamples,
    held_out: StepExamples,
    budget: Budget,
    start: BlipForImageTextRetrieval,
    device: str = "cpu",
    seed: int = 11,
    batch_size: int = 256,
    captions: int = 4,
    learning_rate: float = 6e-4,
    check_every: int = 50,
    stop_after: int | None = None,
) -> tuple[StepJudge, Best]:
    """Trains the step verifier.

    Args:
        work_dir: Where the checkpoint lies.
        steps: Labelled images.
        held_out: Those of prompts that are not among them, which choose when to stop.
        budget: How long to train.
        start: The judge, whose towers and final question it starts from.
        device: Where to train.
        seed: Seed of weights and batches.
        batch_size: Images a step.
        captions: Captions of each image a step; its prompt is always one.
        learning_rate: See `training.build_optimisers`.
        check_every: Steps between two looks at `held_out`.
        stop_after: See `training.train`.

    Returns:
        The model and the best averaged weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = StepJudge(start.config).train().to(device)
        heads = Heads(start.config.get_text_config().hidden_size).to(device)
    model.load_state_dict(start.state_dict(), strict=False)
    modules: dict[str, nn.Module] = {"parm": model, "heads": heads}
    learner = Learner(modules, learning_rate, averaged="parm")
    average = learner.average
    best = Best(average)
    steps, held_out = steps.to(device), held_out.to(device)
    total, last = steps.tokens.shape[1], int(steps.step.max())
    tried = StepJudge(start.config).eval().to(device)

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        # numbers of the device follow from those of the checkpoint
        own = on_device(generator, device)
        index = torch.randint(len(steps), (batch_size,), generator=generator)
        others = torch.randperm(total - 1, generator=generator)[: captions - 1] + 1
        asked = torch.cat((torch.zeros(1, dtype=torch.long), others))
        batch = steps.taken(index.to(device))
        tokens, cells = batch.tokens[:, asked].long(), batch.cells.long()
        images, known = batch.images, batch.known
        turned = torch.rand(batch_size, generator=generator).to(device) < 0.5
        there = mirrored(images[turned], tokens[turned], known[turned], cells[turned])
        for kept, seen in zip((images, tokens, known, cells), there):
            kept[turned] = seen
        x = weathered(pixels_of(images), own)
        with torch.autocast(device, torch.bfloat16):
            answers, said, seen = read_all(model, x, tokens)
            hoped, knows = heads.hoped(said[:, 0])[..., 0], heads.known(seen)[..., 0]
            shape, colour = heads.shape(seen), heads.colour(seen)
        met, right = batch.met[:, asked], batch.right[:, asked].float()
        asks, wants, ended = met >= 0, batch.hoped >= 0, batch.step == last
        losses = {
            "final": soft_loss(answers.final, right),
            "asked": soft_loss(answers.final[ended, 0], right[ended, 0]) if ended.any() else x.new_zeros(()),
            "met": F.cross_entropy(answers.met.float()[asks], met[asks].long()),
            "clarity": soft_loss(answers.clarity[:, 0], batch.clear),
            "potential": soft_loss(answers.potential[:, 0], batch.potential),
            "hoped": F.binary_cross_entropy_with_logits(hoped.float()[wants], batch.hoped[wants]),
            "known": F.binary_cross_entropy_with_logits(knows.float(), known.float()),
            "cells": F.cross_entropy(shape.float().flatten(0, 1), cells[..., 0].flatten())
            + F.cross_entropy(colour.float().flatten(0, 1), cells[..., 1].flatten()),
        }
        weights = {"potential": 2.0, "known": 0.3}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        learner.learn(loss, warm_then_decay(progress, warm=0.03, decay_from=0.3))
        if average.updates % check_every == 0:
            check()
        return losses

    def check() -> None:
        average.copy_to("parm", tried)
        loss = held_out_loss(answers_to(tried, held_out), held_out)
        best.offer(loss, average)
        log(work_dir, f"parm: step {average.updates}, loss on other prompts {loss:.4f}, best {best.loss:.4f}")

    parts: dict[str, Stateful] = {**learner.parts, "best": best}
    if train("parm", work_dir, budget, parts, step, seed, stop_after=stop_after):
        check()
        save_atomically(work_dir / _BEST, best.state_dict())
    return model, best


@torch.no_grad()
def answers_to(model: StepJudge, steps: StepExamples) -> Answers:
    """The answers about each image and its prompt, ``(n, ...)`` float32 on its device."""
    device = steps.images.device.type
    found = []
    for rows in torch.arange(len(steps), device=device).split(_CHECKED):
        some = steps.taken(rows)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            found.append(read_all(model, pixels_of(some.images), some.tokens[:, :1].long())[0])
    return Answers(*(torch.cat(parts)[:, 0].float() for parts in zip(*found)))


def held_out_loss(answers: Answers, steps: StepExamples) -> float:
    """The loss that chooses when to stop: of the potential of previews, and of finished images."""
    ended = steps.step == steps.step.max()
    potential = soft_loss(answers.potential[~ended], steps.potential[~ended])
    return float(potential + soft_loss(answers.final[ended], steps.right[ended, 0].float()))


def correlations(values: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> list[float]:
    """Rank correlations of values with outcomes within each prompt that has both outcomes.

    Args:
        values: Of the paths of each prompt; where they are all equal the correlation is 0.
        right: Likewise, whether each ended right.
    """
    from scipy.stats import spearmanr

    pairs = [(np.asarray(v), np.asarray(r, float)) for v, r in zip(values, right)]
    return [float(spearmanr(v, r).statistic) if np.ptp(v) else 0.0 for v, r in pairs if np.ptp(r)]


def ranks(answers: Answers, steps: StepExamples, continuations: int) -> dict[int, tuple[float, float]]:
    """For each step how well the potential ranks the paths of a prompt, and how well their continuations do.

    Args:
        answers: From `answers_to`.
        steps: Images that were asked about.
        continuations: Of each preview; the share of right ones among them estimates the potential too.

    Returns:
        By number of steps done: two means of `correlations`, NaN without any; for finished images the first
        one is that of the final question, and without continuations the second one is NaN.
    """
    last = int(steps.step.max())
    yes = {False: answers.potential.diff(dim=-1)[:, 0].cpu().numpy()}
    yes[True] = answers.final.diff(dim=-1)[:, 0].cpu().numpy()
    outcome = steps.outcome.cpu().numpy().astype(float)
    others = steps.potential.cpu().numpy() * (continuations + 1) - outcome
    step, prompt = steps.step.cpu().numpy(), steps.prompt.cpu().numpy()

    def mean(values: list[np.ndarray], outcomes: list[np.ndarray]) -> float:
        own = correlations(values, outcomes)
        return float(np.mean(own)) if own else math.nan

    found = {}
    for k in np.unique(step).tolist():
        groups = [np.flatnonzero((step == k) & (prompt == p)) for p in np.unique(prompt[step == k])]
        right = [outcome[g] for g in groups]
        found[k] = (
            mean([yes[k == last][g] for g in groups], right),
            mean([others[g] for g in groups], right) if continuations and k < last else math.nan,
        )
    return found


# ----------------------------------------------------------------------------------------------- the folder


def load_judge() -> BlipForImageTextRetrieval:
    """The bundled judge in float32."""
    with quietly():
        return BlipForImageTextRetrieval.from_pretrained(weights_path("judge"), dtype=torch.float32)


def calibrate(model: StepJudge, steps: StepExamples) -> dict[str, tuple[float, float]]:
    """Fits slope and offset of each answer to prompts that training did not see (Platt 1999).

    Args:
        model: The step verifier; its heads take both in.
        steps: Their images.

    Returns:
        Slope and offset by question.
    """
    answers, ended = answers_to(model, steps), steps.step == steps.step.max()
    asked = {
        "clarity": (model.clarity_head, answers.clarity[~ended], steps.clear[~ended]),
        "potential": (model.potential_head, answers.potential[~ended], steps.potential[~ended]),
        "final": (model.itm_head, answers.final[ended], steps.right[ended, 0]),
    }
    return {
        name: rescale(head, logits.diff(dim=-1)[:, 0], share) for name, (head, logits, share) in asked.items()
    }


def export(
    work_dir: Path,
    output: Path,
    held_out: StepExamples,
    continuations: int,
    device: str,
    earlier: Path | None = None,
) -> None:
    """Writes the averaged model, calibrated, as a folder that transformers loads, in half precision.

    Args:
        work_dir: Where the best weights lie.
        output: Folder that gets `parm`.
        held_out: Images to calibrate on; how it ranks their paths is logged.
        continuations: Of each of their previews.
        device: Where to compute.
        earlier: Folder of another training from the same judge. The mean of its weights and of the last ones
            of this training is written (Wortsman et al. 2022), in place of the best ones.
    """
    model = StepJudge(load_judge().config).eval()
    average = Average({"parm": model})
    if earlier is None:
        kept = torch.load(work_dir / _BEST, map_location="cpu", weights_only=True)
    else:
        kept = parts_of(work_dir, "parm")["average"]
    average.shadow = kept["shadow"]
    average.copy_to("parm", model)
    if earlier is not None:
        with quietly():
            theirs = StepJudge.from_pretrained(earlier, dtype=torch.float32).state_dict()
        model.load_state_dict({name: (own + theirs[name]) / 2 for name, own in model.state_dict().items()})
    model, held_out = model.to(device), held_out.to(device)
    fitted = calibrate(model, held_out)
    for step, (ours, ceiling) in ranks(answers_to(model, held_out), held_out, continuations).items():
        log(work_dir, f"parm: step {step}, rank correlation {ours:.3f}, that of continuations {ceiling:.3f}")
    model.cpu().half().save_pretrained(output / "parm")
    build_tokenizer("right", opened=True).save_pretrained(output / "parm")
    build_processor().save_pretrained(output / "parm")
    tidy(output / "parm")
    size = folder_size(output / "parm")
    lines = ", ".join(f"{name} {slope:.2f} {offset:+.2f}" for name, (slope, offset) in fitted.items())
    log(work_dir, f"parm: exported, {size} bytes, slopes and offsets: {lines}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the data, trains and exports.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = training_parser(__doc__, STAGES, "parm_train", 11)
    parser.add_argument("--prompts", type=int, default=TRAINED.prompts, help="to train on")
    parser.add_argument(
        "--held-out", type=int, default=HELD_OUT.prompts, help="prompts that choose and calibrate"
    )
    parser.add_argument("--continuations", type=int, default=TRAINED.continuations, help="of each preview")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="when drawing")
    parser.add_argument("--mean-with", type=Path, help="export the mean with the weights of this folder")
    parser.add_argument("--minutes", type=float, default=2.5, help="of training")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2, help="processes that label")
    options = parser.parse_args(arguments)

    work_dir: Path = options.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    stages = chosen_stages(options, STAGES)
    barred: set[world.Spec] = set()

    def load(name: str, amounts: Amounts, seed: int) -> StepExamples:
        return load_steps(
            work_dir,
            name,
            replace(amounts, continuations=options.continuations),
            seed,
            device=options.device,
            dtype=options.dtype,
            workers=options.workers,
            barred=barred,
        )

    held_out = load("held-out", replace(HELD_OUT, prompts=options.held_out), options.seed)
    if {"draw", "train"} & set(stages):
        steps = load("steps", replace(TRAINED, prompts=options.prompts), options.seed + 1)
    if "train" in stages:
        train_parm(
            work_dir,
            steps,
            held_out,
            Budget(options.minutes, options.steps),
            load_judge(),
            device=options.device,
            seed=options.seed,
            batch_size=options.batch_size,
        )
    if "export" in stages:
        continuations, device = options.continuations, options.device
        export(work_dir, options.output, held_out, continuations, device, options.mean_with)


if __name__ == "__main__":
    main()
