"""Training data of the playground's step verifier: previews, and how the paths that they show go on.

At some steps of a path of `playground-masked` its preview is kept, and the path is continued several times,
each time with other noise. The share of continuations that the exact checker calls right is the potential of
that step: a better estimate of the probability than one outcome. Paths of many prompts run as one batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tts_vision.pipelines.playground import judge_data, world
from tts_vision.pipelines.playground.checker import Detection, detect
from tts_vision.pipelines.playground.training import save_atomically
from tts_vision.pipelines.tokens.masked import SETTINGS, Decoding
from tts_vision.pipelines.tokens.model import split_settings
from tts_vision.pipelines.tokens.showo import ConfiguredShowo, EncodedPrompt, ShowoPipeline

_DECODED = 2048  # images decoded at once


@dataclass(frozen=True)
class Trees:
    """Paths of P prompts, M of each, that are continued K times from each of B steps.

    Attributes:
        step: Steps done where a path is continued, uint8 ``(P, M, B)``.
        previews: Its previews there, uint8 ``(P, M, B, 64, 64, 3)``.
        known: Which tokens are known there, bool ``(P, M, B, 64)``.
        finished: The images of the paths themselves, uint8 ``(P, M, 64, 64, 3)``.
        continued: Those of the continuations, uint8 ``(P, M, B, K, 64, 64, 3)``.
        num_steps: Steps of a whole path.
    """

    step: np.ndarray
    previews: np.ndarray
    known: np.ndarray
    finished: np.ndarray
    continued: np.ndarray
    num_steps: int


@dataclass(frozen=True)
class StepExamples:
    """Previews and finished images with captions, and the outcomes of the paths that they belong to.

    Attributes:
        images: uint8 ``(n, 64, 64, 3)``.
        tokens: Captions, uint8 ``(n, captions, 16)``; the first one is the prompt. See `Examples`.
        met: Whether the demand of a word is met by the image itself, 1 or 0, -1 for other words; int8 like
            `tokens`.
        right: Whether all demands of a caption are, int8 ``(n, captions)``.
        cells: Objects of the image, int8 ``(n, 64, 2)``; see `Examples`.
        step: Steps done, uint8 ``(n,)``.
        prompt: Number of the prompt, int32 ``(n,)``.
        clear: Share of outcomes that have the objects of the image, float32 ``(n,)``.
        potential: Share of right outcomes, float32 ``(n,)``.
        hoped: For each word of the prompt the share of outcomes that meet its demand, -1 for other words;
            float32 ``(n, 16)``.
        outcome: Whether the path itself ended right, int8 ``(n,)``.
        known: Which tokens are known, bool ``(n, 64)``.
    """

    images: Tensor
    tokens: Tensor
    met: Tensor
    right: Tensor
    cells: Tensor
    step: Tensor
    prompt: Tensor
    clear: Tensor
    potential: Tensor
    hoped: Tensor
    outcome: Tensor
    known: Tensor

    def __len__(self) -> int:
        return len(self.step)

    def taken(self, index: Tensor) -> StepExamples:
        """Some of the images."""
        return StepExamples(**{key: value[index] for key, value in vars(self).items()})

    def to(self, device: str) -> StepExamples:
        """All of them on a device."""
        return StepExamples(**{key: value.to(device) for key, value in vars(self).items()})

    def save(self, path: Path) -> None:
        """Writes them."""
        save_atomically(path, dict(vars(self)))

    @staticmethod
    def load(paths: Sequence[Path]) -> StepExamples:
        """What several files hold, whose prompts are numbered on."""
        parts = [torch.load(path, weights_only=True) for path in paths]
        first = 0
        for part in parts:
            part["prompt"] += first
            first = int(part["prompt"].max()) + 1
        names = [field.name for field in fields(StepExamples)]
        return StepExamples(**{name: torch.cat([part[name] for part in parts]) for name in names})


# ------------------------------------------------------------------------------------------------ the paths


def sample_prompt(rng: np.random.Generator) -> world.Spec:
    """Draws a training prompt: three of four of two coloured groups, the others by the world's task mix."""
    if rng.random() < 0.75:
        return judge_data.sample_prompt(rng)
    while True:
        spec, _ = world.sample_example(rng)
        if not judge_data.kept_out(spec):
            return spec


