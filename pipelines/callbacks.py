"""The callback at the end of each step of a pipeline's loop: the user's, and the search's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tts_vision.errors import PipelineError
from tts_vision.pipelines.proxy import SchedulerProxy

CALLBACK, INPUTS = "callback_on_step_end", "callback_on_step_end_tensor_inputs"


class StepEnd:
    """Notes the loop's latents after each computed step, and runs the user's callback before that.

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
            if self._entering is None or self._proxy.position >= self._proxy.start:
                return {}
            return {"latents": self._entering.clone()}
        outputs: dict[str, Any] = {}
        if self._users is not None:
            before = _plain(pipe)
            outputs = self._users(pipe, step, timestep, {name: tensors[name] for name in self._inputs})
            self._check(pipe, before, outputs, tensors)
        self._proxy.before = self._proxy.latents
        self._proxy.latents = outputs.get("latents", tensors["latents"])
        self._proxy.interrupted = bool(getattr(pipe, "_interrupt", False))
        return outputs

    def _check(
        self, pipe: Any, before: Mapping[str, Any], outputs: Mapping[str, Any], tensors: Mapping[str, Any]
    ) -> None:
        """Refuses edits that the next segment of the loop would lose."""
        if self._proxy.stop is None:  # the loop runs on to its end
            return
        edited = [k for k, v in outputs.items() if k != "latents" and v is not tensors.get(k)]
        edited += [k for k, v in _plain(pipe).items() if k != "_interrupt" and before.get(k, v) != v]
        if edited:
            raise PipelineError(
                "A callback of a pipeline that is searched step by step must edit no more than the latents "
                f"but this one edits {', '.join(sorted(edited))}; name what it edits in {INPUTS} (such as "
                "['latents', 'prompt_embeds']), and the pipeline is driven whole."
            )


def inputs_of(call: Mapping[str, Any]) -> Sequence[str]:
    """The tensors that the user's callback asks for."""
    users = call.get(CALLBACK)
    return getattr(users, "tensor_inputs", None) or call.get(INPUTS) or ["latents"]


def _plain(pipe: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(pipe).items() if isinstance(v, (bool, int, float, str))}
