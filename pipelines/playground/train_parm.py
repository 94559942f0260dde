"""Trains the playground's step verifier: `python -m tts_vision.pipelines.playground.train_parm`.

Draws images of `playground-masked` for training prompts, keeps the preview of every step, and labels them by
the exact checker: a preview is *clear* if it shows the objects of the finished image, it has *potential* if
the finished image is right. Then trains `StepJudge` on them from the weights of the judge, and exports it.
All stages resume from the work folder.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BlipForImageTextRetrieval

from tts_vision.media import all_valid
from tts_vision.pipelines.masked_sampler import MaskedSampler
from tts_vision.pipelines.playground import judge_data, weights_path, world
from tts_vision.pipelines.playground.checker import Detection, detect
from tts_vision.pipelines.playground.judge_data import Examples
from tts_vision.pipelines.playground.quiet import quietly
from tts_vision.pipelines.playground.step_judge import Answers, StepJudge
from tts_vision.pipelines.playground.tokenizer import MAX_TOKENS, build_tokenizer
from tts_vision.pipelines.playground.train_clip import build_processor
from tts_vision.pipelines.playground.train_judge import joined, pixels_of, taken, weathered
from tts_vision.pipelines.playground.training import (
    Average,
    Budget,
    Stateful,
    build_optimisers,
    descend,
    log,
    save_atomically,
    set_learning_rate,
    tidy,
    train,
    warm_then_decay,
)
from tts_vision.sampler import Sampler
from tts_vision.types import Prompt

STAGES = ("draw", "train", "export")
PER_PROMPT = 4
_CHUNK = 8  # prompts


@dataclass(frozen=True)
class Steps:
    """Previews and finished images with captions, and what becomes of each.

    Attributes:
        examples: n images with captions; the first caption of each is the prompt it was drawn for.
        step: Steps done, ``(n,)`` uint8; that of the finished image is the last.
        clear: Whether it shows the objects of its finished image, ``(n,)`` int8.
        potential: Whether its finished image is right, ``(n,)`` int8.
    """

    examples: Examples
    step: np.ndarray
    clear: np.ndarray
    potential: np.ndarray


def objects(detections: Sequence[Detection]) -> Counter[tuple[str, str]]:
    """How many objects of each shape and colour an image shows."""
    return Counter((found.label, found.colour) for found in detections)


def sample_prompt(rng: np.random.Generator) -> world.Spec:
    """Draws a training prompt: every other one of two coloured groups, the others by the world's task mix."""
    if rng.random() < 0.5:
        return judge_data.sample_prompt(rng)
    while True:
        spec, _ = world.sample_example(rng)
        if not judge_data.kept_out(spec):
            return spec


def draw_steps(
    sampler: Sampler, specs: Sequence[world.Spec], seed: int, each: int = PER_PROMPT, captions: bool = True
) -> Steps:
    """Draws images of each prompt and labels them with their previews.

    Args:
        sampler: Of the masked model.
        specs: The prompts.
        seed: Of the noise and of the captions.
        each: Images of a prompt.
        captions: Whether images get captions, none of which is an evaluation prompt; without, `specs` may be.

    Returns:
        Prompt by prompt, step by step, image by image.
    """
    rng = np.random.default_rng(seed)
    parts, steps, clear, potential = [], [], [], []
    for i, spec in enumerate(specs):
        condition = sampler.condition_of(Prompt(world.caption(spec)))
        state = sampler.init(condition, range(each), seed=seed * 1_000 + i)
        images: list[np.ndarray] = []
        for step in range(1, sampler.num_steps + 1):
            state = sampler.advance(state)
            done = step == sampler.num_steps
            shown = sampler.decode(state) if done else sampler.preview(state)
            images.append(np.stack([np.asarray(image) for image in all_valid(shown, sampler.name)]))
        found = [[detect(image) for image in row] for row in images]
        last = [objects(detections) for detections in found[-1]]
        right = [all(judge_data.demands(detections, spec).values()) for detections in found[-1]]
        for step, (row, detections) in enumerate(zip(images, found), start=1):
            parts.append(judge_data.label(rng, row, [spec] * each, detections) if captions else _bare(row))
            steps += [step] * each
            clear += [objects(d) == finished for d, finished in zip(detections, last)]
            potential += right
    return Steps(
        joined(parts), np.array(steps, np.uint8), np.array(clear, np.int8), np.array(potential, np.int8)
    )


