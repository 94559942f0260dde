"""VAR as a pipeline: images of an ImageNet class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.imagenet import class_of
from tts_vision.moves import Move
from tts_vision.pipelines.var.cache import KVCache
from tts_vision.pipelines.var.given import NOTHING, Given
from tts_vision.pipelines.var.model import (
    OutputType,
    PlainTokens,
    empty_cache,
    per_scale,
    plain_samples,
    settings_of,
)
from tts_vision.pipelines.var.sampling import guided, ramped, token_probability
from tts_vision.pipelines.var.schedules import Schedule
from tts_vision.pipelines.var.smooth import SmoothNoise, gumbel_weights
from tts_vision.pipelines.var.var import VAR, ClassCondition, macs_of_scale
from tts_vision.pipelines.var.vqvae import VQVAE
from tts_vision.types import Prompt

# Those of the authors' demonstration.
_DEFAULTS: dict[str, Any] = {
    "guidance_scale": 4.0,
    "tau": 1.0,
    "top_k": 900,
    "top_p": 0.95,
    "more_smooth": False,
    "gt_leak": 0,
    "image": None,
}


@dataclass(frozen=True)
class VARPipeline:
    """Draws images of a class, scale by scale; a prompt is a class of ImageNet, by number or name.

    Attributes:
        transformer: Predicts tokens.
        vae: Its tokenizer.
        defaults: Of the settings of a call.
        name: Shown in reports.
    """

    transformer: VAR
    vae: VQVAE
    defaults: Mapping[str, Any] = field(default_factory=dict)
    name: str = "VAR"

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return self.transformer.head.weight.device

    def to(self, device: torch.device | str) -> VARPipeline:
        """Moves both models."""
        self.transformer.to(device)
        self.vae.to(device)
        return self

    def configured(self, call: Mapping[str, Any]) -> ConfiguredVAR:
        """The pipeline with the settings of a call; see `ConfiguredVAR`.

        Raises:
            ConfigError: If a setting is unknown or out of range.
        """
        settings = settings_of(self.name, _DEFAULTS, self.defaults, call)
        schedule = self.transformer.config.schedule
        tau = per_scale("tau", settings["tau"], len(schedule))
        if not isinstance(settings["more_smooth"], bool):
            raise ConfigError(
                f"more_smooth must be true or false but got {settings['more_smooth']!r}; change it."
            )
        return ConfiguredVAR(
            self,
            schedule,
            float(settings["guidance_scale"]),
            tau,
            settings["top_k"],
            settings["top_p"],
            settings["more_smooth"],
            Given.of(settings, schedule),
        )

    def __call__(
        self, label: int | str, *, seed: int = 0, n: int = 1, output_type: OutputType = "pil", **call: Any
    ) -> list[Image.Image] | Tensor:
        """Draws images: the plain samples of a seed.

        Args:
            label: Number or name of a class of ImageNet.
            seed: Root seed; image ``i`` is that of particle ``i`` of a search with this seed.
            n: How many.
            output_type: ``pil`` for images, ``tokens`` for the tokens of all scales (mixtures of embeddings
                with `more_smooth`), which ``model = pipe.configured(call)`` decodes:
                ``model.pixels(model.features(tokens))``.
            call: Settings, as in `ConfiguredVAR`.

        Raises:
            ConfigError: If a setting is unknown or out of range, or there is no such class.
        """
        return plain_samples(self.configured(call), Condition(str(label)), seed, n, output_type)


@dataclass(frozen=True)
class ConfiguredVAR(PlainTokens):
    """VAR with the settings of a call.

    The class of a condition is its override ``class_id``, or its text: a number or a name.

    Attributes:
        pipe: The models.
        schedule: The scales.
        guidance_scale: Where the ramp of classifier-free guidance ends, less 1; 0 is none.
        tau: Temperature of the tokens, by scale.
        top_k: Draws from so many of the likeliest tokens; 0 from all.
        top_p: Leaves out the least likely tokens, up to a probability of ``1 - top_p``; 0 none.
        more_smooth: Whether Gumbel-softmax mixtures of embeddings stand in the place of tokens, for smoother
            images to look at; their samples do not follow the model.
        given: The scales that an image gives (``gt_leak`` and ``image``).
    """

    pipe: VARPipeline
    schedule: Schedule
    guidance_scale: float
    tau: tuple[float, ...]
    top_k: int
    top_p: float
    more_smooth: bool = False
    given: Given = NOTHING

    @property
    def branches(self) -> int:
        return 2 if self.guidance_scale else 1

    @property
    def device(self) -> torch.device:
        return self.pipe.device

    @property
    def stride(self) -> int:
        return self.pipe.vae.config.stride

    @torch.no_grad()
    def begun(self, condition: Condition) -> Tensor:
        ids = torch.empty(1, 0, dtype=torch.int64)
        if self.given.scales:
            ids = self.given.tokens(condition, self.pipe.vae, self.schedule)
        return self._embedded(ids) if self.more_smooth else ids

    @torch.no_grad()
    def drawn(self, probability: Tensor, uniform: Tensor, scale: int) -> Tensor:
        if not self.more_smooth:
            return super().drawn(probability, uniform, scale)
        weights = gumbel_weights(probability, uniform, scale / max(1, len(self.schedule) - 1))
        return self.pipe.vae.quantizer.mixed(weights.to(self.device)).cpu()

    @torch.no_grad()
    def likeliest(self, probability: Tensor, tokens: Tensor) -> Tensor:
        return self._embedded(probability.argmax(-1)) if self.more_smooth else probability.argmax(-1)

    def redraw(self, share: float) -> Move:
        return SmoothNoise(share) if self.more_smooth else super().redraw(share)

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.pipe.vae.quantizer.embedded(ids.to(self.device)).cpu()

    @property
    def overrides(self) -> frozenset[str]:
        return frozenset({"class_id"})

    def words(self, condition: Condition) -> int:
        return 0

    @torch.no_grad()
    def encode(self, condition: Condition) -> ClassCondition:
        model = self.pipe.transformer
        label = class_of(Prompt(condition.text, condition.overrides))
        labels = [label, model.no_class][: self.branches]
        return model.condition(torch.tensor(labels, device=self.device))

    def cache(self, rows: int) -> KVCache:
        model = self.pipe.transformer
        weight = model.get_parameter("blocks.0.attn.mat_qkv.weight")
        return empty_cache(model.config, self.schedule, self.branches, rows, weight)

    @torch.no_grad()
    def probability(self, encoded: ClassCondition, tokens: Tensor, scale: int, cache: KVCache) -> Tensor:
        inputs = None
        if scale:
            features = self.features(tokens)
            inputs = self.pipe.vae.quantizer.next_input(features, self.schedule.grids[scale])
            inputs = inputs.repeat(self.branches, 1, 1)
        logits = self.pipe.transformer.scale(encoded.rows(len(tokens)), inputs, scale, cache)
        if self.branches == 2:
            cond, uncond = logits.chunk(2)
            logits = guided(cond, uncond, ramped(self.guidance_scale, scale, len(self.schedule)))
        return token_probability(logits, self.tau[scale], self.top_k, self.top_p).cpu()

    @torch.no_grad()
    def features(self, tokens: Tensor) -> Tensor:
        scales = self.schedule.starts.index(tokens.shape[1])
        return self.pipe.vae.quantizer.summed(tokens.to(self.device), self.schedule, scales)

    @torch.no_grad()
    def with_expected(self, features: Tensor, probability: Tensor, scale: int) -> Tensor:
        return self.pipe.vae.quantizer.with_expected(
            features, probability.to(features.device), self.schedule, scale
        )

    @torch.no_grad()
    def pixels(self, features: Tensor) -> Tensor:
        return self.pipe.vae.decode(features)

    def macs(self, scale: int, words: int) -> int:
        return macs_of_scale(self.pipe.transformer.config, scale)
