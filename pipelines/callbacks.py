"""The callback at the end of each step of a pipeline's loop: the user's, and the search's own."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.differentiable import MISSING
from tts_vision.pipelines.proxy import SchedulerProxy

CALLBACK, INPUTS = "callback_on_step_end", "callback_on_step_end_tensor_inputs"


class StepEnd:
    """Notes the loop's latents after each computed step, and runs the user's callback before that.

    Whatever the user's callback changes beside the latents is noted in the proxy's `Edits`. Those of earlier
    segments enter the loop at the end of the last step before the segment.

    Args:
        proxy: Of the segment.
        call: Arguments of the pipeline's call; the user's callback is among them, if there is one.
        entering: Latents that the loop continues from, if given; steps before the segment keep them.
        runs_users: Whether the user's callback runs; not in a dry run.
    """

    def __init__(
        self, proxy: SchedulerProxy, call: Mapping[str, Any], entering: Tensor | None, *, runs_users: bool
    ) -> None:
        self._proxy, self._entering = proxy, entering
        self._users: Callable[..., Any] | None = call.get(CALLBACK) if runs_users else None
        self._inputs = inputs_of(call)

    @property
    def tensor_inputs(self) -> list[str]:
        return list(dict.fromkeys(["latents", *self._inputs]))

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if self._proxy.skipping:
            return self._entered(pipe)
        outputs: dict[str, Any] = {}
        if self._users is not None:
            outputs = self._by_user(pipe, step, timestep, tensors)
        self._proxy.before = self._proxy.latents
        self._proxy.latents = outputs.get("latents", tensors["latents"])
        self._proxy.interrupted = bool(getattr(pipe, "_interrupt", False))
        return outputs

    def _entered(self, pipe: Any) -> dict[str, Any]:
        """The tensors of the loop at the end of a step that is skipped."""
        proxy = self._proxy
        if self._entering is None or proxy.position >= proxy.start:
            return {}
        entered = {"latents": self._entering.clone()}
        if proxy.position == proxy.enters_after:
            entered |= {name: _copied(value) for name, value in proxy.edits.tensors.items()}
            for name, value in proxy.edits.attributes.items():
                setattr(pipe, name, value)
        return entered

    def _by_user(self, pipe: Any, step: int, timestep: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the user's callback, on copies of all tensors but the latents.

        Raises:
            PipelineError: If it changes one of these in place.
        """
        given = {k: tensors[k] if k == "latents" else _copied(tensors[k]) for k in self._inputs}
        before, versions = plain_attributes(pipe), {k: _versions(v) for k, v in given.items()}
        outputs: dict[str, Any] = self._users(pipe, step, timestep, dict(given))  # type: ignore[misc]
        if not _takes_results(type(pipe).__call__):
            outputs = {}
        written = {k for k, v in given.items() if k != "latents" and _versions(v) != versions[k]}
        if written - outputs.keys():
            raise PipelineError(
                "A callback of a pipeline that is searched must return the tensors that it edits but this "
                f"one changes {', '.join(sorted(written - outputs.keys()))} in place; return them by name."
            )
        kept = {k for k, v in outputs.items() if v is given.get(k) and k not in written}
        edited = {k: v for k, v in outputs.items() if k not in kept | {"latents"}}
        now = {k: v for k, v in plain_attributes(pipe).items() if k != "_interrupt"}
        changed = {k: v for k, v in now.items() if before.get(k, MISSING) != v}
        self._proxy.edits.add(self._proxy.position, edited, changed)
        return outputs


def inputs_of(call: Mapping[str, Any]) -> Sequence[str]:
    """The tensors that the user's callback asks for."""
    users = call.get(CALLBACK)
    return getattr(users, "tensor_inputs", None) or call.get(INPUTS) or ["latents"]


def asks_for_more(call: Mapping[str, Any]) -> bool:
    """Whether the user's callback asks for tensors beside the latents."""
    return call.get(CALLBACK) is not None and bool(set(inputs_of(call)) - {"latents"})


def check_callback(call: Mapping[str, Any]) -> None:
    """Refuses a callback whose changes cannot belong to a particle.

    Raises:
        ConfigError: If it is one.
    """
    users = call.get(CALLBACK)
    for one in getattr(users, "callbacks", [users]):
        if type(one).__name__ == "IPAdapterScaleCutoffCallback":
            raise ConfigError(
                "A callback must change no network, which all particles share, but "
                f"{type(one).__name__} sets the scale of its adapters for good; leave it out."
            )


def plain_attributes(pipe: Any) -> dict[str, Any]:
    """The attributes of a pipeline that are numbers and texts."""
    return {k: v for k, v in vars(pipe).items() if isinstance(v, (bool, int, float, str))}


@functools.cache
def _takes_results(call: Callable[..., Any]) -> bool:
    """Whether the loop does anything with the results of its callback."""
    try:
        return re.search(r"=\s*callback_on_step_end\(", inspect.getsource(call)) is not None
    except OSError:  # no source at hand
        return True


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return type(value)(map(_copied, value)) if type(value) in {list, tuple} else value


def _versions(value: Any) -> Any:
    """A number that changes when a tensor is changed in place; for each of several."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    return [_versions(item) for item in value] if isinstance(value, (list, tuple)) else None
