"""Binary spherical quantisation over scales: bits to features and back, inputs, flips."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_var import SCHEDULE, noise

from tts_vision.pipelines.var.bsq import MultiScaleBSQ, resized
from tts_vision.pipelines.var.schedules import Schedule

STARTS = SCHEDULE.starts
PLAIN, PATCHED = MultiScaleBSQ(6), MultiScaleBSQ(3, patch=2)


def some_bits(quantizer: MultiScaleBSQ, n: int = 2, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (n, STARTS[-1], quantizer.bits), generator=generator).bool()


def test_bits_of_a_token():
    assert (PLAIN.bits, PATCHED.bits) == (6, 12)
    assert MultiScaleBSQ(14, patch=2).bits == 56 and MultiScaleBSQ(32).bits == 32
    assert PLAIN.size((4, 6)) == (4, 6) and PATCHED.size((4, 6)) == (8, 12)


def test_codes_have_unit_length_in_every_cell():
    for quantizer in (PLAIN, PATCHED):
        codes = quantizer.codes(some_bits(quantizer)[:, STARTS[3] :], (4, 6))
        assert torch.allclose(codes.norm(dim=1), torch.ones(2, *quantizer.size((4, 6))))
        assert torch.allclose(codes.abs(), torch.tensor(1 / math.sqrt(quantizer.channels)))


def test_the_place_of_a_bit():
    bits = torch.zeros(1, 24, 6, dtype=torch.bool)
    bits[0, 1 * 6 + 4, 2] = True
    codes = PLAIN.codes(bits, (4, 6))
    assert (codes > 0).nonzero().tolist() == [[0, 2, 1, 4]]
    bits = torch.zeros(1, 24, 12, dtype=torch.bool)
    bits[0, 1 * 6 + 4, 2 * 4 + 3] = True  # channel 2, lower right cell of the patch
    codes = PATCHED.codes(bits, (4, 6))
    assert (codes > 0).nonzero().tolist() == [[0, 2, 2 * 1 + 1, 2 * 4 + 1]]


def test_patches_are_taken_apart_and_put_together():
    tokens = noise(2, 24, 12)
    cells = PATCHED.unpatched(tokens, (4, 6))
    assert cells.shape == (2, 3, 8, 12)
    assert torch.equal(PATCHED.tokens(cells), tokens)


@pytest.mark.parametrize("quantizer", [PLAIN, PATCHED])
def test_encoding_gives_the_sum_and_inputs_that_its_bits_give(quantizer):
    features = noise(2, quantizer.channels, *quantizer.size(SCHEDULE.final))
    bits, inputs, total = quantizer.encode(features, SCHEDULE)
    assert bits.shape == (2, STARTS[-1], quantizer.bits) and inputs.shape[1] == STARTS[-1] - 1
    assert torch.allclose(total, quantizer.summed(bits, SCHEDULE, len(SCHEDULE)), atol=1e-6)
    for k in range(1, len(SCHEDULE)):
        expected = quantizer.next_input(quantizer.summed(bits, SCHEDULE, k), SCHEDULE.grids[k])
        assert torch.allclose(inputs[:, STARTS[k] - 1 : STARTS[k + 1] - 1], expected, atol=1e-6)


def test_bits_are_the_signs_of_what_is_missing():
    features = noise(1, 6, 4, 6)
    bits, _, _ = PLAIN.encode(features, SCHEDULE)
    assert torch.equal(bits[0, 0], features[0].mean((1, 2)) > 0)
    rest = features - PLAIN.summed(bits, SCHEDULE, 3)
    assert torch.equal(bits[0, STARTS[3] :], PLAIN.tokens(rest)[0] > 0)


def test_codes_of_the_last_scale_are_found_again():
    schedule = Schedule(((4, 6),), (4, 6))
    for quantizer in (PLAIN, PATCHED):
        bits = some_bits(quantizer)[:, :24]
        codes = quantizer.codes(bits, (4, 6))
        found = quantizer.tokens(codes) > 0
        assert torch.equal(found, bits)
        assert torch.equal(quantizer.summed(bits, schedule, 1), codes)


def test_features_longer_than_their_codes_come_nearer_with_every_full_scale():
    schedule = Schedule(((1, 1), (2, 2), (4, 6), (4, 6), (4, 6)), (4, 6))
    features = 3 * F.normalize(noise(4, 6, 4, 6), dim=1)
    bits, _, _ = PLAIN.encode(features, schedule)
    errors = [float((features - PLAIN.summed(bits, schedule, k)).square().mean()) for k in range(6)]
    assert errors[2] > errors[3] > errors[4] > errors[5] and errors[5] < 0.5 * errors[0]


def test_codes_grow_bilinearly_without_aligned_corners():
    bits = torch.tensor([[[True], [False]]])
    grown = MultiScaleBSQ(1).added(torch.zeros(1, 1, 1, 4), bits, (1, 2))
    assert grown.flatten().tolist() == [1.0, 0.5, -0.5, -1.0]


def test_the_next_input_is_bilinear_without_antialias():
    features = torch.arange(8.0).square().view(1, 1, 1, 8)
    # a third of 8 is 2.67 wide: centres at 0.83, 3.5, 6.17, between the two nearest cells each
    expected = [1 * 0.8333, (9 + 16) / 2, 36 * 0.8333 + 49 * 0.1667]
    got = MultiScaleBSQ(1).next_input(features, (1, 3)).flatten()
    assert torch.allclose(got, torch.tensor(expected), atol=1e-2)


def test_the_next_input_is_a_mean_over_cells_at_half_size_only():
    features = noise(1, 6, 12, 12)
    area = {side: F.interpolate(features, (side, side), mode="area") for side in (6, 4)}
    assert torch.allclose(PLAIN.next_input(features, (6, 6)), PLAIN.tokens(area[6]), atol=1e-6)
    assert (PLAIN.next_input(features, (4, 4)) - PLAIN.tokens(area[4])).abs().max() > 0.5


def test_features_of_the_right_size_stay_as_they_are():
    features = noise(1, 6, 4, 6)
    assert resized(features, (4, 6)) is features
    assert resized(features, (2, 3)).shape == (1, 6, 2, 3)


def test_wrong_bits_are_corrected_by_later_scales():
    features = noise(2, 6, 4, 6)
    flipped = []

    def flip(bits: torch.Tensor, scale: int) -> torch.Tensor:
        flipped.append(scale)
        return ~bits if scale == 1 else bits

    right, clean_inputs, clean = PLAIN.encode(features, SCHEDULE)
    bits, inputs, total = PLAIN.encode(features, SCHEDULE, flip)
    assert flipped == [0, 1, 2, 3]
    second = slice(STARTS[1], STARTS[2])
    assert torch.equal(bits[:, : STARTS[2]], right[:, : STARTS[2]])  # the targets are the right ones
    taken = bits.clone()
    taken[:, second] = ~taken[:, second]
    assert torch.allclose(total, PLAIN.summed(taken, SCHEDULE, 4), atol=1e-6)  # the sum has the wrong ones
    expected = PLAIN.next_input(PLAIN.summed(taken, SCHEDULE, 2), (3, 4))
    assert torch.allclose(inputs[:, STARTS[2] - 1 : STARTS[3] - 1], expected, atol=1e-6)
    assert torch.equal(inputs[:, : STARTS[2] - 1], clean_inputs[:, : STARTS[2] - 1])
    rest = features - PLAIN.summed(taken, SCHEDULE, 2)
    target = PLAIN.tokens(F.interpolate(rest, (3, 4), mode="area")) > 0
    assert torch.equal(bits[:, STARTS[2] : STARTS[3]], target)  # later scales aim at what is missing now
    assert not torch.equal(bits[:, STARTS[2] :], right[:, STARTS[2] :])
    assert (features - total).norm() > (features - clean).norm()


def test_rows_do_not_depend_on_each_other_and_sums_are_new():
    bits = some_bits(PLAIN, 3)
    together = PLAIN.summed(bits, SCHEDULE, 3)
    assert torch.equal(PLAIN.summed(bits[1:2], SCHEDULE, 3), together[1:2])
    kept = together.clone()
    PLAIN.added(together, bits[:, STARTS[3] :], (4, 6))
    assert torch.equal(together, kept)
    assert torch.equal(PLAIN.summed(bits, SCHEDULE, 0), PLAIN.empty(3, SCHEDULE))
