"""The sampler of every diffusers pipeline: the pipeline's own loop, driven a segment at a time."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tts_vision.condition import ORIGINAL, Condition, distinct
from tts_vision.config import SamplerOptions
from tts_vision.errors import CapabilityError, ConfigError, PipelineError
from tts_vision.memory import out_of_memory
from tts_vision.moves import PREVIEW, STEP_NOISE, STEP_NOISE_STD
from tts_vision.pipelines.adopting import DecoderInput, StandInDecoder, edits_images, encoded, laid_out
from tts_vision.pipelines.callbacks import CALLBACK
from tts_vision.pipelines.calls import Calls, has_media, texts_of
from tts_vision.pipelines.decoding import FLAGGED, DecodeWatch
from tts_vision.pipelines.encoding import Shapes
from tts_vision.pipelines.frame_rates import frame_rate
from tts_vision.pipelines.noise import noise_scale, unit_noise
from tts_vision.pipelines.proxy import Step, initial_scale
from tts_vision.pipelines.rollout import Coarse, check_rollout, rollout_steps, straight_step
from tts_vision.pipelines.rows import Inputs, agree
from tts_vision.pipelines.rules import described, step_rule
from tts_vision.pipelines.schedule import (
    first_order,
    levels_if_known,
    noise_levels,
    noisy_steps,
    pack,
    unpack,
)
from tts_vision.pipelines.segment import DENOISERS, Driver, Segment, modules
from tts_vision.pipelines.stochastic import Level, guidance_gain, renoise
from tts_vision.pipelines.tokens.amused import is_amused
from tts_vision.pipelines.whole import UNDRIVABLE, reason_to_drive_whole
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
        self._rollout = rollout_steps(options.preview)
        if self._rollout is None and options.preview != "decode":
            raise ConfigError(
                f"preview must be 'decode', the estimate of each step, or 'rollout:k' for "
                f"{type(pipe).__name__} but got {options.preview!r}; change it."
            )
        _check_drivable(pipe)
        self.name = type(pipe).__name__
        self._driver = Driver(pipe, NoMeter())
        signature = self._driver.signature
        settings = {**getattr(pipe, "tts_vision_defaults", {}), **options.pipeline_kwargs}
        self._calls = Calls(self._driver, settings)
        self.modality = "video" if _makes_videos(self.name, signature) else "image"
        self._preview_vae = getattr(pipe, "tts_vision_preview_vae", None)
        self._recompute = options.recompute
        self._whole = reason_to_drive_whole(pipe, [m for _, m in modules(pipe, DENOISERS)], settings)
        if self._whole and options.stochastic:
            raise ConfigError(
                f"stochastic=True needs a pipeline that is driven step by step but {self.name} is driven "
                f"whole, because {self._whole}; leave it out."
            )
        self._step_rule = step_rule(options, self._driver.scheduler) if options.stochastic else None
        self._noise = described(options) if options.stochastic else None
        self._has_callback = settings.get(CALLBACK) is not None
        self._native_noise = False
        self._scale: float | None = None
        if self._rollout is not None:
            levels = None if self._whole else levels_if_known(self._calls.schedule())
            check_rollout(self._driver.scheduler, levels, self.name, self._whole)
            self.preview_shows_step = True
        if self._whole:
            self.num_steps = 1
            self.capabilities = frozenset({"whole", *(["noise", "moves"] if self._takes_noise else [])})
        else:
            self._plan(settings)
        if edits_images(self.name, signature) and self.modality == "image":
            self.capabilities |= {"adopt", "edits"}
        self._alone: dict[Condition, _Alone] = {}
        self._takes_lists: dict[Hashable, bool] = {}
        self._together: dict[Hashable, bool | None] = {}
        self._forwards: dict[Hashable, Mapping[int, float]] = {}
        self._rollout_forwards: dict[Hashable, float] = {}

    def _plan(self, settings: Mapping[str, Any]) -> None:
        """Finds the steps of a trajectory and the capabilities."""
        scheduler = self._calls.schedule()
        self._driver.halves = self._step_rule is None
        if not self._driver.halves:
            first_order(scheduler)
        self._steps = self._calls.steps(scheduler)
        self.num_steps = len(self._steps)
        eta = float(settings.get("eta", 0.0) or 0.0)
        drawing = noisy_steps(scheduler, eta) if self._step_rule is None else []
        noisy = [i - self._steps.start for i in drawing if i in self._steps]
        self._native_noise = bool(noisy)
        if self._step_rule is not None:
            noise_levels(scheduler)  # raises if the scheduler has none
        ends = self._steps.stop == len(scheduler.timesteps)
        self.last_noisy_step = (
            max(noisy, default=-1) if self._step_rule is None else self.num_steps - (2 if ends else 1)
        )
        has_levels = levels_if_known(scheduler) is not None
        self.capabilities = frozenset(
            name
            for name, present in {
                "noise": self._takes_noise,
                "stochastic": self.last_noisy_step >= 0,
                "step_noise": self._step_rule is not None,
                "moves": self._takes_noise or self._step_rule is not None,
                "renoise": has_levels,
                "adopt": has_levels and self.modality == "image" and _encodes(self._driver.pipe),
                "preview": has_levels,
                "differentiable": not self._driver.is_offloaded,
            }.items()
            if present
        )

    @property
    def _takes_noise(self) -> bool:
        """Whether the loop starts from noise, and not from a noised image; checked once it has started."""
        return "latents" in self._driver.signature and "strength" not in self._driver.signature

    @staticmethod
    def accepts(pipe: Any) -> bool:
        """Whether `pipe` looks like a diffusers pipeline."""
        is_pipeline = hasattr(pipe, "components") and hasattr(pipe, "scheduler") and callable(pipe)
        return is_pipeline and not is_amused(pipe)  # whose latents are tokens

    def bind(self, meter: Meter) -> None:
        super().bind(meter)
        self._driver.bind(meter)

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        latents = self._initial(condition, [row_seed(seed, uid) for uid in uids])
        if "noise" in self.capabilities:
            assert self._scale is not None
            latents = unit_noise(latents, self._scale)
        return State.initial(latents, uids, condition, seed, {_ORIGIN: _numbers(uids)})

    def _initial(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """``(B, ...)`` latents that enter the loop, a row for each seed."""
        if len(seeds) > 1 and self._rows_together(condition) is None:
            return torch.cat([self._initial(condition, [seed]) for seed in seeds])
        entered = self._entered(condition, [_generator(seed) for seed in seeds]).entered
        # a pipeline that is driven whole may make its latents out of sight
        return torch.zeros(len(seeds), 1) if entered is None else entered

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
        condition = state.conditions[0]
        if len(state) > 1 and self._rows_together(condition) is None:
            return _joined([self._advanced(state.select([i]), steps) for i in range(len(state))])
        if self._whole:
            return self._computed_whole(state)
        if bool(_flags(state, _INTERRUPTED)[0]):  # by a callback, for which rows are computed one by one
            return replace(state, step=state.step + steps)
        batch, start, stop = len(state), state.step, state.step + steps
        device = self._device()
        generators = self._generators(state)
        rule = self._row_rule(state)
        segment = self._run(
            state.conditions,
            start,
            stop,
            latents=state.latents.to(device),
            scale=self._entry_scale(start, condition),
            history=unpack(dict(state.carry), dict(state.shared), device) if state.shared else None,
            generators=generators,
            streams=self._streams(state),
            step=rule,
            output_type="latent",
        )
        proxy = segment.proxy
        if proxy.prev_sample is None:
            raise PipelineError(
                f"A pipeline's loop must call scheduler.step but {self.name} did not between steps {start} "
                f"and {stop}; it cannot be driven step by step."
            )
        latents = self._left(segment)
        history = proxy.history() if rule is None else {}
        rows, shared = pack(history, proxy.prev_sample.shape)
        carry: dict[str, Tensor | Rows] = {**rows, _ORIGIN: _numbers(_origins(state))}
        preview = self._laid_out(state, segment, latents)
        if preview is not None:
            carry[PREVIEW] = preview
        if proxy.added is not None:
            carry[STEP_NOISE] = proxy.added.to(latents.dtype)
            carry[STEP_NOISE_STD] = torch.full((batch,), proxy.added_std)
        if self._native_noise or proxy.draws or "rng" in state.carry:
            carry |= _generator_rows(generators, state.uids)
        if self._has_callback:
            carry[_INTERRUPTED] = torch.full((batch,), proxy.interrupted)
        return replace(state, latents=latents, step=stop, carry=carry, shared=shared)

    def _left(self, segment: Segment) -> Tensor:
        """The latents that the loop would carry into its next step.

        They are what a callback sees last: after blending, edits and casts. Where a pipeline has no
        callbacks, they are the result of the scheduler's step.

        Raises:
            PipelineError: If the loop changes that result where it cannot be seen.
        """
        proxy, output = segment.proxy, segment.output
        latents = proxy.prev_sample if proxy.latents is None else proxy.latents
        assert latents is not None
        same = isinstance(output, Tensor) and output.shape == latents.shape
        if same and torch.equal(output, latents.to(output.dtype)):
            return output  # the loop may cast the result; continue from the cast one, as it does
        if same and proxy.latents is None and "prompt" in self._driver.signature:
            raise PipelineError(
                f"A loop without callbacks must continue from the result of its scheduler's step but "
                f"{self.name} changes it; it cannot be driven step by step."
            )
        entered = segment.entered
        if entered is not None and entered.shape != latents.shape:
            raise PipelineError(
                f"A loop must end a step with latents shaped as those that entered it, "
                f"{tuple(entered.shape)}, but {self.name} ends with {tuple(latents.shape)}; it cannot be "
                "driven step by step."
            )
        return latents

    def _laid_out(self, state: State, segment: Segment, latents: Tensor) -> Tensor | None:
        """The x0 estimate of the last step, laid out as the loop's latents; None where there is none."""
        proxy = segment.proxy
        preview = proxy.preview
        if preview is None or preview.shape == latents.shape:
            return preview
        entered, scale = state.latents.to(self._device()), self._entry_scale(state.step, state.conditions[0])
        entry = (entered, scale) if proxy.before is None else (proxy.before, None)
        call, _ = self._batch(state.conditions, "latent")
        call["generator"] = self._generators(state)
        last = proxy.start + proxy.done - 1
        found = self._driver.laid_out(call, last, entry, preview)
        return found if found is not None and found.shape == latents.shape else None

    def _computed_whole(self, state: State) -> State:
        """The finished samples, as pixels in [0, 1], by the pipeline's own call."""
        watch, taken = DecodeWatch(), "noise" in self.capabilities
        segment = self._run(
            state.conditions,
            0,
            None,
            latents=state.latents.to(self._device()) if taken else None,
            scale=self._entry_scale(0, state.conditions[0]) if taken else None,
            generators=self._generators(state),
            output_type="pt",
            watch=watch,
        )
        pixels = segment.output
        if isinstance(pixels, (list, tuple)):
            pixels = torch.stack([torch.as_tensor(item) for item in pixels])
        if not isinstance(pixels, Tensor):
            raise PipelineError(
                f"A pipeline that is driven whole must return tensors for output_type='pt' but {self.name} "
                f"returned {type(pixels).__name__}; it cannot be searched."
            )
        flagged = torch.tensor([reason == FLAGGED for reason in watch.reasons(pixels) or [None] * len(state)])
        return replace(
            state, latents=pixels, step=1, carry={_ORIGIN: _numbers(_origins(state)), _FLAGGED: flagged}
        )

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
            "gradient_scale": torch.full(
                (len(state),), self._entry_scale(state.step, state.conditions[0]) or 1.0
            ),
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

    def adopt(self, state: State, to_step: int, noise: Tensor) -> State:
        rows = [
            self._adopted(state.select([i]), noise[i : i + 1].to(self._device())) for i in range(len(state))
        ]
        carry: dict[str, Tensor | Rows] = {
            _ORIGIN: _numbers(_origins(state)),
            _ADOPTED: torch.tensor([size for _, size in rows]),
        }
        latents = torch.cat([latents for latents, _ in rows])
        return replace(state, latents=latents, step=to_step, carry=carry, shared={})

    def _adopted(self, row: State, noise: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """One image at the end of the trajectory, and the width and height that it decodes to."""
        image = original_of(row.conditions[0])
        if image is None:
            raise ConfigError(
                f"An image is adopted from a condition that names {ORIGINAL!r} but it has images "
                f"{sorted(row.conditions[0].images)}; add it."
            )
        if "edits" in self.capabilities:  # the pipeline encodes it itself
            return row.latents, image.size
        latents = row.latents.to(self._device())
        z, size = encoded(self._driver.pipe, image, self._decoder_input(row, latents))
        clean = laid_out(z, lambda x: self._decoder_input(row, x), latents, self.name)
        end = self._known_levels(row.conditions[0])[self.num_steps]
        return end.alpha * clean + end.sigma * noise.to(clean), size

    def _decoder_input(self, row: State, latents: Tensor) -> Tensor:
        """The input of the autoencoder when the pipeline decodes latents."""
        stand_in = StandInDecoder(self._driver.pipe.vae)
        try:
            self._decode(replace(row, latents=latents), stand_in, "pt")
        except DecoderInput as found:
            return found.latents
        raise PipelineError(
            f"An image is refined by a pipeline that decodes with its autoencoder but {self.name} does not; "
            "use an image-to-image or edit pipeline."
        )

    def renoise(self, state: State, to_step: int) -> State:
        if "edits" in self.capabilities and _ADOPTED in state.carry:
            raise CapabilityError(
                f"An image has no latents of {self.name}, which encodes it for itself, so it cannot be sent "
                "back; start from it with ctx.init."
            )
        return self._in_groups(state, self._calls.key, lambda part: self._renoised(part, to_step))

    def _renoised(self, state: State, to_step: int) -> State:
        """`renoise` for rows with the same noise levels."""
        levels = self._known_levels(state.conditions[0])
        now, earlier = levels[state.step], levels[to_step]
        x = state.latents.to(self._device())
        noise = row_noise(state.seed, "renoise", state.uids, to_step, x)
        latents = renoise(x.float(), now, earlier, noise.float()).to(x.dtype)
        scale = self._entry_scale(to_step, state.conditions[0])
        latents = latents if scale is None else latents / scale
        carry: dict[str, Tensor | Rows] = {_ORIGIN: _numbers(_origins(state))}
        return replace(state, latents=latents, step=to_step, carry=carry, shared={})

    def preview(self, state: State) -> list[Decoded]:
        if self._rollout is not None:
            ends = self._in_groups(state, self._group, self._rolled_out)
            return self._decoded(ends, self._preview_vae)
        estimate = state.carry.get(PREVIEW)
        if not isinstance(estimate, Tensor):
            raise CapabilityError(
                "A preview needs at least one step since the noise was last changed, and an x0 estimate laid "
                f"out as the latents, but the state of {self.name} at step {state.step} has none; advance "
                "it first, or use an algorithm that scores finished samples."
            )
        return self._decoded(replace(state, latents=estimate), self._preview_vae)

    def preview_cost(self, condition: Condition, step: int) -> Cost:
        if self._rollout is None or step >= self.num_steps:
            return Cost()
        key = self._calls.cost_key(condition), step
        if key not in self._rollout_forwards:
            call, _ = self._calls.batch([condition], "latent")
            coarse = self._coarse(condition, step)
            steps = range(step, step + len(coarse.chosen))
            forwards = self._driver.forwards_per_step(call, coarse)
            if forwards is None:  # the loop does not run dry: as much as the same timesteps cost otherwise
                taken = [position - coarse.before + step for position in coarse.chosen]
                self._rollout_forwards[key] = sum(self.cost(condition, i, 1).nfe for i in taken)
            else:
                self._rollout_forwards[key] = sum(forwards.get(i, 0) for i in steps)
        return Cost(nfe=self._rollout_forwards[key])

    def _coarse(self, condition: Condition, step: int) -> Coarse:
        """The schedule of a rollout from `step`."""
        assert self._rollout is not None
        return Coarse.of(self._known_levels(condition), step, self._steps.start, self._rollout)

    def _rolled_out(self, state: State) -> State:
        """The ends of rollouts of rows that go through the pipeline together."""
        condition = state.conditions[0]
        if len(state) > 1 and self._rows_together(condition) is None:
            return State.cat([self._rolled_out(state.select([i])) for i in range(len(state))])
        carry: dict[str, Tensor | Rows] = {_ORIGIN: _numbers(_origins(state))}
        ahead = replace(state, step=self.num_steps, carry=carry, shared={})
        if bool(_flags(state, _INTERRUPTED)[0]):  # by a callback: its loop has ended
            return ahead
        coarse = self._coarse(condition, state.step)
        segment = self._run(
            state.conditions,
            state.step,
            state.step + len(coarse.chosen),
            latents=state.latents.to(self._device()),
            scale=self._entry_scale(state.step, condition),
            generators=self._generators(state),
            step=straight_step,
            coarse=coarse,
            output_type="latent",
        )
        return replace(ahead, latents=self._left(segment))

    def decode(self, state: State) -> list[Decoded]:
        sizes = state.carry.get(_ADOPTED)
        if not isinstance(sizes, Tensor):
            return self._decoded(state, None)
        images = [original_of(condition) for condition in state.conditions]
        return [
            self._decoded(state.select([i]), None)[0]
            if image is None
            else ImageOps.fit(image, tuple(sizes[i].tolist()), Image.Resampling.LANCZOS)
            for i, image in enumerate(images)
        ]

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
        return list(_media(output, frame_rate(self.name, call, self._driver.signature)))

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
            "driven_whole": self._whole,
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
            if "edits" in self.capabilities and call.get("image") is None:
                call["image"] = Image.new("RGB", (_BLANK, _BLANK))  # the price is the same for any image
            self._forwards[key] = self._driver.forwards_per_step(call) or self._driver.measured_forwards(call)
        forwards = self._forwards[key]
        if self._whole:
            return Cost(nfe=sum(forwards.values()) * (steps > 0))
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
            segment = self._run_empty(conditions, generators)
        except (TypeError, ValueError, PipelineError) as error:
            given = sorted(condition.arguments())
            if not given:
                raise
            raise ConfigError(
                f"A condition must be one that {self.name} can take but: {error}; change {', '.join(given)}."
            ) from error
        if segment.entered is None and not self._whole:
            raise PipelineError(
                f"A pipeline must prepare its latents in prepare_latents but {self.name} does not; "
                "it cannot be driven step by step."
            )
        if segment.entered is not None and len(segment.entered) != len(generators):
            raise PipelineError(
                f"A pipeline must draw one latent per prompt but {self.name} drew {len(segment.entered)} "
                f"for {len(generators)}; set max_batch to 1."
            )
        total, offset = segment.proxy.total, segment.proxy.offset
        if not self._whole and total is not None and total != self.num_steps:
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
        if "noise" in self.capabilities and self._scale is None:
            self._find_scale(segment)
        levels = levels_if_known(segment.proxy.inner) or levels_if_known(self._calls.schedule())
        self._alone[condition] = _Alone(
            segment.encoded,
            None if levels is None or self._whole else levels[offset : offset + self.num_steps + 1],
            torch.Size([1]) if segment.entered is None else segment.entered.shape[1:],
        )
        return segment

    def _run_empty(self, conditions: Sequence[Condition], generators: list[torch.Generator]) -> Segment:
        """An empty segment; of a pipeline that is driven whole, a dry run."""
        if not self._whole:
            return self._run(conditions, 0, 0, generators=generators, output_type="latent")
        call, _ = self._batch(conditions, "latent")
        return self._driver.dry_segment({**call, "generator": generators})

    def _find_scale(self, segment: Segment) -> None:
        """Finds the factor on unit noise; latents that are not noise alone have no moves of their noise."""
        inner = segment.proxy.inner
        known = [float(initial_scale(inner)), 1.0]
        known += [float(s) for s in [inner.config.get("sigma_max")] if isinstance(s, (int, float)) and s > 0]
        if segment.entered is not None and segment.noise is not None:
            self._scale = noise_scale(segment.entered[0], segment.noise, known)
        if self._scale is None:
            self.capabilities -= {"noise"} if self._step_rule is not None else {"noise", "moves"}

    def _rows_together(self, condition: Condition) -> bool | None:
        """How several rows of a condition go through the pipeline in one call.

        Rows with input images are tried on a silent denoiser: each must get the inputs that it gets alone.

        Returns:
            Whether input images are repeated for each row; None if rows must go one by one.
        """
        if self._whole or self._has_callback:
            return None
        call = self._calls.of(condition)
        if not has_media(call):
            return False
        key = self._calls.key(condition), frozenset(texts_of(call))
        if key not in self._together:
            alone = [self._first_inputs([condition], [seed], repeats=False) for seed in (1, 2)]
            self._together[key] = next(
                (
                    repeats
                    for repeats in (False, True)
                    if agree(alone, self._first_inputs([condition] * 2, [1, 2], repeats=repeats))
                ),
                None,
            )
        return self._together[key]

    def _first_inputs(
        self, conditions: Sequence[Condition], seeds: Sequence[int], *, repeats: bool
    ) -> Inputs | None:
        """The inputs that rows get from the pipeline, and how their generators are left; None if it fails."""
        generators = [_generator(seed) for seed in seeds]
        call, _ = self._calls.batch(conditions, "latent", repeats=repeats)
        found = self._driver.first_inputs(call, generators)
        if found is None or found[1] is None:
            return None
        return Inputs([found[1], *found[0]], [generator.get_state() for generator in generators])

    def _batch(self, conditions: Sequence[Condition], output_type: str) -> tuple[dict[str, Any], bool]:
        """The arguments of a call for several rows; see `Calls.batch`."""
        repeats = len(conditions) > 1 and bool(self._rows_together(conditions[0]))
        return self._calls.batch(conditions, output_type, repeats=repeats)

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
        scale: float | None = None,
        history: dict[str, Any] | None = None,
        generators: list[torch.Generator] | None = None,
        streams: Sequence[Tensor | None] | None = None,
        step: Step | None = None,
        vae: Any = None,
        phase: Phase = "denoise",
        watch: DecodeWatch | None = None,
        coarse: Coarse | None = None,
    ) -> Segment:
        call, mixed = self._batch(conditions, output_type)
        with self.meter.phase(phase):
            return self._driver.run(
                call,
                start=start,
                stop=stop,
                latents=latents,
                scale=scale,
                history=history,
                generators=generators,
                streams=streams,
                step=step,
                vae=vae,
                encode_by_row=mixed,
                watch=watch,
                coarse=coarse,
            )

    def _decoded(self, state: State, vae: Any) -> list[Decoded]:
        output_type = "pil" if self.modality == "image" else "pt"

        def work(part: State) -> list[Decoded]:
            call, watch = self._calls.of(part.conditions[0]), DecodeWatch()
            if len(part) > 1 and self._rows_together(part.conditions[0]) is None:
                return [sample for i in range(len(part)) for sample in work(part.select([i]))]
            with np.errstate(invalid="ignore"):  # NaN has no 8-bit value; such samples are invalid below
                output = (
                    _converted(part.latents, self.modality)
                    if self._whole
                    else self._decode(part, vae, output_type, watch)
                )
            media = _media(output, frame_rate(self.name, call, self._driver.signature))
            reasons = watch.reasons(part.latents)
            if self._whole:
                reasons = [
                    FLAGGED if flag else reason
                    for flag, reason in zip(_flags(part, _FLAGGED), reasons or [None] * len(part))
                ]
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
        segment = self._run(
            [state.conditions[0]] * len(state),
            self.num_steps,
            None,
            latents=state.latents.to(self._device()),
            generators=self._generators(state),
            streams=self._streams(state),
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

    def _entry_scale(self, step: int, condition: Condition) -> float | None:
        """The factor on the latents of a state when they enter the loop at `step`, if they are noise."""
        if step:
            return None
        if self._scale is None:
            self._alone_of(condition)
        return self._scale if "noise" in self.capabilities else None

    # Noise

    @staticmethod
    def _generators(state: State) -> list[torch.Generator]:
        """One generator per row, from the seed that its initial noise came from.

        With these the pipeline prepares the same inputs in every segment. Forks keep those of their parent.
        """
        return [_generator(row_seed(state.seed, origin)) for origin in _origins(state)]

    def _streams(self, state: State) -> list[Tensor | None] | None:
        """The generator state of each row from its next step on, where the loop draws noise.

        A plain call of the pipeline continues with the generator that it prepared its inputs with, so it
        makes an unforked row again from its seed. A fork gets a fresh generator.
        """
        if not self._native_noise and "rng" not in state.carry:
            return None
        states, owners = state.carry.get("rng"), state.carry.get("rng_uid")
        streams: list[Tensor | None] = []
        for i, (uid, origin) in enumerate(zip(state.uids, _origins(state))):
            if isinstance(states, Tensor) and isinstance(owners, Tensor) and int(owners[i]) == uid:
                streams.append(states[i].cpu())
            elif state.step == 0 and origin == uid:
                streams.append(None)
            else:
                streams.append(row_generator(state.seed, "step", uid, state.step, "cpu").get_state())
        return streams

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


_BLANK = 64  # pixels along an edge
_ORIGIN = "root_uid"  # the particle whose seed the inputs of a row are prepared with
_INTERRUPTED = "interrupted"
_FLAGGED = "flagged"
_ADOPTED = "adopted"  # width and height that the image of an adopted row decodes to


def original_of(condition: Condition) -> Image.Image | None:
    """The image that particles are refined from, if the condition names any."""
    asset = condition.images.get(ORIGINAL)
    return asset.value if asset is not None and isinstance(asset.value, Image.Image) else None


def _encodes(pipe: Any) -> bool:
    """Whether a pipeline has an autoencoder that encodes images as well."""
    vae = getattr(pipe, "vae", None)
    has_processor = any(hasattr(pipe, name) for name in ("image_processor", "video_processor"))
    return callable(getattr(vae, "encode", None)) and has_processor


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _numbers(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def _origins(state: State) -> list[int]:
    """For each row the particle whose seed its inputs are prepared with: its own, or that of its parent."""
    origins = state.carry.get(_ORIGIN)
    return [int(uid) for uid in origins] if isinstance(origins, Tensor) else list(state.uids)


def _flags(state: State, name: str) -> list[bool]:
    flags = state.carry.get(name)
    return [bool(flag) for flag in flags] if isinstance(flags, Tensor) else [False] * len(state)


def _joined(rows: list[State]) -> State:
    """Rows that were computed one by one, of which a callback may have interrupted some.

    Those have no solver history of the last step, and need none.
    """
    lead = next((row for row in rows if not _flags(row, _INTERRUPTED)[0]), rows[0])
    filled = [
        row
        if row.carry.keys() == lead.carry.keys()
        else replace(row, carry={k: row.carry.get(k, v) for k, v in lead.carry.items()})
        for row in rows
    ]
    return replace(State.cat(filled), shared=lead.shared)


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
        raise PipelineError(f"{rule} but {name} {UNDRIVABLE[name]}; use another class for the checkpoint.")
    if scheduler is None or not hasattr(scheduler, "step") or not hasattr(scheduler, "set_timesteps"):
        raise PipelineError(f"{rule} but {name} has no such scheduler; it cannot be driven step by step.")
    if not modules(pipe, DENOISERS):
        raise PipelineError(
            f"{rule} but {name} has components {sorted(pipe.components)}; it cannot be driven step by step."
        )
    if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
        raise PipelineError(
            f"A pipeline must take a prompt but {name} takes none; use a text-to-image or text-to-video "
            "pipeline."
        )


def _generator_rows(generators: list[torch.Generator], uids: Sequence[int]) -> dict[str, Tensor | Rows]:
    """The generators as rows that are reindexed with the particles."""
    return {
        "rng": torch.stack([generator.get_state() for generator in generators]),
        "rng_uid": torch.tensor(list(uids), dtype=torch.long),
    }


def _makes_videos(name: str, signature: Mapping[str, Any]) -> bool:
    """Whether the samples of a pipeline are clips."""
    return bool({"num_frames", "video_length", "video"} & signature.keys()) or "Video" in name


def _converted(pixels: Tensor, modality: str) -> Any:
    """Pixels in [0, 1] as the pipeline's own image processor converts them; clips stay tensors."""
    if modality == "video":
        return pixels
    values = (pixels.permute(0, 2, 3, 1).float().cpu().numpy() * 255).round().astype("uint8")
    return [Image.fromarray(value[..., 0] if value.shape[-1] == 1 else value) for value in values]


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
