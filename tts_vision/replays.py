"""Re-creates a sample from its seed and its recorded lineage alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tts_vision.context import apply_mutation
from tts_vision.errors import ConfigError, StorageError
from tts_vision.gradients import (
    differentiable_sampler,
    differentiable_verifier,
    safe_rewards,
    with_gradient,
)
from tts_vision.ledger import Ledger
from tts_vision.media import pixels, read_media, write_media
from tts_vision.mutations import from_description, gradient_steps
from tts_vision.resolve import Live, find_algorithm, prepare
from tts_vision.results import is_finished, load_result, replace_file
from tts_vision.trace import Ancestor
from tts_vision.types import Media, Prompt, Sampler, State, Verifier


@dataclass(frozen=True)
class Replay:
    """A sample that was made again.

    Attributes:
        media: The sample.
        path: Where it is stored.
        max_difference: Largest difference to the stored best sample, in 8-bit pixel values.
        lineage: How the particle came to be.
    """

    media: Media
    path: Path
    max_difference: int
    lineage: list[Ancestor]


def replay(folder: Path | str, pipe: Any = None, verifier: Any = None) -> Replay:
    """Makes the best sample of a finished search again, from its configuration and lineage, and compares.

    The result is stored in the folder as ``replay``. One particle is computed at a time, so rounding may
    differ in the last bit from that of a batch.

    Args:
        folder: The result folder.
        pipe: The pipeline, if the search was started with a live one.
        verifier: The verifier, if the search used its gradients and was started with a live one.

    Raises:
        ConfigError: If the folder holds no finished search.
    """
    root = Path(folder)
    if not is_finished(root):
        raise ConfigError(
            f"A replay needs a finished search but {str(root)!r} holds none; 'tts-vision resume {root}' "
            "finishes one."
        )
    result = load_result(root)
    best = result.best
    guided = "differentiable" in find_algorithm(result.config).needs
    # without gradients no verifier is needed, so a live one may be missing
    setup = prepare(result.config, Live(pipe=pipe, verifier=verifier if guided else _never_scores))
    chain = result.lineage(best.uid)
    media = recreate(setup.sampler, setup.prompt, result.config.seed, chain, best.step, setup.verifier)
    stored = next(iter(sorted(root.glob("best.*"))), None)
    if stored is None:
        raise StorageError(
            f"A finished search must hold its best sample but {str(root)!r} has no best.*; resume it."
        )
    path = root / f"replay{stored.suffix}"
    replace_file(path, lambda part: write_media(media, part, {}), "The replayed sample")
    return Replay(media, path, _max_difference(read_media(path), read_media(stored)), chain)


def recreate(
    sampler: Sampler,
    prompt: Prompt,
    seed: int,
    chain: Sequence[Ancestor],
    step: int,
    verifier: Verifier | None = None,
) -> Media:
    """The sample of the particle at the end of `chain`, decoded at `step`.

    Args:
        sampler: As the search had it.
        prompt: What was generated.
        seed: Root seed of the search.
        chain: The particle's lineage.
        step: Where it was decoded; before the end of the trajectory for a preview.
        verifier: What guided the search, where its gradients are part of the lineage.
    """
    sampler.bind(Ledger())
    state = sampler.init(prompt, [chain[0].uid], seed=seed).to("cpu")
    for child in chain[1:]:
        start = child.step if child.parent_step is None else child.parent_step
        mutation = from_description(child.mutation) if child.mutation else None
        over = gradient_steps(mutation) if mutation else 0
        if start - over > state.step:
            state = sampler.advance(state, start - over - state.step).to("cpu")
        if over:
            state = _with_gradient(sampler, state, over, verifier)
        state = state.select([0], [child.uid])
        if mutation is not None:
            state = apply_mutation(mutation, state)
        elif child.origin == "renoise":
            state = sampler.renoise(state, child.step).to("cpu")
    if step > state.step:
        state = sampler.advance(state, step - state.step).to("cpu")
    return (sampler.decode if step == sampler.num_steps else sampler.preview)(state)[0]


def _with_gradient(sampler: Sampler, state: State, steps: int, verifier: Verifier | None) -> State:
    assert verifier is not None
    judge = differentiable_verifier(verifier, "a replay of this lineage")
    return with_gradient(
        differentiable_sampler(sampler, "a replay of this lineage"),
        state,
        steps,
        lambda pixels: safe_rewards(judge, pixels, [state.prompt] * len(state))[0],
    )


def _max_difference(a: Media, b: Media) -> int:
    left, right = pixels(a).astype(np.int16), pixels(b).astype(np.int16)
    return int(np.abs(left - right).max()) if left.shape == right.shape else 255


def _never_scores(media: Iterable[Media], prompts: Iterable[str]) -> list[float]:
    return [float("nan") for _ in media]
