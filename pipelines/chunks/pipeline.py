"""The part that the autoregressive video pipelines of diffusers share, which are driven chunk by chunk."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.calls import Calls
from tts_vision.pipelines.chunks.model import Chunk
from tts_vision.pipelines.differentiable import MISSING
from tts_vision.pipelines.frame_rates import frame_rate
from tts_vision.pipelines.pipeline_samples import json_parts
from tts_vision.pipelines.segment import Driver
from tts_vision.types import NoMeter

_CALLBACK = (
    "the search calls the pipeline once for each chunk and takes the callback for itself, so yours would see "
    "a part of the steps"
)


class Made(Exception):
    """Ends a pipeline's call as soon as the latents of a chunk are made; the rest of the call is not needed.

    Attributes:
        result: The latents, or the pixels where a call decodes.
    """

    def __init__(self, result: Tensor) -> None:
        super().__init__("the chunk is made")
        self.result = result


class PipelineChunks(ABC):
    """A pipeline with the settings of one search, as a `ChunkModel`.

    A chunk is one call of the pipeline, which starts behind the finished chunks and is ended after the last
    denoising step of the chunk: nothing is decoded, and no code of the pipeline is copied.

    Attributes:
        guidance: The argument above 1 of which a negative prompt takes part.
        refused: Arguments of the call that cannot be, with the reason.
        images: Arguments of the call that a condition may have as images.

    Args:
        pipe: The pipeline, as the user set it up; left as it was after every call.
        call: Settings of its call.

    Raises:
        ConfigError: If a setting is none of the call's, is silently ignored by it, or cannot be.
    """

    steps = 1
    last_draw = -1
    batches = True
    approximates = ""
    backwards = False
    guidance: ClassVar[str] = "guidance_scale"
    refused: ClassVar[Mapping[str, str]] = {}
    images: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        self.pipe = pipe
        self.name = type(pipe).__name__
        driver = Driver(pipe, NoMeter())
        self.signature = driver.signature
        self._calls = Calls(driver, call)
        for name, why in {**_refused_callbacks(self.signature), **self.refused}.items():
            if call.get(name) is not None:
                raise ConfigError(f"{name} of {self.name} must be left out, because {why}; remove it.")
        self.call = dict(call)
        self.fps = frame_rate(self.name, call, self.signature)
        for side in ("height", "width"):
            value = self.value(side)
            if not isinstance(value, int) or value < self.divisor or value % self.divisor:
                raise ConfigError(
                    f"{side} of {self.name} must be a multiple of {self.divisor} but got {value!r}; change "
                    "it."
                )
        self._refuse_negative(call)
        self.frames = self.partition()

    @abstractmethod
    def partition(self) -> tuple[int, ...]:
        """Latent frames that each chunk adds.

        Raises:
            ConfigError: If the frames of the call cannot be parted, or the autoencoder cannot take them.
        """

    @abstractmethod
    def denoise(self, encoded: Any, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """See `ChunkModel.denoise`."""

    @abstractmethod
    def forwards(self, condition: Condition, chunk: int, start: int, stop: int) -> float:
        """See `ChunkModel.forwards`."""

    @abstractmethod
    def pixel_frames(self, chunks: int) -> int:
        """See `ChunkModel.pixel_frames`."""

    @abstractmethod
    def pixels(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """See `ChunkModel.pixels`."""

    @abstractmethod
    def encoded(self, call: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call with texts, and images where there are any, encoded.

        Args:
            call: Arguments for one condition.
        """

    @property
    def divisor(self) -> int:
        """Height and width must be multiples of it."""
        return 16

    @property
    def facts(self) -> dict[str, Any]:
        found = {
            "steps": self.value("num_inference_steps"),
            "guidance_scale": self.value(self.guidance),
            "negative_prompt": self.value("negative_prompt"),
            "scheduler": type(self.pipe.scheduler).__name__,
            "scheduler_config": json_parts(self.pipe.scheduler.config),
            "model_id": getattr(self.pipe, "name_or_path", None),
            "dtype": str(getattr(self.pipe, "dtype", "")).removeprefix("torch."),
            "device": self.device.type,
            "pipeline_kwargs": json_parts(self.call),
        }
        return {name: value for name, value in found.items() if value not in (None, "")}

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return torch.device(self.pipe._execution_device)

    @property
    def guides(self) -> bool:
        """Whether classifier-free guidance takes a second forward."""
        return float(self.value(self.guidance) or 0) > 1

    @property
    def stride(self) -> int:
        """Frames of a clip for each latent frame after the first."""
        return int(self.pipe.vae_scale_factor_temporal)

    def value(self, name: str) -> Any:
        """A setting of the call, or the default of the pipeline."""
        parameter = self.signature.get(name)
        default = None if parameter is None or parameter.default is parameter.empty else parameter.default
        return self.call.get(name, default)

    def condition_of(self, text: str, metadata: Mapping[str, Any]) -> Condition:
        return Condition(text)

    def encode(self, condition: Condition) -> dict[str, Any]:
        if condition.overrides:
            raise ConfigError(
                f"Overrides of a condition must be empty for {self.name}, whose particles share the settings "
                f"of the search, but got {dict(condition.overrides)}; set them in pipeline_kwargs."
            )
        unused = sorted(condition.images.keys() - self.images)
        if unused:
            raise ConfigError(
                f"Images of a condition of {self.name} must be among {sorted(self.images) or 'none'} but got "
                f"{', '.join(unused)}; leave them out."
            )
        self._refuse_negative(condition.arguments())
        self._calls.check(condition)
        with torch.no_grad():
            return self.encoded(self._calls.of(condition))

    def noise(self, chunk: int, generators: Sequence[torch.Generator]) -> Tensor:
        shape = self.noise_shape(chunk)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    def noise_shape(self, chunk: int) -> tuple[int, int, int, int]:
        """The shape ``(C, t, h, w)`` of the noise that a chunk begins with."""
        return self.latent_shape(self.frames[chunk])

    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        """The shape ``(C, t, h, w)`` of so many latent frames."""
        scale = self.pipe.vae_scale_factor_spatial
        height, width = int(self.value("height")) // scale, int(self.value("width")) // scale
        return self.pipe.transformer.config.in_channels, frames, height, width

    def plain(self, condition: Condition, generator: torch.Generator) -> Tensor:
        call = {**self._calls.of(condition), "generator": generator, "return_dict": False}
        output = self.pipe(**call, output_type="pt")[0]
        return torch.as_tensor(output).float().cpu()

    def made(self, replaced: Sequence[tuple[Any, str, Any]], call: dict[str, Any]) -> Tensor:
        """The latents of one chunk by a call that is ended as soon as they are made.

        Args:
            replaced: Object, attribute and what takes its place for the time of the call.
            call: Arguments; a callback that raises `Made`, unless something that is replaced does.

        Raises:
            PipelineError: If the call ends by itself.
        """
        try:
            self.called(replaced, {**call, "output_type": "latent"})
        except Made as end:
            return end.result
        raise PipelineError(
            f"A chunk of {self.name} must be made by its denoising loop but the call ended otherwise; this "
            "version of diffusers is not known."
        )

    def called(self, replaced: Sequence[tuple[Any, str, Any]], call: dict[str, Any]) -> Any:
        """The first output of a call, without a progress bar."""
        quiet = {**getattr(self.pipe, "_progress_bar_config", {}), "disable": True}
        with torch.no_grad(), swapped([*replaced, (self.pipe, "_progress_bar_config", quiet)]):
            try:
                return self.pipe(**call, return_dict=False)[0]
            finally:
                self.pipe._interrupt = False
                self.pipe.maybe_free_model_hooks()

    def part(
        self, encoded: Mapping[str, Any], chunk: Chunk, replaced: Sequence[tuple[Any, str, Any]], total: int
    ) -> tuple[Tensor, Tensor | None]:
        """The latents after some denoising steps of a chunk, and the x0 estimate where it is unfinished.

        Args:
            encoded: Arguments of the call.
            chunk: The latents that it begins with enter by `replaced`.
            replaced: As `made` takes it.
            total: Denoising steps of a chunk.
        """
        if self.steps == 1:
            return self.made(replaced, {**encoded, "callback_on_step_end": after_steps(total)}), None
        scheduler = Stepping(self.pipe.scheduler, chunk.start)
        end = after_steps(chunk.stop - chunk.start)
        made = self.made(
            [*replaced, (self.pipe, "scheduler", scheduler)], {**encoded, "callback_on_step_end": end}
        )
        return made, scheduler.estimate if chunk.stop < total else None

    def rows(self, encoded: Mapping[str, Any], chunk: Chunk) -> dict[str, Any]:
        """Arguments for the rows of a chunk: embeddings repeated for each, and their generators."""
        n = len(chunk.latents)
        call = {
            name: value.expand(n, *value.shape[1:]) if n > 1 and name.endswith(_EMBEDDED) else value
            for name, value in encoded.items()
        }
        generators = chunk.generators
        return {**call, "generator": generators if n > 1 else generators[0]}

    def _refuse_negative(self, given: Mapping[str, Any]) -> None:
        """Refuses a negative prompt that no guidance would see."""
        found = [name for name in given if name.startswith("negative_prompt") and given[name] is not None]
        if found and not self.guides:
            raise ConfigError(
                f"{found[0]} of {self.name} takes part in guidance, so {self.guidance} must be above 1 but "
                f"is {self.value(self.guidance)}; raise it, or leave {found[0]} out."
            )


