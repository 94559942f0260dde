"""Runs a segment of a diffusers pipeline's schedule, by the pipeline's own ``__call__``.

The pipeline sees a `SchedulerProxy` in place of its scheduler: the real one, computing only part of its
steps. So the loop, guidance, adapters, attention back ends and offloading all stay the pipeline's.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tts_vision.errors import PipelineError
from tts_vision.pipelines.callbacks import CALLBACK, INPUTS, StepEnd
from tts_vision.pipelines.decoding import DecodeWatch
from tts_vision.pipelines.encoding import EncoderCache, Shapes
from tts_vision.pipelines.proxy import SchedulerProxy, Step
from tts_vision.pipelines.rollout import Coarse, straight_step
from tts_vision.pipelines.silence import KINDS, answer, denoised, recalled
from tts_vision.types import Cost, Meter, NoMeter

DENOISERS = ("unet", "transformer", "prior", "denoiser", "dit")
ENCODERS = ("text_encoder", "image_encoder")
BESIDE = ("controlnet", "adapter")
_CALL = "_compiled_call_impl"  # what torch calls in the place of hooks and forward, where it is set


@dataclass
class Segment:
    """The result of a segment.

    Attributes:
        output: The pipeline's first output: latents, images or frames.
        entered: ``(B, ...)`` latents that entered the loop, as the pipeline prepared them.
        noise: The state of the first row's generator when the pipeline began to prepare latents.
        proxy: The scheduler proxy that watched it.
        encoded: The encoders that ran, in order, each with the shapes of its inputs apart from the batch
            axis; None in the place of shapes where the inputs have no common batch axis.
    """

    output: Any
    entered: Tensor | None
    noise: Tensor | None
    proxy: SchedulerProxy
    encoded: tuple[tuple[str, Shapes | None], ...]


@dataclass
class _Entry:
    """The entry of latents into the loop.

    Attributes:
        latents: ``(B, ...)`` in the place of those that the pipeline prepares, if given.
        scale: The factor on them, if they are noise; None for latents in the middle of a loop.
        entered: The latents that entered.
        noise: The state of the first row's generator before latents were prepared.
    """

    latents: Tensor | None
    scale: float | None = None
    entered: Tensor | None = None
    noise: Tensor | None = None


@dataclass
class Driver:
    """Calls a pipeline one segment at a time and leaves it as it found it.

    Attributes:
        pipe: The user's pipeline.
        meter: Where network evaluations are reported before they run.
        halves: Whether the half-steps of a second-order scheduler are taken.
    """

    pipe: Any
    meter: Meter
    signature: dict[str, inspect.Parameter] = field(init=False)
    _differentiates: bool = field(default=False, init=False)
    _recomputes_steps: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.signature = dict(inspect.signature(type(self.pipe).__call__).parameters)
        self.scheduler: Any = copy.deepcopy(getattr(self.pipe, "scheduler", None))
        self.interruptible = _checks_for_interrupts(type(self.pipe).__call__)
        self.encoders = EncoderCache(self.meter)
        self.halves = True
        self._silence: str | None = None
        self._beside: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)

    def bind(self, meter: Meter) -> None:
        """Reports all network evaluations to `meter` from now on."""
        self.meter = self.encoders.meter = meter

    def run(
        self,
        call: Mapping[str, Any],
        *,
        start: int,
        stop: int | None,
        latents: Tensor | None = None,
        scale: float | None = None,
        history: dict[str, Any] | None = None,
        generators: list[torch.Generator] | None = None,
        streams: Sequence[Tensor | None] | None = None,
        step: Step | None = None,
        vae: Any = None,
        encode_by_row: bool = False,
        watch: DecodeWatch | None = None,
        coarse: Coarse | None = None,
    ) -> Segment:
        """Runs steps ``[start, stop)`` of the loop; none of them when ``start == stop``.

        Args:
            call: Arguments of the pipeline.
            start: First step.
            stop: Step to stop before; None for the end.
            latents: ``(B, ...)`` latents that enter the loop; the pipeline's own by default.
            scale: The factor on them, if they are noise; None for latents in the middle of a loop.
            history: Solver history to continue from.
            generators: One per row, from its seed.
            streams: For each row the generator state from the first computed step on; None continues from
                the state after preparing.
            step: A stochastic step in place of the scheduler's.
            vae: Decodes in place of the pipeline's, if given.
            encode_by_row: Whether encoders run row by row, for texts that differ, so that each text is
                encoded as it is alone.
            watch: Notes which samples must not be judged, where the segment decodes.
            coarse: A coarser end of the schedule, whose timesteps `start` and `stop` count.

        Raises:
            PipelineError: If the loop does not take the steps.
        """
        proxy = self._proxy(
            start,
            stop,
            history=history,
            generators=generators,
            streams=streams,
            rule=step,
            skip=self._interrupt if self.interruptible else None,
            coarse=coarse,
        )
        entry = _Entry(latents, scale)
        # flags of a safety checker are named in an output object alone
        flags = watch is not None and watch.has_checker(self.pipe)
        call = {**call, "return_dict": flags, "generator": generators}
        skips = start > 0 or stop is not None
        if skips and not self.interruptible and self._silence is None:
            self._find_silence(call)
        self.encoders.inputs, self.encoders.by_row = [], encode_by_row
        self._watch_steps(call, proxy, latents, runs_users=True)
        # the pipeline switches gradients off for its call; they come on again where the latents enter
        mode = torch.enable_grad() if self._differentiates else nullcontext()
        with mode, self._driven(proxy, entry, vae, None, watch):
            output = self.pipe(**self._known(call))
        if watch is not None:
            watch.read(output)
        if stop is not None and proxy.done != stop - start and not proxy.interrupted:
            raise PipelineError(
                "A pipeline's loop must take one scheduler step per timestep but "
                f"{type(self.pipe).__name__} took "
                f"{proxy.done} between steps {start} and {stop}; it cannot be driven step by step."
            )
        return Segment(output[0], entry.entered, entry.noise, proxy, tuple(self.encoders.inputs))

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
        kind, into = self._silence or KINDS[0], _Entry(*entry)
        try:
            self._call_dry(call, proxy, into, lambda module: _silent(module, kind, into), entry[0])
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

        self._call_dry(call, proxy, _Entry(None), counted)
        return dict(counts)

    def dry_segment(self, call: Mapping[str, Any]) -> Segment:
        """A segment of the whole loop with a silent denoiser."""
        self.encoders.inputs, self.encoders.by_row = [], False
        proxy, entry = self._dry_proxy(call), _Entry(None)
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
        given = {**arguments, "device": pipe._execution_device}
        # without the sigma of the finished sample
        given["timesteps"], given["sigmas"] = (
            scheduler.timesteps,
            getattr(scheduler, "sigmas", scheduler.timesteps)[:-1],
        )
        own = pipe.__dict__.get("scheduler", _MISSING)
        pipe.__dict__["scheduler"] = scheduler
        try:
            found = pipe.get_timesteps(**{name: given.get(name) for name in names})
        finally:
            if own is _MISSING:
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
            self._find_silence(call)
        inputs: list[Tensor] = []

        def see(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not inputs:
                inputs.extend(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim)

        entry = _Entry(None)
        proxy = self._proxy(0, None, generators=generators)
        if self._silence is None or not self._dry_run(call, self._silence, proxy, entry, see):
            return None
        return inputs, entry.entered

    def _find_silence(self, call: Mapping[str, Any]) -> None:
        """Finds the answer of a silent denoiser with which the loop runs."""
        if self.forwards_per_step(call) is None and not self.interruptible:
            raise PipelineError(
                "A loop that cannot skip steps must run with a silent denoiser but that of "
                f"{type(self.pipe).__name__} does not; it cannot be driven step by step."
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
        entry: _Entry | None = None,
        see: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None,
    ) -> dict[int, float] | None:
        """The rows that each step evaluates, with a denoiser that answers zeros; None if it fails."""
        counts: dict[int, float] = defaultdict(float)
        entry = entry or _Entry(None)

        def silent(module: nn.Module) -> Callable[..., Any]:
            silence = _silent(module, kind, entry)

            def forward(*args: Any, **kwargs: Any) -> Any:
                if see is not None:
                    see(args, kwargs)
                counts[proxy.position] += len(denoised(args, kwargs))
                return silence(*args, **kwargs)

            return forward

        try:
            self._call_dry(call, proxy, entry, silent)
        except Exception:  # whatever the zeros led to, in code that is not ours
            return None
        return dict(counts) if any(counts.values()) else None

    def _call_dry(
        self,
        call: Mapping[str, Any],
        proxy: SchedulerProxy,
        entry: _Entry,
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

    def _watch_steps(
        self, call: dict[str, Any], proxy: SchedulerProxy, entering: Tensor | None, *, runs_users: bool
    ) -> None:
        """Puts the search's own callback into a call, where the pipeline has callbacks."""
        if CALLBACK not in self.signature or INPUTS not in self.signature:
            return
        end = StepEnd(proxy, call, entering if proxy.start else None, runs_users=runs_users)
        call[CALLBACK], call[INPUTS] = end, end.tensor_inputs

    def _known(self, call: dict[str, Any]) -> dict[str, Any]:
        """The arguments that the pipeline's call has; a few have no `output_type` or `generator`."""
        return {k: v for k, v in call.items() if k in self.signature}

    def _proxy(self, start: int, stop: int | None, **options: Any) -> SchedulerProxy:
        return SchedulerProxy(copy.deepcopy(self.scheduler), start, stop, halves=self.halves, **options)

    def _interrupt(self, value: bool) -> None:
        self.pipe._interrupt = value

    @contextmanager
    def differentiable(
        self, *, recompute_steps: bool, recompute_blocks: bool, recompute_decoding: bool, vae: Any = None
    ) -> Iterator[None]:
        """Results of `run` in this block carry the gradient of the latents that enter.

        Weights are frozen, and a pipeline's changes to its autoencoder after decoding wait until the end of
        the block, so that gradients still find it as it was.

        Args:
            recompute_steps: Whether only the inputs of each denoiser evaluation are kept.
            recompute_blocks: Whether only the inputs of the denoiser's blocks are kept.
            recompute_decoding: Whether only the inputs of the autoencoder's blocks are kept.
            vae: Another autoencoder that decodes, if any.
        """
        networks = [m for m in (*self.pipe.components.values(), vae) if isinstance(m, nn.Module)]
        decoders = [m for m in (getattr(self.pipe, "vae", None), vae) if isinstance(m, nn.Module)]
        thrifty = [*decoders] if recompute_decoding else []
        thrifty += [m for _, m in modules(self.pipe, DENOISERS) if recompute_blocks]
        checker = self.pipe.__dict__.get("safety_checker", _MISSING)
        with ExitStack() as stack:
            stack.enter_context(_frozen(networks))
            for network in thrifty:
                stack.enter_context(_recomputing(network))
            for network in decoders:
                stack.enter_context(_precision_kept(network))
            self._differentiates, self._recomputes_steps = True, recompute_steps
            if checker is not _MISSING:  # it looks at images through NumPy; finished ones still pass it
                self.pipe.__dict__["safety_checker"] = None
            try:
                yield
            finally:
                self._differentiates = self._recomputes_steps = False
                if checker is not _MISSING:
                    self.pipe.__dict__["safety_checker"] = checker

    @property
    def is_offloaded(self) -> bool:
        """Whether networks move between devices while they are in use, which gradients cannot follow."""
        networks = [m for m in self.pipe.components.values() if isinstance(m, nn.Module)]
        return any(
            hasattr(module, "_hf_hook") or _is_group_offloaded(module)
            for network in networks
            for module in (network, *network.children())
        )

    @contextmanager
    def _driven(
        self,
        proxy: SchedulerProxy,
        entry: _Entry,
        vae: Any,
        denoiser: Callable[[nn.Module], Callable[..., Any]] | None,
        watch: DecodeWatch | None,
    ) -> Iterator[None]:
        """The pipeline with the proxy and the watchers in place, and as it was afterwards.

        Args:
            proxy: In the place of the scheduler.
            entry: Of latents into the loop.
            vae: In the place of the pipeline's, if given.
            denoiser: Makes the stand-in of a network, if given.
            watch: Looks at the output of the autoencoder, if given.
        """
        pipe = self.pipe
        replaced: list[tuple[Any, str, Any]] = []

        def put(owner: Any, name: str, value: Any) -> None:
            # past __setattr__: a pipeline's would rewrite its config, a module's would register children
            replaced.append((owner, name, owner.__dict__.get(name, _MISSING)))
            owner.__dict__[name] = value

        handles = []
        try:
            if self.scheduler is not None:
                put(pipe, "scheduler", proxy)
            put(pipe, "_progress_bar_config", {**getattr(pipe, "_progress_bar_config", {}), "disable": True})
            if vae is not None:
                put(pipe, "vae", vae)
            for name, autoencoder in DecodeWatch.autoencoders(pipe):
                if watch is not None:
                    put(autoencoder, "decode", watch.watching(autoencoder.decode))
                if hasattr(autoencoder, "encode"):
                    put(autoencoder, "encode", self.encoders.remembering_encode(name, autoencoder))
            if hasattr(pipe, "prepare_latents"):
                enter = self._entering(pipe.prepare_latents, entry, proxy)
                put(pipe, "prepare_latents", enter)
            for name, module in modules(pipe, ENCODERS):
                put(module, "forward", self.encoders.remembering(name, module))
            for _, module in modules(pipe, DENOISERS):
                if self._recomputes_steps and denoiser is None:
                    put(module, "forward", _checkpointed(module.forward))
                if denoiser is not None:  # past hooks, which may count, or move weights between devices
                    put(module, _CALL, denoiser(module))
                elif not self.interruptible:
                    put(module, _CALL, self._unless_skipping(module, proxy, entry))
                handles.append(module.register_forward_pre_hook(self._counting(proxy), with_kwargs=True))
            if not self.interruptible:
                for name, module in modules(pipe, BESIDE):
                    put(module, "forward", self._beside_it(name, module, proxy, entry))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for owner, name, value in reversed(replaced):
                if value is _MISSING:
                    del owner.__dict__[name]
                else:
                    owner.__dict__[name] = value

    def _unless_skipping(self, module: nn.Module, proxy: SchedulerProxy, entry: _Entry) -> Callable[..., Any]:
        """A denoiser that answers zeros in the steps that a loop cannot skip."""
        own = getattr(module, _CALL, None) or module._call_impl
        silence = _silent(module, self._silence or KINDS[0], entry)

        def call(*args: Any, **kwargs: Any) -> Any:
            return silence(*args, **kwargs) if proxy.skipping else own(*args, **kwargs)

        return call

    def _beside_it(
        self, name: str, module: nn.Module, proxy: SchedulerProxy, entry: _Entry
    ) -> Callable[..., Any]:
        """The forward pass of a network beside the denoiser, which runs once for all skipped steps."""
        forward = module.forward

        @functools.wraps(forward)
        def compute(*args: Any, **kwargs: Any) -> Any:
            if proxy.skipping:
                shape = "" if entry.entered is None else str(entry.entered.shape)
                return recalled(forward, self._beside[name, shape])(*args, **kwargs)
            return forward(*args, **kwargs)

        return compute

    def _counting(self, proxy: SchedulerProxy) -> Callable[..., None]:
        @torch.compiler.disable
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            """Charges a network evaluation before it runs, in rows."""
            if not proxy.skipping:
                self.meter.charge(Cost(nfe=len(denoised(args, kwargs))))

        return count

    def _entering(
        self, prepare: Callable[..., Any], entry: _Entry, proxy: SchedulerProxy
    ) -> Callable[..., Any]:
        """`prepare_latents`, as in a plain call, whose first result is replaced by the latents of a segment.

        So masks, image latents and noise that a loop blends with are the same in every segment.
        """

        @functools.wraps(prepare)
        def enter(*args: Any, **kwargs: Any) -> Any:
            if self._differentiates:
                torch.set_grad_enabled(True)
            if proxy.generators:
                entry.noise = proxy.generators[0].get_state()
            result = prepare(*args, **kwargs)
            several = isinstance(result, (tuple, list))
            own = result[0] if several else result
            entry.entered = own if entry.latents is None else _continued(own, entry)
            return (entry.entered, *result[1:]) if several else entry.entered

        return enter


