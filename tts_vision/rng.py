"""Randomness that belongs to a particle, not to a batch.

Every draw is keyed by the root seed, the particle's uid and the step, so a particle's result does
not depend on its neighbours, the micro-batch size, the order of rows, or pruning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Stream = Literal["init", "step", "mutate", "renoise", "select"]
_STREAMS: dict[str, int] = {"init": 0, "step": 1, "mutate": 2, "renoise": 3, "select": 4}


def key_seed(seed: int, stream: Stream, *key: int) -> int:
    """A 63-bit seed for one named draw under the root `seed`."""
    words = np.random.SeedSequence(seed, spawn_key=(_STREAMS[stream], *key)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def row_seed(seed: int, uid: int) -> int:
    """The seed of a particle's initial noise.

    Particle 0 gets the root seed itself, so the plain sample of a seed is always among the
    candidates. The number re-makes the initial noise in any tool:
    ``torch.Generator("cpu").manual_seed(row_seed)``.
    """
    return seed if uid == 0 else key_seed(seed, "init", uid)


def row_generator(
    seed: int, stream: Stream, uid: int, step: int, device: torch.device | str
) -> torch.Generator:
    """The generator of one particle at one step, on `device`."""
    return torch.Generator(device).manual_seed(key_seed(seed, stream, uid, step))


def row_noise(seed: int, stream: Stream, uids: Sequence[int], step: int, like: Tensor) -> Tensor:
    """Standard normal noise shaped as `like` ``(B, ...)``, row ``i`` keyed by ``(seed, uids[i], step)``.

    Drawn in float32 on the device of `like`, then cast to its dtype.
    """
    draws = [
        torch.randn(
            like.shape[1:],
            generator=row_generator(seed, stream, uid, step, like.device),
            device=like.device,
            dtype=torch.float32,
        )
        for uid in uids
    ]
    return torch.stack(draws).to(like.dtype)


def row_uniform(seed: int, stream: Stream, uids: Sequence[int], step: int, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) shaped as `like` ``(B, ...)``, keyed as in `row_noise`, on the CPU."""
    draws = [
        torch.rand(like.shape[1:], generator=row_generator(seed, stream, uid, step, "cpu")) for uid in uids
    ]
    return torch.stack(draws)


def choice_generator(seed: int, *key: int) -> np.random.Generator:
    """The generator of an algorithm's own choices (resampling, tournaments) at decision `key`."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAMS["select"], *key)))
