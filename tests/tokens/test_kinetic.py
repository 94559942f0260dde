"""The mathematics of discrete flow matching against closed forms, published values and simulation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tts_vision.errors import ConfigError
from tts_vision.pipelines.tokens import kinetic
from tts_vision.pipelines.tokens.kinetic import (
    Metric,
    Schedule,
    distance,
    euler_step,
    jump_probability,
    path_probability,
    sample_path,
    velocity,
)

SCHEDULE = Schedule()
CHAINS = 20_000


def codebook(size: int = 6, width: int = 4) -> Tensor:
    torch.manual_seed(0)
    return torch.nn.Embedding(size, width).weight.detach()


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def frequencies(ids: Tensor, size: int = 6) -> Tensor:
    return torch.bincount(ids.flatten(), minlength=size).double() / ids.numel()


def far(frequency: Tensor, probability: Tensor, n: int = CHAINS) -> float:
    """The largest deviation in standard errors; five are never seen by chance here."""
    p = probability.double()
    error = (p * (1 - p) / n).sqrt().clamp_min(1 / n)
    return float(((frequency - p).abs() / error).max())


def test_published_values() -> None:
    rows = distance(codebook()[2:3], codebook())[0]
    assert rows.tolist() == pytest.approx([6.9141, 5.7253, 0, 5.8655, 0.1628, 7.5105], abs=1e-4)
    assert SCHEDULE.beta(0.5) == 3
    probability = path_probability(rows, SCHEDULE.beta(0.5))
    assert probability.tolist() == pytest.approx([0, 0, 0.6197, 0, 0.3803, 0], abs=1e-4)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_probabilities_sum_to_one(t: float) -> None:
    probability = path_probability(Metric(codebook()).rows(torch.arange(6)), SCHEDULE.beta(t))
    assert torch.allclose(probability.sum(-1), torch.ones(6))
    if t == 0:
        assert torch.allclose(probability, torch.full((6, 6), 1 / 6))
    else:
        assert (probability.argmax(-1) == torch.arange(6)).all()
    if t == 0.999:
        assert (probability.diagonal() > 0.999).all()


def test_the_rate_is_the_derivative_of_the_schedule() -> None:
    for schedule in (SCHEDULE, Schedule(c=1.5, a=2)):
        for t in (0.05, 0.3, 0.5, 0.9):
            slope = (schedule.beta(t + 1e-6) - schedule.beta(t - 1e-6)) / 2e-6
            assert schedule.rate(t) == pytest.approx(slope, rel=1e-5)
        assert schedule.rate(0) == 0
    # by hand: 3 * 0.9 * 1^(-0.1) / 0.25
    assert SCHEDULE.rate(0.5) == pytest.approx(10.8)


def test_jumps_lead_nearer_only() -> None:
    distances = Metric(codebook()).rows(torch.full((6,), 2))
    flow = velocity(distances, torch.arange(6), SCHEDULE.beta(0.3), SCHEDULE.rate(0.3))
    d = distances[0]
    for here in range(6):
        for there in range(6):
            assert (flow[here, there] > 0) == bool(d[there] < d[here])
    # by hand, from 0 to 4: p(4) beta' (d(0) - d(4))
    p = math.exp(-SCHEDULE.beta(0.3) * d[4]) / sum(math.exp(-SCHEDULE.beta(0.3) * x) for x in d.tolist())
    assert float(flow[0, 4]) == pytest.approx(p * SCHEDULE.rate(0.3) * float(d[0] - d[4]), rel=1e-5)
    assert not flow[2].any(), "a token at its target stays"
    assert not velocity(distances, torch.arange(6), SCHEDULE.beta(0), SCHEDULE.rate(0)).any()


@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 0.95])
def test_the_velocity_makes_the_path(t: float) -> None:
    """Kolmogorov's forward equation, exactly: ``dp/dt (x) = sum_z p(z) u(x, z) - p(x) sum_z u(z, x)``."""
    distances = Metric(codebook().double()).rows(torch.full((6,), 1)).double()
    flow = velocity(distances, torch.arange(6), SCHEDULE.beta(t), SCHEDULE.rate(t))  # from rows to columns
    p = path_probability(distances[0], SCHEDULE.beta(t))
    change = p @ flow - p * flow.sum(1)
    later, earlier = (path_probability(distances[0], SCHEDULE.beta(t + e)) for e in (1e-6, -1e-6))
    assert torch.allclose(change, (later - earlier) / 2e-6, atol=1e-6)


