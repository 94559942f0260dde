"""Noise belongs to a particle and a step, not to a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tts_vision.rng import choice_generator, key_seed, row_noise, row_seed

LIKE = torch.empty(3, 4, 5)


def test_rows_do_not_depend_on_their_batch() -> None:
    together = row_noise(0, "step", (7, 8, 9), 2, LIKE)
    assert together.shape == LIKE.shape
    assert torch.equal(row_noise(0, "step", (9, 7), 2, LIKE), together[[2, 0]])
    assert torch.equal(row_noise(0, "step", (8,), 2, LIKE), together[1:2])


@pytest.mark.parametrize(
    ("seed", "stream", "uid", "step"),
    [(1, "step", 7, 2), (0, "mutate", 7, 2), (0, "step", 8, 2), (0, "step", 7, 3)],
)
def test_every_part_of_the_key_matters(seed: int, stream: str, uid: int, step: int) -> None:
    base = row_noise(0, "step", (7,), 2, LIKE)
    other = row_noise(seed, stream, (uid,), step, LIKE)  # type: ignore[arg-type]
    assert (base - other).abs().mean() > 0.5


def test_noise_is_standard_normal_in_the_dtype_asked_for() -> None:
    noise = row_noise(0, "step", range(50), 0, torch.empty(1, 400, dtype=torch.float64))
    assert noise.dtype == torch.float64
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
    half = row_noise(0, "step", (0,), 0, torch.empty(1, 400, dtype=torch.bfloat16))
    assert torch.equal(half, noise[:1].to(torch.bfloat16))


def test_first_particle_has_the_root_seed() -> None:
    assert row_seed(1234, 0) == 1234
    seeds = {row_seed(1234, uid) for uid in range(100)}
    assert len(seeds) == 100 and all(0 <= seed < 2**63 for seed in seeds)


def test_keys_are_stable() -> None:
    # part of the file format: a recorded seed must re-make its noise in any later version
    assert key_seed(0, "init", 1) == 7449029282396566744
    assert row_noise(0, "step", (1,), 2, torch.empty(1, 1)).item() == pytest.approx(0.26642174)


def test_global_state_is_left_alone() -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    row_noise(0, "step", (1, 2), 0, LIKE)
    choice_generator(0, 1).random(3)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()  # type: ignore[index]


def test_choices_are_keyed() -> None:
    assert choice_generator(0, 1).random() == choice_generator(0, 1).random()
    assert choice_generator(0, 1).random() != choice_generator(0, 2).random()
    assert choice_generator(1, 1).random() != choice_generator(0, 1).random()
