"""The sampler of every diffusers pipeline: the pipeline's own loop, driven a segment at a time."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tts_vision.config import SamplerOptions
from tts_vision.errors import CapabilityError, ConfigError, PipelineError
from tts_vision.pipelines.schedule import (
    draws_noise,
    is_flow,
    levels_if_known,
    noise_levels,
    pack,
    unpack,
)
from tts_vision.pipelines.segment import DENOISERS, Driver, NoMeter, Segment, Step, initial_scale, modules
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
from tts_vision.types import (
    Cost,
    Media,
    Meter,
    Modality,
    Phase,
    Prompt,
    RewardFunction,
    Rows,
    State,
    Video,
)


@register(
    "sampler",
    "diffusers",
    notes={"drives": "any diffusers pipeline with a scheduler whose loop calls scheduler.step"},
)
class DiffusersSampler:
    """Drives any diffusers pipeline step by step, without a copy of its loop.

    A step is one entry of the scheduler's timesteps. The state's latents are what the pipeline's loop
    works on (packed where it packs); at step 0 they are unit Gaussian noise, as ``latents=`` takes it.

    Args:
        pipe: The pipeline, as the user set it up; left as it was after every call.
        options: How to drive it, and the arguments of its call.

    Raises:
        PipelineError: If its loop cannot be driven this way.
        ConfigError: If an argument is none of the pipeline's.
    """

    name: str
    modality: Modality
    num_steps: int
    capabilities: frozenset[str]
    last_noisy_step: int

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
        self._call = {**getattr(pipe, "tts_vision_defaults", {}), **options.pipeline_kwargs}
        _check_call(self.name, self._call, signature)
        self._count_name = next((n for n in signature if n in _COUNTS), None)
        # video pipelines have a count but many of them ignore it
        self._prompt_lists = self._count_name != "num_images_per_prompt"
        self.modality = "video" if "num_frames" in signature else "image"
        self._preview_vae = getattr(pipe, "tts_vision_preview_vae", None)
        self._recompute = options.recompute
        self._step_rule = _step_rule(options, self._driver.scheduler) if options.stochastic else None
        scheduler = self._planned_schedule()
        self.num_steps = self._planned_steps(scheduler)
        eta = float(self._call.get("eta", 0.0) or 0.0)
        self._native_noise = self._step_rule is None and draws_noise(scheduler, eta)
        noisy = self._step_rule is not None or self._native_noise
        self.last_noisy_step = self.num_steps - 2 if noisy else -1
        self._levels = self._own_levels(scheduler)
        if self._step_rule is not None:
            noise_levels(scheduler)  # says what the scheduler lacks, if anything
        self.capabilities = frozenset(
            name
            for name, present in {
                "noise": "latents" in signature and not self._driver.slices_itself,
                "stochastic": noisy,
                "step_noise": self._step_rule is not None,
                "renoise": self._levels is not None,
                "preview": self._levels is not None,
                "differentiable": not self._driver.is_offloaded,
            }.items()
            if present
        )
        self._passes: Mapping[int, float] | None = None

    @staticmethod
    def accepts(pipe: Any) -> bool:
        """Whether `pipe` looks like a diffusers pipeline."""
        return hasattr(pipe, "components") and hasattr(pipe, "scheduler") and callable(pipe)

    def bind(self, meter: Meter) -> None:
        self._driver.meter = meter

    def init(self, prompt: Prompt, uids: Sequence[int], *, seed: int) -> State:
        self._check_prompt(prompt)
        generators = [torch.Generator("cpu").manual_seed(row_seed(seed, uid)) for uid in uids]
        segment = self._run(prompt, len(uids), 0, 0, generators=generators, output_type="latent")
        if self._rows_of(segment) != len(uids):
            raise PipelineError(
                f"A pipeline must draw one latent per prompt but {self.name} drew {self._rows_of(segment)} "
                f"for {len(uids)}; set max_batch to 1."
            )
        total = segment.proxy.total
        if total is not None and total != self.num_steps:
            # a search has planned by the number that was promised
            raise PipelineError(
                f"A pipeline must take the steps that its scheduler plans, {self.num_steps}, but {self.name} "
                f"takes {total}; set num_inference_steps (or timesteps, sigmas) so that they agree."
            )
        assert segment.entered is not None
        latents = segment.entered
        scale = float(initial_scale(segment.proxy.inner))
        if "noise" in self.capabilities and scale != 1.0:
            latents = latents / scale
        self._levels = self._own_levels(segment.proxy.inner) or self._levels
        carry: dict[str, Tensor | Rows] = {}
        if self._native_noise:
            carry = _generator_rows(generators, uids)
        return State(latents, 0, tuple(uids), prompt, seed, carry=carry)

    def advance(self, state: State, steps: int = 1) -> State:
        batch, start, stop = len(state), state.step, state.step + steps
        device = self._device()
        generators = self._generators(state)
        rule = self._row_rule(state)
        segment = self._run(
            state.prompt,
            batch,
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
            latents = output  # the loop may cast what the scheduler returned; go on from what it goes on from
        history = proxy.history() if rule is None else {}
        rows, shared = pack(history, proxy.prev_sample.shape)
        carry: dict[str, Tensor | Rows] = {**rows}
        if proxy.preview is not None:
            carry["preview"] = proxy.preview
        if proxy.added is not None:
            carry["step_noise"] = proxy.added.to(latents.dtype)
            carry["step_noise_std"] = torch.full((batch,), proxy.added_std)
        if self._native_noise and generators is not None:
            carry |= _generator_rows(generators, state.uids)
        return replace(state, latents=latents, step=stop, carry=carry, shared=shared)

    def gradient(self, state: State, steps: int, reward: RewardFunction) -> State:
        x = state.latents.to(self._device()).detach().requires_grad_()
        finished = state.step + steps == self.num_steps
        vae = None if finished else self._preview_vae
        recompute_steps, recompute_blocks = self._recomputed(steps)
        meter = self._driver.meter
        with (
            self._driver.differentiable(
                recompute_steps=recompute_steps,
                recompute_blocks=recompute_blocks,
                recompute_decoding=self._recompute is not False,
                vae=vae,
            ),
            torch.enable_grad(),
        ):
            # a copy, because loops may change what enters in place
            ahead = self.advance(replace(state, latents=x.clone()), steps)
            estimate = ahead.latents if finished else ahead.carry["preview"]
            assert isinstance(estimate, Tensor)
            rewards = reward(self._pixels(replace(ahead, latents=estimate), vae))
            backward = self.gradient_cost(state, steps).nfe - self.cost(state, steps).nfe
            meter.charge(Cost(nfe=backward * len(state)))
            with meter.phase("denoise"):
                (gradient,) = torch.autograd.grad(rewards.sum(), x)
        at_rest = {k: v if isinstance(v, Rows) else v.detach() for k, v in ahead.carry.items()}
        slope: dict[str, Tensor | Rows] = {
            "reward": rewards.detach().double(),
            "gradient": gradient.float(),
            "gradient_scale": torch.full((len(state),), self._entry_scale(state.step)),
        }
        if self._levels is not None and steps == 1:
            now, then = self._levels[state.step], self._levels[ahead.step]
            std = ahead.carry.get("step_noise_std")
            slope["guidance_gain"] = torch.full(
                (len(state),), guidance_gain(now, then, float(std[0]) if isinstance(std, Tensor) else 0.0)
            )
        shared = {k: v.detach() if isinstance(v, Tensor) else v for k, v in ahead.shared.items()}
        return replace(ahead, latents=ahead.latents.detach(), carry={**at_rest, **slope}, shared=shared)

    def gradient_cost(self, state: State, steps: int) -> Cost:
        # with frozen weights the way back costs about as much as the way forth
        passes = 2 + sum(self._recomputed(steps))
        return Cost(nfe=self.cost(state, steps).nfe * passes)

    def renoise(self, state: State, to_step: int) -> State:
        levels = self._known_levels()
        now, earlier = levels[state.step], levels[to_step]
        x = state.latents.to(self._device())
        noise = row_noise(state.seed, "renoise", state.uids, to_step, x)
        latents = renoise(x.float(), now, earlier, noise.float()).to(x.dtype)
        if to_step == 0 and "noise" in self.capabilities:
            latents = latents / float(initial_scale(self._planned_schedule()))
        return replace(state, latents=latents, step=to_step, carry={}, shared={})

    def preview(self, state: State) -> list[Media]:
        estimate = state.carry.get("preview")
        if not isinstance(estimate, Tensor):
            raise CapabilityError(
                "A preview needs at least one step since the noise was last changed but the state is at "
                f"step {state.step} without one; advance it first."
            )
        return self._decoded(replace(state, latents=estimate), self._preview_vae)

    def decode(self, state: State) -> list[Media]:
        return self._decoded(state, None)

    def cost(self, state: State, steps: int) -> Cost:
        if self._passes is None:
            # guidance is decided in the pipeline's loop, so the loop is asked
            counted = self._driver.passes(self._arguments(state.prompt, 1, "latent"))
            guess = _guessed_passes(self._call, self._driver.signature)
            self._passes = counted or dict.fromkeys(range(self.num_steps), guess)
        per_row = sum(self._passes.get(i, 0) for i in range(state.step, state.step + steps))
        return Cost(nfe=per_row)

    # One segment

    def _run(
        self,
        prompt: Prompt,
        batch: int,
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
    ) -> Segment:
        call = self._arguments(prompt, batch, output_type)
        with self._driver.meter.phase(phase):
            return self._driver.run(
                call,
                start=start,
                stop=stop,
                latents=latents,
                history=history,
                generators=generators,
                step=step,
                vae=vae,
            )

    def _arguments(self, prompt: Prompt, batch: int, output_type: str) -> dict[str, Any]:
        """The arguments of a call for `batch` particles."""
        call = {**self._call, "prompt": prompt.text, "output_type": output_type}
        if self._prompt_lists:
            # every text argument is one per prompt then
            return {k: [v] * batch if isinstance(v, str) and "prompt" in k else v for k, v in call.items()}
        if self._count_name is not None:
            call[self._count_name] = batch
        return call

    def _decoded(self, state: State, vae: Any) -> list[Media]:
        output = self._decode(state, vae, "pil" if self.modality == "image" else "pt")
        return _media(output, float(self._call.get("frame_rate", 8.0)))

    def _pixels(self, state: State, vae: Any) -> Tensor:
        """Decoded pixels with their gradient: ``(B, 3, H, W)``, of clips ``(B, T, 3, H, W)``, in [0, 1]."""
        pixels = self._decode(state, vae, "pt")
        if not isinstance(pixels, Tensor) or not pixels.requires_grad:
            raise PipelineError(
                f"A pipeline must decode differentiably for gradients but the pixels of {self.name} have "
                "none; use an algorithm that needs no gradients."
            )
        return pixels.float().clamp(0, 1)

    def _decode(self, state: State, vae: Any, output_type: str) -> Any:
        generators = [row_generator(state.seed, "step", uid, self.num_steps, "cpu") for uid in state.uids]
        segment = self._run(
            state.prompt,
            len(state),
            self.num_steps,
            None,
            latents=state.latents.to(self._device()),
            generators=generators,
            vae=vae,
            output_type=output_type,
            phase="decode",
        )
        return segment.output

    # Gradients

    def _recomputed(self, steps: int) -> tuple[bool, bool]:
        """Whether the way back computes the steps again, and the denoiser's blocks."""
        if self._recompute is not None:
            return self._recompute and steps > 1, self._recompute
        return steps > 1, self._device().type != "cpu"

    def _entry_scale(self, step: int) -> float:
        """What the latents of a state are multiplied with when they enter the loop at `step`."""
        if step or "noise" not in self.capabilities:
            return 1.0
        return float(initial_scale(self._planned_schedule()))

    # Noise

    def _generators(self, state: State) -> list[torch.Generator]:
        """One generator per row: the one its initial noise came from, going on, or a fresh one after a fork.

        Only schedulers that draw noise themselves use them; going on with the row's generator is what a
        plain call of the pipeline does, so a plain call re-makes an unforked row from its seed.
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

    def _known_levels(self) -> list[Level]:
        if self._levels is None:
            raise CapabilityError(
                f"Going back to an earlier step needs a scheduler with known noise levels but "
                f"{type(self._driver.scheduler).__name__} has none; use another scheduler, such as DDIM."
            )
        return self._levels

    def _planned_schedule(self) -> Any:
        """A copy of the scheduler as a call will set it, as far as that can be known before one."""
        scheduler = copy.deepcopy(self._driver.scheduler)
        steps = self._call.get("num_inference_steps")
        if steps is None:
            default = self._driver.signature.get("num_inference_steps")
            steps = 50 if default is None or default.default is inspect.Parameter.empty else default.default
        if isinstance(steps, list):
            steps = sum(steps)
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ConfigError(f"num_inference_steps must be at least 1 but got {steps!r}; raise it.")
        known = inspect.signature(scheduler.set_timesteps).parameters
        extra: dict[str, Any] = {}
        for name in ("timesteps", "sigmas"):
            if self._call.get(name) is not None and name in known:
                extra[name] = self._call[name]
        if "mu" in known and scheduler.config.get("use_dynamic_shifting"):
            extra["mu"] = 1.0
        if extra.keys() & {"timesteps", "sigmas"}:
            scheduler.set_timesteps(**extra)
        else:
            scheduler.set_timesteps(steps, **extra)
        return scheduler

    def _planned_steps(self, scheduler: Any) -> int:
        n = len(scheduler.timesteps)
        if self._driver.slices_itself:
            strength = self._call.get("strength", self._driver.signature["strength"].default)
            inference = n // getattr(scheduler, "order", 1)
            kept = min(int(inference * strength), inference)
            n -= (inference - kept) * getattr(scheduler, "order", 1)
        return n

    def _rows_of(self, segment: Segment) -> int:
        if segment.entered is None:
            raise PipelineError(
                f"A pipeline must prepare its latents in prepare_latents but {self.name} does not; "
                "it cannot be driven step by step."
            )
        return len(segment.entered)

    def _check_prompt(self, prompt: Prompt) -> None:
        """Refuses a prompt that every tokenizer of the pipeline would cut off."""
        limits = []
        for name, tokenizer in self._driver.pipe.components.items():
            if not name.startswith("tokenizer") or tokenizer is None:
                continue
            default = self._driver.signature.get("max_sequence_length")
            limit = self._call.get("max_sequence_length") or (
                default.default if default is not None else None
            )
            own = getattr(tokenizer, "model_max_length", None) or 10**9
            limit = (
                own if "CLIP" in type(tokenizer).__name__ or not isinstance(limit, int) else min(limit, own)
            )
            ids = tokenizer(text=prompt.text)["input_ids"]  # by name: a processor takes pictures first
            limits.append((len(ids[0] if ids and isinstance(ids[0], list) else ids), limit))
        if limits and all(tokens > limit for tokens, limit in limits):
            tokens, limit = max(limits, key=lambda pair: pair[1])
            raise ConfigError(
                f"A prompt must have at most {limit} tokens for {self.name} but has {tokens}: "
                f"{prompt.text[:60]!r}...; "
                "shorten it"
                + (
                    " or raise max_sequence_length."
                    if "max_sequence_length" in self._driver.signature
                    else "."
                )
            )


UNDRIVABLE = {
    "LatentConsistencyModelPipeline": "decodes a variable of its loop instead of its latents; "
    "load the checkpoint as StableDiffusionPipeline with LCMScheduler",
}
_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")


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


def _check_call(name: str, call: dict[str, Any], signature: dict[str, inspect.Parameter]) -> None:
    import difflib

    ours = {"prompt", "generator", "latents", "output_type", "return_dict", *_COUNTS}
    for key in call:
        if key in ours:
            raise ConfigError(f"{key} is set by the search but pipeline_kwargs has it too; remove it there.")
        if key not in signature:
            near = difflib.get_close_matches(key, [k for k in signature if k != "self"], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it."
            raise ConfigError(f"pipeline_kwargs must be arguments of {name} but got {key!r}; {hint}")


def _guessed_passes(call: dict[str, Any], signature: dict[str, inspect.Parameter]) -> int:
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
    for picture in output:
        if not isinstance(picture, Image.Image):
            raise PipelineError(
                f"A pipeline must decode to pictures but returned {type(picture).__name__}; it is no image "
                "pipeline."
            )
        media.append(picture)
    return media
