"""Networks through which gradients go back: frozen, thrifty with memory, in one precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MISSING = object()  # in the place of an attribute that an object does not have of its own


@contextmanager
def frozen(networks: Sequence[nn.Module]) -> Iterator[None]:
    """The networks without gradients of their weights."""
    weights = [w for network in networks for w in network.parameters() if w.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@contextmanager
def recomputing(network: Any) -> Iterator[None]:
    """The network with its blocks computed again on the way back, where it can do that."""
    able = getattr(network, "_supports_gradient_checkpointing", False)
    if not able or network.is_gradient_checkpointing:
        yield
        return
    try:
        network.enable_gradient_checkpointing()
        yield
    finally:
        network.disable_gradient_checkpointing()


@contextmanager
def precision_kept(network: nn.Module) -> Iterator[None]:
    """The network whose precision is lowered only after this block.

    Pipelines raise a half-precision autoencoder to float32 for decoding and lower it at once.
    """
    to, waiting = network.to, []

    def move(*args: Any, **kwargs: Any) -> nn.Module:
        dtype = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.dtype)), None)
        if dtype in {torch.float16, torch.bfloat16}:
            waiting.append((args, kwargs))
            return network
        waiting.clear()
        return to(*args, **kwargs)

    before = network.__dict__.get("to", MISSING)
    network.__dict__["to"] = move
    try:
        yield
    finally:
        if before is MISSING:
            del network.__dict__["to"]
        else:
            network.__dict__["to"] = before
        for args, kwargs in waiting[-1:]:
            to(*args, **kwargs)


def checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass of which only the inputs are kept for the way back."""

    @functools.wraps(forward)
    def compute(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return compute