def forks(rng: np.random.Generator, prompts: int, paths: int, steps: int, each: int) -> np.ndarray:
    """Steps at which paths are continued: `each` different ones of a path, from 1 to `steps` - 1.

    Returns:
        uint8 ``(prompts, paths, each)``, rising.
    """
    order = rng.random((prompts, paths, steps - 1)).argsort(-1)[..., :each] + 1
    return np.sort(order, -1).astype(np.uint8)


def draw_trees(
    pipe: ShowoPipeline,
    specs: Sequence[world.Spec],
    step: np.ndarray,
    continuations: int,
    seed: int,
    completed: bool = False,
) -> Trees:
    """Draws paths of prompts and continues them, all as one batch on the device of the model.

    Args:
        pipe: The masked model.
        specs: P prompts.
        step: Steps done where a path is continued, ``(P, M, B)``, each from 1 to that before the last.
        continuations: How often a path is continued from there, K.
        seed: Of all noise.
        completed: Previews are completions by all further steps without noise, instead of the step's guess.
    """
    own, networks = split_settings(pipe, SETTINGS, {})
    network, decoding = pipe.configured(networks), Decoding(**own)
    ids = [pipe.layout.prompt(pipe.tokenizer, text) for text in [*map(world.caption, specs), ""]]
    encoded, generator = network.encoded(ids), torch.Generator().manual_seed(seed)
    (P, M, B), S = step.shape, network.grid[0] * network.grid[1]
    of_row = torch.arange(P).repeat_interleave(M)
    codes = torch.full((P * M, S), network.vocabulary)
    previews = np.zeros((P * M, B, world.SIZE, world.SIZE, 3), np.uint8)
    known = np.zeros((P * M, B, S), bool)
    steps, forked = torch.from_numpy(step.astype(np.int64)).view(P * M, B), [torch.empty(0, 2).long()]
    for k in range(decoding.num_inference_steps):
        uniform = torch.rand(len(codes), 2, S, generator=generator)
        logits = network.logits(_rows(encoded, of_row, network.branches), codes)
        guess, codes = decoding.unmasked(k, logits, codes, uniform)
        here = (steps == k + 1).nonzero()
        if len(here):
            row, at = here.T
            shown = guess[row]
            if completed:
                shown, words = codes[row], _rows(encoded, of_row[row], network.branches)
                for later in range(k + 1, decoding.num_inference_steps):
                    _, shown = decoding.unmasked(later, network.logits(words, shown), shown, None)
            previews[row, at] = _images(network, shown)
            known[row, at] = codes[row] != network.vocabulary
            again = row.repeat_interleave(continuations)
            codes, of_row = torch.cat((codes, codes[again])), torch.cat((of_row, of_row[again]))
            forked.append(here)
    images = _images(network, codes)
    size = images.shape[1:]
    continued = np.zeros((P * M, B, continuations, *size), np.uint8)
    row, at = torch.cat(forked).T
    continued[row, at] = images[P * M :].reshape(len(row), continuations, *size)
    return Trees(
        step.astype(np.uint8),
        previews.reshape(P, M, B, *size),
        known.reshape(P, M, B, S),
        images[: P * M].reshape(P, M, *size),
        continued.reshape(P, M, B, continuations, *size),
        decoding.num_inference_steps,
    )


def _rows(encoded: EncodedPrompt, prompts: Tensor, branches: int) -> EncodedPrompt:
    """The prompts of rows, and with guidance the empty one, the last, as often."""
    rows = prompts.to(encoded.mask.device)
    if branches == 2:
        rows = torch.cat((rows, torch.full_like(rows, len(encoded.mask) - 1)))
    layers = tuple((keys[rows], values[rows]) for keys, values in encoded.layers)
    return EncodedPrompt(layers, encoded.mask[rows])


