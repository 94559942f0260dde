"""Samples of a diffusers pipeline: decoded latents, their facts, and images put in the place of samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tts_vision.condition import ORIGINAL, Condition
from tts_vision.errors import CapabilityError, ConfigError, PipelineError
from tts_vision.pipelines.adopting import (
    DecoderInput,
    StandInDecoder,
    encoded,
    laid_out,
    original_of,
)
from tts_vision.pipelines.decoding import FLAGGED, DecodeWatch
from tts_vision.pipelines.few_frames import FewFrames
from tts_vision.pipelines.frame_rates import frame_rate
from tts_vision.pipelines.pipeline_rows import PipelineRows
from tts_vision.pipelines.row_state import (
    ADOPTED,
    FLAGGED_ROWS,
    ORIGIN,
    flags_of,
    generators_of,
    numbers,
    origins_of,
    streams_of,
)
from tts_vision.rng import row_seed
from tts_vision.types import Decoded, Invalid, Media, Rows, State, Video


class PipelineSamples(PipelineRows):
    """A sampler's ways between latents and samples.

    Args:
        pipe: The pipeline.
        settings: Arguments of its call.
    """

    own_options: ClassVar[frozenset[str]] = frozenset({"preview_frames"})

    def __init__(self, pipe: Any, settings: Mapping[str, Any]) -> None:
        super().__init__(pipe, settings)
        self.modality = "video" if makes_videos(self.name, self._driver.signature) else "image"
        self._preview_vae = getattr(pipe, "tts_vision_preview_vae", None)
        self._noise: str | None = None

    def limit_previews(self, frames: int | None) -> None:
        """Lets previews of clips have so many frames, each of which is decoded alone.

        Raises:
            ConfigError: If the pipeline makes images.
        """
        if frames is None:
            return
        if self.modality == "image":
            raise ConfigError(
                f"preview_frames needs a model of clips but got {frames} for {self.name}, of images; "
                "leave it out."
            )
        pipe = self._driver.pipe
        self._preview_vae = FewFrames(pipe, self._preview_vae or getattr(pipe, "vae", None), frames)

    def decode(self, state: State) -> list[Decoded]:
        sizes = state.carry.get(ADOPTED)
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
        return list(media_of(output, frame_rate(self.name, call, self._driver.signature)))

    def facts(self, condition: Condition) -> dict[str, Any]:
        call, pipe = self._calls.of(condition), self._driver.pipe
        defaults = {name: p.default for name, p in self._driver.signature.items() if p.default is not p.empty}
        steps = {**defaults, **call}.get("num_inference_steps")
        found = {
            "steps": steps if isinstance(steps, int) else self.num_steps,
            "guidance_scale": {**defaults, **call}.get("guidance_scale"),
            "negative_prompt": call.get("negative_prompt"),
            "scheduler": type(self._driver.scheduler).__name__,
            "scheduler_config": json_parts(getattr(self._driver.scheduler, "config", None) or {}),
            "stochastic": self._noise,
            "driven_whole": self._whole,
            "model_id": getattr(pipe, "name_or_path", None),
            "dtype": str(getattr(pipe, "dtype", "")).removeprefix("torch."),
            "device": self._device().type,
            "pipeline_kwargs": json_parts({k: v for k, v in call.items() if k != "prompt"}),
            "plain": self._step_rule is None,
            "previews": "frames decoded alone" if isinstance(self._preview_vae, FewFrames) else None,
        }
        return {name: value for name, value in found.items() if value not in (None, "")}

    def adopt(self, state: State, to_step: int, noise: Tensor) -> State:
        rows = [
            self._adopted(state.select([i]), noise[i : i + 1].to(self._device())) for i in range(len(state))
        ]
        carry: dict[str, Tensor | Rows] = {
            ORIGIN: numbers(origins_of(state)),
            ADOPTED: torch.tensor([size for _, size in rows]),
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

    def _decoded(self, state: State, vae: Any) -> list[Decoded]:
        output_type = "pil" if self.modality == "image" else "pt"

        def work(part: State) -> list[Decoded]:
            call, watch = self._calls.of(part.conditions[0]), DecodeWatch()
            if len(part) > 1 and self._rows_together(part.conditions[0]) is None:
                return [sample for i in range(len(part)) for sample in work(part.select([i]))]
            with np.errstate(invalid="ignore"):  # NaN has no 8-bit value; such samples are invalid below
                output = (
                    converted(part.latents, self.modality)
                    if self._whole
                    else self._decode(part, vae, output_type, watch)
                )
            media = media_of(output, frame_rate(self.name, call, self._driver.signature))
            if isinstance(vae, FewFrames):
                media = [vae.shown(clip) if isinstance(clip, Video) else clip for clip in media]
            reasons = watch.reasons(part.latents)
            if self._whole:
                reasons = [
                    FLAGGED if flag else reason
                    for flag, reason in zip(flags_of(part, FLAGGED_ROWS), reasons or [None] * len(part))
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
            generators=generators_of(state),
            streams=streams_of(state, self._native_noise),
            vae=vae,
            output_type=output_type,
            phase="decode",
            watch=watch,
        )
        return segment.output


def makes_videos(name: str, signature: Mapping[str, Any]) -> bool:
    """Whether the samples of a pipeline are clips."""
    return bool({"num_frames", "video_length", "video"} & signature.keys()) or "Video" in name


def converted(pixels: Tensor, modality: str) -> Any:
    """Pixels in [0, 1] as the pipeline's own image processor converts them; clips stay tensors."""
    if modality == "video":
        return pixels
    values = (pixels.permute(0, 2, 3, 1).float().cpu().numpy() * 255).round().astype("uint8")
    return [Image.fromarray(value[..., 0] if value.shape[-1] == 1 else value) for value in values]


def media_of(output: Any, fps: float) -> list[Media]:
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


def json_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that JSON can hold; private ones and objects are left out."""

    def fits(value: Any) -> bool:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            return False
        return True

    return {key: value for key, value in values.items() if not key.startswith("_") and fits(value)}
