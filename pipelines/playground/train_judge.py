"""Trains the playground's judge: `python -m tts_vision.pipelines.playground.train_judge`.

The judge is a small BLIP (Li et al. 2022): an image tower, and a text tower that looks at the image and says
whether the text is right. It learns from painted scenes and from samples of the bundled models with right
and wrong captions (`judge_data`). Two kinds of labels that are left out of the exported weights make it learn
in an hour: which words of a caption are met, and which object lies in each cell of the image.

All stages resume from the work folder, so that the command may be killed and run again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipForImageTextRetrieval

from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.judge_bank import (
    FEW_STEPS,
    Amounts,
    joined,
    load_drawn,
    load_painted,
    pixels_of,
    taken,
)
from tts_vision.pipelines.playground.judge_data import Examples
from tts_vision.pipelines.playground.judge_network import Heads, JudgeSize, build_judge, judged, named
from tts_vision.pipelines.playground.platt import fitted_line
from tts_vision.pipelines.playground.tokenizer import build_tokenizer
from tts_vision.pipelines.playground.train_clip import build_processor
from tts_vision.pipelines.playground.training import (
    Average,
    Budget,
    Learner,
    folder_size,
    log,
    parts_of,
    tidy,
    train,
    warm_then_decay,
)
from tts_vision.pipelines.playground.training_options import chosen_stages, training_parser

STAGES = ("paint", "begin", "flow", "few", "var", "train", "export")


def weathered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Blurs each image, shifts its brightness and adds noise, each by a random amount.

    Args:
        x: Images in [-1, 1], shape `(b, 3, h, w)`.
        generator: Source of randomness, on the device of the images.
    """

    def amount() -> Tensor:
        return torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)

    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return (x + amount() * (blurred - x) + 0.1 * (amount() - 0.5) + 0.1 * amount() * noise).clamp(-1, 1)


def train_judge(
    work_dir: Path,
    painted: Examples,
    drawn: Examples | None,
    budget: Budget,
    size: JudgeSize | None = None,
    device: str = "cpu",
    seed: int = 7,
    batch_size: int = 32,
    drawn_share: float = 0.4,
    learning_rate: float = 1e-3,
    stop_after: int | None = None,
) -> tuple[BlipForImageTextRetrieval, Average]:
    """Trains the judge: first on painted scenes alone, in a second call from there on samples too.

    Args:
        work_dir: Where the checkpoints lie.
        painted: Painted examples.
        drawn: Samples of the models, or None for the first call.
        budget: How long to train.
        size: Architecture.
        device: Where to train.
        seed: Seed of weights and batches.
        batch_size: Images a step, each with all of its captions.
        drawn_share: Share of samples in a batch of the second call.
        learning_rate: See `training.build_optimisers`.
        stop_after: See `training.train`.

    Returns:
        The model and its averaged weights.
    """
    size = size or JudgeSize()
    model = build_judge(size, seed).train()
    heads = Heads(size.width, seed + 1)
    modules: dict[str, nn.Module] = {"judge": model, "heads": heads}
    for module in modules.values():
        module.to(device)
    if drawn is not None:
        begun = parts_of(work_dir, "judge-painted")
        for key, module in modules.items():
            module.load_state_dict(begun[key])
    learner = Learner(modules, learning_rate, averaged="judge", decay=0.995)
    drawn_count = 0 if drawn is None else round(drawn_share * batch_size)
    # The first call keeps its rate, for the second to go on from.
    decay_from = 1.0 if drawn is None else 0.3

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        batch = _chosen(painted, batch_size - drawn_count, generator)
        if drawn is not None:
            batch = joined([batch, _chosen(drawn, drawn_count, generator)])
        x = weathered(pixels_of(batch), generator).to(device)
        tokens = torch.from_numpy(batch.tokens).long().to(device)
        length = int((tokens != 0).any(0).any(0).sum())
        tokens = tokens[..., :length]
        met = torch.from_numpy(batch.met)[..., :length].to(device)
        right = torch.from_numpy(batch.right).long().to(device)
        cells = torch.from_numpy(batch.cells).long().to(device)
        with torch.autocast(device, torch.bfloat16):
            logits, said, seen = judged(model, x, tokens)
            shape, colour, number = heads(model.get_input_embeddings().weight, seen)
            met_logits, first = heads.words_met(said), said[0]
            place, hue, many = heads.place(first), heads.colour(first), heads.number(first)
        verdict = F.cross_entropy(logits.float().flatten(0, 1), right.flatten())
        asks = met >= 0
        words = torch.stack(
            [F.binary_cross_entropy_with_logits(x.float()[asks], met[asks].float()) for x in met_logits]
        ).mean()
        aim = named(tokens, cells)
        known = aim.known
        places = F.mse_loss(place.float()[known], aim.place[known])
        hues = F.cross_entropy(hue.float()[known], aim.colour[known], ignore_index=-1)
        many = F.cross_entropy(many.float()[known], aim.number[known])
        shapes, colours = (
            F.cross_entropy(_rows(x), cells[..., k].flatten()) for k, x in enumerate((shape, colour))
        )
        full = cells[..., 0] > 0
        alike = (cells[..., 0][:, :, None] == cells[..., 0][:, None, :]).sum(-1).clamp(max=len(world.NUMBERS))
        numbers = F.cross_entropy(number[full].float(), alike[full] - 1)
        loss = verdict + words + 4 * (shapes + colours) + 0.5 * numbers
        loss = loss + 3 * places + 0.5 * hues + 0.5 * many
        learner.learn(loss, warm_then_decay(progress, warm=0.03, decay_from=decay_from))
        hits = (logits.argmax(-1) == right).float()
        losses = {
            "verdict": verdict,
            "words": words,
            "shapes": shapes,
            "colours": colours,
            "numbers": numbers,
            "places": places,
            "hues": hues,
            "many": many,
            "accuracy": hits.mean(),
        }
        return losses if drawn is None else {**losses, "asked": hits[-drawn_count:, 0].mean()}

    name = "judge-painted" if drawn is None else "judge"
    train(name, work_dir, budget, learner.parts, step, seed, stop_after=stop_after)
    return model, learner.average


