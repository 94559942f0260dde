"""Calibration of logits, against another optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from tts_vision.pipelines.playground.platt import PENALTY, fitted_line


@pytest.mark.parametrize("seed", range(3))
def test_the_line_is_that_of_another_optimiser(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logit = rng.normal(1.0, 3.0, 300)
    right = (logit + rng.normal(0.5, 2.0, 300) > 0).astype(float)
    x = (logit - logit.mean()) / logit.std(ddof=1)

    def loss(line: np.ndarray) -> float:
        z = line[0] * x + line[1]
        return float(np.mean(np.logaddexp(0, z) - right * z) + PENALTY * np.sum(line**2))

    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14}).x
    slope, offset = fitted_line(torch.from_numpy(logit), torch.from_numpy(right))
    assert slope * logit.std(ddof=1) == pytest.approx(best[0], rel=1e-3)
    assert offset + slope * logit.mean() == pytest.approx(best[1], rel=1e-3, abs=1e-3)


def test_a_line_that_parts_the_outcomes_is_bounded() -> None:
    logit, right = torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([False, False, True, True])
    slope, offset = fitted_line(logit, right)
    assert 1 < slope < 20 and offset == pytest.approx(0, abs=1e-3)


def test_equal_logits_have_a_line() -> None:
    line = fitted_line(torch.ones(4), torch.tensor([True, True, True, False]))
    assert np.isfinite(line).all()
