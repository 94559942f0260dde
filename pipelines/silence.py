"""Denoisers that answer zeros: for dry runs of a loop, and for steps that a loop cannot skip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("input", "latents", "latents twice", "output channels", "output channels last")
"""The shapes of an answer, in the order in which a dry run tries them: that of the network's input; of the
latents, where the input has further channels; with a learned variance; by the configuration, with the
channels first or last."""


class Silence(tuple[Any, ...]):
    """A network's output, by position or by name."""

    @property
    def sample(self) -> Any:
        return self[0]


def answer(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], kind: str, row: torch.Size | None
) -> Silence:
    """Zeros in the place of a network's output.

    Args:
        module: The network.
        args: Its positional arguments.
        kwargs: Its named arguments.
        kind: One of `KINDS`.
        row: Shape of one row of the loop's latents.
    """
    x = denoised(args, kwargs)
    if isinstance(x, list):
        return Silence(([_zeros(module, item, "input", None) for item in x],))
    outputs = [_zeros(module, x, kind, row)]
    if isinstance(kwargs.get("audio_hidden_states"), Tensor):
        outputs.append(torch.zeros_like(kwargs["audio_hidden_states"]))
    return Silence(outputs)


def _zeros(module: nn.Module, x: Tensor, kind: str, row: torch.Size | None) -> Tensor:
    config: Any = getattr(module, "config", {})
    channels, out = config.get("in_channels"), config.get("out_channels", config.get("out_visual_dim"))
    if kind == "input" or row is None:
        learned = config.get("learn_sigma") or (channels and out == 2 * channels)
        return torch.cat([torch.zeros_like(x)] * 2, dim=1) if learned and x.ndim == 4 else torch.zeros_like(x)
    if kind == "output channels" and isinstance(out, int):
        return x.new_zeros(len(x), out, *x.shape[2:])
    if kind == "output channels last" and isinstance(out, int):
        return x.new_zeros(*x.shape[:-1], out)
    shape = list(row)
    if kind == "latents twice":
        shape[0] *= 2
    return x.new_zeros(len(x), *shape)


def denoised(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The sample that a denoiser is called on: a tensor, or a list of one tensor per row."""
    for name in ("hidden_states", "sample", "x", "latents"):
        if name in kwargs:
            return kwargs[name]
    return args[0]


def recalled(forward: Callable[..., Any], memory: dict[int, Any]) -> Callable[..., Any]:
    """A network's forward pass whose output is computed once for each number of rows.

    For networks beside the denoiser in steps whose result is thrown away.
    """

    def recall(*args: Any, **kwargs: Any) -> Any:
        rows = len(denoised(args, kwargs))
        if rows not in memory:
            memory[rows] = forward(*args, **kwargs)
        return memory[rows]

    return recall
