"""aMUSEd (Patil et al. 2024), a pipeline of diffusers, as a network of image tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError, PipelineError

# Those of the pipeline's own call.
_SETTINGS: dict[str, Any] = {
    "guidance_scale": 10.0,
    "negative_prompt": None,
    "height": None,
    "width": None,
    "micro_conditioning_aesthetic_score": 6,
    "micro_conditioning_crop_coord": (0, 0),
}
_PARTS = ("transformer", "vqvae", "text_encoder", "tokenizer", "scheduler")


def is_amused(pipe: Any) -> bool:
    """Whether `pipe` is diffusers' `AmusedPipeline`."""
    return any(kind.__name__ == "AmusedPipeline" for kind in type(pipe).__mro__)


@dataclass(frozen=True)
class AmusedTokens:
    """An `AmusedPipeline` of diffusers, whose models and own settings are used.

    Attributes:
        pipe: The pipeline.

    Raises:
        PipelineError: If it lacks a part, or its parts do not fit each other.
    """

    pipe: Any

    name: ClassVar[str] = "AmusedPipeline"
    family: ClassVar[str] = "masked"

    def __post_init__(self) -> None:
        missing = [part for part in _PARTS if getattr(self.pipe, part, None) is None]
        if missing:
            raise PipelineError(
                f"An AmusedPipeline must have all its parts but lacks {', '.join(missing)}; load it whole."
            )
        codes, vqvae = self.pipe.transformer.config.codebook_size, self.pipe.vqvae.config
        if codes != vqvae.num_vq_embeddings or not vqvae.lookup_from_codebook:
            raise PipelineError(
                f"The VQModel of an AmusedPipeline must look up the {codes} codes that its transformer "
                f"predicts but has {vqvae.num_vq_embeddings} and "
                f"lookup_from_codebook={vqvae.lookup_from_codebook}; load the one that it was trained with."
            )

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of `ConfiguredAmused`, with their defaults."""
        return _SETTINGS

    @property
    def sampling(self) -> Mapping[str, Any]:
        """Defaults of the sampler's settings."""
        schedule = self.pipe.scheduler.config.masking_schedule
        return {
            "num_inference_steps": 12,
            "temperature": (2, 0),
            "annealing": "linear",
            "schedule": schedule,
        }

    def configured(self, call: Mapping[str, Any]) -> ConfiguredAmused:
        """The pipeline with the settings of a call; see `ConfiguredAmused`.

        Raises:
            ConfigError: If a setting is out of range.
        """
        settings = {**_SETTINGS, **call}
        stride = self.pipe.vae_scale_factor
        own = self.pipe.transformer.config.sample_size * stride
        sides = [settings[name] or own for name in ("height", "width")]
        if any(side % stride or side < stride for side in sides):
            raise ConfigError(
                f"height and width of {self.name} must be multiples of {stride} but got {sides[0]} and "
                f"{sides[1]}; it was trained at {own}."
            )
        crop = settings["micro_conditioning_crop_coord"]
        micro = [sides[1], sides[0], *crop, settings["micro_conditioning_aesthetic_score"]]
        grid = (sides[0] // stride, sides[1] // stride)
        scale, negative = float(settings["guidance_scale"]), settings["negative_prompt"]
        return ConfiguredAmused(self.pipe, grid, scale, negative, tuple(map(float, micro)))


@dataclass(frozen=True)
class ConfiguredAmused:
    """aMUSEd with the settings of a call.

    Attributes:
        pipe: The pipeline.
        grid: Height and width of the grid of tokens.
        guidance_scale: The ``s`` of ``u + s (c - u)``; none up to 1.
        negative_prompt: The text that guidance leads away from, in place of no text.
        micro: Width, height, crop and aesthetic score that the transformer is told.
    """

    pipe: Any
    grid: tuple[int, int]
    guidance_scale: float
    negative_prompt: str | None
    micro: tuple[float, ...]

    overrides: ClassVar[frozenset[str]] = frozenset()

    @property
    def vocabulary(self) -> int:
        return int(self.pipe.transformer.config.codebook_size)

    @property
    def branches(self) -> int:
        return 2 if self.guidance_scale > 1 else 1

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipe._execution_device)

    @property
    def facts(self) -> Mapping[str, Any]:
        negative = {} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}
        return {"guidance_scale": self.guidance_scale, **negative}

    def words(self, condition: Condition) -> int:
        return len(self._ids(condition.text))

    @torch.no_grad()
    def encode(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """Hidden states ``(branches, L, D)`` and pooled embeddings ``(branches, D)``, negative first."""
        texts = [self.negative_prompt or "", condition.text][-self.branches :]
        for text in texts:
            self._ids(text)
        tokenizer = self.pipe.tokenizer
        ids = tokenizer(
            texts, return_tensors="pt", padding="max_length", max_length=tokenizer.model_max_length
        ).input_ids.to(self.device)
        found = self.pipe.text_encoder(ids, return_dict=True, output_hidden_states=True)
        return found.hidden_states[-2], found.text_embeds

    @torch.no_grad()
    def logits(self, encoded: tuple[Tensor, Tensor], codes: Tensor) -> Tensor:
        mask = self.pipe.scheduler.config.mask_token_id
        ids = torch.where(codes == self.vocabulary, mask, codes).unflatten(1, self.grid).to(self.device)
        hidden, pooled = (rows.repeat_interleave(len(codes), 0) for rows in encoded)
        micro = torch.tensor(self.micro, device=self.device, dtype=hidden.dtype)
        logits = self.pipe.transformer(
            ids.repeat(self.branches, 1, 1),
            micro_conds=micro.expand(len(hidden), -1),
            pooled_text_emb=pooled,
            encoder_hidden_states=hidden,
        ).float()
        if self.branches == 2:
            uncond, cond = logits.chunk(2)
            logits = uncond + self.guidance_scale * (cond - uncond)
        return logits.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def pixels(self, codes: Tensor) -> Tensor:
        vqvae = self.pipe.vqvae
        needs_float = vqvae.dtype == torch.float16 and vqvae.config.force_upcast
        if needs_float:
            vqvae.float()
        shape = (len(codes), *self.grid, vqvae.config.latent_channels)
        tokens = codes.unflatten(1, self.grid).to(self.device)
        pixels = vqvae.decode(tokens, force_not_quantize=True, shape=shape).sample.clip(0, 1).float() * 2 - 1
        if needs_float:
            vqvae.half()
        return pixels

    @torch.no_grad()
    def image_codes(self, pixels: Tensor) -> Tensor:
        vqvae = self.pipe.vqvae
        latents = vqvae.encode((pixels.to(self.device, vqvae.dtype) + 1) / 2).latents
        return vqvae.quantize(latents)[2][2].view(len(pixels), -1).cpu()

    def codebook(self) -> Tensor:
        return self.pipe.vqvae.quantize.embedding.weight.detach().float()

    def macs(self, words: int) -> int:
        return 0  # not counted: its blocks are convolutions and transformers of several sizes

    def _ids(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            ConfigError: If there are more than the text encoder takes; the pipeline's own call cuts them.
        """
        ids: list[int] = self.pipe.tokenizer(text)["input_ids"]
        most = self.pipe.tokenizer.model_max_length
        if len(ids) > most:
            raise ConfigError(
                f"A prompt must have at most {most} tokens for {AmusedTokens.name} but has {len(ids)}: "
                f"{text[:60]!r}...; shorten it."
            )
        return ids
