"""Caches of activations on a denoiser, whose state between the steps of a loop belongs to a particle.

A cache such as FirstBlockCache decides at each step, by activations of earlier ones, whether most of the
network runs. The pipeline drops that state at the end of its call, so a segment of a loop restores it before
its first step and reads it after its last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tts_vision.errors import PipelineError

CARRIED = frozenset({"FirstBlockCache", "MagCache", "TaylorSeerCache", "PyramidAttentionBroadcast"})
"""The caches whose state is all in tensors and numbers, by the name that `cache_of` gives."""

_LAYOUT = "caches"


@dataclass
class Caches:
    """The caches on the denoisers of a pipeline, over one segment of its loop.

    Attributes:
        denoisers: The networks.
        entered: State before the first step, as `left` is after the last; None starts empty.
        left: State after the last computed step, by cache, context of the call and attribute; None if no
            step was computed.
    """

    denoisers: Sequence[nn.Module]
    entered: Mapping[str, Any] | None = None
    left: dict[str, Any] | None = field(default=None, init=False)

    def begin(self) -> None:
        """Before the first computed step."""
        self.clear()
        for key, values in (self.entered or {}).items():
            _put(self._holders()[key], values)

    def end(self) -> None:
        """After the last computed step, before the pipeline's call ends."""
        self.left = {key: _taken(holder) for key, holder in self._holders().items()}

    def clear(self) -> None:
        """Empties the caches."""
        for holder in self._holders().values():
            holder.reset()

    def _holders(self) -> dict[str, Any]:
        """The objects that hold state, by a stable name, each once."""
        found: dict[int, tuple[str, Any]] = {}
        for name, hook in _hooks(self.denoisers):
            for attribute, value in vars(hook).items():
                if hasattr(value, "_state_cache") or attribute == "state":
                    found.setdefault(id(value), (f"{name}/{attribute}", value))
        return dict(found.values())


def _hooks(denoisers: Sequence[nn.Module]) -> Iterator[tuple[str, Any]]:
    for i, network in enumerate(denoisers):
        for path, part in network.named_modules():
            for name, hook in getattr(getattr(part, "_diffusers_hook", None), "hooks", {}).items():
                if getattr(hook, "_is_stateful", False):
                    yield f"{i}/{path}/{name}", hook


def _taken(holder: Any) -> dict[str, dict[str, Any]]:
    """The attributes of a state; of a manager of states, by the context of the call ("cond", "uncond")."""
    states = getattr(holder, "_state_cache", None)
    if states is None:
        return {"": dict(vars(holder))}
    return {context: dict(vars(state)) for context, state in states.items()}


def _put(holder: Any, values: Mapping[str, Mapping[str, Any]]) -> None:
    states = getattr(holder, "_state_cache", None)
    if states is None:
        vars(holder).update(values[""])
        return
    for context, attributes in values.items():
        state = holder._state_cls(*holder._init_args, **holder._init_kwargs)
        vars(state).update(attributes)
        states[context] = state


def pack_caches(left: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits the state of one particle's caches into row tensors and the layout that all particles share.

    Returns:
        Tensors of one row by ``caches/...``, numbers among them, which may differ between particles; and the
        layout under ``caches``.

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
            f"The state of a cache must be tensors and numbers to be forked but {key!r} is a "
            f"{type(value).__name__}; disable the cache."
        )

    return rows, {_LAYOUT: layout(_LAYOUT, left)}


def unpack_caches(
    carry: Mapping[str, Any], shared: Mapping[str, Any], device: torch.device
) -> dict[str, Any] | None:
    """The state that `pack_caches` split, of one particle, on `device`; None where there is none."""

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

    found: dict[str, Any] | None = value(shared[_LAYOUT]) if _LAYOUT in shared else None
    return found


def check_alike(layouts: Sequence[Mapping[str, Any]]) -> None:
    """Refuses particles whose caches hold different parts, which could not be one batch.

    Raises:
        PipelineError: If they do.
    """
    if any(shared.get(_LAYOUT) != layouts[0].get(_LAYOUT) for shared in layouts[1:]):
        raise PipelineError(
            "The caches of particles at one step must hold the same parts to be one batch but they differ; "
            "disable the cache."
        )


_NUMBERS = {bool: torch.bool, int: torch.long, float: torch.double}
