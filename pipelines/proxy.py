"""A scheduler that computes part of another one's schedule and watches its steps."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tts_vision.errors import PipelineError
from tts_vision.pipelines.caches import Caches
from tts_vision.pipelines.edits import Edits
from tts_vision.pipelines.rollout import Coarse
from tts_vision.pipelines.schedule import (
    arguments_of,
    clipped,
    first_order,
    levels_if_known,
    predictions,
    step,
    takes_history,
    velocity,
)
from tts_vision.pipelines.stochastic import Level

_LOOSE = "old_pred_original_sample"
_OWN = frozenset({"inner", "set_timesteps", "step", "set_begin_index"})


class Step(Protocol):
    """A stochastic step that replaces the scheduler's own."""

    def __call__(
        self, x: Tensor, output: Tensor, x0: Tensor, eps: Tensor, levels: Sequence[Level], index: int
    ) -> tuple[Tensor, Tensor, float]:
        """The next sample, the noise in it that was added, and its standard deviation."""


class StepResult(tuple[Any, ...]):
    """The result of a scheduler's step, by position or by name, for loops of both kinds."""

    @property
    def prev_sample(self) -> Tensor:
        return self[0]

    @property
    def pred_original_sample(self) -> Tensor:
        return self[1]


class SchedulerProxy:
    """A scheduler that computes the steps ``[start, stop)`` of a loop over another one's timesteps.

    The loop iterates over all timesteps, so that its step numbers keep their meaning. Those outside the
    segment are skipped: by the loop itself where it checks for interrupts, else by a denoiser that answers
    zeros and a step that returns its sample.

    Args:
        scheduler: The real scheduler, a copy that this segment may change.
        start: First step to compute.
        stop: Step to stop before; None for all.
        history: Solver attributes to continue from, if any.
        generators: One per row, from its seed; the pipeline prepares its inputs with them.
        streams: For each row the generator state from the first computed step on, or None to continue from
            the state that preparing left.
        rule: Replaces the scheduler's step, if given.
        skip: Tells the pipeline whether to skip the next step, if it can.
        result: The result of every step, if given; nothing is computed then.
        halves: Whether the half-steps of a second-order scheduler are taken.
        coarse: A coarser end of the schedule, if given; `start` and `stop` count its timesteps.
        caches: Of the denoisers; restored before the first computed step and read after the last.
        edits: Of the user's callback in earlier segments.

    Attributes:
        edits: Of the user's callback so far.
        enters_after: The step at whose end edits of earlier segments enter the loop; None if there are none.
            It is run like the computed ones, on a denoiser that answers zeros.
        before: The loop's latents before the last computed step; None if those that entered.
        latents: ``(B, ...)`` of the loop after the last computed step, as a callback sees them; None if the
            pipeline has no callbacks.
        prev_sample: ``(B, ...)`` result of the last computed scheduler step.
        preview: ``(B, ...)`` x0 estimate of the last computed step, where noise levels are known.
        added: The noise that `rule` added in the last step, and `added_std` its standard deviation.
        total: Number of timesteps that the loop iterates over.
        offset: Position of the loop's first timestep among the scheduler's.
        done: Number of computed steps.
        skipping: Whether the current step is outside the segment.
        draws: Whether the computed steps drew from the generators.
        interrupted: Whether a callback of the user ended the loop.
    """

    def __init__(
        self,
        scheduler: Any,
        start: int,
        stop: int | None,
        *,
        history: dict[str, Any] | None = None,
        generators: list[torch.Generator] | None = None,
        streams: Sequence[Tensor | None] | None = None,
        rule: Step | None = None,
        skip: Callable[[bool], None] | None = None,
        result: Tensor | None = None,
        halves: bool = True,
        coarse: Coarse | None = None,
        caches: Caches | None = None,
        edits: Edits | None = None,
    ) -> None:
        self.inner = scheduler
        self.start, self.stop = start, stop
        self.edits = edits or Edits()
        self.enters_after = start - 1 if self.edits and start else None
        self.before: Tensor | None = None
        self.latents: Tensor | None = None
        self.prev_sample: Tensor | None = None
        self.preview: Tensor | None = None
        self.added: Tensor | None = None
        self.added_std = 0.0
        self.levels: list[Level] | None = None
        self.total: int | None = None
        self.offset = 0
        self.done = 0
        self.skipping = self.interrupted = self.draws = False
        self.generators, self._streams = generators, streams
        self.caches = caches
        self._history, self._rule, self._skip = history, rule, skip
        self._result, self._halves, self._coarse = result, halves, coarse
        self._at_start: list[Tensor] = []
        self._fresh: dict[str, Any] = {}
        self._loose_history: dict[str, Any] = {}
        self._before_entry: dict[str, Any] = {}
        self._at: int | None = None
        self._stepped = False
        self.set_timesteps = _signed_as(scheduler.set_timesteps, self._set_timesteps)
        self.step = _signed_as(scheduler.step, self._do_step)
        if hasattr(scheduler, "set_begin_index"):
            self.set_begin_index = _signed_as(scheduler.set_begin_index, self._set_begin_index)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while being copied, before __init__
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # loops that set an attribute of their scheduler mean the real one
        own = self.__dict__
        if name not in own and name not in _OWN and "inner" in own and hasattr(self.inner, name):
            setattr(self.inner, name, value)
        else:
            super().__setattr__(name, value)

    def __len__(self) -> int:
        return len(self.inner)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # a loop that copies its scheduler, for sound beside frames, means a second one of its own
        return copy.deepcopy(self.inner, memo)

    @property
    def timesteps(self) -> Tensor:
        shown = self.inner.timesteps.as_subclass(_Timesteps)
        shown.proxy, shown.offset = self, 0
        return shown

    def scale_model_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not hasattr(self.inner, "scale_model_input"):
            return sample
        return sample if self.skipping else self.inner.scale_model_input(sample, *args, **kwargs)

    # The loop

    def loop_starts(self, total: int, offset: int) -> None:
        """The loop begins to iterate over `total` timesteps, the first at position `offset`."""
        self.total, self.offset = total, offset

    def step_starts(self, at: int) -> None:
        """The loop comes to step `at`."""
        self._step_ends()
        if self._at is not None and self._at == self.enters_after:
            vars(self.inner).update(self._before_entry)
        self._at = at
        if at == self.enters_after:
            # loops that call the scheduler twice in a step set its counter back
            self._before_entry = dict(vars(self.inner))
            if "_step_index" in self._before_entry:
                self.inner._step_index = 0
        inside = self.start <= at and (self.stop is None or at < self.stop)
        self.skipping = not inside or self.interrupted
        if self._skip is not None:
            self._skip(self.skipping and at != self.enters_after)
        if not self.skipping:
            self.continue_streams()
            if self.caches is not None and not self.done:
                self.caches.begin()

    def loop_ends(self) -> None:
        """The loop has seen all timesteps."""
        self._step_ends()
        if self.caches is not None and self.done:
            self.caches.end()
        self.continue_streams()
        now = [generator.get_state() for generator in self.generators or ()]
        self.draws = any(not torch.equal(a, b) for a, b in zip(now, self._at_start))
        self.skipping = False
        if self._skip is not None:
            self._skip(False)

    def continue_streams(self) -> None:
        """Sets the rows' generators to where the last segment left them; once, before a step needs them."""
        for generator, state in zip(self.generators or (), self._streams or ()):
            if state is not None:
                generator.set_state(state.clone())  # a view crashes torch
        self._streams = None
        if not self._at_start:
            self._at_start = [generator.get_state() for generator in self.generators or ()]

    def _step_ends(self) -> None:
        self.done += self._stepped
        self._stepped = False

    @property
    def position(self) -> int:
        """Number of the current step in the loop; 0 before the first."""
        return self._at or 0

    @property
    def index(self) -> int:
        """Position of the current step among the scheduler's timesteps."""
        assert self._at is not None
        return self.offset + self._at

    # The scheduler

    def history(self) -> dict[str, Any]:
        """The attributes of the scheduler that its steps changed since its timesteps were set."""
        changed = {
            name: value
            for name, value in vars(self.inner).items()
            if name not in self._fresh or not _same(value, self._fresh[name])
        }
        return changed | self._loose_history

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        self.inner.set_timesteps(*args, **kwargs)
        if not self._halves:
            first_order(self.inner)
        if self._coarse is not None:
            self._coarse.cut(self.inner)
        self._fresh = {k: list(v) if isinstance(v, list) else v for k, v in vars(self.inner).items()}
        if self._history:
            for name, value in self._history.items():
                if name == _LOOSE:
                    self._loose_history[name] = value
                else:
                    setattr(self.inner, name, value)
        elif self.start and hasattr(self.inner, "set_begin_index"):
            self.inner.set_begin_index(self.start)

    def _set_begin_index(self, begin_index: int = 0) -> None:
        if not self._history:
            self.inner.set_begin_index(begin_index + self.start)

    def _do_step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        if self._at is None:
            raise PipelineError(
                "A pipeline's loop must iterate over its scheduler's timesteps but this one calls "
                "scheduler.step outside such a loop; it cannot be driven step by step."
            )
        if self.skipping:
            return StepResult((sample, sample))
        self._stepped = True
        if self._result is not None:
            return StepResult((self._result, self._result))
        index = self.index
        x0 = eps = None
        last = self.stop is None or self._at == self.stop - 1
        if self._rule is not None or last:  # a preview needs no more than the last step's prediction
            if self.levels is None:
                self.levels = levels_if_known(self.inner)
            if self.levels:
                x0, eps = self._predicted(model_output, sample, self.levels[index], kwargs)
                self.preview = x0.to(sample.dtype)
        if self._rule is not None and self.generators is not None and len(sample) != len(self.generators):
            assert x0 is not None  # a loop that guides x0 estimates asks for them first
            return StepResult((sample, x0.to(sample.dtype)))
        if self._rule is not None:
            # a sampler refuses such a rule where levels are unknown
            assert x0 is not None and eps is not None and self.levels is not None
            output = velocity(self.inner, model_output)
            x, added, self.added_std = self._rule(sample, output, x0, eps, self.levels, index)
            self.added, self.prev_sample = added, x.to(sample.dtype)
            if getattr(self.inner, "_step_index", None) is not None:
                self.inner._step_index += 1  # scale_model_input reads it
            return StepResult((self.prev_sample, x0.to(sample.dtype)))
        takes_all = self.generators is not None and len(self.generators) in {1, len(sample)}
        if takes_all and "generator" in arguments_of(self.inner):
            kwargs["generator"] = self.generators
        kwargs.pop("return_dict", None)
        before_it: tuple[Any, ...] = ()
        if takes_history(self.inner):
            # its history is a variable of the pipeline's loop, which a segment would lose; the proxy is no
            # instance of its class, so the loop calls it like any other scheduler and it is kept here
            before_it = (self._loose_history.get(_LOOSE), self.inner.timesteps[index - 1] if index else None)
        result = step(self.inner, model_output, timestep, sample, before_it, **kwargs)
        if before_it:
            self._loose_history[_LOOSE] = result[1]
        self.prev_sample = result[0]
        return StepResult(result)

    def _predicted(
        self, output: Tensor, sample: Tensor, level: Level, given: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The x0 and noise estimates of a step, from the estimate that the loop gives, if it does."""
        x0 = given.get("pred_original_sample")
        if isinstance(x0, Tensor):
            x0 = x0.float()
            return x0, (sample.float() - level.alpha * x0) / level.sigma
        x0, eps = predictions(self.inner, output, sample, level)
        return clipped(self.inner, x0), eps


class _Timesteps(Tensor):
    """The full timestep tensor; tells the proxy where a loop that iterates over it is."""

    proxy: SchedulerProxy
    offset: int
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Tensor]:
        plain = self.as_subclass(Tensor)
        self.proxy.loop_starts(len(plain), self.offset)
        for i, timestep in enumerate(plain.unbind()):
            self.proxy.step_starts(i)
            yield timestep
        self.proxy.loop_ends()

    def __getitem__(self, key: Any) -> Any:
        plain = self.as_subclass(Tensor)[key]
        if not isinstance(key, slice) or plain.ndim != 1:
            return plain
        return self._like(plain, self.offset + key.indices(len(self))[0])

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return self._like(self.as_subclass(Tensor).to(*args, **kwargs), self.offset)

    def _like(self, plain: Tensor, offset: int) -> _Timesteps:
        shown = plain.as_subclass(_Timesteps)
        shown.proxy, shown.offset = self.proxy, offset
        return shown


def initial_scale(scheduler: Any) -> Any:
    """The factor on unit noise when it enters the loop."""
    return getattr(scheduler, "init_noise_sigma", 1.0)


def _signed_as(original: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` with the signature of `original`, which pipelines inspect."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    if isinstance(a, (bool, int, float, str, type(None))):
        return type(a) is type(b) and a == b
    return a is b
