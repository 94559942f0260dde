"""Randomness that belongs to a particle, not to a batch.

Every draw is keyed by the root seed, the particle's uid and the step, so a particle's result does
not depend on its neighbours, the micro-batch size, the order of rows, or pruning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Stream = Literal["init", "step", "mutate", "renoise", "select"]
_WORD = 0xFFFFFFFF  # the largest number of 32 bits
_FEW = 8  # so many seeds are as fast one by one
_STREAMS: dict[str, int] = {"init": 0, "step": 1, "mutate": 2, "renoise": 3, "select": 4}


def key_seed(seed: int, stream: Stream, *key: int) -> int:
    """A 63-bit seed for one named draw under the root `seed`."""
    words = np.random.SeedSequence(seed, spawn_key=(_STREAMS[stream], *key)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def key_seeds(seed: int, stream: Stream, uids: Sequence[int], step: int) -> list[int]:
    """``key_seed(seed, stream, uid, step)`` of each uid, computed together.

    The arithmetic of `numpy.random.SeedSequence` (O'Neill 2015, "Developing a seed_seq alternative"), on
    whole rows at a time: one by one, seeds take longer than the steps of a small model.
    """
    if len(uids) < _FEW or max(uids) > _WORD or step > _WORD:
        return [key_seed(seed, stream, uid, step) for uid in uids]
    pool, constant = _mixed(seed, _STREAMS[stream])
    rows = [np.full(len(uids), word, np.uint32) for word in pool]
    for word in (np.asarray(uids, np.uint32), np.full(1, step, np.uint32)):
        for i in range(4):
            hashed = (word ^ np.uint32(constant)) * np.uint32(constant := constant * 0x931E8875 & _WORD)
            hashed ^= hashed >> 16
            rows[i] = rows[i] * np.uint32(0xCA01F9DD) - hashed * np.uint32(0x4973F715)
            rows[i] ^= rows[i] >> 16
    state, constant = [], 0x8B51F9DD
    for row in rows[:2]:
        value = (row ^ np.uint32(constant)) * np.uint32(constant := constant * 0x58F38DED & _WORD)
        state.append((value ^ value >> 16).astype(np.uint64))
    return [int(value) for value in (state[0] | state[1] << np.uint64(32)) >> np.uint64(1)]


@lru_cache(maxsize=64)
def _mixed(seed: int, stream: int) -> tuple[tuple[int, ...], int]:
    """The pool of a seed sequence that has taken in the root seed and the stream, and its hash constant."""
    constant = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal constant
        value ^= constant
        constant = constant * 0x931E8875 & _WORD
        value = value * constant & _WORD
        return value ^ value >> 16

    def mix(a: int, b: int) -> int:
        value = a * 0xCA01F9DD - b * 0x4973F715 & _WORD
        return value ^ value >> 16

    words = [seed >> shift & _WORD for shift in range(0, max(seed.bit_length(), 1), 32)]
    words += [0] * (4 - len(words))
    pool = [hashed(word) for word in words[:4]]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = mix(pool[target], hashed(pool[source]))
    for word in (*words[4:], stream):
        pool = [mix(value, hashed(word)) for value in pool]
    return tuple(pool), constant


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
    generator = torch.Generator(like.device)
    draws = torch.empty((len(uids), *like.shape[1:]), device=like.device, dtype=torch.float32)
    for row, row_seed in zip(draws, key_seeds(seed, stream, uids, step)):
        row.normal_(generator=generator.manual_seed(row_seed))
    return draws.to(like.dtype)


def row_uniform(seed: int, stream: Stream, uids: Sequence[int], step: int, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) shaped as `like` ``(B, ...)``, keyed as in `row_noise`, on the CPU."""
    generator = torch.Generator("cpu")
    draws = torch.empty((len(uids), *like.shape[1:]))
    for row, row_seed in zip(draws, key_seeds(seed, stream, uids, step)):
        row.uniform_(generator=generator.manual_seed(row_seed))
    return draws


def choice_generator(seed: int, *key: int) -> np.random.Generator:
    """The generator of an algorithm's own choices (resampling, tournaments) at decision `key`."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAMS["select"], *key)))
