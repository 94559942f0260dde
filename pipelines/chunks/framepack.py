"""FramePack on HunyuanVideo, section by section, behind a compressed history of the sections before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.chunks.model import Chunk
from tts_vision.pipelines.chunks.pipeline import Made, PipelineChunks, refuse_frames

INVERTED = "inverted_anti_drifting"
_BLENDED = "sections are blended where they meet, and the autoencoder mixes frames over time"
_BACKWARDS = f"sections are made from the end of the clip to its beginning; {_BLENDED}"


@dataclass(frozen=True)
class _Encoded:
    """A condition: arguments of the call, the image as its transformer sees it, and as latents.

    Attributes:
        call: Arguments of the call.
        seen: Hidden states of the image encoder.
        stills: Mean and standard deviation of the latents of each image.
    """

    call: dict[str, Any]
    seen: Tensor
    stills: list[tuple[Tensor, Tensor]]


class FramepackChunks(PipelineChunks):
    """`HunyuanVideoFramepackPipeline`: finished sections pass through its loop without a denoising step.

    The first latent frames of a clip are those of the image, and of ``last_image`` if there is one, which the
    pipeline draws from its autoencoder; then come the sections in the order in which they are made: with
    ``sampling_type="inverted_anti_drifting"`` from the end of the clip to its beginning.
    """

    batches = False
    guidance: ClassVar[str] = "true_cfg_scale"
    images: ClassVar[frozenset[str]] = frozenset({"image"})
    refused: ClassVar[Mapping[str, str]] = {
        "image_latents": "the pipeline reads the image also where its latents are given",
        "last_image_latents": "the pipeline ignores it without last_image, and refuses it beside",
        **dict.fromkeys(
            ("prompt_2", "negative_prompt_2"), "the pipeline gives both encoders the first prompt"
        ),
    }

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        self._stills = 1 + (call.get("last_image") is not None)
        super().__init__(pipe, call)
        if type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
            self.steps = self._steps
        self.backwards = self.value("sampling_type") == INVERTED
        self.approximates = _BACKWARDS if self.backwards else _BLENDED

    @property
    def _length(self) -> int:
        """Latent frames of a section."""
        return int(self.value("latent_window_size"))

    def partition(self) -> tuple[int, ...]:
        frames, window = self.value("num_frames"), (self._length - 1) * self.stride + 1
        if not isinstance(frames, int) or frames < 1:
            refuse_frames(self.name, frames, "a positive number", [window])
        sections = -(-frames // window)
        return (self._stills + self._length, *(self._length,) * (sections - 1))

    def noise(self, chunk: int, generators: Sequence[torch.Generator]) -> Tensor:
        """The noise of a section; before the first that by which the latents of the images are drawn."""
        rows = []
        for generator in generators:
            shape, dtype = self.latent_shape(1), self.pipe.vae.dtype
            stills = range(0 if chunk else self._stills)
            drawn = [torch.randn(shape, generator=generator, dtype=dtype).float() for _ in stills]
            rows.append(
                torch.cat([*drawn, torch.randn(self.latent_shape(self._length), generator=generator)], 1)
            )
        return torch.stack(rows)

    def encoded(self, call: dict[str, Any]) -> Any:
        if call.get("image") is None:
            raise ConfigError(
                f"{self.name} makes a clip from an image but got none; give image in pipeline_kwargs, or in "
                "the condition."
            )
        pipe, device = self.pipe, self.device
        texts = self._texts(call, "")
        if self.guides:
            if call.get("negative_prompt") is None and call.get("negative_prompt_embeds") is None:
                raise ConfigError(
                    f"true_cfg_scale of {self.name} guides away from a negative prompt, without which it is "
                    f"ignored, but is {self.value('true_cfg_scale')} without one; give negative_prompt, or "
                    "leave it out."
                )
            texts |= self._texts(call, "negative_")
        size = self.value("height"), self.value("width")
        images = [
            pipe.video_processor.preprocess(call[k], *size) for k in ("image", "last_image") if call.get(k)
        ]
        stills = []
        for image in images:
            latent = pipe.vae.encode(image.unsqueeze(2).to(device, pipe.vae.dtype)).latent_dist
            stills.append((latent.mean, latent.std))
        kept = {k: v for k, v in call.items() if k not in {"prompt", "negative_prompt"}}
        return _Encoded({**kept, **texts}, pipe.encode_image(images[0], device=device), stills)

    def _texts(self, call: Mapping[str, Any], sign: str) -> dict[str, Any]:
        """The encoded prompt, or with a sign the negative one, by the names of arguments."""
        names = [
            f"{sign}{name}" for name in ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
        ]
        given = dict(
            zip(("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"), map(call.get, names))
        )
        found = self.pipe.encode_prompt(
            prompt=call.get(f"{sign}prompt"),
            prompt_template=self.value("prompt_template"),
            max_sequence_length=self.value("max_sequence_length"),
            device=self.device,
            **given,
        )
        return dict(zip(names, found))

    def denoise(self, encoded: Any, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        stills, sections = self._parts(chunk.history)
        noise = chunk.latents
        if not chunk.number and chunk.start:
            stills, noise = list(noise[:, :, : self._stills].split(1, 2)), noise[:, :, self._stills :]
        elif not chunk.number:
            scale = self.pipe.vae.config.scaling_factor
            drawn = noise[:, :, : self._stills].split(1, 2)
            stills = [
                ((mean + std * eps.to(mean)) * scale).float()
                for (mean, std), eps in zip(encoded.stills, drawn)
            ]
            noise = noise[:, :, self._stills :]
        images = iter(stills)
        replaced = [
            (self.pipe, "prepare_latents", self._passing([*sections, noise], active=len(sections))),
            (self.pipe, "prepare_image_latents", lambda *args, **kwargs: next(images).to(self.device)),
            (self.pipe, "encode_image", lambda *args, **kwargs: encoded.seen),
        ]
        made, estimate = self.part(encoded.call, chunk, replaced, self._steps)
        if chunk.number:
            return made, estimate
        before = [still.cpu() for still in stills]
        found = None if estimate is None else torch.cat([*before, estimate.cpu()], 2)
        return torch.cat([*before, made.cpu()], 2), found

    def _parts(self, latents: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The latents of the images, and those of the sections."""
        stills, sections = latents[:, :, : self._stills], latents[:, :, self._stills :]
        return (
            list(stills.split(1, 2)) if stills.shape[2] else [],
            list(sections.split(self._length, 2)) if sections.shape[2] else [],
        )

    def _passing(self, sections: Sequence[Tensor], active: int | None = None) -> Any:
        """`prepare_latents` that answers sections one after the other, of which only `active` is denoised."""
        rest = iter(enumerate(sections))

        def prepare(*args: Any, **kwargs: Any) -> Tensor:
            number, section = next(rest)
            self.pipe._interrupt = number != active  # the loop skips its steps
            return section.to(self.device).clone()

        return prepare

    @property
    def _steps(self) -> int:
        """Denoising steps of a section."""
        sigmas = self.value("sigmas")
        return len(sigmas) if sigmas else int(self.value("num_inference_steps"))

    def forwards(self, condition: Condition, chunk: int, start: int, stop: int) -> float:
        return (self._steps if self.steps == 1 else stop - start) * (1 + self.guides)

    def pixel_frames(self, chunks: int) -> int:
        ends = chunks == len(self.frames)
        return chunks * self._length * self.stride + (1 if ends or not self.backwards else 1 - self.stride)

    def pixels(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        clips = torch.cat([self._decoded(row) for row in latents.split(1)])
        return clips if frames is None else clips[:, list(frames)]

    def _decoded(self, latents: Tensor) -> Tensor:
        """The clip of a row's sections: the pipeline's loop decodes and blends them, and is then ended."""
        pipe, found = self.pipe, list[Tensor]()
        stills, sections = self._parts(latents)
        prepare = self._passing(sections)

        def until_last(*args: Any, **kwargs: Any) -> Tensor:
            try:
                return prepare(*args, **kwargs)
            except StopIteration:
                raise Made(found[-1]) from None

        decode, append = pipe.vae.decode, pipe._soft_append

        def decoding(*args: Any, **kwargs: Any) -> Any:
            decoded = decode(*args, **kwargs)
            found.append(decoded[0])
            return decoded

        def appending(*args: Any, **kwargs: Any) -> Tensor:
            found.append(append(*args, **kwargs))
            return found[-1]

        nothing = torch.zeros(1, 1, 1, device=self.device)
        image = Image.new("RGB", (self.value("width"), self.value("height")))
        replaced = [
            (pipe, "prepare_latents", until_last),
            (pipe, "prepare_image_latents", lambda *args, **kwargs: stills[0].to(self.device)),
            (pipe, "encode_image", lambda *args, **kwargs: nothing),
            (pipe, "encode_prompt", lambda *args, **kwargs: (nothing, nothing[0], nothing[0])),
            (pipe.vae, "decode", decoding),
            (pipe, "_soft_append", appending),
        ]
        kept = ("height", "width", "num_frames", "latent_window_size", "sampling_type")
        call = {name: self.value(name) for name in kept} | {"image": image, "prompt": ""}
        with suppress(Made):
            self.called(replaced, {**call, "num_inference_steps": 1, "output_type": "pt"})
        count = self.pixel_frames(len(sections))
        clip = found[-1][:, :, :count]
        return pipe.video_processor.postprocess_video(clip, output_type="pt").cpu()
