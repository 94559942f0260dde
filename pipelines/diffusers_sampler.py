"""The sampler of every diffusers pipeline: the pipeline's own loop, driven a segment at a time."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition, distinct
from tts_vision.config import SamplerOptions
from tts_vision.errors import CapabilityError, ConfigError, PipelineError
from tts_vision.memory import out_of_memory
from tts_vision.moves import PREVIEW, STEP_NOISE, STEP_NOISE_STD
from tts_vision.pipelines.calls import Calls, has_media, texts_of
from tts_vision.pipelines.decoding import DecodeWatch
from tts_vision.pipelines.schedule import (
    draws_noise,
    is_flow,
    levels_if_known,
    noise_levels,
    pack,
    unpack,
)
from tts_vision.pipelines.segment import (
    DENOISERS,
    Driver,
    Segment,
    Shapes,
    Step,
    initial_scale,
    modules,
)
from tts_vision.pipelines.stochastic import (
    Level,
    ddim_std,
    ddim_step,
    diffusion,
    euler_step,
    guidance_gain,
    renoise,
)
from tts_vision.registry import register
from tts_vision.rng import row_generator, row_noise, row_seed
from tts_vision.sampler import RewardFunction, Sampler
from tts_vision.types import Cost, Decoded, Invalid, Media, Meter, NoMeter, Phase, Rows, State, Video


@register(
    "sampler",
    "diffusers",
    notes={"drives": "any diffusers pipeline with a scheduler whose loop calls scheduler.step"},
)
class DiffusersSampler(Sampler):
    """Drives any diffusers pipeline step by step, without a copy of its loop.

    A step is one entry of the scheduler's timesteps. The state's latents are those that the pipeline's loop
    works on (packed where it packs); at step 0 they are unit Gaussian noise, as ``latents=`` takes it.

    Particles of one state may differ in their conditions. Those that agree in overrides, images and
    embeddings go through the pipeline together, with their texts as lists, where that gives the same as each
    text alone: where the encoders' inputs have the same shapes. Others go through it one after another.

    Args:
        pipe: The pipeline, as the user set it up; left as it was after every call.
        options: How to drive it, and the arguments of its call.

    Raises:
        PipelineError: If its loop cannot be driven this way.
        ConfigError: If an argument is none of the pipeline's.
    """

    def __init__(self, pipe: Any, *, options: SamplerOptions | None = None) -> None:
        options = options or SamplerOptions()
        if options.preview_size is not None:
            raise ConfigError(
                f"preview_size needs a model that decodes at any size but got {options.preview_size} for "
                f"{type(pipe).__name__}; give it a tiny autoencoder instead (model.preview_vae)."
            )
        _check_drivable(pipe)
        self.name = type(pipe).__name__
        self._driver = Driver(pipe, NoMeter())
        signature = self._driver.signature
        settings = {**getattr(pipe, "tts_vision_defaults", {}), **options.pipeline_kwargs}
        self._calls = Calls(self._driver, settings)
        self.modality = "video" if "num_frames" in signature else "image"
        self._preview_vae = getattr(pipe, "tts_vision_preview_vae", None)
        self._recompute = options.recompute
        self._step_rule = _step_rule(options, self._driver.scheduler) if options.stochastic else None
        self._noise = _described(options) if options.stochastic else None
        scheduler = self._calls.schedule()
        self.num_steps = self._calls.steps(scheduler)
        eta = float(settings.get("eta", 0.0) or 0.0)
        self._native_noise = self._step_rule is None and draws_noise(scheduler, eta)
        noisy = self._step_rule is not None or self._native_noise
        self.last_noisy_step = self.num_steps - 2 if noisy else -1
        if self._step_rule is not None:
            noise_levels(scheduler)  # raises if the scheduler has none
        has_levels = self._own_levels(scheduler) is not None
        has_noise = "latents" in signature and not self._driver.slices_itself
        self.capabilities = frozenset(
            name
            for name, present in {
                "noise": has_noise,
                "stochastic": noisy,
                "step_noise": self._step_rule is not None,
                "moves": has_noise or self._step_rule is not None,
                "renoise": has_levels,
                "preview": has_levels,
                "differentiable": not self._driver.is_offloaded,
            }.items()
            if present
        )
        self._alone: dict[Condition, _Alone] = {}
        self._takes_lists: dict[Hashable, bool] = {}
        self._forwards: dict[Hashable, Mapping[int, float]] = {}

    @staticmethod
    def accepts(pipe: Any) -> bool:
        """Whether `pipe` looks like a diffusers pipeline."""
        return hasattr(pipe, "components") and hasattr(pipe, "scheduler") and callable(pipe)

    def bind(self, meter: Meter) -> None:
        super().bind(meter)
        self._driver.meter = meter

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        generators = [torch.Generator("cpu").manual_seed(row_seed(seed, uid)) for uid in uids]
        segment = self._entered(condition, generators)
        latents = segment.entered
        assert latents is not None
        scale = float(initial_scale(segment.proxy.inner))
        if "noise" in self.capabilities and scale != 1.0:
            latents = latents / scale
        carry = _generator_rows(generators, uids) if self._native_noise else {}
        return State.initial(latents, uids, condition, seed, carry)

    def recondition(self, state: State) -> State:
        for condition in distinct(state.conditions):
            shape = self._alone_of(condition).shape
            if shape != state.latents.shape[1:]:
                raise ConfigError(
                    "A new condition must keep the shape of the latents, "
                    f"{tuple(state.latents.shape[1:])}, but {condition.describe()} makes it {tuple(shape)}; "
                    "leave the size as it was."
                )
        return super().recondition(state)

    def advance(self, state: State, steps: int = 1) -> State:
        return self._in_groups(state, self._group, lambda part: self._advanced(part, steps))

    def _advanced(self, state: State, steps: int) -> State:
        """`advance` for rows that go through the pipeline together."""
        batch, start, stop = len(state), state.step, state.step + steps
        device = self._device()
        generators = self._generators(state)
        rule = self._row_rule(state)
        segment = self._run(
            state.conditions,
            start,
            stop,
            latents=state.latents.to(device),
            history=unpack(dict(state.carry), dict(state.shared), device) if state.shared else None,
            generators=generators,
            step=rule,
            output_type="latent",
        )
        proxy = segment.proxy
        if proxy.prev_sample is None:
            raise PipelineError(
                f"A pipeline's loop must call scheduler.step but {self.name} did not between steps {start} "
                f"and {stop}; it cannot be driven step by step."
            )
        latents = proxy.prev_sample
        output = segment.output
        same = isinstance(output, Tensor) and output.shape == latents.shape
        if same and torch.equal(output, latents.to(output.dtype)):
            latents = output  # the loop may cast the scheduler's result; go on from the cast one, as it does
        history = proxy.history() if rule is None else {}
        rows, shared = pack(history, proxy.prev_sample.shape)
        carry: dict[str, Tensor | Rows] = {**rows}
        if proxy.preview is not None:
            carry[PREVIEW] = proxy.preview
        if proxy.added is not None:
            carry[STEP_NOISE] = proxy.added.to(latents.dtype)
            carry[STEP_NOISE_STD] = torch.full((batch,), proxy.added_std)
        if self._native_noise and generators is not None:
            carry |= _generator_rows(generators, state.uids)
        return replace(state, latents=latents, step=stop, carry=carry, shared=shared)

    def gradient(self, state: State, steps: int, reward: RewardFunction) -> State:
        x = state.latents.to(self._device()).detach().requires_grad_()
        finished = state.step + steps == self.num_steps
        vae = None if finished else self._preview_vae
        recompute_steps, recompute_blocks = self._recomputed(steps)
        with (
            self._driver.differentiable(
                recompute_steps=recompute_steps,
                recompute_blocks=recompute_blocks,
                recompute_decoding=self._recompute is not False,
                vae=vae,
            ),
            torch.enable_grad(),
        ):
            # a copy, because loops may change their input latents in place
            ahead = self.advance(replace(state, latents=x.clone()), steps)
            estimate = ahead.latents if finished else ahead.carry[PREVIEW]
            assert isinstance(estimate, Tensor)
            rewards = reward(self._pixels(replace(ahead, latents=estimate), vae))
            self.meter.charge(Cost(nfe=sum(self._backward(c, state.step, steps) for c in state.conditions)))
            with self.meter.phase("denoise"):
                (gradient,) = torch.autograd.grad(rewards.sum(), x)
        at_rest = {k: v if isinstance(v, Rows) else v.detach() for k, v in ahead.carry.items()}
        slope: dict[str, Tensor | Rows] = {
            "reward": rewards.detach().double(),
            "gradient": gradient.float(),
            "gradient_scale": torch.full((len(state),), self._entry_scale(state.step)),
        }
        if "preview" in self.capabilities and steps == 1:
            std = ahead.carry.get(STEP_NOISE_STD)
            stds = std.tolist() if isinstance(std, Tensor) else [0.0] * len(state)
            levels = [self._known_levels(condition) for condition in state.conditions]
            gains = [guidance_gain(own[state.step], own[ahead.step], s) for own, s in zip(levels, stds)]
            slope["guidance_gain"] = torch.tensor(gains)
        shared = {k: v.detach() if isinstance(v, Tensor) else v for k, v in ahead.shared.items()}
        return replace(ahead, latents=ahead.latents.detach(), carry={**at_rest, **slope}, shared=shared)

    def gradient_cost(self, condition: Condition, step: int, steps: int) -> Cost:
        return Cost(nfe=self.cost(condition, step, steps).nfe + self._backward(condition, step, steps))

    def _backward(self, condition: Condition, step: int, steps: int) -> float:
        """The nfe of going back through `steps` steps, for one row."""
        # with frozen weights the way back costs about as much as the way forth
        return self.cost(condition, step, steps).nfe * (1 + sum(self._recomputed(steps)))

    def renoise(self, state: State, to_step: int) -> State:
        return self._in_groups(state, self._calls.key, lambda part: self._renoised(part, to_step))

    def _renoised(self, state: State, to_step: int) -> State:
        """`renoise` for rows with the same noise levels."""
        levels = self._known_levels(state.conditions[0])
        now, earlier = levels[state.step], levels[to_step]
        x = state.latents.to(self._device())
        noise = row_noise(state.seed, "renoise", state.uids, to_step, x)
        latents = renoise(x.float(), now, earlier, noise.float()).to(x.dtype)
        if to_step == 0 and "noise" in self.capabilities:
            latents = latents / float(initial_scale(self._calls.schedule()))
        return replace(state, latents=latents, step=to_step, carry={}, shared={})

    def preview(self, state: State) -> list[Decoded]:
        estimate = state.carry.get(PREVIEW)
        if not isinstance(estimate, Tensor):
            raise CapabilityError(
                "A preview needs at least one step since the noise was last changed but the state is at "
                f"step {state.step} without one; advance it first."
            )
        return self._decoded(replace(state, latents=estimate), self._preview_vae)

    def decode(self, state: State) -> list[Decoded]:
        return self._decoded(state, None)

    def plain(self, condition: Condition, uids: Sequence[int], *, seed: int) -> list[Decoded]:
        if self._step_rule is not None:
            raise CapabilityError(
                f"The call of {self.name} adds no noise at its steps but the sampler does; build it with "
                "stochastic=False."
            )
        call, _ = self._calls.batch([condition] * len(uids), "pil" if self.modality == "image" else "pt")
        generators = [torch.Generator("cpu").manual_seed(row_seed(seed, uid)) for uid in uids]
        generator = generators if len(uids) > 1 else generators[0]
        output = self._driver.pipe(**call, generator=generator, return_dict=False)[0]
        return list(_media(output, float(call.get("frame_rate", 8.0))))

    def facts(self, condition: Condition) -> dict[str, Any]:
        call, pipe = self._calls.of(condition), self._driver.pipe
        defaults = {name: p.default for name, p in self._driver.signature.items() if p.default is not p.empty}
        steps = {**defaults, **call}.get("num_inference_steps")
        found = {
            "steps": steps if isinstance(steps, int) else self.num_steps,
            "guidance_scale": {**defaults, **call}.get("guidance_scale"),
            "negative_prompt": call.get("negative_prompt"),
            "scheduler": type(self._driver.scheduler).__name__,
            "scheduler_config": _json_parts(getattr(self._driver.scheduler, "config", None) or {}),
            "stochastic": self._noise,
            "model_id": getattr(pipe, "name_or_path", None),
            "dtype": str(getattr(pipe, "dtype", "")).removeprefix("torch."),
            "device": self._device().type,
            "pipeline_kwargs": _json_parts({k: v for k, v in call.items() if k != "prompt"}),
            "plain": self._step_rule is None,
        }
        return {name: value for name, value in found.items() if value not in (None, "")}

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        key = self._calls.cost_key(condition)
        if key not in self._forwards:
            # guidance is decided in the pipeline's loop, so the loop is asked
            call, _ = self._calls.batch([condition], "latent")
            guess = _guessed_forwards(call, self._driver.signature)
            counted = self._driver.forwards_per_step(call)
            self._forwards[key] = counted or dict.fromkeys(range(self.num_steps), guess)
        forwards = self._forwards[key]
        return Cost(nfe=sum(forwards.get(i, 0) for i in range(step, step + steps)))

    # Conditions

    def _entered(self, condition: Condition, generators: list[torch.Generator]) -> Segment:
        """An empty segment of one condition alone, with a row for each generator; it is checked first.

        Raises:
            ConfigError: If the pipeline cannot take the condition.
            PipelineError: If its loop cannot be driven step by step.
        """
        self._calls.check(condition)
        conditions = (condition,) * len(generators)
        try:
            segment = self._run(conditions, 0, 0, generators=generators, output_type="latent")
        except (TypeError, ValueError, PipelineError) as error:
            given = sorted(condition.arguments())
            if not given:
                raise
            raise ConfigError(
                f"A condition must be one that {self.name} can take but: {error}; change {', '.join(given)}."
            ) from error
        if segment.entered is None:
            raise PipelineError(
                f"A pipeline must prepare its latents in prepare_latents but {self.name} does not; "
                "it cannot be driven step by step."
            )
        if len(segment.entered) != len(generators):
            raise PipelineError(
                f"A pipeline must draw one latent per prompt but {self.name} drew {len(segment.entered)} "
                f"for {len(generators)}; set max_batch to 1."
            )
        total = segment.proxy.total
        if total is not None and total != self.num_steps:
            # a search has planned by the number that was promised
            if condition.overrides:
                raise ConfigError(
                    f"Overrides of a condition must keep the {self.num_steps} steps of the search but "
                    f"{dict(condition.overrides)} makes them {total}; set that in pipeline_kwargs."
                )
            raise PipelineError(
                f"A pipeline must take the steps that its scheduler plans, {self.num_steps}, but {self.name} "
                f"takes {total}; set num_inference_steps (or timesteps, sigmas) so that they agree."
            )
        levels = self._own_levels(segment.proxy.inner) or self._own_levels(self._calls.schedule())
        self._alone[condition] = _Alone(segment.encoded, levels, segment.entered.shape[1:])
        return segment

    def _alone_of(self, condition: Condition) -> _Alone:
        """The facts of a condition; they are found anew after a search was resumed."""
        if condition not in self._alone:
            self._entered(condition, [torch.Generator("cpu").manual_seed(0)])
        return self._alone[condition]

    def _group(self, condition: Condition) -> Hashable:
        """Rows whose conditions have the same key go through the pipeline in one call."""
        call = self._calls.of(condition)
        texts, rest = texts_of(call), self._calls.key(condition)
        encoded = self._alone_of(condition).encoded
        # a list of prompts would have to match images in number
        mixes = bool(texts) and not has_media(call) and all(shapes is not None for _, shapes in encoded)
        if mixes and self._lists_work(condition, (rest, frozenset(texts))):
            return rest, frozenset(texts), encoded
        return rest, frozenset(texts.items())

    def _lists_work(self, condition: Condition, key: Hashable) -> bool:
        """Whether the pipeline takes texts as lists; tried once, on an empty segment."""
        if key not in self._takes_lists:
            generators = [torch.Generator("cpu").manual_seed(0) for _ in range(2)]
            call, _ = self._calls.batch([condition] * 2, "latent", lists=True)
            try:
                segment = self._driver.run(call, start=0, stop=0, generators=generators, encode_by_row=True)
            except (TypeError, ValueError, AttributeError, RuntimeError, PipelineError) as error:
                if out_of_memory(error):
                    raise
                works = False
            else:
                works = segment.entered is not None and len(segment.entered) == 2
            self._takes_lists[key] = works
        return self._takes_lists[key]

    @staticmethod
    def _in_groups(
        state: State, key: Callable[[Condition], Hashable], work: Callable[[State], State]
    ) -> State:
        """`State.in_groups`, which asks for no key where all conditions are equal."""
        conditions = distinct(state.conditions)
        if len(conditions) == 1:
            return work(state)
        keys = {condition: key(condition) for condition in conditions}
        return state.in_groups(keys.__getitem__, work)

    # One segment

    def _run(
        self,
        conditions: Sequence[Condition],
        start: int,
        stop: int | None,
        *,
        output_type: str,
        latents: Tensor | None = None,
        history: dict[str, Any] | None = None,
        generators: list[torch.Generator] | None = None,
        step: Step | None = None,
        vae: Any = None,
        phase: Phase = "denoise",
        watch: DecodeWatch | None = None,
    ) -> Segment:
        call, mixed = self._calls.batch(conditions, output_type)
        with self.meter.phase(phase):
            return self._driver.run(
                call,
                start=start,
                stop=stop,
                latents=latents,
                history=history,
                generators=generators,
                step=step,
                vae=vae,
                encode_by_row=mixed,
                watch=watch,
            )

    def _decoded(self, state: State, vae: Any) -> list[Decoded]:
        output_type = "pil" if self.modality == "image" else "pt"

        def work(part: State) -> list[Decoded]:
            call, watch = self._calls.of(part.conditions[0]), DecodeWatch()
            with np.errstate(invalid="ignore"):  # NaN has no 8-bit value; such samples are invalid below
                output = self._decode(part, vae, output_type, watch)
            media = _media(output, float(call.get("frame_rate", 8.0)))
            reasons = watch.reasons(part.latents)
            if reasons is None:
                return [sample for i in range(len(part)) for sample in work(part.select([i]))]
            return [m if reason is None else Invalid(reason, m) for m, reason in zip(media, reasons)]

        return self._row_by_row(state, work)

    def _pixels(self, state: State, vae: Any) -> Tensor:
        """Decoded pixels with their gradient: ``(B, 3, H, W)``, of clips ``(B, T, 3, H, W)``, in [0, 1]."""

        def work(part: State) -> list[Tensor]:
            pixels = self._decode(part, vae, "pt")
            if not isinstance(pixels, Tensor) or not pixels.requires_grad:
                raise PipelineError(
                    f"A pipeline must decode differentiably for gradients but the pixels of {self.name} have "
                    "none; use an algorithm that needs no gradients."
                )
            return [*pixels.float().clamp(0, 1)]

        return torch.stack(self._row_by_row(state, work))

    def _row_by_row(self, state: State, work: Callable[[State], list[Any]]) -> list[Any]:
        """A list with an item for each row, made for groups of rows that decode in one call.

        Texts decide nothing about decoding, so rows may differ in them.
        """
        rows_of: dict[str, list[int]] = {}
        for row, condition in enumerate(state.conditions):
            rows_of.setdefault(self._calls.key(condition), []).append(row)
        if len(rows_of) == 1:
            return work(state)
        items = {r: item for rows in rows_of.values() for r, item in zip(rows, work(state.select(rows)))}
        return [items[row] for row in range(len(state))]

    def _decode(self, state: State, vae: Any, output_type: str, watch: DecodeWatch | None = None) -> Any:
        generators = [row_generator(state.seed, "step", uid, self.num_steps, "cpu") for uid in state.uids]
        segment = self._run(
            [state.conditions[0]] * len(state),
            self.num_steps,
            None,
            latents=state.latents.to(self._device()),
            generators=generators,
            vae=vae,
            output_type=output_type,
            phase="decode",
            watch=watch,
        )
        return segment.output

    # Gradients

    def _recomputed(self, steps: int) -> tuple[bool, bool]:
        """Whether the way back computes the steps again, and the denoiser's blocks."""
        if self._recompute is not None:
            return self._recompute and steps > 1, self._recompute
        return steps > 1, self._device().type != "cpu"

    def _entry_scale(self, step: int) -> float:
        """The factor on the latents of a state when they enter the loop at `step`."""
        if step or "noise" not in self.capabilities:
            return 1.0
        return float(initial_scale(self._calls.schedule()))

    # Noise

    def _generators(self, state: State) -> list[torch.Generator]:
        """One generator per row: the one its initial noise came from, going on, or a fresh one after a fork.

        Only schedulers that draw noise themselves use them. A plain call of the pipeline goes on with one
        generator too, so it makes an unforked row again from its seed.
        """
        states, owners = state.carry.get("rng"), state.carry.get("rng_uid")
        generators = []
        for i, uid in enumerate(state.uids):
            if isinstance(states, Tensor) and isinstance(owners, Tensor) and int(owners[i]) == uid:
                generator = torch.Generator("cpu")
                generator.set_state(states[i].cpu().clone())  # a view crashes torch
            else:
                generator = row_generator(state.seed, "step", uid, state.step, "cpu")
            generators.append(generator)
        return generators

    def _row_rule(self, state: State) -> Step | None:
        """The stochastic step with noise keyed by the rows of `state`."""
        rule = self._step_rule
        if rule is None:
            return None
        uids, seed = state.uids, state.seed

        def step(
            x: Tensor, output: Tensor, x0: Tensor, eps: Tensor, levels: Sequence[Level], index: int
        ) -> tuple[Tensor, Tensor, float]:
            noise = row_noise(seed, "step", uids, index, x.float())
            return rule(x.float(), output.float(), x0, eps, levels[index], levels[index + 1], noise)

        return step

    # Facts about the pipeline

    def _device(self) -> torch.device:
        return torch.device(self._driver.pipe._execution_device)

    def _own_levels(self, scheduler: Any) -> list[Level] | None:
        """Noise levels by this sampler's steps; image to image takes only the last of a schedule."""
        levels = levels_if_known(scheduler)
        return None if levels is None else levels[-(self.num_steps + 1) :]

    def _known_levels(self, condition: Condition) -> list[Level]:
        levels = self._alone_of(condition).levels
        if levels is None:
            raise CapabilityError(
                f"Going back to an earlier step needs a scheduler with known noise levels but "
                f"{type(self._driver.scheduler).__name__} has none; use another scheduler, such as DDIM."
            )
        return levels


