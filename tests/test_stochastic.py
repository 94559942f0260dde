"""The equations of stochastic steps, against closed forms and published golden values."""

from __future__ import annotations

import math

import pytest
import torch

from tts_vision.errors import ConfigError
from tts_vision.pipelines.stochastic import (
    Level,
    convert_velocity,
    ddim_std,
    ddim_step,
    diffusion,
    euler_step,
    linear_time,
    renoise,
    score,
    tweedie,
    variance_preserving,
    variance_preserving_time,
)

MEAN, VARIANCE = 0.7, 0.25


def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """The exact velocity of the linear path for data ~ N(0.7, 0.25)."""
    total = (1 - t) ** 2 * VARIANCE + t**2
    centred = x - (1 - t) * MEAN
    return t / total * centred - (MEAN + (1 - t) * VARIANCE / total * centred)


def test_variance_preserving_path_golden_values():
    path = variance_preserving(0.5)
    assert path.alpha == pytest.approx(0.281183, abs=1e-6)
    assert path.sigma == pytest.approx(0.959654, abs=1e-6)
    assert path.d_alpha == pytest.approx(-1.412944, abs=1e-6)
    assert path.d_sigma == pytest.approx(0.413999, abs=1e-6)
    assert linear_time(path) == pytest.approx(0.773393, abs=1e-6)
    assert path.alpha + path.sigma == pytest.approx(1.240837, abs=1e-6)
    assert linear_time(variance_preserving(0.1)) == pytest.approx(0.253830, abs=1e-6)


@pytest.mark.parametrize("r", [0.05, 0.3, 0.5, 0.9, 0.999])
def test_the_two_times_invert_each_other(r):
    assert variance_preserving_time(linear_time(variance_preserving(r))) == pytest.approx(r, abs=1e-9)


@pytest.mark.parametrize(
    "r, golden", [(0.5, (-1.14643, -0.92471, -0.67130)), (0.9, (-0.107746, -0.106380, -0.104819))]
)
def test_converted_velocity_tweedie_and_score_match_the_gaussian(r, golden):
    path = variance_preserving(r)
    x = torch.tensor([-0.3, 0.4, 1.2], dtype=torch.float64)
    u = convert_velocity(velocity(x / (path.alpha + path.sigma), linear_time(path)), x, path)
    torch.testing.assert_close(u, torch.tensor(golden, dtype=torch.float64), rtol=0, atol=1e-5)
    total = path.alpha**2 * VARIANCE + path.sigma**2
    centred = x - path.alpha * MEAN
    torch.testing.assert_close(score(u, x, path), -centred / total)
    torch.testing.assert_close(tweedie(u, x, path), MEAN + path.alpha * VARIANCE / total * centred)


def test_diffusion_coefficients():
    g = diffusion("square", 3.0)
    assert [g(r) for r in (0.9, 0.5, 0.2)] == pytest.approx([2.43, 0.75, 0.12])
    for name in ("constant", "sigma", "linear", "sin", "exp"):
        assert diffusion(name, 2.0)(1.0) == pytest.approx(2.0)
    with pytest.raises(ConfigError, match=r"must be one of .*square.* but got 'cube'"):
        diffusion("cube", 1.0)


@pytest.mark.parametrize("interpolant", ["linear", "vp"])
@pytest.mark.parametrize("name, norm", [("square", 1.0), ("linear", 1.0), ("constant", 0.0)])
def test_euler_steps_end_at_the_data_distribution(interpolant, name, norm):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, generator=generator, dtype=torch.float64)
    times = torch.linspace(1, 0, 201, dtype=torch.float64)[1:-1].tolist()
    x = math.sqrt((1 - times[0]) ** 2 * VARIANCE + times[0] ** 2) * x + (1 - times[0]) * MEAN
    for t, t_next in zip(times, [*times[1:], 0.0]):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x, added, std = euler_step(velocity(x, t), x, t, t_next, noise, diffusion(name, norm), interpolant)
        torch.testing.assert_close(added, std * noise if t_next else torch.zeros_like(noise))
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.var()) == pytest.approx(VARIANCE, abs=0.02)


def test_ddim_standard_deviations_golden_values():
    """Stable Diffusion 2.1's schedule, 50 steps, eta 1, at steps 0, 20, 30, 40, 49."""
    from diffusers import DDIMScheduler

    from tts_vision.pipelines.schedule import noise_levels

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type="v_prediction",
    )
    scheduler.set_timesteps(50)
    levels = noise_levels(scheduler)
    stds = [ddim_std(levels[i], levels[i + 1], 1.0) for i in (0, 20, 30, 40, 49)]
    assert stds == pytest.approx([0.4545, 0.3229, 0.2518, 0.1771, 0.0206], abs=1e-4)


def test_ddim_and_renoising_keep_the_marginals():
    generator = torch.Generator().manual_seed(0)
    shape = (100000,)
    x0 = MEAN + math.sqrt(VARIANCE) * torch.randn(shape, generator=generator)
    eps, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    for now, then in ((Level(0.3, 0.7), Level(0.6, 0.4)), (Level(1.0, 5.0), Level(1.0, 2.0))):
        std = ddim_std(now, then, 1.0)
        x, added = ddim_step(x0, eps, then, std, noise)
        assert float(x.var()) == pytest.approx(then.alpha**2 * VARIANCE + then.sigma**2, rel=0.02)
        assert float(added.std()) == pytest.approx(std, rel=0.02)
        back = renoise(x, then, now, torch.randn(shape, generator=generator))
        assert float(back.var()) == pytest.approx(now.alpha**2 * VARIANCE + now.sigma**2, rel=0.02)
        assert float(back.mean()) == pytest.approx(now.alpha * MEAN, abs=0.05)