def _silent(module: nn.Module, kind: str, entry: _Entry) -> Callable[..., Any]:
    """The forward pass of a denoiser that answers zeros."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        row = None if entry.entered is None else entry.entered.shape[1:]
        return answer(module, args, kwargs, kind, row)

    return forward


def _continued(own: Tensor, entry: _Entry) -> Tensor:
    """The latents of a segment in the place of those that the pipeline prepared."""
    latents = entry.latents
    assert latents is not None
    if own.shape != latents.shape:
        raise PipelineError(
            f"Latents that enter a loop must be shaped as the pipeline's own, {tuple(own.shape)}, but are "
            f"{tuple(latents.shape)}; its loop cannot be continued from the middle."
        )
    latents = latents.to(own.device)
    if entry.scale is not None:
        latents = latents.to(own.dtype) * entry.scale
    return latents.clone()  # loops may change their latents in place


@contextmanager
def _frozen(networks: Sequence[nn.Module]) -> Iterator[None]:
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
def _recomputing(network: Any) -> Iterator[None]:
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
def _precision_kept(network: nn.Module) -> Iterator[None]:
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

    before = network.__dict__.get("to", _MISSING)
    network.__dict__["to"] = move
    try:
        yield
    finally:
        if before is _MISSING:
            del network.__dict__["to"]
        else:
            network.__dict__["to"] = before
        for args, kwargs in waiting[-1:]:
            to(*args, **kwargs)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass of which only the inputs are kept for the way back."""

    @functools.wraps(forward)
    def compute(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return compute


def _is_group_offloaded(module: nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and "group_offloading" in getattr(registry, "hooks", {})


_MISSING = object()


@functools.cache
def _checks_for_interrupts(call: Callable[..., Any]) -> bool:
    """Whether the loop has the check by which a callback stops a pipeline, at the top of each step."""
    try:
        return "if self.interrupt:" in inspect.getsource(call)
    except OSError:  # no source at hand
        return False


def modules(pipe: Any, prefixes: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    """Components of a pipeline whose names start with one of `prefixes`, each module once."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module) and name.startswith(prefixes):
            found.setdefault(id(component), (name, component))
    return list(found.values())
