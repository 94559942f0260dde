"""Show-o as a pipeline (Xie et al. 2024): a Phi language model that predicts the codes of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.tokens.layout import Layout, additive
from tts_vision.pipelines.tokens.masked import plain_samples
from tts_vision.pipelines.tokens.model import ImageTokenizer
from tts_vision.pipelines.var.model import OutputType

_SETTINGS: dict[str, Any] = {"guidance_scale": 1.75, "negative_prompt": None}


@dataclass(frozen=True)
class ShowoPipeline:
    """Draws images of a text by unmasking their tokens.

    Attributes:
        transformer: A `PhiForCausalLM` of transformers with ``qk_layernorm``.
        tokenizer: Of texts.
        image_tokenizer: Of images.
        layout: How both are laid out in a sequence.
        defaults: Of the settings of a call, where they are not those of the authors.
        name: Shown in reports.

    Raises:
        PipelineError: If the parts are of different vocabularies.
    """

    transformer: Any
    tokenizer: Any
    image_tokenizer: ImageTokenizer
    layout: Layout
    defaults: Mapping[str, Any] = field(default_factory=dict)
    name: str = "Show-o"

    family: ClassVar[str] = "masked"

    def __post_init__(self) -> None:
        found = (
            self.transformer.config.vocab_size,
            len(self.tokenizer),
            len(self.image_tokenizer.codebook()),
        )
        wanted = (self.layout.size, self.layout.words, self.layout.codes)
        if found != wanted:
            raise PipelineError(
                f"The parts of {self.name} must have {wanted[0]} ids in all, {wanted[1]} words and "
                f"{wanted[2]} codes but have {found[0]}, {found[1]} and {found[2]}; give those of one model."
            )

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return self.transformer.lm_head.weight.device

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of `ConfiguredShowo`, with their defaults."""
        return {name: self.defaults.get(name, value) for name, value in _SETTINGS.items()}

    @property
    def sampling(self) -> Mapping[str, Any]:
        """Defaults of the sampler's settings."""
        return {name: value for name, value in self.defaults.items() if name not in _SETTINGS}

    def to(self, device: torch.device | str) -> ShowoPipeline:
        """Moves all models."""
        for module in (self.transformer, self.image_tokenizer):
            module.to(device)  # type: ignore[union-attr]
        return self

    def configured(self, call: Mapping[str, Any]) -> ConfiguredShowo:
        """The pipeline with the settings of a call; see `ConfiguredShowo`.

        Raises:
            ConfigError: If a setting is out of range.
        """
        settings = {**self.settings, **call}
        scale = settings["guidance_scale"]
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not scale >= 0:
            raise ConfigError(
                f"guidance_scale of {self.name} must be a number of at least 0, where 0 is none, but got "
                f"{scale!r}; Show-o's w of 1.75 is a scale of 2.75 elsewhere."
            )
        return ConfiguredShowo(self, float(scale), settings["negative_prompt"])

    def __call__(
        self, prompt: str, *, seed: int = 0, n: int = 1, output_type: OutputType = "pil", **call: Any
    ) -> list[Image.Image] | Tensor:
        """Draws images: the plain samples of a seed.

        Args:
            prompt: The text.
            seed: Root seed; image ``i`` is that of particle ``i`` of a search with this seed.
            n: How many.
            output_type: ``pil`` for images, ``tokens`` for their codes ``(n, S)``, which
                ``pipe.configured(call).pixels`` decodes.
            call: Settings, as in `ConfiguredShowo` and `Decoding`.

        Raises:
            ConfigError: If a setting is unknown or out of range, or the prompt is too long.
        """
        return plain_samples(self, call, prompt, seed, n, output_type)


