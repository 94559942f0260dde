"""Nested values of one particle, as tensors that are reindexed with it and a layout that particles share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tts_vision.errors import PipelineError

_NUMBERS = {bool: torch.bool, int: torch.long, float: torch.double}
_DIGEST = "/layout"


def pack_tree(root: str, values: Mapping[str, Any], what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits nested values into row tensors and the layout that all particles share.

    Args:
        root: The name under which they are carried.
        values: Nested dictionaries and sequences of tensors, numbers, texts, types and devices.
        what: What they are, for the message: "The state of a cache".

    Returns:
        Tensors of one row by ``<root>/...``, numbers among them, which may differ between particles; and the
        layout under `root`.

    Raises:
        PipelineError: If a value is neither a tensor nor plain.
    """
    rows: dict[str, Tensor] = {}

    def layout(key: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            rows[key] = value.detach().clone()[None]
            return {"tensor": key}
        for kind, dtype in _NUMBERS.items():
            if type(value) is kind:
                rows[key] = torch.tensor([value], dtype=dtype)
                return {"number": key}
        if isinstance(value, Mapping):
            return {"dict": [[k, layout(f"{key}/{k}", item)] for k, item in value.items()]}
        if isinstance(value, (tuple, list)):
            items = [layout(f"{key}/{i}", item) for i, item in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": items}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": True}
        if value is None or isinstance(value, str):
            return {"value": value}
        raise PipelineError(
            f"{what} must be tensors and numbers to be forked but {key!r} is a {type(value).__name__}; leave "
            "it out."
        )

    found = layout(root, values)
    rows[root + _DIGEST] = torch.tensor([_digest(found)])
    return rows, {root: found}


def unpack_tree(
    root: str, carry: Mapping[str, Any], shared: Mapping[str, Any], device: torch.device
) -> dict[str, Any] | None:
    """The values that `pack_tree` split, of one particle, on `device`; None where there are none.

    Raises:
        PipelineError: If the layout is that of other particles, which were joined with this one.
    """

    def value(layout: Mapping[str, Any]) -> Any:
        ((kind, content),) = layout.items()
        if kind == "tensor":
            return carry[content][0].to(device, copy=True)
        if kind == "number":
            return carry[content][0].item()
        if kind == "dict":
            return {k: value(item) for k, item in content}
        if kind in {"tuple", "list"}:
            items = [value(item) for item in content]
            return tuple(items) if kind == "tuple" else items
        if kind == "dtype":
            return getattr(torch, content)
        return device if kind == "device" else content

    if root not in shared:
        return None
    if int(carry[root + _DIGEST][0]) != _digest(shared[root]):
        raise _unlike(root)
    found: dict[str, Any] = value(shared[root])
    return found


def check_alike(parts: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], roots: Sequence[str]) -> None:
    """Refuses particles that could not be one batch: each with what it carries and what it shares.

    Raises:
        PipelineError: If trees of theirs hold different parts, or tensors of different shapes.
    """
    for root in roots:
        layouts = {_digest(shared[root]) if root in shared else None for _, shared in parts}
        shapes = {
            tuple(
                (key, value.shape[1:]) for key, value in sorted(carry.items()) if key.startswith(f"{root}/")
            )
            for carry, _ in parts
        }
        if len(layouts) > 1 or len(shapes) > 1:
            raise _unlike(root)


def _unlike(root: str) -> PipelineError:
    return PipelineError(
        f"The {root} of particles at one step must hold tensors of the same shapes to be one batch but they "
        "differ, as they do for texts of different lengths; pad the texts to one length "
        "(max_sequence_length), or search without it."
    )


def _digest(layout: Any) -> int:
    """A number that tells layouts apart, also after they were stored as JSON."""
    return int.from_bytes(hashlib.sha256(json.dumps(layout).encode()).digest()[:7], "big")
