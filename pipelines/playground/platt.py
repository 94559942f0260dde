"""Calibration of logits (Platt 1999)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTY = 1e-4  # of the squares of both, for standardised logits: bounds a line that parts the outcomes


def fitted_line(logit: Tensor, right: Tensor) -> tuple[float, float]:
    """Slope and offset by which logits fit outcomes best, in cross-entropy.

    Args:
        logit: Of yes, ``(n,)``.
        right: Outcomes or their shares, 0 to 1, ``(n,)``.
    """
    logit, right = logit.double().cpu(), right.double().cpu()
    centre, spread = logit.mean(), logit.std().clamp(min=1e-6)
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(line[0] * (logit - centre) / spread + line[1], right)
        loss = loss + PENALTY * line.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    slope = float(line[0].detach() / spread)
    return slope, float(line[1].detach() - slope * centre)
