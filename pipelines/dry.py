"""Dry runs of a pipeline's loop: a denoiser that answers zeros, no charge, no callback of the user."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tts_vision.errors import PipelineError
from tts_vision.pipelines.differentiable import MISSING
from tts_vision.pipelines.driven import Driven, Entry, Segment, silent
from tts_vision.pipelines.proxy import SchedulerProxy
from tts_vision.pipelines.rollout import Coarse, straight_step
from tts_vision.pipelines.silence import KINDS, denoised
from tts_vision.types import NoMeter


class DryRuns(Driven):
    """Finds out from a pipeline's own loop which steps it takes, and what they cost."""

    def laid_out(
        self, call: Mapping[str, Any], step: int, entry: tuple[Tensor, float | None], x0: Tensor
    ) -> Tensor | None:
        """An x0 estimate in the layout of the loop's latents, by the loop's own code after a step.

        For loops whose scheduler sees another layout, or only a part: the step is run with a silent denoiser
        and a scheduler that answers `x0`. None where the loop does not run so.

        Args:
            call: Arguments of the pipeline, with generators.
            step: The step after which the estimate was made.
            entry: Latents before that step, and the factor on them.
            x0: The estimate, as the scheduler sees samples.
        """
        if self._silence is None and self.forwards_per_step(call) is None:
            return None
        skip = self._interrupt if self.interruptible else None
        proxy = self._proxy(step, step + 1, skip=skip, result=x0)
        proxy.generators = call["generator"]
        kind, into = self._silence or KINDS[0], Entry(*entry)
        try:
            self._call_dry(call, proxy, into, lambda module: silent(module, kind, into), entry[0])
        except Exception:  # whatever the zeros led to, in code that is not ours
            return None
        return proxy.latents

    def forwards_per_step(
        self, call: Mapping[str, Any], coarse: Coarse | None = None
    ) -> dict[int, float] | None:
        """How many rows each step evaluates for one particle, found out without evaluating any.

        The loop runs with a denoiser that answers zeros. None where no such answer fits.

        Args:
            call: Arguments of the pipeline.
            coarse: A coarser end of the schedule, if any.
        """
        for kind in [self._silence] if self._silence else KINDS:
            counts = self._dry_run(call, kind, self._dry_proxy(call, coarse))
            if counts:
                self._silence = kind
                return counts
        return None

    def measured_forwards(self, call: Mapping[str, Any]) -> dict[int, float]:
        """How many rows each step evaluates for one particle, counted in one sample that is thrown away."""
        proxy = self._dry_proxy(call)
        counts: dict[int, float] = defaultdict(float)

        def counted(module: nn.Module) -> Callable[..., Any]:
            forward = module.forward

            @functools.wraps(forward)
            def compute(*args: Any, **kwargs: Any) -> Any:
                counts[proxy.position] += len(denoised(args, kwargs))
                return forward(*args, **kwargs)

            return compute

        self._call_dry(call, proxy, Entry(None), counted)
        return dict(counts)

    def dry_segment(self, call: Mapping[str, Any]) -> Segment:
        """A segment of the whole loop with a silent denoiser."""
        self.encoders.inputs, self.encoders.by_row = [], False
        proxy, entry = self._dry_proxy(call), Entry(None)
        if self._silence is None:
            self.forwards_per_step(call)
        self._dry_run(call, self._silence or KINDS[0], proxy, entry)
        return Segment(None, entry.entered, entry.noise, proxy, tuple(self.encoders.inputs))

    def dry_plan(self, call: Mapping[str, Any]) -> range | None:
        """The positions of the timesteps that the loop takes, among the scheduler's; None if it fails dry."""
        for kind in [self._silence] if self._silence else KINDS:
            proxy = self._dry_proxy(call)
            if self._dry_run(call, kind, proxy) and proxy.total is not None:
                self._silence = kind
                return range(proxy.offset, proxy.offset + proxy.total)
        return None

    def asked_timesteps(self, scheduler: Any, arguments: Mapping[str, Any]) -> int:
        """How many timesteps of a scheduler the pipeline's own `get_timesteps` takes."""
        pipe = self.pipe
        names = inspect.signature(pipe.get_timesteps).parameters
        given = {**arguments, "device": self.device}
        # without the sigma of the finished sample
        given["timesteps"], given["sigmas"] = (
            scheduler.timesteps,
            getattr(scheduler, "sigmas", scheduler.timesteps)[:-1],
        )
        own = pipe.__dict__.get("scheduler", MISSING)
        pipe.__dict__["scheduler"] = scheduler
        try:
            found = pipe.get_timesteps(**{name: given.get(name) for name in names})
        finally:
            if own is MISSING:
                del pipe.__dict__["scheduler"]
            else:
                pipe.__dict__["scheduler"] = own
        return len(next(part for part in found if isinstance(part, Tensor)))

    def first_inputs(
        self, call: Mapping[str, Any], generators: list[torch.Generator]
    ) -> tuple[list[Tensor], Tensor | None] | None:
        """The tensors that the denoiser is first called on, and the latents that entered the loop.

        None where the loop cannot run dry.
        """
        if self._silence is None:
            self._find_silence(call, needed=not self.interruptible)
        inputs: list[Tensor] = []

        def see(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not inputs:
                inputs.extend(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim)

        entry = Entry(None)
        proxy = self._proxy(0, None, generators=generators)
        if self._silence is None or not self._dry_run(call, self._silence, proxy, entry, see):
            return None
        return inputs, entry.entered

    def _find_silence(self, call: Mapping[str, Any], *, needed: bool) -> None:
        """Finds the answer of a silent denoiser with which the loop runs.

        Raises:
            PipelineError: If it is needed and there is none.
        """
        if self.forwards_per_step(call) is None and needed:
            raise PipelineError(
                "A loop that cannot skip steps, or whose callback edits more than the latents, must run with "
                f"a silent denoiser but that of {type(self.pipe).__name__} does not; it cannot be driven "
                "step by step."
            )

    def _dry_proxy(self, call: Mapping[str, Any], coarse: Coarse | None = None) -> SchedulerProxy:
        given = call.get("generator") or [torch.Generator("cpu")]
        generators = [torch.Generator("cpu").manual_seed(g.initial_seed()) for g in given]
        rule = None if coarse is None else straight_step
        return self._proxy(0, None, generators=generators, coarse=coarse, rule=rule)

    def _dry_run(
        self,
        call: Mapping[str, Any],
        kind: str,
        proxy: SchedulerProxy,
        entry: Entry | None = None,
        see: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None,
    ) -> dict[int, float] | None:
        """The rows that each step evaluates, with a denoiser that answers zeros; None if it fails."""
        counts: dict[int, float] = defaultdict(float)
        entry = entry or Entry(None)

        def counted(module: nn.Module) -> Callable[..., Any]:
            silence = silent(module, kind, entry)

            def forward(*args: Any, **kwargs: Any) -> Any:
                if see is not None:
                    see(args, kwargs)
                counts[proxy.position] += len(denoised(args, kwargs))
                return silence(*args, **kwargs)

            return forward

        try:
            self._call_dry(call, proxy, entry, counted)
        except Exception:  # whatever the zeros led to, in code that is not ours
            return None
        return dict(counts) if any(counts.values()) else None

    def _call_dry(
        self,
        call: Mapping[str, Any],
        proxy: SchedulerProxy,
        entry: Entry,
        denoiser: Callable[[nn.Module], Callable[..., Any]],
        entering: Tensor | None = None,
    ) -> None:
        """Runs the loop with a stand-in of the denoiser, uncharged and without the user's callback."""
        call = {**call, "return_dict": False, "generator": proxy.generators, "output_type": "latent"}
        self._watch_steps(call, proxy, entering, runs_users=False)
        self.encoders.by_row = False
        meter = self.meter
        self.bind(NoMeter())
        try:
            with self._driven(proxy, entry, None, denoiser, None):
                self.pipe(**self._known(call))
        finally:
            self.bind(meter)
