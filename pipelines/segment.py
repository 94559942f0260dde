"""Runs a segment of a diffusers pipeline's schedule, by the pipeline's own ``__call__``.

The pipeline sees a `SchedulerProxy` in place of its scheduler: the real one, showing only part of its
timesteps. So the loop, guidance, adapters, attention back ends and offloading all stay the pipeline's.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tts_vision.errors import PipelineError
from tts_vision.pipelines.decoding import DecodeWatch
from tts_vision.pipelines.schedule import levels_if_known, predictions, step, takes_history
from tts_vision.pipelines.stochastic import Level
from tts_vision.types import Cost, Meter, NoMeter

DENOISERS = ("unet", "transformer", "prior", "denoiser", "dit")
ENCODERS = ("text_encoder", "image_encoder")


class Step(Protocol):
    """A stochastic step that replaces the scheduler's own."""

    def __call__(
        self, x: Tensor, output: Tensor, x0: Tensor, eps: Tensor, levels: Sequence[Level], index: int
    ) -> tuple[Tensor, Tensor, float]:
        """The next sample, the noise in it that was added, and its standard deviation."""


class SchedulerProxy:
    """A scheduler that shows the timesteps ``[start, stop)`` of another one and watches its steps.

    Args:
        scheduler: The real scheduler, a copy that this segment may change.
        start: First timestep to show.
        stop: Timestep to stop before; None for all.
        history: Solver attributes to go on from, if any.
        generators: One per row, for schedulers that draw noise.
        rule: Replaces the scheduler's step, if given.
        slices_itself: The pipeline takes a part of the timesteps on its own (image to image), so they
            are shown in full and the part is cut elsewhere.
        skip: Tells the pipeline whether to skip the step that comes next; None if it cannot, and then
            steps are left out by showing fewer timesteps.
    """

    def __init__(
        self,
        scheduler: Any,
        start: int,
        stop: int | None,
        history: dict[str, Any] | None,
        generators: list[torch.Generator] | None,
        rule: Step | None,
        slices_itself: bool,
        skip: Callable[[bool], None] | None,
    ) -> None:
        self.inner = scheduler
        self.start, self.stop = start, stop
        self.total: int | None = None
        self.prev_sample: Tensor | None = None
        self.preview: Tensor | None = None
        self.added: Tensor | None = None
        self.added_std = 0.0
        self.levels: list[Level] | None = None
        self.first_timestep = torch.empty(0)
        self._history, self.generators, self._rule = history, generators, rule
        self._slices_itself, self._skip = slices_itself, skip
        self._fresh: dict[str, Any] = {}
        self.done = 0
        self._offset = 0
        self._loose_history: dict[str, Any] = {}
        self.set_timesteps = _signed_as(scheduler.set_timesteps, self._set_timesteps)
        self.step = _signed_as(scheduler.step, self._do_step)
        if hasattr(scheduler, "set_begin_index"):
            self.set_begin_index = _signed_as(scheduler.set_begin_index, self._set_begin_index)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while being copied, before __init__
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def timesteps(self) -> Tensor:
        if self._slices_itself:
            return self.inner.timesteps
        return self._shown(self.inner.timesteps)

    @property
    def init_noise_sigma(self) -> Any:
        return initial_scale(self.inner) if self.start == 0 else 1.0

    def cut(self, timesteps: Tensor) -> Tensor:
        """The segment of the part that an image-to-image pipeline took."""
        self._offset = len(self.inner.timesteps) - len(timesteps)
        self.first_timestep = timesteps[:1]
        return self._shown(timesteps)

    def _shown(self, timesteps: Tensor) -> Tensor:
        """The timesteps for the loop, of which only the segment's are to be computed."""
        self.total = len(timesteps)
        stop = self.total if self.stop is None else self.stop
        if self._skip is None:
            return timesteps[self.start : stop]
        shown = timesteps.as_subclass(_Timesteps)
        shown.start, shown.stop, shown.skip = self.start, stop, self._skip
        return shown

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
        self._fresh = {k: list(v) if isinstance(v, list) else v for k, v in vars(self.inner).items()}
        if self._history:
            for name, value in self._history.items():
                if name == _LOOSE:
                    self._loose_history[name] = value
                else:
                    setattr(self.inner, name, value)
        elif self.start and hasattr(self.inner, "set_begin_index") and not self._slices_itself:
            self.inner.set_begin_index(self.start)

    def _set_begin_index(self, begin_index: int = 0) -> None:
        if self._history:
            return
        self.inner.set_begin_index(
            begin_index + (self.start if self._slices_itself or not begin_index else 0)
        )

    def _do_step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        index = self._offset + self.start + self.done
        x0 = eps = None
        last = self.stop is None or self.start + self.done == self.stop - 1
        if self._rule is not None or last:  # a preview needs no more than the last step's prediction
            if self.levels is None:
                self.levels = levels_if_known(self.inner)
            if self.levels:
                x0, eps = predictions(self.inner, model_output, sample, self.levels[index])
                self.preview = x0.to(sample.dtype)
        self.done += 1
        if self._rule is not None:
            # a sampler refuses such a rule where levels are unknown
            assert x0 is not None and eps is not None and self.levels is not None
            x, added, self.added_std = self._rule(sample, model_output, x0, eps, self.levels, index)
            self.added, self.prev_sample = added, x.to(sample.dtype)
            if getattr(self.inner, "_step_index", None) is not None:
                self.inner._step_index += 1  # scale_model_input reads it
            return self.prev_sample, x0.to(sample.dtype)
        if self.generators is not None and "generator" in inspect.signature(self.inner.step).parameters:
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
        return result