def _bare(images: np.ndarray) -> Examples:
    """Images without captions."""
    n = len(images)
    tokens = np.zeros((n, 0, MAX_TOKENS), np.uint8)
    cells = np.zeros((n, judge_data.GRID**2, 2), np.int8)
    return Examples(images, tokens, tokens.astype(np.int8), np.zeros((n, 0), np.int8), cells)


def load_steps(work_dir: Path, prompts: int, seed: int) -> Steps:
    """Labelled steps of so many prompts, drawn once, chunk by chunk, and kept in the work folder."""
    from tts_vision.pipelines.bundled import load_playground_masked

    path = work_dir / "steps.pt"
    if not path.exists():
        with quietly():
            sampler = MaskedSampler(load_playground_masked())
        chunks = [work_dir / f"steps-{i:04d}.pt" for i in range(-(-prompts // _CHUNK))]
        for i, chunk in enumerate(chunks):
            if not chunk.exists():
                rng = np.random.default_rng(seed * 100_003 + i)
                specs = [sample_prompt(rng) for _ in range(_CHUNK)]
                save_atomically(chunk, _tensors(draw_steps(sampler, specs, seed * 100_003 + i)))
        found = [torch.load(chunk, weights_only=True) for chunk in chunks]
        save_atomically(path, {key: torch.cat([part[key] for part in found]) for key in found[0]})
        for chunk in chunks:
            chunk.unlink()
        log(work_dir, f"parm: drew {len(chunks) * _CHUNK} prompts")
    return _steps(torch.load(path, weights_only=True))


def _tensors(steps: Steps) -> dict[str, Tensor]:
    whole = {**vars(steps.examples), "step": steps.step, "clear": steps.clear, "potential": steps.potential}
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in whole.items()}


def _steps(saved: dict[str, Tensor]) -> Steps:
    arrays = {key: value.numpy() for key, value in saved.items()}
    own = {key: arrays.pop(key) for key in ("step", "clear", "potential")}
    return Steps(Examples(**arrays), **own)


def chosen(steps: Steps, rows: Tensor) -> Steps:
    """Some of the images."""
    index = rows.numpy()
    return Steps(taken(steps.examples, rows), steps.step[index], steps.clear[index], steps.potential[index])


def answers_to(model: StepJudge, pixels: Tensor, tokens: Tensor) -> Answers:
    """Answers about several captions of each image: every field has the axes ``(b, k)`` first.

    Args:
        model: The step verifier.
        pixels: Images in [-1, 1], ``(b, 3, 64, 64)``.
        tokens: Captions, ``(b, k, t)``, padded with zeros.
    """
    b, k, t = tokens.shape
    seen = model.vision_model(pixel_values=pixels).last_hidden_state
    said = model.text_encoder(
        input_ids=tokens.flatten(0, 1),
        attention_mask=(tokens != 0).flatten(0, 1),
        encoder_hidden_states=seen.repeat_interleave(k, 0),
    ).last_hidden_state
    return model.read(said.view(b, k, t, -1))


def train_parm(
    work_dir: Path,
    steps: Steps,
    budget: Budget,
    start: BlipForImageTextRetrieval,
    device: str = "cpu",
    seed: int = 11,
    batch_size: int = 48,
    captions: int = 4,
    learning_rate: float = 4e-4,
    stop_after: int | None = None,
) -> tuple[StepJudge, Average]:
    """Trains the step verifier.

    Args:
        work_dir: Where the checkpoint lies.
        steps: Labelled images.
        budget: How long to train.
        start: The judge, whose towers and final question it starts from.
        device: Where to train.
        seed: Seed of weights and batches.
        batch_size: Images a step.
        captions: Captions of each image a step; its prompt is always one.
        learning_rate: See `training.build_optimisers`.
        stop_after: See `training.train`.

    Returns:
        The model and its averaged weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = StepJudge(start.config).train().to(device)
    model.load_state_dict(start.state_dict(), strict=False)
    optimisers = build_optimisers({"parm": model}, learning_rate)
    average = Average({"parm": model}, decay=0.995)
    total = steps.examples.tokens.shape[1]

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        set_learning_rate(list(optimisers.values()), warm_then_decay(progress, warm=0.03, decay_from=0.3))
        batch = chosen(steps, torch.randint(len(steps.step), (batch_size,), generator=generator))
        others = torch.randperm(total - 1, generator=generator)[: captions - 1] + 1
        index = torch.cat((torch.zeros(1, dtype=torch.long), others)).numpy()
        tokens = torch.from_numpy(batch.examples.tokens[:, index]).long().to(device)
        met = torch.from_numpy(batch.examples.met[:, index]).to(device)
        right = torch.from_numpy(batch.examples.right[:, index]).long().to(device)
        clear, potential = (torch.from_numpy(x).long().to(device) for x in (batch.clear, batch.potential))
        x = weathered(pixels_of(batch.examples), generator).to(device)
        with torch.autocast(device, torch.bfloat16):
            answers = answers_to(model, x, tokens)
        asks = met >= 0
        losses = {
            "final": F.cross_entropy(answers.final.float().flatten(0, 1), right.flatten()),
            "met": F.cross_entropy(answers.met.float()[asks], met[asks].long()),
            "clarity": F.cross_entropy(answers.clarity.float()[:, 0], clear),
            "potential": F.cross_entropy(answers.potential.float()[:, 0], potential),
        }
        loss = torch.stack(list(losses.values())).sum()
        descend(loss, model.parameters(), optimisers.values())
        average.update()
        return losses

    parts: dict[str, Stateful] = {"parm": model, **optimisers, "average": average}
    train("parm", work_dir, budget, parts, step, seed, stop_after=stop_after)
    return model, average


def load_judge() -> BlipForImageTextRetrieval:
    """The bundled judge in float32."""
    with quietly():
        return BlipForImageTextRetrieval.from_pretrained(weights_path("judge"), dtype=torch.float32)


def export(work_dir: Path, output: Path) -> None:
    """Writes the averaged model as a folder that transformers loads, in half precision.

    Args:
        work_dir: Where the checkpoint lies.
        output: Folder that gets `parm`.
    """
    model = StepJudge(load_judge().config).eval()
    average = Average({"parm": model})
    saved = torch.load(work_dir / "parm.pt", map_location="cpu", weights_only=True)["parts"]
    model.load_state_dict(saved["parm"])  # buffers, which no average has
    average.load_state_dict(saved["average"])
    average.copy_to("parm", model)
    model.half().save_pretrained(output / "parm")
    build_tokenizer("right", opened=True).save_pretrained(output / "parm")
    build_processor().save_pretrained(output / "parm")
    tidy(output / "parm")


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the data, trains and exports.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--work-dir", type=Path, default=Path("parm_train"), help="data, checkpoint, log")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("weights"))
    parser.add_argument(
        "--prompts", type=int, default=640, help=f"training prompts, {PER_PROMPT} images each"
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--steps", type=int, help="train by this many steps, not by the clock")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    work_dir: Path = options.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    stages = STAGES if options.stage == "all" else (options.stage,)
    if {"draw", "train"} & set(stages):
        steps = load_steps(work_dir, options.prompts, options.seed)
    if "train" in stages:
        budget = Budget(options.minutes, options.steps)
        train_parm(work_dir, steps, budget, load_judge(), device=options.device, seed=options.seed)
    if "export" in stages:
        export(work_dir, options.output)


if __name__ == "__main__":
    main()