@dataclass(frozen=True)
class _Alone:
    """The facts of a condition that an empty segment of it alone showed.

    Attributes:
        encoded: The encoders that ran, with the shapes of their inputs; see `Segment`.
        levels: Noise levels by step, where they are known.
        shape: Of a row of latents.
    """

    encoded: tuple[tuple[str, Shapes | None], ...]
    levels: list[Level] | None
    shape: torch.Size


UNDRIVABLE = {
    "LatentConsistencyModelPipeline": "decodes a variable of its loop instead of its latents; "
    "load the checkpoint as StableDiffusionPipeline with LCMScheduler",
}


@dataclass(frozen=True)
class _DDIM:
    eta: float

    def __call__(
        self, x: Tensor, output: Tensor, x0: Tensor, eps: Tensor, now: Level, then: Level, noise: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        std = ddim_std(now, then, self.eta)
        prev, added = ddim_step(x0, eps, then, std, noise)
        return prev, added, std


@dataclass(frozen=True)
class _Euler:
    g: Callable[[float], float]
    interpolant: str

    def __call__(
        self, x: Tensor, output: Tensor, x0: Tensor, eps: Tensor, now: Level, then: Level, noise: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        return euler_step(output, x, now.sigma, then.sigma, noise, self.g, self.interpolant)


def _step_rule(options: SamplerOptions, scheduler: Any) -> _DDIM | _Euler:
    """The stochastic step that `options` ask for."""
    if options.sde == "ddim":
        return _DDIM(options.eta)
    if not is_flow(scheduler):
        raise ConfigError(
            f"sde='euler' needs a flow model but the scheduler is {type(scheduler).__name__}; use sde='ddim'."
        )
    return _Euler(diffusion(options.diffusion, options.diffusion_norm), options.interpolant)


def _described(options: SamplerOptions) -> str:
    """The stochastic step that `options` ask for, in words."""
    if options.sde == "ddim":
        return f"ddim, eta={options.eta:g}"
    return f"euler, diffusion={options.diffusion}, diffusion_norm={options.diffusion_norm:g}"


def _json_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that JSON can hold; private ones and objects are left out."""

    def fits(value: Any) -> bool:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            return False
        return True

    return {key: value for key, value in values.items() if not key.startswith("_") and fits(value)}


def _check_drivable(pipe: Any) -> None:
    """Refuses pipelines whose loop a scheduler proxy cannot drive, with the reason."""
    name = type(pipe).__name__
    scheduler = getattr(pipe, "scheduler", None)
    rule = "A pipeline must denoise with its scheduler's step, from latents it prepares, with one denoiser"
    if not DiffusersSampler.accepts(pipe):
        raise PipelineError(
            f"{rule} but {name} is no diffusers pipeline; pass a DiffusionPipeline or a Sampler."
        )
    if name in UNDRIVABLE:
        raise PipelineError(f"{rule} but {name} {UNDRIVABLE[name]}.")
    if scheduler is None or not hasattr(scheduler, "step") or not hasattr(scheduler, "set_timesteps"):
        raise PipelineError(f"{rule} but {name} has no such scheduler; it cannot be driven step by step.")
    if not hasattr(pipe, "prepare_latents"):
        raise PipelineError(f"{rule} but {name} has no prepare_latents; it cannot be driven step by step.")
    if not modules(pipe, DENOISERS):
        raise PipelineError(
            f"{rule} but {name} has components {sorted(pipe.components)}; it cannot be driven step by step."
        )
    if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
        raise PipelineError(
            f"A pipeline must take a prompt but {name} takes none; use a text-to-image or text-to-video "
            "pipeline."
        )


def _guessed_forwards(call: dict[str, Any], signature: dict[str, inspect.Parameter]) -> int:
    """Denoiser evaluations per row and step where the pipeline's loop could not be asked."""
    default = signature["guidance_scale"].default if "guidance_scale" in signature else None
    scale = call.get("guidance_scale", default)
    return 2 if isinstance(scale, (int, float)) and scale > 1 else 1


def _generator_rows(generators: list[torch.Generator], uids: Sequence[int]) -> dict[str, Tensor | Rows]:
    """The generators as rows that are reindexed with the particles."""
    return {
        "rng": torch.stack([generator.get_state() for generator in generators]),
        "rng_uid": torch.tensor(list(uids), dtype=torch.long),
    }


def _media(output: Any, fps: float) -> list[Media]:
    """A pipeline's decoded output as media."""
    if isinstance(output, Tensor):  # (B, T, C, H, W) in [0, 1]
        frames = (output.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu()
        return [Video(clip, fps) for clip in frames]
    media: list[Media] = []
    for image in output:
        if not isinstance(image, Image.Image):
            raise PipelineError(
                f"A pipeline must decode to images but returned {type(image).__name__}; it is no image "
                "pipeline."
            )
        media.append(image)
    return media
