"""From logits to the probabilities of bits and tokens: guidance, temperature, top-k, top-p."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_vision.errors import ConfigError


def guided(cond: Tensor, uncond: Tensor, cfg: float) -> Tensor:
    """Logits under classifier-free guidance (Ho and Salimans 2022).

    Args:
        cond: Logits given the prompt.
        uncond: Logits given none, or the negative prompt; of the same shape.
        cfg: The guidance scale; 1 gives `cond`.
    """
    return cfg * cond + (1 - cfg) * uncond


def ramped(cfg: float, scale: int, scales: int) -> float:
    """The guidance scale of VAR (Tian et al. 2024) at one scale: none at the first, ``1 + cfg`` at the last.

    Args:
        cfg: How far the ramp goes up.
        scale: Which scale.
        scales: How many there are.
    """
    return 1 + cfg * scale / max(1, scales - 1)


def bit_probability(logits: Tensor, tau: float = 1.0, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """The probability ``(N, L, D)`` in [0, 1] that each bit is set (Infinity, Han et al. 2024).

    Args:
        logits: ``(N, L, D, 2)``; the second of a pair is that of a set bit.
        tau: Temperature.
        top_k: How many values to draw from: 1 takes the likelier, 0 and all else leave both.
        top_p: Drop the less likely value if its probability is at most ``1 - top_p``; 0 keeps both.

    Raises:
        ConfigError: If a number is out of its range.
    """
    _check(tau, top_k, top_p)
    gap = logits.float().diff(dim=-1).squeeze(-1) / tau
    probability = gap.sigmoid()
    if top_k == 1:
        probability = torch.where(gap == 0, probability, (gap > 0).float())
    if top_p > 0:
        rarer = (-gap.abs()).sigmoid()
        probability = torch.where(rarer <= 1 - top_p, (gap > 0).float(), probability)
    return probability


def token_probability(logits: Tensor, tau: float = 1.0, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """The probability ``(N, L, V)`` of each token of a vocabulary; sums to 1 over it.

    Args:
        logits: ``(N, L, V)``.
        tau: Temperature.
        top_k: Keep the likeliest so many tokens, and any that equal the last of them; 0 keeps all.
        top_p: Drop the least likely tokens whose probabilities add up to at most ``1 - top_p`` (nucleus
            sampling, Holtzman et al. 2020); the likeliest always stays, and 0 keeps all.

    Raises:
        ConfigError: If a number is out of its range.
    """
    _check(tau, top_k, top_p)
    logits = logits.float() / tau
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(dim=-1, stable=True)
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        dropped[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits.softmax(-1)


def _check(tau: float, top_k: int, top_p: float) -> None:
    if not tau > 0:
        raise ConfigError(f"tau must be above 0 but got {tau:g}; for the likeliest tokens set top_k to 1.")
    if top_k < 0:
        raise ConfigError(f"top_k must be at least 0 but got {top_k}; 0 keeps all tokens.")
    if not 0 <= top_p <= 1:
        raise ConfigError(f"top_p must lie in [0, 1] but got {top_p:g}; 0 keeps all tokens.")
