"""From logits to probabilities: guidance, temperature, top-k, top-p."""

from __future__ import annotations

import math

import pytest
import torch

from tts_vision.errors import ConfigError
from tts_vision.pipelines.var.sampling import bit_probability, guided, ramped, token_probability
from tts_vision.tokens import BELOW_ONE, draw

EDGE = math.log(0.97 / 0.03)  # 3.4761


def pairs(*gaps: float) -> torch.Tensor:
    """Logits (1, 1, D, 2) whose second members exceed the first by `gaps`; the level does not matter."""
    second = torch.tensor(gaps)
    return torch.stack((torch.full_like(second, 7.0), second + 7.0), -1)[None, None]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_guidance_extrapolates_from_the_unconditional_logits():
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert torch.equal(guided(cond, uncond, 3.0), torch.tensor([3.0, -2.0]))
    assert torch.equal(guided(cond, uncond, 1.0), cond)
    assert torch.equal(guided(cond, uncond, 0.0), uncond)


def test_guidance_of_var_rises_from_scale_to_scale():
    assert [ramped(1.5, k, 4) for k in range(4)] == [1.0, 1.5, 2.0, 2.5]
    assert ramped(4.0, 0, 1) == 1.0
    cond, uncond, t = noise(3, seed=1), noise(3, seed=2), 1.5 * 2 / 9
    expected = (1 + t) * cond - t * uncond
    assert torch.allclose(guided(cond, uncond, ramped(1.5, 2, 10)), expected, atol=1e-6)


def test_the_second_of_a_pair_is_the_set_bit():
    assert torch.allclose(
        bit_probability(pairs(0.0, math.log(3), -math.log(3))), torch.tensor([0.5, 0.75, 0.25])
    )


def test_a_bit_is_certain_from_the_gap_at_which_the_other_value_has_three_percent():
    assert round(EDGE, 3) == 3.476
    got = bit_probability(pairs(EDGE + 1e-3, -EDGE - 1e-3, EDGE - 1e-3, -EDGE + 1e-3), top_k=900, top_p=0.97)
    assert got[0, 0, :2].tolist() == [1.0, 0.0]
    assert got[0, 0, 2].item() == pytest.approx(0.97, abs=1e-4)
    assert got[0, 0, 3].item() == pytest.approx(0.03, abs=1e-4)


def test_temperature_comes_before_top_p():
    half = bit_probability(pairs(EDGE / 2 + 1e-3, EDGE / 2 - 1e-3), tau=0.5, top_p=0.97)
    assert half[0, 0, 0] == 1 and 0.96 < half[0, 0, 1] < 1


def test_top_k_of_a_bit_matters_only_when_it_is_one():
    logits = noise(2, 3, 4, 2)
    assert torch.equal(bit_probability(logits, top_k=900), bit_probability(logits))
    assert torch.equal(bit_probability(logits, top_k=2), bit_probability(logits))
    assert torch.equal(bit_probability(logits, top_k=1), logits.argmax(-1).float())
    assert bit_probability(pairs(0.0), top_k=1).item() == 0.5  # both are the likeliest


@pytest.mark.parametrize(
    "settings", [{}, {"top_p": 0.9}, {"tau": 0.5, "top_k": 900, "top_p": 0.97}, {"top_k": 1}]
)
def test_a_bit_is_a_vocabulary_of_two(settings):
    logits = 3 * noise(2, 5, 6, 2)
    as_tokens = token_probability(logits.flatten(1, 2), **settings)[..., 1].view(2, 5, 6)
    assert torch.allclose(bit_probability(logits, **settings), as_tokens, atol=1e-6)


def test_top_k_keeps_the_likeliest_tokens_and_renormalises():
    logits = torch.log(torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]))
    expected = torch.tensor([0, 0, 3 / 7, 4 / 7])
    assert torch.allclose(token_probability(logits, top_k=2), expected)
    assert torch.allclose(token_probability(logits, top_k=99), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert token_probability(torch.zeros(1, 1, 4), top_k=2).tolist() == [[[0.25] * 4]]  # all equal the second


def test_top_p_drops_the_tail_that_fits_into_the_rest():
    logits = torch.log(torch.tensor([[[0.3, 0.06, 0.6, 0.04]]]))
    expected = torch.tensor([1 / 3, 0, 2 / 3, 0])
    assert torch.allclose(token_probability(logits, top_p=0.89), expected)  # 0.04 + 0.06 <= 0.11
    expected = torch.tensor([0.3 / 0.96, 0.06 / 0.96, 0.6 / 0.96, 0])
    assert torch.allclose(token_probability(logits, top_p=0.95), expected)
    assert torch.equal(token_probability(logits, top_p=0.01).squeeze(), torch.tensor([0.0, 0, 1, 0]))


def test_top_p_is_of_what_top_k_left():
    logits = torch.log(torch.tensor([[[0.5, 0.3, 0.15, 0.05]]]))
    both = token_probability(logits, top_k=2, top_p=0.6).squeeze()
    assert torch.equal(both, torch.tensor([1.0, 0, 0, 0]))  # of two, the second has 0.375 <= 0.4
    assert token_probability(logits, top_p=0.6).squeeze()[1] > 0


def test_tokens_keep_their_logits_precision_and_inputs():
    logits = noise(1, 2, 8).bfloat16()
    before = logits.clone()
    got = token_probability(logits, tau=0.7, top_k=5, top_p=0.9)
    assert got.dtype == torch.float32 and torch.allclose(got.sum(-1), torch.ones(1, 2))
    assert torch.equal(logits, before)


def test_a_token_that_was_dropped_is_never_drawn():
    p = token_probability(4 * noise(64, 8, 50), top_k=7, top_p=0.8)
    u = torch.rand(64, 8, generator=torch.Generator().manual_seed(3))
    for uniform in (u, torch.zeros_like(u), torch.full_like(u, BELOW_ONE)):
        assert bool((p.gather(-1, draw(p, uniform)[..., None]) > 0).all())


@pytest.mark.parametrize("of", [bit_probability, token_probability])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.0}, "tau must be above 0 but got 0"),
        ({"tau": float("nan")}, "tau must be above 0 but got nan"),
        ({"top_k": -1}, "top_k must be at least 0 but got -1"),
        ({"top_p": 1.2}, r"top_p must lie in \[0, 1\] but got 1.2"),
    ],
)
def test_numbers_out_of_range_are_refused(of, settings, message):
    with pytest.raises(ConfigError, match=message):
        of(torch.zeros(1, 1, 2, 2), **settings)
