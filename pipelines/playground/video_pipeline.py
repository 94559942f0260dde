"""`playground-video` as a pipeline: its own call, and chunk by chunk for a search."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.chunks.model import FAMILY, Chunk
from tts_vision.pipelines.playground import motion, video
from tts_vision.types import Video

OutputType = Literal["video", "np", "latent"]
MOST_FRAMES = 64
_SETTINGS = ("num_frames", "num_inference_steps", "guidance_scale", "video_latents", "image_latents")


class PlaygroundVideo:
    """A small autoregressive text-to-video model: shapes that move, in chunks of four frames of 64x64 pixels.

    Arguments are named as those of diffusers' `HeliosPipeline`.

    Args:
        network: Transformer and text encoder.
        vae: The image model's autoencoder.
        defaults: Settings of a plain call.
    """

    name, family = "playground-video", FAMILY

    def __init__(
        self, network: video.VideoNetwork, vae: AutoencoderTiny, defaults: Mapping[str, Any]
    ) -> None:
        self.network, self.vae = network, vae
        self.tts_vision_defaults = dict(defaults)

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.network.transformer.device

    def to(self, device: torch.device | str) -> PlaygroundVideo:
        """Moves all models."""
        for module in (*self.network.modules().values(), self.vae):
            module.to(device)
        return self

    def configured(self, call: Mapping[str, Any]) -> PlaygroundVideoModel:
        """The model with the settings of a call, those of `__call__`.

        Raises:
            ConfigError: If a setting is unknown or out of range.
        """
        unknown = sorted(set(call) - set(_SETTINGS))
        if unknown:
            raise ConfigError(
                f"{self.name} takes the settings {', '.join(_SETTINGS)} but got {', '.join(unknown)}; leave "
                "that out."
            )
        settings = {"num_frames": motion.FRAMES, **self.tts_vision_defaults, **call}
        frames, steps, guidance = (settings[key] for key in _SETTINGS[:3])
        if not _is_int(frames) or frames % motion.CHUNK or not motion.CHUNK <= frames <= MOST_FRAMES:
            raise ConfigError(
                f"num_frames of {self.name} must be a multiple of {motion.CHUNK}, at most {MOST_FRAMES}, but "
                f"got {frames!r}; it makes chunks of {motion.CHUNK} frames, and learnt {motion.FRAMES}."
            )
        if not _is_int(steps) or steps < 1:
            raise ConfigError(f"num_inference_steps must be at least 1 but got {steps!r}; 10 are usual.")
        if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not guidance >= 0:
            raise ConfigError(f"guidance_scale must be at least 0 but got {guidance!r}; 1 or less is none.")
        history = self._history(settings.get("video_latents"), settings.get("image_latents"))
        return PlaygroundVideoModel(self, frames, steps, float(guidance), history)

    def _history(self, clip: Tensor | None, image: Tensor | None) -> Tensor | None:
        """The chunk that a clip goes on from, `(1, 4, 4, 8, 8)`."""
        if clip is not None and image is not None:
            raise ConfigError("A clip goes on from video_latents or from image_latents; give one of them.")
        given, name = (clip, "video_latents") if image is None else (image, "image_latents")
        if given is None:
            return None
        least = motion.CHUNK if image is None else 1
        wanted = (video.CHANNELS, video.SIDE, video.SIDE)
        fits = isinstance(given, Tensor) and given.ndim == 5 and len(given) == 1
        if not fits or (given.shape[1], *given.shape[3:]) != wanted or given.shape[2] < least:
            shape = tuple(given.shape) if isinstance(given, Tensor) else given
            raise ConfigError(
                f"{name} must be a tensor (1, {wanted[0]}, T, {wanted[1]}, {wanted[2]}) of at least {least} "
                f"latent frames but got {shape!r}; take those of output_type='latent'."
            )
        if image is not None:
            given = given[:, :, -1:].expand(-1, -1, motion.CHUNK, -1, -1)
        return given[:, :, -motion.CHUNK :].float().cpu()

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        video_latents: Tensor | None = None,
        image_latents: Tensor | None = None,
        output_type: OutputType = "video",
    ) -> list[Video] | Tensor:
        """Draws a clip for each prompt.

        Args:
            prompt: One prompt, or several.
            num_frames: A multiple of 4.
            num_inference_steps: Euler steps of a chunk.
            guidance_scale: Classifier-free guidance; 1 or less is none.
            generator: CPU generators, one for each prompt, that draw the noise of all chunks in turn; fresh
                noise by default.
            video_latents: ``(1, 4, T, 8, 8)``, latent frames that the clips go on from; they are not repeated
                in the result.
            image_latents: ``(1, 4, 1, 8, 8)``, one latent frame in the place of those.
            output_type: ``video`` for clips, ``np`` for their frames, ``(n, F, 3, 64, 64)`` in [0, 1], as a
                tensor, ``latent`` for latents ``(n, 4, F, 8, 8)``.

        Raises:
            ConfigError: If a setting is out of range, or there is not one generator for each prompt.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        given = {
            "num_frames": num_frames,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "video_latents": video_latents,
            "image_latents": image_latents,
        }
        model = self.configured({key: value for key, value in given.items() if value is not None})
        if generator is None:
            generators = [torch.Generator().manual_seed(torch.seed()) for _ in prompts]
        else:
            generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
        if len(generators) != len(prompts):
            raise ConfigError(
                f"There must be one generator for each of the {len(prompts)} prompts but got "
                f"{len(generators)}; give as many."
            )
        latents = torch.cat([model.clip(text, each) for text, each in zip(prompts, generators)])
        if output_type == "latent":
            return latents
        pixels = model.pixels(latents)
        return pixels if output_type == "np" else videos_of(pixels)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def videos_of(pixels: Tensor) -> list[Video]:
    """Clips of frames `(n, F, 3, H, W)` in [0, 1]."""
    frames = (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2).cpu()
    return [Video(clip, motion.FPS) for clip in frames]


