"""What the training stages share: a resumable loop, an average of weights, the bank of images."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.tokenizer import MAX_TOKENS, build_tokenizer

CAPTIONS_PER_SCENE = 3
LOSSES_EVERY = 10  # steps; reading one waits for the device
_BANK_CHUNK = 2500
# names of hidden layers
_INSIDE = ("transformer_blocks.", "layers.", "block_chunks.", "encoder.block.", "encoder.layer.")

Result = TypeVar("Result")


class Stateful(Protocol):
    """Anything that a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """What to save."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Takes back what was saved."""


@dataclass(frozen=True)
class Budget:
    """How long to train: by the clock, which suits any machine, or by steps, which can be repeated exactly.

    Attributes:
        minutes: Wall-clock minutes, summed over resumed runs; used when `steps` is None.
        steps: Optimiser steps.
    """

    minutes: float = 10.0
    steps: int | None = None

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is spent, 0 to 1 and beyond."""
        return seconds / (60 * self.minutes) if self.steps is None else step / self.steps


class Average:
    """Exponential moving average of weights.

    Args:
        modules: The modules to follow, by name.
        decay: Share of the old average kept at each update, reached after a short warm-up.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float = 0.998) -> None:
        self.decay = decay
        self.updates = 0
        self._live = {f"{name}.{k}": p for name, m in modules.items() for k, p in m.named_parameters()}
        self.shadow = {key: p.detach().clone() for key, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the present weights."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        torch._foreach_lerp_(list(self.shadow.values()), list(self._live.values()), 1 - decay)

    @torch.no_grad()
    def copy_to(self, name: str, module: nn.Module) -> None:
        """Writes the average of one followed module into `module`.

        Args:
            name: The name under which it is followed.
            module: A module of the same architecture.
        """
        for key, parameter in module.named_parameters():
            parameter.copy_(self.shadow[f"{name}.{key}"])

    def state_dict(self) -> dict[str, Any]:
        """What to save."""
        return {"updates": self.updates, "shadow": self.shadow}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Takes back what was saved."""
        self.updates = state_dict["updates"]
        for key, value in state_dict["shadow"].items():
            self.shadow[key].copy_(value)


def log(work_dir: Path, text: str) -> None:
    """Prints a line and appends it to `train.log`.

    Args:
        work_dir: Where the log lies.
        text: The line.
    """
    line = f"{time.strftime('%H:%M:%S')} {text}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    with (work_dir / "train.log").open("a") as stream:
        stream.write(line + "\n")


def save_atomically(path: Path, value: Any) -> None:
    """Saves with `torch.save` so that a killed run leaves either the old file or the new one.

    Args:
        path: Where to.
        value: What to save.
    """
    fresh = path.with_suffix(".part")
    torch.save(value, fresh)
    os.replace(fresh, path)


def parts_of(work_dir: Path, name: str) -> dict[str, Any]:
    """What the checkpoint of a stage holds, on the CPU.

    Args:
        work_dir: Where the checkpoint lies.
        name: The stage.
    """
    return torch.load(work_dir / f"{name}.pt", map_location="cpu", weights_only=True)["parts"]


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def in_workers(workers: int, work: Callable[..., Result], *arguments: Sequence[Any]) -> Iterator[Result]:
    """`map` over processes, with few results waiting at a time; in this process for one worker."""
    if workers < 2:
        yield from map(work, *arguments)
        return
    calls = list(zip(*arguments))
    with ProcessPoolExecutor(workers) as pool:
        for start in range(0, len(calls), 2 * workers):
            yield from pool.map(work, *zip(*calls[start : start + 2 * workers]))


def tidy(folder: Path) -> None:
    """Makes saved settings portable.

    Takes out the folder a model came from, and the setting that the autoencoder derives and warns of when it
    is read; names the tokenizer's class as older transformers know it too.

    Args:
        folder: Where `save_pretrained` wrote.
    """
    for path in folder.rglob("*.json"):
        if path.name == "tokenizer.json":
            continue
        settings = json.loads(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
        for key in ("_name_or_path", "block_out_channels"):
            settings.pop(key, None)
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def train(
    name: str,
    work_dir: Path,
    budget: Budget,
    parts: Mapping[str, Stateful],
    step: Callable[[float, torch.Generator], Mapping[str, Tensor]],
    seed: int,
    checkpoint_seconds: float = 180.0,
    stop_after: int | None = None,
) -> bool:
    """Runs `step` until the budget is spent, resuming from `<work_dir>/<name>.pt` when it exists.

    Args:
        name: Stage name; names the checkpoint.
        work_dir: Where checkpoint and log lie.
        budget: How long to train.
        parts: What the checkpoint holds.
        step: Does one update, given the progress in [0, 1) and the generator of all randomness; returns
            losses.
        seed: Seed of that generator.
        checkpoint_seconds: Time between checkpoints.
        stop_after: Leave after this many steps of this call with a checkpoint, as if killed.

    Returns:
        Whether the budget is spent.
    """
    path = work_dir / f"{name}.pt"
    generator = torch.Generator().manual_seed(seed)
    done, spent = 0, 0.0
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(saved["parts"][key])
        generator.set_state(saved["generator"])
        done, spent = saved["step"], saved["seconds"]
        log(work_dir, f"{name}: resuming at step {done}, {spent / 60:.1f} min")

    def save() -> None:
        states = {key: part.state_dict() for key, part in parts.items()}
        record = {"parts": states, "generator": generator.get_state(), "step": done, "seconds": spent}
        save_atomically(path, record)

    started, logged, saved_at, since = time.monotonic() - spent, time.monotonic(), time.monotonic(), done
    first = done
    sums: dict[str, Tensor | float] = {}
    while (progress := budget.progress(done, spent)) < 1.0:
        if stop_after is not None and done - first >= stop_after:
            save()
            return False
        for key, value in step(progress, generator).items():
            sums[key] = sums.get(key, 0.0) + value.detach()
        done += 1
        now = time.monotonic()
        spent = now - started
        if now - logged > 30:
            losses = " ".join(f"{key} {float(value) / (done - since):.4f}" for key, value in sums.items())
            rate = (done - since) / (now - logged)
            log(
                work_dir, f"{name}: {spent / 60:.1f} min, {progress:.0%}, step {done}, {rate:.2f}/s, {losses}"
            )
            logged, since, sums = now, done, {}
        if now - saved_at > checkpoint_seconds:
            save()
            saved_at = time.monotonic()
    save()
    log(work_dir, f"{name}: finished at step {done}, {spent / 60:.1f} min")
    return True


def build_optimisers(
    modules: Mapping[str, nn.Module], learning_rate: float
) -> dict[str, torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside blocks, AdamW for everything else.

    Args:
        modules: The models to train.
        learning_rate: AdamW's peak rate; Muon takes twice as much.

    Returns:
        The two optimisers; their groups hold the peak rate as `base_lr`.
    """
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(
            f"Training needs torch.optim.Muon, of torch 2.9 or newer; this is torch {torch.__version__}. "
            f"Install a newer torch; using the trained weights does not need it."
        )
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    for module in modules.values():
        for name, parameter in module.named_parameters():
            inside = any(blocks in name for blocks in _INSIDE)
            matrix = parameter.ndim == 2 and "norm" not in name and "attention_bias" not in name
            (hidden if inside and matrix else rest).append(parameter)
    muon = torch.optim.Muon(hidden, lr=2 * learning_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for group in muon.param_groups:
        group["base_lr"] = 2 * learning_rate
    for group in adamw.param_groups:
        group["base_lr"] = learning_rate
    return {"muon": muon, "adamw": adamw}


def descend(
    loss: Tensor, parameters: Iterable[Tensor], optimisers: Iterable[torch.optim.Optimizer]
) -> Tensor:
    """One step of all optimisers along the gradient of a loss, whose norm is cut off at 1.

    Args:
        loss: A scalar.
        parameters: Those whose gradient is measured.
        optimisers: The optimisers.

    Returns:
        The norm of the gradient before.
    """
    optimisers = list(optimisers)
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimiser in optimisers:
        optimiser.step()
    return norm


class Learner:
    """Modules that are trained together, with their optimisers and the average of their weights.

    Args:
        modules: By name, on the device where they are trained.
        learning_rate: See `build_optimisers`.
        averaged: The only one whose average is kept; that of all by default.
        decay: See `Average`.

    Attributes:
        average: The average.
        parts: What a checkpoint holds.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        learning_rate: float,
        averaged: str | None = None,
        decay: float = 0.998,
    ) -> None:
        self._optimisers = build_optimisers(modules, learning_rate)
        self._parameters = [p for module in modules.values() for p in module.parameters()]
        self.average = Average(modules if averaged is None else {averaged: modules[averaged]}, decay)
        self.parts: dict[str, Stateful] = {**modules, **self._optimisers, "average": self.average}

    def learn(self, loss: Tensor, rate: float) -> Tensor:
        """One step along the gradient of a loss, see `descend`.

        Args:
            loss: A scalar.
            rate: Factor of the peak learning rates.

        Returns:
            The norm of the gradient.
        """
        set_learning_rate(list(self._optimisers.values()), rate)
        norm = descend(loss, self._parameters, self._optimisers.values())
        self.average.update()
        return norm


def on_device(generator: torch.Generator, device: str | torch.device) -> torch.Generator:
    """A generator on a device, for the random numbers of one step.

    Args:
        generator: Of the training, on the CPU; gives the seed.
        device: Where the numbers are needed.
    """
    seed = torch.randint(2**62, (), generator=generator)
    return torch.Generator(device).manual_seed(int(seed))


def set_learning_rate(optimisers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scales every group's learning rate from its first value.

    Args:
        optimisers: Optimisers whose groups hold their first rate as `base_lr`.
        factor: The scale.
    """
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor


def warm_then_decay(progress: float, warm: float = 0.01, decay_from: float = 0.6) -> float:
    """Learning-rate factor: a short linear warm-up, a plateau, a linear decay to zero.

    Args:
        progress: Share of the budget spent.
        warm: Share spent warming up.
        decay_from: Share at which decay begins.

    Returns:
        The factor, in (0, 1].
    """
    if progress < warm:
        return (progress + 1e-3) / (warm + 1e-3)
    if progress < decay_from:
        return 1.0
    return max((1.0 - progress) / (1.0 - decay_from), 1e-3)


# ------------------------------------------------------------------------------------- the bank of images


@dataclass(frozen=True)
class Bank:
    """Drawn images with their captions.

    Attributes:
        images: uint8 of shape `(n, 64, 64, 3)`.
        captions: `CAPTIONS_PER_SCENE` wordings of each.
    """

    images: np.ndarray
    captions: list[list[str]]

    def batch(self, index: Tensor) -> Tensor:
        """Images as the models take them.

        Args:
            index: Which ones, shape `(b,)`.

        Returns:
            float32 of shape `(b, 3, 64, 64)` in [-1, 1].
        """
        pixels = torch.from_numpy(self.images[index.cpu().numpy()])
        return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)

    def token_ids(self, padding_side: str) -> Tensor:
        """Token ids of all captions, `(n * captions, 16)`.

        Args:
            padding_side: As in `build_tokenizer`.
        """
        texts = [text for texts in self.captions for text in texts]
        tokenizer = build_tokenizer(padding_side)
        return tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids


def _draw_chunk(seed: int, count: int) -> tuple[np.ndarray, list[list[str]]]:
    rng = np.random.default_rng(seed)
    pairs = [world.sample_example(rng) for _ in range(count)]
    captions = [[world.sample_caption(rng, spec) for _ in range(CAPTIONS_PER_SCENE)] for spec, _ in pairs]
    return world.render_batch([scene for _, scene in pairs]), captions


def load_bank(work_dir: Path, size: int, seed: int, workers: int | None = None) -> Bank:
    """Opens the bank of training images, drawing it first if it is not there.

    Args:
        work_dir: Where it lies.
        size: How many images; rounded up to whole chunks.
        seed: Seed of the drawing.
        workers: Processes that draw, one for each processor by default.

    Returns:
        The bank.
    """
    pixels, words = work_dir / "bank.npy", work_dir / "bank.json"
    workers = workers or os.cpu_count() or 1
    if not words.exists():
        chunk = min(_BANK_CHUNK, size)
        seeds = [seed * 100_003 + i for i in range(-(-size // chunk))]
        images = np.lib.format.open_memmap(
            pixels, mode="w+", dtype=np.uint8, shape=(len(seeds) * chunk, world.SIZE, world.SIZE, 3)
        )
        captions: list[list[str]] = []
        drawn = in_workers(workers, _draw_chunk, seeds, [chunk] * len(seeds))
        for i, (block, texts) in enumerate(drawn):
            images[i * chunk : (i + 1) * chunk] = block
            captions += texts
        images.flush()
        words.write_text(json.dumps(captions))
        log(work_dir, f"bank: drew {len(captions)} images")
    return Bank(np.load(pixels), json.loads(words.read_text()))
