"""Tokens drawn by given uniform numbers follow their probabilities, and stay put where those do."""

from __future__ import annotations

import pytest
import torch

from tts_vision.errors import ConfigError
from tts_vision.tokens import BELOW_ONE, distinct, draw, groups, redrawn

N = 40_000


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 1.0])
def test_bits_follow_their_probability(p: float) -> None:
    u = uniform(2, N // 2, 3)
    bits = draw(torch.full_like(u, p), u)
    assert bits.dtype == torch.uint8 and bits.shape == u.shape
    assert bits.float().mean() == pytest.approx(p, abs=0.005)


def test_ids_follow_their_probabilities() -> None:
    p = torch.tensor([0.0, 0.2, 0.5, 0.0, 0.3, 0.0])
    ids = draw(p.expand(4, N // 4, 6), uniform(4, N // 4))
    assert ids.dtype == torch.int64 and ids.shape == (4, N // 4)
    assert torch.allclose(ids.flatten().bincount(minlength=6) / N, p, atol=0.01)


def test_ids_of_probability_zero_are_never_drawn() -> None:
    p = torch.tensor([0.0, 0.5, 0.5, 0.0])
    for u, expected in ((0.0, 1), (0.4999, 1), (0.5, 2), (BELOW_ONE, 2)):
        assert draw(p.expand(1, 1, 4), torch.tensor([[u]])).item() == expected


def test_ids_need_no_normalised_probabilities() -> None:
    u = uniform(3, 50)
    p = torch.tensor([1.0, 2.0, 5.0]).expand(3, 50, 3)
    assert torch.equal(draw(p, u), draw(p / 8, u))


def test_each_row_has_its_own_probabilities() -> None:
    p = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert draw(p, torch.tensor([[0.3], [0.3]])).tolist() == [[0], [1]]


def test_shapes_that_fit_nothing() -> None:
    with pytest.raises(ConfigError, match=r"have \(2, 5, 3\) beside \(2, 4\)"):
        draw(torch.zeros(2, 5, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_share_is_redrawn_and_stays_uniform(share: float) -> None:
    u = uniform(N)
    fresh = redrawn(u, normal(N), share)
    assert (fresh != u).float().mean() == pytest.approx(share, abs=0.01)
    assert fresh.min() >= 0 and fresh.max() < 1
    assert torch.allclose(torch.histc(fresh, 10, 0, 1) / N, torch.full((10,), 0.1), atol=0.01)
    # what is new says nothing about what was there
    changed = fresh != u
    if share:
        assert abs(torch.corrcoef(torch.stack([u[changed], fresh[changed]]))[0, 1]) < 0.05


def test_extreme_noise_stays_inside() -> None:
    for share in (0.3, 1.0):
        fresh = redrawn(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([-40.0, 40.0, 9.0]), share)
        assert fresh.min() >= 0 and fresh.max() < 1


def test_distinct() -> None:
    rows = torch.tensor([[[0, 1]], [[1, 1]], [[0, 1]]], dtype=torch.uint8)
    assert distinct(rows) == 2
    assert distinct(rows[:, :0]) == 1


def test_rows_that_agree_form_groups():
    rows = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.uint8)
    assert groups(rows) == ([0, 1, 3], [0, 1, 0, 2])
