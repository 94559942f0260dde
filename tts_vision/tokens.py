"""Tokens drawn by given uniform numbers: the one rule that samplers and mutations share."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_vision.errors import ConfigError

BELOW_ONE = 1 - torch.finfo(torch.float32).eps / 2  # the largest float32 below 1


def draw(probability: Tensor, uniform: Tensor) -> Tensor:
    """Tokens of given `probability` that depend on nothing but `uniform`.

    With independent uniform numbers, evenly spread over [0, 1), tokens follow their probabilities.

    Args:
        probability: ``(B, ...)`` of a set bit, or ``(B, ..., V)`` of each of V ids; these need not sum to
            exactly 1.
        uniform: ``(B, ...)``, in [0, 1).

    Returns:
        ``(B, ...)``: where the shapes agree, bits ``uniform < probability`` as uint8; where `probability`
        has one axis more, ids by the inverse of the cumulative probability over it, as int64.

    Raises:
        ConfigError: If the shapes fit neither.
    """
    if probability.shape == uniform.shape:
        return (uniform < probability).to(torch.uint8)
    if probability.shape[:-1] != uniform.shape:
        raise ConfigError(
            "Probabilities must have the shape of the uniform numbers, or one axis more, but have "
            f"{tuple(probability.shape)} beside {tuple(uniform.shape)}; pass those of one scale."
        )
    cumulated = probability.double().cumsum(-1)
    points = uniform.double().unsqueeze(-1) * cumulated[..., -1:]
    # side "right": an id of probability 0 has an empty interval and is never drawn
    ids = torch.searchsorted(cumulated, points, right=True).squeeze(-1)
    return ids.clamp_max(probability.shape[-1] - 1)


def likeliest(probability: Tensor, tokens: Tensor) -> Tensor:
    """The likeliest tokens.

    Args:
        probability: As in `draw`.
        tokens: ``(B, T, ...)`` of earlier tokens, of the same kind: bits or ids.
    """
    if probability.ndim == tokens.ndim and tokens.dtype == torch.uint8:
        return (probability > 0.5).to(torch.uint8)
    return probability.argmax(-1).to(tokens.dtype)


def redrawn(uniform: Tensor, noise: Tensor, share: float) -> Tensor:
    """The uniform numbers with each replaced by a fresh one with probability `share`, all independent.

    One standard normal decides both: ``v = Phi(noise)`` is evenly spread over [0, 1); where ``v < share`` the
    number is replaced by ``v / share``, which given that is evenly spread over [0, 1) too.

    Args:
        uniform: ``(B, ...)``, in [0, 1).
        noise: ``(B, ...)``, standard normal.
        share: From 0, which changes nothing, to 1, which replaces all.
    """
    v = torch.special.ndtr(noise.double())
    fresh = (v / share if share else v).to(uniform.dtype).clamp(0, BELOW_ONE)
    return torch.where(v < share, fresh, uniform)


def distinct(tokens: Tensor) -> int:
    """How many rows of ``(B, ...)`` tokens differ: those that agree share one forward."""
    return len(groups(tokens)[0])


def groups(tokens: Tensor) -> tuple[list[int], list[int]]:
    """Rows that differ, by the number of their first, and for each row which of these it equals."""
    numbers: dict[bytes, int] = {}
    first: list[int] = []
    of_row: list[int] = []
    for i, row in enumerate(tokens.contiguous().numpy()):
        number = numbers.setdefault(row.tobytes(), len(numbers))
        if number == len(first):
            first.append(i)
        of_row.append(number)
    return first, of_row