def test_the_chance_of_a_jump() -> None:
    flow = torch.tensor([[0.5, 0.0, 1.5], [0.0, 0.0, 0.0]])
    assert jump_probability(flow, 0.1).tolist() == pytest.approx([1 - math.exp(-0.2), 0])


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.8])
def test_exact_renoising(t: float) -> None:
    metric, targets = Metric(codebook()), torch.full((CHAINS, 1), 3)
    x = sample_path(metric, targets, t, SCHEDULE, uniform(CHAINS, 1))
    assert far(frequencies(x), path_probability(metric.rows(targets[0])[0], SCHEDULE.beta(t))) < 5


@pytest.mark.parametrize(("start", "steps"), [(0.1, 60), (0.4, 40)])
def test_marginals_of_chains_follow_the_path(start: float, steps: int) -> None:
    metric, targets = Metric(codebook()), torch.full((CHAINS, 1), 1)
    h = (0.9 - start) / steps
    x = sample_path(metric, targets, start, SCHEDULE, uniform(CHAINS, 1, seed=1))
    for i in range(steps):
        x = euler_step(metric, x, targets, start + i * h, h, SCHEDULE, uniform(2, CHAINS, 1, seed=2 + i))
        if i + 1 in (steps // 2, steps):
            probability = path_probability(metric.rows(targets[0])[0], SCHEDULE.beta(start + (i + 1) * h))
            # a step is of first order in h
            assert float((frequencies(x) - probability).abs().max()) < 0.02


def test_a_short_step_is_its_velocity() -> None:
    """Rates of one step from one token, against the closed form."""
    metric, h, t = Metric(codebook()), 0.05, 0.3
    here, targets = torch.full((CHAINS, 1), 5), torch.full((CHAINS, 1), 2)
    x = euler_step(metric, here, targets, t, h, SCHEDULE, uniform(2, CHAINS, 1))
    flow = velocity(metric.rows(targets[0]), here[0], SCHEDULE.beta(t), SCHEDULE.rate(t))[0]
    expected = flow / flow.sum() * (1 - math.exp(-h * float(flow.sum())))
    expected[5] = 1 - expected.sum()
    assert far(frequencies(x), expected) < 5


def test_chains_end_near_their_targets_and_never_go_away_from_them() -> None:
    metric, steps = Metric(codebook()), 50
    targets = torch.randint(6, (200, 7), generator=torch.Generator().manual_seed(3))
    x = (uniform(200, 7, seed=4) * 6).long()
    for i in range(1, steps):
        before = x
        x = euler_step(metric, x, targets, i / steps, 1 / steps, SCHEDULE, uniform(2, 200, 7, seed=5 + i))
        d = metric.table
        assert d is not None and (d[targets, x] <= d[targets, before]).all()
    assert (x == targets).float().mean() > 0.95


def test_nothing_moves_at_time_zero() -> None:
    metric, x = Metric(codebook()), torch.arange(6)[None]
    moved = euler_step(metric, x, x.flip(1), 0.0, 0.02, SCHEDULE, torch.zeros(2, 1, 6))
    assert torch.equal(moved, x)


def test_blocks_and_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = Metric(codebook(50, 8))
    x, x1 = ((uniform(5, 12, seed=s) * 50).long() for s in (1, 2))
    numbers = uniform(2, 5, 12, seed=3)
    kept = euler_step(metric, x, x1, 0.5, 0.1, SCHEDULE, numbers)
    back = sample_path(metric, x1, 0.5, SCHEDULE, numbers[0])
    assert (kept != x).any() and (kept == x).any()
    monkeypatch.setattr(kinetic, "BLOCK", 150)
    monkeypatch.setattr(kinetic, "TABLE_SIZE", 10)
    again = Metric(codebook(50, 8))
    assert metric.table is not None and again.table is None
    assert torch.equal(euler_step(again, x, x1, 0.5, 0.1, SCHEDULE, numbers), kept)
    assert torch.equal(sample_path(again, x1, 0.5, SCHEDULE, numbers[0]), back)
    rows = [slice(i, i + 1) for i in range(5)]
    alone = [euler_step(metric, x[i], x1[i], 0.5, 0.1, SCHEDULE, numbers[:, i]) for i in rows]
    assert torch.equal(torch.cat(alone), kept)


def test_lengths_of_embeddings_do_not_matter() -> None:
    scaled = codebook() * torch.arange(1, 7)[:, None]
    assert torch.allclose(distance(scaled, scaled), distance(codebook(), codebook()), atol=1e-5)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\) but got 1; at 1 it is at its target"):
        SCHEDULE.beta(1.0)
    with pytest.raises(ConfigError, match="must be in"):
        SCHEDULE.rate(-0.1)
    with pytest.raises(ConfigError, match=r"c and a above 0 but got c=0, a=0\.9"):
        Schedule(c=0)
