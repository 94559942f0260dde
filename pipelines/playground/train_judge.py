"""Trains the playground's judge: `python -m tts_vision.pipelines.playground.train_judge`.

The judge is a small BLIP (Li et al. 2022): an image tower, and a text tower that looks at the image and says
whether the text is right. It learns from painted scenes and from samples of the bundled models with right
and wrong captions (`judge_data`). Two kinds of labels that are left out of the exported weights make it learn
in an hour: which words of a caption are met, and which object lies in each cell of the image.

All stages resume from the work folder, so that the command may be killed and run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipTextConfig, BlipVisionConfig

from tts_vision.pipelines.bundled import load_playground_var
from tts_vision.pipelines.playground import DEFAULTS, judge_data, load_pipeline, world
from tts_vision.pipelines.playground.checker import detect
from tts_vision.pipelines.playground.judge_data import Examples
from tts_vision.pipelines.playground.measure import draw, draw_tokens
from tts_vision.pipelines.playground.platt import fitted_line
from tts_vision.pipelines.playground.quiet import quietly
from tts_vision.pipelines.playground.tokenizer import MAX_TOKENS, build_tokenizer, vocabulary
from tts_vision.pipelines.playground.train_clip import build_processor
from tts_vision.pipelines.playground.training import (
    Average,
    Budget,
    Stateful,
    build_optimisers,
    descend,
    folder_size,
    in_workers,
    log,
    parts_of,
    set_learning_rate,
    tidy,
    train,
    warm_then_decay,
)
from tts_vision.pipelines.playground.training_options import chosen_stages, training_parser

STAGES = ("paint", "begin", "flow", "few", "var", "train", "export")
FEW_STEPS = 5
_PAINT_CHUNK = 1000
_DRAW_CHUNK = 64
_FIELDS = ("images", "tokens", "met", "right", "cells")


@dataclass(frozen=True)
class JudgeSize:
    """Architecture of the judge.

    Attributes:
        width: Width of both towers, a multiple of 32.
        vision_layers: Layers of the image tower.
        text_layers: Layers of the text tower.
    """

    width: int = 160
    vision_layers: int = 5
    text_layers: int = 3


@dataclass(frozen=True)
class Amounts:
    """How many images of each source to train on.

    Attributes:
        painted: Painted scenes.
        flow: Samples of the flow at its default number of steps.
        few: Samples of the flow at `FEW_STEPS` steps.
        var: Samples of the visual autoregressive model.
    """

    painted: int = 40_000
    flow: int = 1_536
    few: int = 1_536
    var: int = 2_560


# ------------------------------------------------------------------------------------------------ the model


def build_judge(size: JudgeSize, seed: int) -> BlipForImageTextRetrieval:
    """An untrained judge on 8-pixel patches of 64x64 images.

    Args:
        size: Architecture.
        seed: Seed of the weights.
    """
    tokenizer = build_tokenizer("right")
    heads = size.width // 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BlipForImageTextRetrieval(
            BlipConfig(
                text_config=BlipTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=size.width,
                    encoder_hidden_size=size.width,
                    intermediate_size=2 * size.width,
                    projection_dim=8,
                    num_hidden_layers=size.text_layers,
                    num_attention_heads=heads,
                    max_position_embeddings=MAX_TOKENS,
                    hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                    bos_token_id=tokenizer.eos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                    sep_token_id=tokenizer.eos_token_id,
                ).to_dict(),
                vision_config=BlipVisionConfig(
                    image_size=world.SIZE,
                    patch_size=world.SIZE // judge_data.GRID,
                    hidden_size=size.width,
                    intermediate_size=2 * size.width,
                    num_hidden_layers=size.vision_layers,
                    num_attention_heads=heads,
                ).to_dict(),
                projection_dim=8,
                image_text_hidden_size=8,
            )
        )
        nn.init.normal_(model.text_encoder.embeddings.word_embeddings.weight, std=0.5)
        weights = dict(model.text_encoder.named_parameters())
        # Equal queries and keys: a word starts by looking at cells whose state is like its own.
        for name in [name for name in weights if name.endswith("crossattention.self.query.weight")]:
            nn.init.normal_(weights[name], std=0.05)
            weights[name.replace("query", "key")].data.copy_(weights[name])
    return model


class Heads(nn.Module):
    """Outputs that only training uses: the objects of the cells, where words look, and which are met.

    Objects are named by the word embeddings of the text tower. So the state of a cell comes near to the words
    for its object, where cross-attention finds it. The layers of the text tower get one task each: after the
    first a shape's word knows place, colour and number of its objects, after the next ones each word knows
    whether it is met.

    Args:
        width: Width of both towers.
        seed: Seed of the weights.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.place = nn.Linear(width, 2)
            self.colour = nn.Linear(width, len(world.COLOURS))
            self.number = nn.Linear(width, len(world.NUMBERS))
            self.met = nn.ModuleList(nn.Linear(width, 1) for _ in range(2))
            self.empty = nn.Parameter(0.5 * torch.randn(2, width))
        self.scale = nn.Parameter(torch.tensor(1.0))
        words = vocabulary()
        names = (tuple(world.SHAPES), tuple(world.COLOURS), tuple(world.NUMBERS))
        self.words = [[words[name] for name in group] for group in names]

    def words_met(self, said: list[Tensor]) -> list[Tensor]:
        """Logits of the words being met, by the last layers but the first: each `(b, k, t)`."""
        return [head(state)[..., 0] for head, state in zip(self.met, said[1:][-2:])]

    def forward(self, embeddings: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of shape (8), colour (11) and number of objects of that shape (4) in each cell.

        Args:
            embeddings: Of the words, shape `(vocabulary, width)`.
            seen: States of the cells, shape `(b, 64, width)`.
        """
        shapes, colours, numbers = (embeddings[group] for group in self.words)
        targets = torch.cat([self.empty[:1], shapes, self.empty[1:], colours, numbers])
        logits = self.scale * seen @ targets.T / seen.shape[-1] ** 0.5
        shape, colour, number = logits.split([len(shapes) + 1, len(colours) + 1, len(numbers)], -1)
        return shape, colour, number


def judged(
    model: BlipForImageTextRetrieval, pixels: Tensor, tokens: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Judges several captions of each image in one pass, in which each caption sees itself and the image.

    Args:
        model: The judge.
        pixels: Images in [-1, 1], shape `(b, 3, 64, 64)`.
        tokens: Captions, shape `(b, k, t)`, padded with zeros.

    Returns:
        Logits of wrong and right `(b, k, 2)`, states of the words after each layer, each
        `(b, k, t, width)`, and states of the cells `(b, 64, width)`.
    """
    b, k, t = tokens.shape
    seen = model.vision_model(pixel_values=pixels).last_hidden_state
    caption = torch.arange(k, device=tokens.device).repeat_interleave(t)
    real = (tokens != 0).view(b, 1, k * t)
    own = (caption[:, None] == caption[None, :])[None] & real
    mask = torch.zeros(own.shape, device=pixels.device).masked_fill(~own, -1e4)[:, None]
    states = model.text_encoder(
        input_ids=tokens.reshape(b, k * t),
        attention_mask=mask,
        position_ids=torch.arange(t, device=tokens.device).repeat(k)[None],
        encoder_hidden_states=seen,
        output_hidden_states=True,
    ).hidden_states
    said = [state.view(b, k, t, -1) for state in states[1:]]
    return model.itm_head(said[-1][:, :, 0]), said, seen[:, 1:]


@dataclass(frozen=True)
class Named:
    """The objects that the words of captions for shapes name.

    Attributes:
        known: Which words name a shape that the image has, shape `(b, k, t)`.
        place: Mean place of its objects, right and down in [-1, 1], shape `(b, k, t, 2)`.
        colour: Their colour, 0 to 9, or -1 if they have several, shape `(b, k, t)`.
        number: Their number less one, at most 3, shape `(b, k, t)`.
    """

    known: Tensor
    place: Tensor
    colour: Tensor
    number: Tensor


def named(tokens: Tensor, cells: Tensor) -> Named:
    """Looks up the objects that captions name.

    Args:
        tokens: Captions, shape `(b, k, t)`.
        cells: See `Examples.cells`, shape `(b, 64, 2)`.
    """
    words = vocabulary()
    shape_of = torch.zeros(len(words), dtype=torch.long, device=tokens.device)
    for i, name in enumerate(world.SHAPES, start=1):
        shape_of[words[name]] = shape_of[words[world.PLURALS[name]]] = i
    axis = (torch.arange(judge_data.GRID, device=tokens.device) + 0.5) * 2 / judge_data.GRID - 1
    grid = torch.stack([axis.repeat(judge_data.GRID), axis.repeat_interleave(judge_data.GRID)], -1)
    member = F.one_hot(cells[..., 0], len(world.SHAPES) + 1).float()
    painted = F.one_hot(cells[..., 1], len(world.COLOURS) + 1)[..., 1:].float()
    count = member.sum(1)
    place = torch.einsum("bcs,cd->bsd", member, grid) / count.clamp(min=1)[..., None]
    most, colour = torch.einsum("bcs,bcd->bsd", member, painted).max(-1)
    colour = colour.masked_fill(most < count, -1)
    shape = shape_of[tokens]
    row = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    number = count.long().clamp(1, len(world.NUMBERS)) - 1
    known = (shape > 0) & (count[row, shape] > 0)
    return Named(known, place[row, shape], colour[row, shape], number[row, shape])


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


# ------------------------------------------------------------------------------------------------- the data


def load_painted(work_dir: Path, count: int, seed: int, workers: int) -> Examples:
    """Painted examples, made once and kept in the work folder.

    Args:
        work_dir: Where they are kept.
        count: Number of images, rounded up to whole chunks.
        seed: Seed.
        workers: Processes that paint.
    """
    path = work_dir / "painted.npz"
    if not path.exists():
        chunk = min(_PAINT_CHUNK, count)
        seeds = [seed * 100_003 + i for i in range(-(-count // chunk))]
        _save(path, joined(list(in_workers(workers, judge_data.paint, seeds, [chunk] * len(seeds)))))
        log(work_dir, f"judge: painted {len(seeds) * chunk} images")
    return _load(path)


def load_drawn(work_dir: Path, source: str, count: int, seed: int) -> Examples:
    """Samples of a bundled model for training prompts, four of each, made once and kept in the work folder.

    Args:
        work_dir: Where they are kept; chunks too, so that a killed run goes on.
        source: One of the fields of `Amounts` that name samples.
        count: Number of images, rounded up to whole chunks.
        seed: Seed.
    """
    path = work_dir / f"{source}.npz"
    if not path.exists():
        parts = [work_dir / f"{source}-{i:04d}.npz" for i in range(-(-count // _DRAW_CHUNK))]
        size = min(_DRAW_CHUNK, count)
        draw = _drawer(source)
        for i, part in enumerate(parts):
            if not part.exists():
                _save(part, _drawn(draw, seed * 100_003 + i, size))
        _save(path, joined([_load(part) for part in parts]))
        for part in parts:
            part.unlink()
        log(work_dir, f"judge: drew {len(parts) * size} images, {source}")
    return _load(path)


def _drawer(source: str) -> Callable[[list[str], int, int], np.ndarray]:
    """Draws, from prompts, images for each, and a seed, uint8 images `(prompts * each, 64, 64, 3)`."""
    with quietly():
        if source == "var":
            var = load_playground_var()
            return lambda texts, each, seed: draw_tokens(var, texts, each, seed)
        pipe = load_pipeline()
    steps = int(DEFAULTS["num_inference_steps"]) if source == "flow" else FEW_STEPS

    def drawn(texts: list[str], each: int, seed: int) -> np.ndarray:
        words = [text for text in texts for _ in range(each)]
        seeds = [seed + i for i in range(len(words))]
        return draw(pipe, words, seeds, steps, DEFAULTS["guidance_scale"], mixed=True)

    return drawn


def _drawn(draw: Callable[[list[str], int, int], np.ndarray], seed: int, count: int) -> Examples:
    each = min(4, count)
    rng = np.random.default_rng(seed)
    specs = [judge_data.sample_prompt(rng) for _ in range(count // each)]
    images = draw([world.caption(spec) for spec in specs], each, seed * count)
    asked = [spec for spec in specs for _ in range(each)]
    return judge_data.label(rng, images, asked, [detect(image) for image in images])


def joined(parts: Sequence[Examples]) -> Examples:
    return Examples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS})


def _save(path: Path, examples: Examples) -> None:
    fresh = path.with_suffix(".part.npz")
    np.savez_compressed(fresh, **{name: getattr(examples, name) for name in _FIELDS})
    fresh.replace(path)


def _load(path: Path) -> Examples:
    with np.load(path) as saved:
        return Examples(**{name: saved[name] for name in _FIELDS})


# -------------------------------------------------------------------------------------------- the training


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
    optimisers = build_optimisers(modules, learning_rate)
    parameters = [p for module in modules.values() for p in module.parameters()]
    if drawn is not None:
        begun = parts_of(work_dir, "judge-painted")
        for key, module in modules.items():
            module.load_state_dict(begun[key])
    average = Average({"judge": model}, decay=0.995)
    drawn_count = 0 if drawn is None else round(drawn_share * batch_size)
    # The first call keeps its rate, for the second to go on from.
    decay_from = 1.0 if drawn is None else 0.3

    def step(progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        set_learning_rate(
            list(optimisers.values()), warm_then_decay(progress, warm=0.03, decay_from=decay_from)
        )
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
        descend(loss, parameters, optimisers.values())
        average.update()
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

    parts: dict[str, Stateful] = {**modules, **optimisers, "average": average}
    name = "judge-painted" if drawn is None else "judge"
    train(name, work_dir, budget, parts, step, seed, stop_after=stop_after)
    return model, average


def _rows(logits: Tensor) -> Tensor:
    return logits.float().flatten(0, -2)


def _chosen(examples: Examples, count: int, generator: torch.Generator) -> Examples:
    return taken(examples, torch.randint(len(examples.images), (count,), generator=generator))


def taken(examples: Examples, index: Tensor) -> Examples:
    rows = index.numpy()
    return Examples(**{name: getattr(examples, name)[rows] for name in _FIELDS})


def pixels_of(examples: Examples) -> Tensor:
    """Images as the judge takes them: float32 in [-1, 1], shape `(n, 3, 64, 64)`."""
    return torch.from_numpy(examples.images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


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
