"""Noise belongs to a particle and a step, not to a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tts_vision.rng import (
    Stream,
    choice_generator,
    key_seed,
    key_seeds,
    row_generator,
    row_noise,
    row_seed,
    row_uniform,
)

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


@pytest.mark.parametrize("seed", [0, 3, 2**31, 2**32 - 1, 2**32, 2**40 + 7, 2**63 - 1])
@pytest.mark.parametrize("stream", ["init", "step", "mutate", "renoise", "select"])
def test_seeds_together_are_those_of_numpy_one_by_one(seed: int, stream: Stream) -> None:
    for step in (0, 1, 49, 2**32 - 1, 2**32):
        for uids in (range(40), [7, 2**32 - 1, 0, *range(9)], [2**32, *range(9)], [5]):
            expected = [key_seed(seed, stream, uid, step) for uid in uids]
            assert key_seeds(seed, stream, list(uids), step) == expected


@pytest.mark.parametrize("shape", [(1, 3), (12, 2), (12, 16, 4), (40, 4, 8, 8)])
def test_rows_are_drawn_as_if_alone(shape: tuple[int, ...]) -> None:
    like = torch.empty(shape)
    noise, uniform = (draw(3, "step", range(shape[0]), 7, like) for draw in (row_noise, row_uniform))
    for uid in range(shape[0]):
        generator = row_generator(3, "step", uid, 7, "cpu")
        assert torch.equal(noise[uid], torch.randn(shape[1:], generator=generator))
        generator = row_generator(3, "step", uid, 7, "cpu")
        assert torch.equal(uniform[uid], torch.rand(shape[1:], generator=generator))