def _rows(logits: Tensor) -> Tensor:
    return logits.float().flatten(0, -2)


def _chosen(examples: Examples, count: int, generator: torch.Generator) -> Examples:
    return taken(examples, torch.randint(len(examples.images), (count,), generator=generator))


@torch.no_grad()
def calibrate(model: BlipForImageTextRetrieval, examples: Examples) -> tuple[float, float]:
    """Fits slope and offset of the judge's logit to samples that training did not see (Platt 1999).

    Args:
        model: The judge; its last layer takes both in.
        examples: Samples of the models; only the captions that they were drawn for are used.

    Returns:
        Slope and offset.
    """
    tokens = torch.from_numpy(examples.tokens[:, :1]).long()
    pixels = pixels_of(examples)
    found = [judged(model, x, t)[0][:, 0] for x, t in zip(pixels.split(64), tokens.split(64), strict=True)]
    logit = torch.cat(found).diff(dim=-1)[:, 0]
    return rescale(model.itm_head, logit, torch.from_numpy(examples.right[:, 0]))


@torch.no_grad()
def rescale(head: nn.Linear, logit: Tensor, right: Tensor) -> tuple[float, float]:
    """Fits slope and offset of a logit of yes to outcomes, and takes them into the head that gave it.

    Args:
        head: Gives the logits of no and yes.
        logit: Yes less no, `(n,)`.
        right: Outcomes or their shares, 0 to 1, `(n,)`.

    Returns:
        Slope and offset.
    """
    slope, offset = fitted_line(logit, right)
    head.weight.mul_(slope)
    head.bias.mul_(slope)[1].add_(offset)
    return slope, offset


def export(work_dir: Path, output: Path, unseen: Examples, size: JudgeSize, seed: int) -> None:
    """Writes the averaged and calibrated judge as a folder that transformers loads, in half precision.

    Args:
        work_dir: Where the checkpoint lies.
        output: Folder that gets `judge`.
        unseen: Samples to calibrate on.
        size: Architecture.
        seed: The seed of the training.
    """
    model = build_judge(size, seed).eval()
    average = Average({"judge": model})
    average.load_state_dict(parts_of(work_dir, "judge")["average"])
    average.copy_to("judge", model)
    slope, offset = calibrate(model, unseen)
    model.half().save_pretrained(output / "judge")
    build_tokenizer("right", opened=True).save_pretrained(output / "judge")
    build_processor().save_pretrained(output / "judge")
    tidy(output / "judge")
    size_in_bytes = folder_size(output / "judge")
    log(work_dir, f"judge: exported, {size_in_bytes} bytes, slope {slope:.2f}, offset {offset:.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the data, trains and exports.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = training_parser(__doc__, STAGES, "judge_train", 7)
    amounts = Amounts()
    parser.add_argument("--minutes-begin", type=float, default=14.0, help="of training on painted images")
    parser.add_argument("--minutes", type=float, default=40.0, help="of training on samples too")
    parser.add_argument("--painted", type=int, default=amounts.painted, help="painted images")
    parser.add_argument("--flow", type=int, default=amounts.flow, help="samples of the flow")
    parser.add_argument(
        "--few", type=int, default=amounts.few, help=f"samples of the flow at {FEW_STEPS} steps"
    )
    parser.add_argument("--var", type=int, default=amounts.var, help="samples of playground-var")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    work_dir: Path = options.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    stages = chosen_stages(options, STAGES)
    started = time.process_time()
    if {"paint", "begin", "train"} & set(stages):
        painted = load_painted(work_dir, options.painted, options.seed, options.threads)
    if "begin" in stages:
        budget = Budget(options.minutes_begin, options.steps)
        train_judge(
            work_dir,
            painted,
            None,
            budget,
            device=options.device,
            seed=options.seed,
            batch_size=options.batch_size,
        )
    seen, unseen = [], []
    for k, source in enumerate(("flow", "few", "var"), start=1):
        if {source, "train", "export"} & set(stages):
            drawn = load_drawn(work_dir, source, getattr(options, source), options.seed + k)
            # The last tenth is not trained on: it calibrates the verdicts.
            cut = len(drawn.images) - max(len(drawn.images) // 10, 1)
            seen.append(taken(drawn, torch.arange(cut)))
            unseen.append(taken(drawn, torch.arange(cut, len(drawn.images))))
    if "train" in stages:
        train_judge(
            work_dir,
            painted,
            joined(seen),
            Budget(options.minutes, options.steps),
            device=options.device,
            seed=options.seed,
            batch_size=options.batch_size,
        )
    if "export" in stages:
        export(work_dir, options.output, joined(unseen), JudgeSize(), options.seed)
    spent = (time.process_time() - started) / 60
    log(work_dir, f"judge: {', '.join(stages)}: {spent:.1f} minutes of the processor")


if __name__ == "__main__":
    main()