_LOOSE = "old_pred_original_sample"


class _Timesteps(Tensor):
    """The full timestep tensor; iteration skips entries outside [start, stop)."""

    start: int
    stop: int
    skip: Callable[[bool], None]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Tensor]:
        plain = self.as_subclass(Tensor)
        for i, timestep in enumerate(plain.unbind()):
            self.skip(not self.start <= i < self.stop)
            yield timestep
        self.skip(False)


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


Shapes: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass
class Segment:
    """The result of a segment.

    Attributes:
        output: The pipeline's first output: latents, images or frames.
        entered: ``(B, ...)`` latents that entered the loop, as the pipeline prepared them.
        proxy: The scheduler proxy that watched it.
        encoded: The encoders that ran, in order, each with the shapes of its inputs apart from the batch
            axis; None in the place of shapes where the inputs have no common batch axis.
    """

    output: Any
    entered: Tensor | None
    proxy: SchedulerProxy
    encoded: tuple[tuple[str, Shapes | None], ...]


@dataclass
class Driver:
    """Calls a pipeline one segment at a time and leaves it as it found it.

    Attributes:
        pipe: The user's pipeline.
        meter: Where network evaluations are reported before they run.
    """

    pipe: Any
    meter: Meter
    signature: dict[str, inspect.Parameter] = field(init=False)
    _encoded: dict[Any, Any] = field(default_factory=dict, init=False)
    _encoded_rows: dict[Any, Any] = field(default_factory=dict, init=False)
    _inputs: list[tuple[str, Shapes | None]] = field(default_factory=list, init=False)
    _encodes_by_row: bool = field(default=False, init=False)
    _differentiates: bool = field(default=False, init=False)
    _recomputes_steps: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.signature = dict(inspect.signature(type(self.pipe).__call__).parameters)
        self.scheduler = copy.deepcopy(self.pipe.scheduler)
        self.slices_itself = hasattr(self.pipe, "get_timesteps")
        self.interruptible = _checks_for_interrupts(type(self.pipe).__call__)

    def _proxy(
        self,
        start: int,
        stop: int | None,
        history: dict[str, Any] | None,
        generators: list[torch.Generator] | None,
        rule: Step | None,
    ) -> SchedulerProxy:
        scheduler = copy.deepcopy(self.scheduler)
        skip = self._interrupt if self.interruptible else None
        return SchedulerProxy(scheduler, start, stop, history, generators, rule, self.slices_itself, skip)

    def _interrupt(self, value: bool) -> None:
        self.pipe._interrupt = value

    def run(
        self,
        call: dict[str, Any],
        *,
        start: int,
        stop: int | None,
        latents: Tensor | None = None,
        history: dict[str, Any] | None = None,
        generators: list[torch.Generator] | None = None,
        step: Step | None = None,
        vae: Any = None,
        encode_by_row: bool = False,
        watch: DecodeWatch | None = None,
    ) -> Segment:
        """Runs timesteps ``[start, stop)``; none of them when ``start == stop``.

        Args:
            call: Arguments of the pipeline.
            start: First timestep.
            stop: Timestep to stop before.
            latents: ``(B, ...)`` latents that enter the loop; the pipeline draws its own without them.
            history: Solver history to go on from.
            generators: One per row.
            step: A stochastic step in place of the scheduler's.
            vae: Decodes in place of the pipeline's, if given.
            encode_by_row: Whether encoders run row by row, for texts that differ, so that each text is
                encoded as it is alone.
            watch: Notes which samples must not be judged, where the segment decodes.
        """
        proxy = self._proxy(start, stop, history, generators, step)
        self._inputs, self._encodes_by_row = [], encode_by_row
        entered: list[Tensor] = []
        # flags of a safety checker are named in an output object alone
        flags = watch is not None and watch.has_checker(self.pipe)
        call = {**call, "return_dict": flags, "generator": generators}
        natural = latents is not None and start == 0 and "latents" in self.signature
        if latents is not None and "latents" in self.signature:
            call["latents"] = latents
        override = None if natural else latents
        # the pipeline switches gradients off for its call; they come on again where the latents enter
        mode = torch.enable_grad() if self._differentiates else nullcontext()
        with mode, self._driven(proxy, override, entered, vae, watch=watch):
            output = self.pipe(**call)
        if watch is not None:
            watch.read(output)
        if stop is not None and proxy.done != stop - start:
            raise PipelineError(
                "A pipeline's loop must take one scheduler step per timestep but "
                f"{type(self.pipe).__name__} took "
                f"{proxy.done} between steps {start} and {stop}; it cannot be driven step by step."
            )
        return Segment(output[0], entered[0] if entered else None, proxy, tuple(self._inputs))

    def forwards_per_step(self, call: dict[str, Any]) -> dict[int, float] | None:
        """How many rows each step evaluates for one particle, found out without evaluating any.

        The loop runs with a denoiser that answers zeros. None where such an answer does not fit.
        """
        proxy = self._proxy(0, None, None, [torch.Generator("cpu")], None)
        counts: dict[int, float] = defaultdict(float)

        def silent(module: nn.Module) -> Callable[..., Any]:
            def answer(*args: Any, **kwargs: Any) -> Any:
                x = _denoised(args, kwargs)
                counts[proxy.done] += len(x)
                return _Silence(
                    [_zeros(module, row) for row in x] if isinstance(x, list) else _zeros(module, x)
                )

            return answer

        call = {**call, "return_dict": False, "generator": proxy.generators, "output_type": "latent"}
        self._encodes_by_row = False
        meter, self.meter = self.meter, NoMeter()
        try:
            with self._driven(proxy, None, [], None, silent):
                self.pipe(**call)
        except Exception:  # whatever the zeros led to, in code that is not ours
            return None
        finally:
            self.meter = meter
        return dict(counts) if proxy.done and any(counts.values()) else None

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
        latents: Tensor | None,
        entered: list[Tensor],
        vae: Any,
        denoiser: Callable[[nn.Module], Callable[..., Any]] | None = None,
        *,
        watch: DecodeWatch | None = None,
    ) -> Iterator[None]:
        """The pipeline with the proxy and the watchers in place, and as it was afterwards.

        Args:
            proxy: In the place of the scheduler.
            latents: In the place of those the pipeline prepares, if given.
            entered: Gets the latents that enter the loop.
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
            put(pipe, "scheduler", proxy)
            put(pipe, "_progress_bar_config", {**getattr(pipe, "_progress_bar_config", {}), "disable": True})
            if vae is not None:
                put(pipe, "vae", vae)
            if watch is not None:
                for autoencoder in watch.autoencoders(pipe):
                    put(autoencoder, "decode", watch.watching(autoencoder.decode))
            if self.slices_itself:
                put(pipe, "get_timesteps", self._cutting(pipe.get_timesteps, proxy))
            if hasattr(pipe, "prepare_latents"):
                enter = self._entering(
                    pipe.prepare_latents, latents, entered, proxy, differentiates=self._differentiates
                )
                put(pipe, "prepare_latents", enter)
            for name, module in modules(pipe, ENCODERS):
                put(module, "forward", self._remembering(name, module))
            for _, module in modules(pipe, DENOISERS):
                if denoiser is not None:
                    put(module, "forward", denoiser(module))
                elif self._recomputes_steps:
                    put(module, "forward", _checkpointed(module.forward))
                handles.append(module.register_forward_pre_hook(self._count, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for owner, name, value in reversed(replaced):
                if value is _MISSING:
                    del owner.__dict__[name]
                else:
                    owner.__dict__[name] = value

    @torch.compiler.disable
    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Charges a network evaluation before it runs, in rows."""
        self.meter.charge(Cost(nfe=len(_denoised(args, kwargs))))

    @staticmethod
    def _cutting(get_timesteps: Callable[..., Any], proxy: SchedulerProxy) -> Callable[..., Any]:
        @functools.wraps(get_timesteps)
        def cut(*args: Any, **kwargs: Any) -> Any:
            timesteps, *rest = get_timesteps(*args, **kwargs)
            return (proxy.cut(timesteps), *rest)

        return cut

    @staticmethod
    def _entering(
        prepare: Callable[..., Any],
        latents: Tensor | None,
        entered: list[Tensor],
        proxy: SchedulerProxy,
        *,
        differentiates: bool = False,
    ) -> Callable[..., Any]:
        """`prepare_latents` that notes its latents, and returns `latents` unchanged when given.

        Pipelines cast or rescale given latents on entry, which a loop that goes on must not do.
        """
        signature = inspect.signature(prepare)

        @functools.wraps(prepare)
        def enter(*args: Any, **kwargs: Any) -> Any:
            if differentiates:
                torch.set_grad_enabled(True)
            bound = signature.bind(*args, **kwargs)
            timestep = bound.arguments.get("timestep")
            if isinstance(timestep, Tensor) and not timestep.numel():
                # image to image noises its image to the first timestep, which an empty segment hides
                rows = bound.arguments["batch_size"] * bound.arguments.get("num_images_per_prompt", 1)
                bound.arguments["timestep"] = proxy.first_timestep.repeat(rows)
            states = [generator.get_state() for generator in proxy.generators or ()]
            result = prepare(*bound.args, **bound.kwargs)
            if latents is not None:
                # its own draws are thrown away, so the rows' noise streams must not move on
                for generator, state in zip(proxy.generators or (), states):
                    generator.set_state(state)
            first, rest = (
                (result[0], tuple(result[1:])) if isinstance(result, (tuple, list)) else (result, None)
            )
            if latents is not None:
                if first.shape != latents.shape:
                    raise PipelineError(
                        f"Latents that go on must be shaped as the pipeline's own, {tuple(first.shape)}, "
                        f"but are {tuple(latents.shape)}; its loop cannot be driven in segments."
                    )
                first = latents.to(first.device)
            entered.append(first)
            return first if rest is None else (first, *rest)

        return enter

    def _remembering(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """An encoder that runs once per distinct input, and on one of several equal rows."""
        forward = module.forward

        def once(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            key = (name, _fingerprint(args), _fingerprint(kwargs), _adapter_scales(module))
            if self._encodes_by_row and key in self._encoded_rows:
                return self._encoded_rows[key]
            if key not in self._encoded:
                with self.meter.phase("encode"), torch.no_grad():
                    self._encoded[key] = forward(*args, **kwargs)
                rows = _rows([*args, *kwargs.values()])
                for i in range(rows if rows > 1 else 0):
                    row = map(_fingerprint, _input_row(args, kwargs, i))
                    self._encoded_rows[(name, *row, _adapter_scales(module))] = _row(self._encoded[key], i)
            return self._encoded[key]

        @functools.wraps(forward)
        def encode(*args: Any, **kwargs: Any) -> Any:
            values = [*args, *kwargs.values()]
            rows = _rows(values)
            shapes = tuple(tuple(v.shape[1:]) for v in values if isinstance(v, Tensor)) if rows else None
            self._inputs.append((name, shapes))
            if rows > 1 and self._encodes_by_row:
                return _joined([once(*_input_row(args, kwargs, i)) for i in range(rows)])
            if rows > 1 and _all_equal(values):
                return _repeated(once(*_input_row(args, kwargs, 0)), rows)
            return once(args, kwargs)

        return encode


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


class _Silence(tuple[Any, ...]):
    """A network's output, by position or by name."""

    def __new__(cls, sample: Any) -> _Silence:
        return super().__new__(cls, (sample,))

    @property
    def sample(self) -> Any:
        return self[0]


def _zeros(module: nn.Module, x: Tensor) -> Tensor:
    """An answer to `x`, with the extra channels of a network that predicts its variance too."""
    config: Any = getattr(module, "config", {})
    channels = config.get("in_channels")
    learned = config.get("learn_sigma") or config.get("out_channels") == 2 * (channels or 0)
    return torch.cat([torch.zeros_like(x)] * 2, dim=1) if learned and x.ndim == 4 else torch.zeros_like(x)


def _denoised(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The sample that a denoiser is called on: a tensor, or a list of one tensor per row."""
    for name in ("hidden_states", "sample", "x"):
        if name in kwargs:
            return kwargs[name]
    return args[0]


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


def _rows(values: list[Any]) -> int:
    """The number of rows that all tensors among `values` have; 0 if they have no common batch axis."""
    sizes = {len(value) if value.ndim else 0 for value in values if isinstance(value, Tensor)}
    return sizes.pop() if len(sizes) == 1 else 0


def _all_equal(values: list[Any]) -> bool:
    """Whether each tensor repeats one row."""
    return all(torch.equal(v, v[:1].expand_as(v)) for v in values if isinstance(v, Tensor))


def _input_row(
    args: tuple[Any, ...], kwargs: dict[str, Any], i: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of an encoder with row `i`, as a batch of one, of each tensor."""
    picked = [v[i : i + 1] if isinstance(v, Tensor) else v for v in (*args, *kwargs.values())]
    return tuple(picked[: len(args)]), dict(zip(kwargs, picked[len(args) :]))


def _row(value: Any, i: int) -> Any:
    """Row `i`, as a batch of one, of an encoder's output."""
    if isinstance(value, Tensor):
        return value[i : i + 1] if value.ndim else value
    if isinstance(value, dict):
        return _like(value, {key: _row(item, i) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_row(item, i) for item in value)
    return value


def _joined(rows: list[Any]) -> Any:
    """An encoder's outputs for single rows, as its output for all of them."""
    first = rows[0]
    if isinstance(first, Tensor):
        return torch.cat(rows) if first.ndim else first
    if isinstance(first, dict):
        return _like(first, {key: _joined([row[key] for row in rows]) for key in first})
    if isinstance(first, (list, tuple)):
        return type(first)(_joined(list(items)) for items in zip(*rows))
    return first


def _like(output: Any, items: dict[str, Any]) -> Any:
    """A dictionary or a network's output of the type of another."""
    return type(output)(**items)


def _repeated(value: Any, rows: int) -> Any:
    """An encoder's output for one row, as its output for `rows` equal rows."""
    if isinstance(value, Tensor):
        return value.repeat_interleave(rows, dim=0) if value.ndim and len(value) == 1 else value
    if isinstance(value, dict):
        return _like(value, {key: _repeated(item, rows) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_repeated(item, rows) for item in value)
    return value


def _adapter_scales(module: nn.Module) -> tuple[Any, ...]:
    """The scales of the adapters (LoRA) in an encoder, which its output depends on too."""
    if not getattr(module, "peft_config", None):
        return ()
    scales = (getattr(part, "scaling", None) for part in module.modules())
    return tuple(tuple(sorted(scale.items())) for scale in scales if isinstance(scale, dict))


def _fingerprint(value: Any) -> Any:
    """A hashable stand-in for call arguments; tensors by content."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return (tuple(value.shape), str(value.dtype), str(value.device), hashlib.sha256(data).hexdigest())
    if isinstance(value, dict):
        return tuple(sorted((k, _fingerprint(v)) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_fingerprint(v) for v in value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else id(value)
