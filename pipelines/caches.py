"""Caches of activations on a denoiser, whose state between the steps of a loop belongs to a particle.

A cache such as FirstBlockCache decides at each step, by activations of earlier ones, whether most of the
network runs. The pipeline drops that state at the end of its call, so a segment of a loop restores it before
its first step and reads it after its last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

CARRIED = frozenset({"FirstBlockCache", "MagCache", "TaylorSeerCache", "PyramidAttentionBroadcast"})
"""The caches whose state is all in tensors and numbers, by the name that `cache_of` gives."""

CACHES = "caches"
"""The name under which particles carry the state of caches."""


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
