"""The sampler of every diffusers pipeline: the pipeline's own loop, driven a segment at a time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition, distinct
from tts_vision.config import SamplerOptions
from tts_vision.errors import CapabilityError, ConfigError, PipelineError
from tts_vision.moves import PREVIEW, STEP_NOISE, STEP_NOISE_STD
from tts_vision.pipelines.adopting import (
    edits_images,
    encodes,
)
from tts_vision.pipelines.caches import CACHES
from tts_vision.pipelines.decoding import FLAGGED, DecodeWatch
from tts_vision.pipelines.driven import Segment
from tts_vision.pipelines.edits import EDITS, at_earlier_step
from tts_vision.pipelines.noise import unit_noise
from tts_vision.pipelines.pipeline_samples import PipelineSamples
from tts_vision.pipelines.rollout import Coarse, check_rollout, rollout_steps, straight_step
from tts_vision.pipelines.row_state import (
    ADOPTED,
    FLAGGED_ROWS,
    INTERRUPTED,
    ORIGIN,
    flags_of,
    generator_rows,
    generators_of,
    joined,
    keyed,
    numbers,
    origins_of,
    streams_of,
)
from tts_vision.pipelines.rules import described, step_rule
from tts_vision.pipelines.schedule import (
    first_order,
    levels_if_known,
    noise_levels,
    noisy_steps,
    pack,
    unpack,
)
from tts_vision.pipelines.stochastic import guidance_gain, renoise
from tts_vision.pipelines.tokens.amused import is_amused
from tts_vision.pipelines.trees import pack_tree
from tts_vision.pipelines.whole import check_drivable
from tts_vision.registry import register
from tts_vision.rng import row_noise, row_seed
from tts_vision.sampler import RewardFunction
from tts_vision.types import Cost, Decoded, Rows, State


@register(
    "sampler",
    "diffusers",
    notes={"drives": "any diffusers pipeline with a scheduler whose loop calls scheduler.step"},
)
class DiffusersSampler(PipelineSamples):
    """Drives any diffusers pipeline step by step, without a copy of its loop.

    A step is one entry of the scheduler's timesteps. The state's latents are those that the pipeline's loop
    works on (packed where it packs); at step 0 they are unit Gaussian noise, as ``latents=`` takes it.

    Particles of one state may differ in their conditions; see `PipelineRows`.

    Args:
        pipe: The pipeline, as the user set it up; left as it was after every call.
        options: How to drive it, and the arguments of its call.

    Raises:
        PipelineError: If its loop cannot be driven this way.
        ConfigError: If an argument is none of the pipeline's.
    """

    def __init__(self, pipe: Any, *, options: SamplerOptions | None = None) -> None:
        options = options or SamplerOptions()
        name = type(pipe).__name__
        if options.preview_size is not None:
            raise ConfigError(
                f"preview_size needs a model that decodes at any size but got {options.preview_size} for "
                f"{name}; give it a tiny autoencoder instead (model.preview_vae)."
            )
        self._rollout = rollout_steps(options.preview)
        if self._rollout is None and options.preview != "decode":
            raise ConfigError(
                f"preview must be 'decode', the estimate of each step, or 'rollout:k' for {name} but got "
                f"{options.preview!r}; change it."
            )
        check_drivable(pipe, is_pipeline=self.accepts(pipe))
        settings = {**getattr(pipe, "tts_vision_defaults", {}), **options.pipeline_kwargs}
        super().__init__(pipe, settings)
        self.limit_previews(options.preview_frames)
        self._recompute = options.recompute
        if self._whole and options.stochastic:
            raise ConfigError(
                f"stochastic=True needs a pipeline that is driven step by step but {self.name} is driven "
                f"whole, because {self._whole}; leave it out."
            )
        self._step_rule = step_rule(options, self._driver.scheduler) if options.stochastic else None
        self._noise = described(options) if options.stochastic else None
        if self._rollout is not None:
            levels = None if self._whole else levels_if_known(self._calls.schedule())
            check_rollout(self._driver.scheduler, levels, self.name, self._whole)
            self.preview_shows_step = True
        if self._whole:
            self.num_steps = 1
            self.capabilities = frozenset({"whole", *(["noise", "moves"] if self._takes_noise else [])})
        else:
            self._plan(settings)
        if edits_images(self.name, self._driver.signature) and self.modality == "image":
            self.capabilities |= {"adopt", "edits"}
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
                # the callback has not seen the loop of an image that was adopted
                "adopt": has_levels
                and self.modality == "image"
                and encodes(self._driver.pipe)
                and not self._has_callback,
                "preview": has_levels,
                "differentiable": not self._driver.is_offloaded and self._cache is None,
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

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        latents = self._initial(condition, [row_seed(seed, uid) for uid in uids])
        if "noise" in self.capabilities:
            assert self._scale is not None
            latents = unit_noise(latents, self._scale)
        return State.initial(latents, uids, condition, seed, {ORIGIN: numbers(uids)})

    def recondition(self, state: State) -> State:
        if EDITS in state.shared:
            raise CapabilityError(
                "A new condition needs a loop that encodes it but the callback of the search has edited "
                f"tensors of the loop by step {state.step}; change the condition earlier, or leave the "
                "callback out."
            )
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
            return joined([self._advanced(state.select([i]), steps) for i in range(len(state))])
        if self._whole:
            return self._computed_whole(state)
        if bool(flags_of(state, INTERRUPTED)[0]):  # by a callback, for which rows are computed one by one
            return replace(state, step=state.step + steps)
        batch, start, stop = len(state), state.step, state.step + steps
        device = self._device()
        generators = generators_of(state)
        rule, caches = keyed(self._step_rule, state), self._caches_of(state)
        segment = self._run(
            state.conditions,
            start,
            stop,
            latents=state.latents.to(device),
            scale=self._entry_scale(start, condition),
            history=unpack(dict(state.carry), dict(state.shared), device) if state.shared else None,
            generators=generators,
            streams=streams_of(state, self._native_noise),
            step=rule,
            output_type="latent",
            caches=caches,
            edits=self._edits_of(state),
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
        carry: dict[str, Tensor | Rows] = {**rows, ORIGIN: numbers(origins_of(state))}
        if caches is not None and caches.left is not None:
            kept, layout = pack_tree(CACHES, caches.left, "The state of a cache")
            carry, shared = {**carry, **kept}, {**shared, **layout}
        if proxy.edits:
            kept, layout = pack_tree(EDITS, vars(proxy.edits), "The results of a callback")
            carry, shared = {**carry, **kept}, {**shared, **layout}
        preview = self._laid_out(state, segment, latents)
        if preview is not None:
            carry[PREVIEW] = preview
        if proxy.added is not None:
            carry[STEP_NOISE] = proxy.added.to(latents.dtype)
            carry[STEP_NOISE_STD] = torch.full((batch,), proxy.added_std)
        if self._native_noise or proxy.draws or "rng" in state.carry:
            carry |= generator_rows(generators, state.uids)
        if self._has_callback:
            carry[INTERRUPTED] = torch.full((batch,), proxy.interrupted)
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
        call["generator"] = generators_of(state)
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
            generators=generators_of(state),
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
            state, latents=pixels, step=1, carry={ORIGIN: numbers(origins_of(state)), FLAGGED_ROWS: flagged}
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

    def renoise(self, state: State, to_step: int) -> State:
        if "edits" in self.capabilities and ADOPTED in state.carry:
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
        carry, shared = at_earlier_step(state, to_step)
        carry[ORIGIN] = numbers(origins_of(state))
        return replace(state, latents=latents, step=to_step, carry=carry, shared=shared)

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
        carry: dict[str, Tensor | Rows] = {ORIGIN: numbers(origins_of(state))}
        ahead = replace(state, step=self.num_steps, carry=carry, shared={})
        if bool(flags_of(state, INTERRUPTED)[0]):  # by a callback: its loop has ended
            return ahead
        coarse = self._coarse(condition, state.step)
        segment = self._run(
            state.conditions,
            state.step,
            state.step + len(coarse.chosen),
            latents=state.latents.to(self._device()),
            scale=self._entry_scale(state.step, condition),
            generators=generators_of(state),
            step=straight_step,
            coarse=coarse,
            edits=self._edits_of(state),
            output_type="latent",
        )
        return replace(ahead, latents=self._left(segment))

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

    def _recomputed(self, steps: int) -> tuple[bool, bool]:
        """Whether the way back computes the steps again, and the denoiser's blocks."""
        if self._recompute is not None:
            return self._recompute and steps > 1, self._recompute
        return steps > 1, self._device().type != "cpu"


_BLANK = 64  # pixels along an edge
