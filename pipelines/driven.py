"""A diffusers pipeline with a stand-in of its scheduler and watchers in place, and as it was afterwards."""

from __future__ import annotations

import copy
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tts_vision.errors import PipelineError
from tts_vision.pipelines.callbacks import CALLBACK, INPUTS, StepEnd
from tts_vision.pipelines.decoding import DecodeWatch
from tts_vision.pipelines.differentiable import MISSING, checkpointed
from tts_vision.pipelines.draws import Draws
from tts_vision.pipelines.encoding import EncoderCache, Shapes
from tts_vision.pipelines.proxy import SchedulerProxy
from tts_vision.pipelines.silence import KINDS, answer, denoised, recalled
from tts_vision.types import Cost, Meter

DENOISERS = ("unet", "transformer", "prior", "denoiser", "dit")
ENCODERS = ("text_encoder", "image_encoder")
BESIDE = ("controlnet", "adapter")
_DEVICE = "_tts_vision_device"  # under this name a driven pipeline is told its device
_MOVERS = ("_hf_hook", "_diffusers_hook")  # attributes of modules that hooks move between devices
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
class Entry:
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
class Driven:
    """Puts a stand-in of its scheduler and watchers into a pipeline, and takes them out again.

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
        self._draws = Draws()
        self._devices: dict[Hashable, torch.device] = {}
        self._silence: str | None = None
        self._beside: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)

    def bind(self, meter: Meter) -> None:
        """Reports all network evaluations to `meter` from now on."""
        self.meter = self.encoders.meter = meter

    @property
    def device(self) -> torch.device:
        """The device that the pipeline computes on.

        Asked once for each placement of the networks, because diffusers goes through all their modules, which
        takes milliseconds.
        """
        networks = [m for m in self.pipe.components.values() if isinstance(m, nn.Module)]
        placement = tuple(map(_placement, networks))
        if placement not in self._devices:
            self._devices[placement] = torch.device(self.pipe._execution_device)
        return self._devices[placement]

    @property
    def is_offloaded(self) -> bool:
        """Whether networks move between devices while they are in use, which gradients cannot follow."""
        networks = [m for m in self.pipe.components.values() if isinstance(m, nn.Module)]
        return any(
            hasattr(module, "_hf_hook") or _is_group_offloaded(module)
            for network in networks
            for module in (network, *network.children())
        )

    def _proxy(self, start: int, stop: int | None, **options: Any) -> SchedulerProxy:
        return SchedulerProxy(copy.deepcopy(self.scheduler), start, stop, halves=self.halves, **options)

    def _interrupt(self, value: bool) -> None:
        self.pipe._interrupt = value

    def _known(self, call: dict[str, Any]) -> dict[str, Any]:
        """The arguments that the pipeline's call has; a few have no `output_type` or `generator`."""
        known = {k: v for k, v in call.items() if k in self.signature}
        generators = known.get("generator")
        if isinstance(generators, list) and len(generators) == 1:  # a few pipelines take no list
            known["generator"] = generators[0]
        return known

    def _watch_steps(
        self, call: dict[str, Any], proxy: SchedulerProxy, entering: Tensor | None, *, runs_users: bool
    ) -> None:
        """Puts the search's own callback into a call, where the pipeline has callbacks."""
        if CALLBACK not in self.signature or INPUTS not in self.signature:
            return
        end = StepEnd(proxy, call, entering if proxy.start else None, runs_users=runs_users)
        call[CALLBACK], call[INPUTS] = end, end.tensor_inputs

    @contextmanager
    def _driven(
        self,
        proxy: SchedulerProxy,
        entry: Entry,
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
            replaced.append((owner, name, owner.__dict__.get(name, MISSING)))
            owner.__dict__[name] = value

        handles = []
        kind: Any = type(pipe)
        components = pipe.components
        runs_skipped = not self.interruptible or proxy.enters_after is not None
        try:
            if _prepared(kind) is not kind:
                put(pipe, _DEVICE, self.device)
                object.__setattr__(pipe, "__class__", _prepared(kind))
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
            for name, module in named(components, ENCODERS):
                put(module, "forward", self.encoders.remembering(name, module))
            for _, module in named(components, DENOISERS):
                if self._recomputes_steps and denoiser is None:
                    put(module, "forward", checkpointed(module.forward))
                if denoiser is not None:  # past hooks, which may count, or move weights between devices
                    put(module, _CALL, denoiser(module))
                elif runs_skipped:
                    put(module, _CALL, self._unless_skipping(module, proxy, entry))
                handles.append(module.register_forward_pre_hook(self._counting(proxy), with_kwargs=True))
            if runs_skipped:
                for name, module in named(components, BESIDE):
                    put(module, "forward", self._beside_it(name, module, proxy, entry))
            yield
        finally:
            for handle in handles:
                handle.remove()
            object.__setattr__(pipe, "__class__", kind)
            for owner, name, value in reversed(replaced):
                if value is MISSING:
                    del owner.__dict__[name]
                else:
                    owner.__dict__[name] = value

    def _unless_skipping(self, module: nn.Module, proxy: SchedulerProxy, entry: Entry) -> Callable[..., Any]:
        """A denoiser that answers zeros in the steps that a loop cannot skip."""
        own = getattr(module, _CALL, None) or module._call_impl
        silence = silent(module, self._silence or KINDS[0], entry)

        def call(*args: Any, **kwargs: Any) -> Any:
            return silence(*args, **kwargs) if proxy.skipping else own(*args, **kwargs)

        return call

    def _beside_it(
        self, name: str, module: nn.Module, proxy: SchedulerProxy, entry: Entry
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
        self, prepare: Callable[..., Any], entry: Entry, proxy: SchedulerProxy
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
            drops = entry.latents is not None
            result = self._draws.prepared(self.pipe, prepare, args, kwargs, drops=drops)
            several = isinstance(result, (tuple, list))
            own = result[0] if several else result
            entry.entered = own if entry.latents is None else _continued(own, entry)
            return (entry.entered, *result[1:]) if several else entry.entered

        return enter


def silent(module: nn.Module, kind: str, entry: Entry) -> Callable[..., Any]:
    """The forward pass of a denoiser that answers zeros."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        row = None if entry.entered is None else entry.entered.shape[1:]
        return answer(module, args, kwargs, kind, row)

    return forward


def _continued(own: Tensor, entry: Entry) -> Tensor:
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


def _placement(network: nn.Module) -> Hashable:
    """All that decides where a network computes, as far as it can be seen without going through it."""
    first = next(network.parameters(), None)
    parts = (network, *network._modules.values())
    marks = tuple(mark in vars(part) for part in parts if part is not None for mark in _MOVERS)
    return id(network), None if first is None else first.device, marks


@functools.cache
def _prepared(kind: Any) -> Any:
    """A pipeline class whose instances are told what they would look up several times in each call.

    That is their device, in `_DEVICE` of the instance, and the names of their components.
    """
    if not hasattr(kind, "_get_signature_keys") or not hasattr(kind, "_execution_device"):
        return kind
    keys = kind._get_signature_keys(kind)
    told = {
        "__module__": kind.__module__,
        "_execution_device": property(lambda pipe: pipe.__dict__[_DEVICE]),
        "_get_signature_keys": staticmethod(lambda pipe: keys),
    }
    return type(kind.__name__, (kind,), told)


def _is_group_offloaded(module: nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and "group_offloading" in getattr(registry, "hooks", {})


@functools.cache
def _checks_for_interrupts(call: Callable[..., Any]) -> bool:
    """Whether the loop has the check by which a callback stops a pipeline, at the top of each step."""
    try:
        return "if self.interrupt:" in inspect.getsource(call)
    except OSError:  # no source at hand
        return False


def modules(pipe: Any, prefixes: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    """Components of a pipeline whose names start with one of `prefixes`, each module once."""
    return named(pipe.components, prefixes)


def named(components: Mapping[str, Any], prefixes: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    """`modules` of known components."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, component in components.items():
        if isinstance(component, nn.Module) and name.startswith(prefixes):
            found.setdefault(id(component), (name, component))
    return list(found.values())
