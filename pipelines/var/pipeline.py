"""Infinity as a pipeline: text encoder, transformer and tokenizer together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.var.bsq_vae import BSQVAE
from tts_vision.pipelines.var.cache import KVCache
from tts_vision.pipelines.var.given import NOTHING, Given
from tts_vision.pipelines.var.infinity import Infinity, TextCondition, macs_of_scale
from tts_vision.pipelines.var.latent_vae import LatentBSQVAE
from tts_vision.pipelines.var.model import (
    OutputType,
    PlainTokens,
    empty_cache,
    per_scale,
    plain_samples,
    settings_of,
)
from tts_vision.pipelines.var.sampling import bit_probability, guided
from tts_vision.pipelines.var.schedules import Schedule, schedule_for


@dataclass(frozen=True)
class InfinityPipeline:
    """Draws images of a text, scale by scale.

    Attributes:
        transformer: Predicts bits.
        vae: Its tokenizer.
        text_encoder: A T5 encoder of transformers.
        tokenizer: Of the text encoder.
        schedule: The scales, for a model with only one; by default Infinity's templates.
        defaults: Of the settings of a call.
        name: Shown in reports.
    """

    transformer: Infinity
    vae: BSQVAE | LatentBSQVAE
    text_encoder: Any
    tokenizer: Any
    schedule: Schedule | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    name: str = "Infinity"

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return self.transformer.head.weight.device

    def to(self, device: torch.device | str) -> InfinityPipeline:
        """Moves all models."""
        for module in (self.transformer, self.vae, self.text_encoder):
            module.to(device)
        return self

    def configured(self, call: Mapping[str, Any]) -> ConfiguredInfinity:
        """The pipeline with the settings of a call; see `ConfiguredInfinity`.

        Raises:
            ConfigError: If a setting is unknown or out of range.
        """
        settings = settings_of(self.name, _DEFAULTS, self.defaults, call)
        schedule = self.schedule
        if schedule is None:
            ratio = settings["aspect_ratio"]
            schedule = schedule_for(_ratio(ratio), settings["size"])
        elif {"aspect_ratio", "size"} & call.keys():
            raise ConfigError(f"{self.name} draws one size of image; leave aspect_ratio and size out.")
        scales = len(schedule)
        return ConfiguredInfinity(
            self,
            schedule,
            per_scale("guidance_scale", settings["guidance_scale"], scales),
            per_scale("tau", settings["tau"], scales),
            settings["top_k"],
            settings["top_p"],
            settings["negative_prompt"],
            guided_layers(settings["cfg_insertion_layer"], self.transformer.config.depth),
            Given.of(settings, schedule),
        )

    def __call__(
        self, prompt: str, *, seed: int = 0, n: int = 1, output_type: OutputType = "pil", **call: Any
    ) -> list[Image.Image] | Tensor:
        """Draws images: the plain samples of a seed.

        Args:
            prompt: The text.
            seed: Root seed; image ``i`` is that of particle ``i`` of a search with this seed.
            n: How many.
            output_type: ``pil`` for images, ``tokens`` for the tokens of all scales, which
                ``model = pipe.configured(call)`` decodes: ``model.pixels(model.features(tokens))``.
            call: Settings, as in `ConfiguredInfinity`.

        Raises:
            ConfigError: If a setting is unknown or out of range, or the prompt is too long.
        """
        return plain_samples(self.configured(call), Condition(prompt), seed, n, output_type)


_DEFAULTS: dict[str, Any] = {
    "aspect_ratio": 1.0,
    "size": "1M",
    "guidance_scale": 3.0,
    "tau": 0.5,
    "top_k": 0,
    "top_p": 0.97,
    "negative_prompt": None,
    "cfg_insertion_layer": 0,
    "gt_leak": 0,
    "image": None,
}


@dataclass(frozen=True)
class ConfiguredInfinity(PlainTokens):
    """Infinity with the settings of a call.

    Attributes:
        pipe: The models.
        schedule: The scales of the template nearest to the aspect ratio (height over width, or a text
            width:height) that was asked for, up to the size.
        guidance_scale: Of classifier-free guidance, by scale; 1 is none.
        tau: Temperature of the bits, by scale.
        top_k: 1 takes the likelier value of each bit.
        top_p: Drops the less likely value of a bit if its probability is at most ``1 - top_p``.
        negative_prompt: The text that guidance leads away from, in place of the learned embedding of no text.
        guided_layers: Where guidance acts (``cfg_insertion_layer``): 0 for the logits, -k for the output of
            the k-th block from the end.
        given: The scales that an image gives (``gt_leak`` and ``image``).
    """

    pipe: InfinityPipeline
    schedule: Schedule
    guidance_scale: tuple[float, ...]
    tau: tuple[float, ...]
    top_k: int
    top_p: float
    negative_prompt: str | None
    guided_layers: frozenset[int] = frozenset({0})
    given: Given = NOTHING

    @property
    def branches(self) -> int:
        return 2 if any(scale != 1 for scale in self.guidance_scale) else 1

    @property
    def device(self) -> torch.device:
        return self.pipe.device

    @property
    def stride(self) -> int:
        return self.pipe.vae.config.stride

    def begun(self, condition: Condition) -> Tensor:
        if self.given.scales:
            return self.given.tokens(condition, self.pipe.vae, self.schedule)
        return torch.empty(1, 0, self.pipe.transformer.config.bits, dtype=torch.uint8)

    @property
    def overrides(self) -> frozenset[str]:
        return frozenset()

    def words(self, condition: Condition) -> int:
        return len(self._ids(condition.text))

    @torch.no_grad()
    def encode(self, condition: Condition) -> TextCondition:
        model = self.pipe.transformer
        texts = [self._encoded(condition.text)]
        if self.branches == 2:
            negative = self.negative_prompt
            texts.append(
                model.uncond_text(texts[0].shape[1]) if negative is None else self._encoded(negative)
            )
        longest = max(text.shape[1] for text in texts)
        padded = [torch.nn.functional.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts]
        lengths = torch.tensor([text.shape[1] for text in texts], device=self.device)
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        return model.condition(torch.cat(padded), None if bool(mask.all()) else mask)

    def cache(self, rows: int) -> KVCache:
        model = self.pipe.transformer
        weight = model.blocks[0].sa.mat_qkv.weight
        return empty_cache(model.config, self.schedule, self.branches, rows, weight)

    @torch.no_grad()
    def probability(self, encoded: TextCondition, tokens: Tensor, scale: int, cache: KVCache) -> Tensor:
        quantizer, model = self.pipe.vae.quantizer, self.pipe.transformer
        inputs = None
        if scale:
            features = self.features(tokens)
            inputs = quantizer.next_input(features, self.schedule.grids[scale]).to(self.device)
            inputs = inputs.repeat(self.branches, 1, 1)
        rows = encoded.rows(len(tokens))
        mixed: dict[int, float] = {}
        if self.branches == 2 and self.guidance_scale[scale] != 1:
            depth = model.config.depth
            mixed = {depth + layer: self.guidance_scale[scale] for layer in self.guided_layers if layer < 0}
        logits = model.scale(rows, inputs, scale, self.schedule, cache, mixed)
        if self.branches == 2:
            cond, uncond = logits.chunk(2)
            logits = guided(cond, uncond, self.guidance_scale[scale]) if 0 in self.guided_layers else cond
        return bit_probability(logits, self.tau[scale], self.top_k, self.top_p).cpu()

    def features(self, tokens: Tensor) -> Tensor:
        scales = self.schedule.starts.index(tokens.shape[1])
        return self.pipe.vae.quantizer.summed(tokens, self.schedule, scales)

    def with_expected(self, features: Tensor, probability: Tensor, scale: int) -> Tensor:
        # bits are plus or minus one, so that their probabilities in the place of bits give the expectation
        return self.pipe.vae.quantizer.added(
            features, probability.to(features.device), self.schedule.grids[scale]
        )

    @torch.no_grad()
    def pixels(self, features: Tensor) -> Tensor:
        return self.pipe.vae.decode(features)

    def macs(self, scale: int, words: int) -> int:
        return macs_of_scale(self.pipe.transformer.config, self.schedule, scale, words)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.pipe.tokenizer(text)["input_ids"]
        most = self.pipe.transformer.config.text_length
        if len(ids) > most:
            raise ConfigError(
                f"A prompt must have at most {most} tokens for {self.pipe.name} but has {len(ids)}: "
                f"{text[:60]!r}...; shorten it."
            )
        return ids

    def _encoded(self, text: str) -> Tensor:
        """Last hidden states ``(1, L, text_dim)`` of a text."""
        ids = torch.tensor([self._ids(text)], device=self.device)
        return self.pipe.text_encoder(ids).last_hidden_state.float()


def _ratio(given: Any) -> float:
    """An aspect ratio as height over width, also of a text width:height, as people write it."""
    try:
        if isinstance(given, str):
            width, height = map(float, given.split(":"))
            ratio = height / width
        else:
            ratio = float(given)
    except (TypeError, ValueError, ZeroDivisionError):
        ratio = 0.0
    if not 0 < ratio < math.inf:
        raise ConfigError(
            f"aspect_ratio must be height over width, or written width:height as '16:9', but got {given!r}; "
            "change it."
        )
    return ratio


def guided_layers(given: Any, depth: int) -> frozenset[int]:
    """Where guidance acts: one number or several, 0 for the logits, -k for the output of the k-th last block.

    Raises:
        ConfigError: If a number names none of them.
    """
    layers = list(given) if isinstance(given, (list, tuple)) else [given]
    if not layers or any(
        not isinstance(n, int) or isinstance(n, bool) or not -depth < n <= 0 for n in layers
    ):
        raise ConfigError(
            f"cfg_insertion_layer must be 0 for the logits, -1 to {1 - depth} for the output of a block "
            f"counted from the end, or a list of these, but got {given!r}; change it."
        )
    return frozenset(layers)