@dataclass(frozen=True)
class EncodedPrompt:
    """The keys and values of a prompt, which the image never changes.

    Attributes:
        layers: Keys and values ``(branches, heads, L, d)`` of each layer; or a row for each image, branch by
            branch, where prompts differ.
        mask: ``(branches, 1, 1, L)``, to add to the scores of attention: 0, the lowest number for pads.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor


@dataclass(frozen=True)
class ConfiguredShowo:
    """Show-o with the settings of a call.

    Attributes:
        pipe: The models.
        guidance_scale: The ``w`` of ``(1 + w) c - w u``, where ``c`` are the logits of the prompt and ``u``
            those without; 0 is no guidance.
        negative_prompt: The text that guidance leads away from, in place of no text.
    """

    pipe: ShowoPipeline
    guidance_scale: float
    negative_prompt: str | None

    @property
    def grid(self) -> tuple[int, int]:
        return self.pipe.image_tokenizer.grid

    @property
    def vocabulary(self) -> int:
        return self.pipe.layout.codes

    @property
    def branches(self) -> int:
        return 2 if self.guidance_scale else 1

    @property
    def device(self) -> torch.device:
        return self.pipe.device

    @property
    def overrides(self) -> frozenset[str]:
        return frozenset()

    @property
    def facts(self) -> Mapping[str, Any]:
        negative = {} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}
        return {"guidance_scale": self.guidance_scale, **negative}

    def words(self, condition: Condition) -> int:
        return max(map(len, self._prompts(condition)))

    def encode(self, condition: Condition) -> EncodedPrompt:
        return self.encoded(self._prompts(condition))

    @torch.no_grad()
    def encoded(self, prompts: Sequence[Sequence[int]]) -> EncodedPrompt:
        """The keys and values of prompts given as ids, a row each."""
        layout, model = self.pipe.layout, self.pipe.transformer.model
        prefix = layout.prefix(prompts).to(self.device)
        dtype = model.embed_tokens.weight.dtype
        mask = additive(layout.attended(prefix, 0), dtype)
        positions = torch.arange(prefix.shape[1], device=self.device)[None]
        cache = model(
            input_ids=prefix, attention_mask=mask, position_ids=positions, use_cache=True
        ).past_key_values
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        return EncodedPrompt(layers, additive(layout.attended(prefix, 1), dtype)[:, :, -1:, :-1])

    @torch.no_grad()
    def logits(self, encoded: EncodedPrompt, codes: Tensor) -> Tensor:
        """The logits ``(B, S, V)`` of codes, all of one prompt or each of that in its row."""
        from transformers import DynamicCache

        layout, model, head = self.pipe.layout, self.pipe.transformer.model, self.pipe.transformer.lm_head
        ids = layout.image(codes.to(self.device)).repeat(self.branches, 1)
        cache, times = DynamicCache(), len(ids) // len(encoded.mask)
        for i, (keys, values) in enumerate(encoded.layers):
            cache.update(keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0), i)
        prefix, length = encoded.mask.shape[-1], ids.shape[1]
        mask = torch.nn.functional.pad(encoded.mask, (0, length)).expand(-1, -1, length, -1)
        positions = torch.arange(prefix, prefix + length, device=self.device)[None]
        hidden = model(
            input_ids=ids,
            attention_mask=mask.repeat_interleave(times, 0),
            position_ids=positions,
            past_key_values=cache,
        ).last_hidden_state[:, 1:-1]
        # the logits of a code stand at its own position; those of words are not computed
        own = slice(layout.offset, layout.mask)
        logits = torch.nn.functional.linear(hidden.float(), head.weight[own].float(), head.bias[own].float())
        if self.branches == 1:
            return logits
        cond, uncond = logits.chunk(2)
        return (1 + self.guidance_scale) * cond - self.guidance_scale * uncond

    @torch.no_grad()
    def pixels(self, codes: Tensor) -> Tensor:
        return self.pipe.image_tokenizer.decode(codes.to(self.device))

    @torch.no_grad()
    def image_codes(self, pixels: Tensor) -> Tensor:
        return self.pipe.image_tokenizer.encode(pixels.to(self.device)).cpu()

    def codebook(self) -> Tensor:
        return self.pipe.image_tokenizer.codebook()

    def macs(self, words: int) -> int:
        config = self.pipe.transformer.config
        W, length = config.hidden_size, self.grid[0] * self.grid[1] + 2
        linears = 4 * W * W + 2 * W * config.intermediate_size
        attention = 2 * W * (words + length)
        return length * config.num_hidden_layers * (linears + attention) + (length - 2) * W * self.vocabulary

    def _prompts(self, condition: Condition) -> list[list[int]]:
        """The ids of the prompt and, with guidance, of the text that it leads away from.

        Raises:
            ConfigError: If one is too long.
        """
        texts = [condition.text, self.negative_prompt or ""][: self.branches]
        return [self.pipe.layout.prompt(self.pipe.tokenizer, text) for text in texts]