@dataclass(frozen=True)
class PlaygroundVideoModel:
    """`PlaygroundVideo` with the settings of a call, as a `ChunkModel`.

    Attributes:
        pipe: The models.
        num_frames: Frames of a clip.
        steps: Euler steps of a chunk.
        guidance_scale: Classifier-free guidance; 1 or less is none.
        before: The chunk that a clip goes on from, `(1, 4, 4, 8, 8)`, or None.
    """

    pipe: PlaygroundVideo
    num_frames: int
    steps: int
    guidance_scale: float
    before: Tensor | None
    name: str = field(default=PlaygroundVideo.name, init=False)
    fps: float = field(default=motion.FPS, init=False)
    last_draw: int = field(default=-1, init=False)
    batches: bool = field(default=True, init=False)
    approximates: str = field(default="", init=False)
    backwards: bool = field(default=False, init=False)

    @property
    def frames(self) -> tuple[int, ...]:
        return (motion.CHUNK,) * (self.num_frames // motion.CHUNK)

    @property
    def facts(self) -> Mapping[str, Any]:
        own = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}
        return {"num_frames": self.num_frames, **own, "continues": self.before is not None}

    def condition_of(self, text: str, metadata: Mapping[str, Any]) -> Condition:
        return Condition(text)

    def encode(self, condition: Condition) -> Tensor:
        """The prompt as the transformer takes it, with guidance behind the empty one.

        Raises:
            ConfigError: If the condition has more than a text, or it has unknown or too many words.
        """
        given = {
            "a negative prompt": condition.negative_text is not None,
            "images": bool(condition.images),
            "embeddings": bool(condition.embeddings),
            "overrides": bool(condition.overrides),
        }
        if any(given.values()):
            names = ", ".join(name for name, has in given.items() if has)
            raise ConfigError(f"{self.name} is conditioned on a text alone but got {names}; leave that out.")
        tokenizer = video.build_motion_tokenizer()
        ids = tokenizer(condition.text).input_ids
        if len(ids) > video.MAX_TOKENS:
            raise ConfigError(
                f"A prompt of {self.name} has at most {video.MAX_TOKENS - 1} words but "
                f"{condition.text!r} has {len(ids) - 1}; shorten it."
            )
        if tokenizer.unk_token_id in ids:
            words = re.findall(r"\w+|[^\w\s]+", condition.text)  # as the tokenizer splits
            unknown = [word for word, i in zip(words, ids) if i == tokenizer.unk_token_id]
            raise ConfigError(
                f"{self.name} knows colours, shapes and motions, as in 'a red circle moving left', but got "
                f"{', '.join(map(repr, unknown))} in {condition.text!r}; use words of its world."
            )
        return self._guided.texts([condition.text])

    @property
    def _guided(self) -> video.Guided:
        network = self.pipe.network
        return video.Guided(network, self.guidance_scale, video.rotary(network.transformer, self.pipe.device))

    def noise(self, chunk: int, generators: Sequence[torch.Generator]) -> Tensor:
        shape = (video.CHANNELS, motion.CHUNK, video.SIDE, video.SIDE)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    def denoise(self, encoded: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        device = self.pipe.device
        previous = chunk.history[:, :, -motion.CHUNK :] if chunk.number else self.before
        if previous is not None:
            previous = previous.expand(len(chunk.latents), -1, -1, -1, -1).to(device)
        latents, estimate = self._guided.euler(
            encoded, chunk.latents.to(device), previous, self.steps, chunk.start, chunk.stop
        )
        return latents.cpu(), estimate.cpu()

    def forwards(self, condition: Condition, chunk: int, start: int, stop: int) -> float:
        return (stop - start) * (2 if self.guidance_scale > 1 else 1)

    def pixel_frames(self, chunks: int) -> int:
        return motion.CHUNK * chunks

    @torch.no_grad()
    def pixels(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        wanted = range(latents.shape[2]) if frames is None else frames
        vae = self.pipe.vae
        chosen = latents[:, :, list(wanted)].transpose(1, 2)
        scaled = chosen.flatten(0, 1).to(self.pipe.device) / vae.config.scaling_factor
        # one by one: a frame is the same in the last bit, whichever others are decoded
        decoded = torch.cat([vae.decode(frame.to(vae.dtype)).sample.float() for frame in scaled.split(1)])
        return (decoded.unflatten(0, chosen.shape[:2]) / 2 + 0.5).clamp(0, 1).cpu()

    def plain(self, condition: Condition, generator: torch.Generator) -> Tensor:
        clip = self.pipe(
            condition.text,
            num_frames=self.num_frames,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=generator,
            video_latents=self.before,
            output_type="np",
        )
        assert isinstance(clip, Tensor)
        return clip

    def clip(self, text: str, generator: torch.Generator) -> Tensor:
        """Latents of a clip ``(1, 4, F, 8, 8)``, without those that it goes on from."""
        texts, latents = (
            self.encode(Condition(text)),
            torch.empty(1, video.CHANNELS, 0, video.SIDE, video.SIDE),
        )
        for number in range(len(self.frames)):
            noise = self.noise(number, [generator])
            chunk = Chunk(number, 0, self.steps, latents, noise, [generator])
            latents = torch.cat([latents, self.denoise(texts, chunk)[0]], 2)
        return latents


def load_pipeline(folder: Path, *, dtype: torch.dtype = torch.float32) -> PlaygroundVideo:
    """Reads a folder of `video.save_network`; the autoencoder is that of the image model.

    Args:
        folder: The folder.
        dtype: Precision of all weights.

    Raises:
        PipelineError: If a file is missing or does not fit.
    """
    network, defaults = video.load_network(folder)
    vae = video.load_autoencoder()
    for module in (*network.modules().values(), vae):
        for weight in module.parameters():
            weight.data = weight.data.to(dtype)  # and no buffers: rotary frequencies stay in float32
    return PlaygroundVideo(network, vae, defaults)
