"""Examples that the playground's judge learns from, made once and kept in the work folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tts_vision.pipelines.bundled import load_playground_var
from tts_vision.pipelines.playground import DEFAULTS, judge_data, load_pipeline, world
from tts_vision.pipelines.playground.checker import detect
from tts_vision.pipelines.playground.judge_data import Examples
from tts_vision.pipelines.playground.measure import draw, draw_tokens
from tts_vision.pipelines.playground.quiet import quietly
from tts_vision.pipelines.playground.training import in_workers, log

FEW_STEPS = 5
_PAINT_CHUNK = 1000
_DRAW_CHUNK = 64
_FIELDS = ("images", "tokens", "met", "right", "cells")


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


def taken(examples: Examples, index: Tensor) -> Examples:
    rows = index.numpy()
    return Examples(**{name: getattr(examples, name)[rows] for name in _FIELDS})


def pixels_of(examples: Examples) -> Tensor:
    """Images as the judge takes them: float32 in [-1, 1], shape `(n, 3, 64, 64)`."""
    return torch.from_numpy(examples.images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