_EMBEDDED = ("prompt_embeds", "prompt_attention_mask")


@contextmanager
def swapped(replaced: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Instance attributes with others in their place, past `__setattr__`, and as they were afterwards."""
    before = []
    try:
        for owner, name, value in replaced:
            before.append((owner, name, owner.__dict__.get(name, MISSING)))
            owner.__dict__[name] = value
        yield
    finally:
        for owner, name, value in reversed(before):
            if value is MISSING:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = value


class Stepping:
    """A scheduler of first order whose first steps are done; it keeps no history that would be lost.

    Args:
        inner: The pipeline's scheduler, of a flow.
        start: Steps that are done.
    """

    def __init__(self, inner: Any, start: int) -> None:
        self._inner, self._start, self._index = inner, start, start
        self.estimate: Tensor | None = None

    @property
    def timesteps(self) -> Tensor:
        return self._inner.timesteps[self._start :]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        self._inner._step_index = self._index
        self.estimate = sample.float() - float(self._inner.sigmas[self._index]) * model_output.float()
        self._index += 1
        return self._inner.step(model_output, timestep, sample, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def after_steps(count: int) -> Callable[..., dict[str, Any]]:
    """A callback that ends the call after so many steps with the latents of the loop."""
    done = 0

    def end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == count:
            raise Made(tensors["latents"])
        return {}

    return end


def wan_pixels(pipe: Any, latents: Tensor) -> Tensor:
    """Pixels ``(B, F, 3, H, W)`` in [0, 1], on the CPU, of latents of Wan's autoencoder.

    Its latents have normalised channels. Rows are decoded one by one, which takes the least memory.
    """
    vae, rows = pipe.vae, []
    mean, std = (
        torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1).to(pipe._execution_device, vae.dtype)
        for name in ("latents_mean", "latents_std")
    )
    with torch.no_grad():
        for row in latents.split(1):
            decoded = vae.decode(row.to(mean) / (1.0 / std) + mean, return_dict=False)[0]
            rows.append(pipe.video_processor.postprocess_video(decoded, output_type="pt").cpu())
    return torch.cat(rows)


def with_wan_texts(model: PipelineChunks, call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call with the prompts encoded, for pipelines that were made from Wan's."""
    pipe, guides = model.pipe, model.guides
    prompt, negative = pipe.encode_prompt(
        prompt=call.pop("prompt", None),
        negative_prompt=call.pop("negative_prompt", None),
        do_classifier_free_guidance=guides,
        num_videos_per_prompt=1,
        prompt_embeds=call.pop("prompt_embeds", None),
        negative_prompt_embeds=call.pop("negative_prompt_embeds", None),
        max_sequence_length=model.value("max_sequence_length"),
        device=pipe._execution_device,
    )
    # a negative embedding would be stacked on the prompt's even where no guidance reads it
    negative_embeds = {"negative_prompt_embeds": negative} if guides else {}
    return {**call, "prompt": None, "prompt_embeds": prompt, **negative_embeds}


def latent_frames(name: str, argument: str, frames: Any, stride: int) -> int:
    """Latent frames of a number of frames that an autoencoder takes.

    Raises:
        ConfigError: If it takes no such number.
    """
    if isinstance(frames, int) and frames >= 1 and frames % stride == 1:
        return (frames - 1) // stride + 1
    lower = max(0, (frames if isinstance(frames, int) else 0) - 1) // stride * stride + 1
    rule = f"one more than a multiple of {stride}, as the autoencoder makes them,"
    refuse_frames(name, frames, rule, [lower, lower + stride], argument)


def refuse_frames(
    name: str, frames: Any, rule: str, near: Sequence[int], argument: str = "num_frames"
) -> NoReturn:
    """Raises the error of a number of frames that cannot be.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        f"{argument} of {name} must be {rule} but got {frames!r}; use {' or '.join(map(str, near))}."
    )


def _refused_callbacks(signature: Mapping[str, inspect.Parameter]) -> dict[str, str]:
    return {name: _CALLBACK for name in signature if name.startswith("callback")}