def _images(network: ConfiguredShowo, codes: Tensor) -> np.ndarray:
    """Images of codes, rounded as the pipeline's own: uint8 ``(n, 64, 64, 3)``."""
    found = [
        ((network.pixels(part) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()
        for part in codes.split(_DECODED)
    ]
    return torch.cat(found).numpy()


# ----------------------------------------------------------------------------------------------- the labels


def objects(detections: Sequence[Detection]) -> Counter[tuple[str, str]]:
    """How many objects of each shape and colour an image has."""
    return Counter((found.label, found.colour) for found in detections)


@dataclass(frozen=True)
class _Outcome:
    """A finished image: its objects, and which demands of its prompt are met."""

    objects: Counter[tuple[str, str]]
    met: dict[str, bool]

    @property
    def right(self) -> bool:
        return all(self.met.values())


def label_trees(seed: int, specs: Sequence[world.Spec], trees: Trees) -> StepExamples:
    """Labels previews by the outcomes of their paths, and finished images by themselves.

    Of each path the previews, its own image, and one continuation of each preview become examples.

    Args:
        seed: Of the captions.
        specs: The prompts.
        trees: Their paths.
    """
    rng = np.random.default_rng(seed)
    T, S = trees.num_steps, trees.known.shape[-1]
    images: list[np.ndarray] = []
    asked: list[world.Spec] = []
    found: list[Sequence[Detection]] = []
    rest: list[tuple[int, int, float, float, bool]] = []
    hoped: list[dict[str, float]] = []
    known: list[np.ndarray] = []

    def add(image: np.ndarray, seen: Sequence[Detection], at: tuple[int, int], ends: list[_Outcome]) -> None:
        p, step = at
        images.append(image)
        asked.append(specs[p])
        found.append(seen)
        own = objects(seen)
        clear = float(np.mean([end.objects == own for end in ends]))
        rest.append((step, p, clear, float(np.mean([end.right for end in ends])), ends[0].right))
        hoped.append({name: float(np.mean([end.met[name] for end in ends])) for name in ends[0].met})

    whole = np.ones(S, bool)
    for p, spec in enumerate(specs):
        for m in range(trees.finished.shape[1]):
            seen = detect(trees.finished[p, m])
            end = _outcome(seen, spec)
            add(trees.finished[p, m], seen, (p, T), [end])
            known.append(whole)
            for b in range(trees.step.shape[2]):
                others = [detect(image) for image in trees.continued[p, m, b]]
                ends = [_outcome(each, spec) for each in others]
                preview = trees.previews[p, m, b]
                add(preview, detect(preview), (p, int(trees.step[p, m, b])), [end, *ends])
                known.append(trees.known[p, m, b])
                if ends:
                    add(trees.continued[p, m, b, 0], others[0], (p, T), ends[:1])
                    known.append(whole)
    examples = judge_data.label(rng, np.stack(images), asked, found)
    shares = np.full(examples.met.shape[::2], -1, np.float32)
    for row, met, spec, share in zip(shares, examples.met[:, 0], asked, hoped):
        # words state their demands in this order, whatever stands before and between them
        row[met >= 0] = [share[name] for _, name in judge_data.worded(rng, spec) if name is not None]
    step, prompt, clear, potential, outcome = zip(*rest)
    own = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in vars(examples).items()}
    return StepExamples(
        **own,
        step=torch.tensor(step, dtype=torch.uint8),
        prompt=torch.tensor(prompt, dtype=torch.int32),
        clear=torch.tensor(clear, dtype=torch.float32),
        potential=torch.tensor(potential, dtype=torch.float32),
        hoped=torch.from_numpy(shares),
        outcome=torch.tensor(outcome, dtype=torch.int8),
        known=torch.from_numpy(np.stack(known)),
    )


def save_labelled(path: Path, seed: int, specs: Sequence[world.Spec], trees: Trees) -> None:
    """Writes `label_trees`; in a process of its own."""
    label_trees(seed, specs, trees).save(path)


def _outcome(detections: Sequence[Detection], spec: world.Spec) -> _Outcome:
    return _Outcome(objects(detections), judge_data.demands(detections, spec))
