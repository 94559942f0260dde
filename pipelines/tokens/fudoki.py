"""FUDOKI: image tokens by discrete flow matching, with a Janus whose attention is not causal.

Wang et al. 2025, "FUDOKI: Discrete flow-based unified understanding and generation via kinetic-optimal
velocities". The network is transformers' Janus; keys of the published checkpoint are those of DeepSeek's own
layout. It does not see the time. Tokens are predicted at the place before their own, as in the model that it
was started from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.tokens.kinetic import Metric, device_for
from tts_vision.pipelines.var.model import settings_of
from tts_vision.pipelines.var.sampling import guided

TEXT_LENGTH = 500  # tokens beside the image's, the end of the image included
NO_TEXT = 100015  # the id that stands in the place of every token of the text, for guidance
TEMPLATE = "User: {text}\n\nAssistant:"
START, END = "<begin_of_image>", "<end_of_image>"
_SETTINGS: dict[str, Any] = {"guidance_scale": 5.0}


@dataclass(frozen=True)
class FudokiPipeline:
    """Draws images of a text with a FUDOKI, and answers questions about images.

    Attributes:
        model: `transformers.JanusForConditionalGeneration` with its weights.
        tokenizer: Of texts.
        image_embedding: The vectors ``(V, d)`` by which image tokens are compared.
        text_embedding: Likewise of texts; None if it only draws.
        name: Shown in reports.
        no_text: The id that stands in the place of the text for guidance.
    """

    model: Any
    tokenizer: Any
    image_embedding: Tensor
    text_embedding: Tensor | None = None
    name: str = "FUDOKI"
    no_text: int = NO_TEXT
    family: str = "discrete_flow"
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"num_inference_steps": 50})

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of `configured`."""
        return _SETTINGS

    def to(self, device: torch.device | str) -> FudokiPipeline:
        """Moves the model."""
        self.model.to(device)
        return self

    def configured(self, call: Mapping[str, Any]) -> FudokiNetwork:
        """The network with the settings of a call.

        Raises:
            ConfigError: If a setting is unknown or out of range.
        """
        return FudokiNetwork(self, **settings_of(self.name, _SETTINGS, {}, call))

    @property
    def transformer(self) -> Any:
        """The language model, whose evaluations `tts_vision.check` counts."""
        return self.model.model.language_model

    @cached_property
    def text_metric(self) -> Metric:
        """Distances among the tokens of texts.

        Raises:
            PipelineError: If it was loaded without them.
        """
        if self.text_embedding is None:
            raise PipelineError(
                f"Answers of {self.name} need the embedding of texts but it was loaded without one; put "
                "text_embedding.pt beside the weights."
            )
        return Metric(self.text_embedding.to(device_for(self.model.device), torch.float32))

    def hidden(self, embeddings: Tensor) -> Tensor:
        """The last hidden states ``(B, T, W)``, float32, of embeddings, each of which attends to all."""
        embeddings = embeddings.to(self.model.get_input_embeddings().weight.dtype)
        rows, length, _ = embeddings.shape
        # an additive mask of zeros: one that is not there would be taken as a causal one
        mask = embeddings.new_zeros(rows, 1, length, length)
        out = self.model.model.language_model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
        hidden: Tensor = out.last_hidden_state.float()
        return hidden

    def embedded(self, ids: Tensor) -> Tensor:
        """The embeddings ``(B, T, W)`` of ids of texts."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids.to(self.model.device))
        return embeddings

    def ids(self, text: str) -> list[int]:
        """The ids of a text, without any that a tokenizer adds."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    @property
    def first(self) -> int:
        """The id that begins every sequence.

        Raises:
            PipelineError: If the tokenizer has none.
        """
        return self.special(self.tokenizer.bos_token or "<｜begin▁of▁sentence｜>")

    def special(self, token: str) -> int:
        """The id of a special token.

        Raises:
            PipelineError: If the tokenizer has none.
        """
        found = self.tokenizer.get_vocab().get(token)
        if found is None:
            raise PipelineError(
                f"The tokenizer of {self.name} must have the token {token!r} but has none; give the one that "
                "is published with the weights."
            )
        return int(found)


class FudokiNetwork:
    """A FUDOKI with the settings of a search.

    Args:
        pipe: The model.
        guidance_scale: ``w`` of ``(1 + w) c - w u``; 0 is none.
    """

    def __init__(self, pipe: FudokiPipeline, guidance_scale: float) -> None:
        self.pipe, self.guidance_scale = pipe, float(guidance_scale)
        if self.guidance_scale < 0:
            raise ConfigError(
                f"guidance_scale of {pipe.name} must be at least 0 but got {guidance_scale:g}; 0 is none."
            )
        config = pipe.model.config
        words = config.text_config.vocab_size
        if self.guidance_scale and not 0 <= pipe.no_text < words:
            raise PipelineError(
                f"Guidance of {pipe.name} needs an id for no text below its vocabulary of {words} but has "
                f"{pipe.no_text}; set no_text of the pipeline, or guidance_scale=0."
            )
        side = config.vq_config.num_patches
        self.grid = (side, side)
        self.vocabulary: int = config.vq_config.num_embeddings
        self.branches = 2 if self.guidance_scale else 1
        self.overrides: frozenset[str] = frozenset()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.pipe.model.device
        return device

    @property
    def facts(self) -> Mapping[str, Any]:
        """The settings."""
        return {"guidance_scale": self.guidance_scale, "device": self.device.type}

    @torch.no_grad()
    def encode(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """The embeddings of what stands before the image, ``(branches, L, W)``, and behind it, ``(1, 1, W)``.

        Raises:
            ConfigError: If the prompt is too long.
        """
        pipe = self.pipe
        ids = torch.tensor([self._ids(condition)])
        end = torch.tensor([[pipe.special(END)]])
        if self.branches == 2:
            without = ids.clone()
            without[:, 1:-1] = pipe.no_text
            ids = torch.cat([ids, without])
        return pipe.embedded(ids), pipe.embedded(end)

    def words(self, condition: Condition) -> int:
        """Tokens beside those of the image."""
        return len(self._ids(condition)) + 1

    @torch.no_grad()
    def logits(self, encoded: tuple[Tensor, Tensor], codes: Tensor) -> Tensor:
        """Guided logits ``(B, S, V)`` of every token, float32."""
        before, end = encoded
        n, length = len(codes), before.shape[1]
        model = self.pipe.model
        image = model.prepare_embeddings_for_image_generation(codes.to(self.device))
        rows = [
            before.repeat_interleave(n, 0),
            image.repeat(self.branches, 1, 1),
            end.expand(n * self.branches, -1, -1),
        ]
        hidden = self.pipe.hidden(torch.cat(rows, 1))
        # a token is predicted where the one before it stands
        logits: Tensor = model.model.generation_head(hidden[:, length - 1 : -2]).float()
        if self.branches == 1:
            return logits
        cond, uncond = logits.chunk(2)
        return guided(cond, uncond, 1 + self.guidance_scale)

    @torch.no_grad()
    def pixels(self, codes: Tensor) -> Tensor:
        """RGB pixels ``(B, 3, H, W)`` in [-1, 1] of codes ``(B, S)``."""
        pixels: Tensor = self.pipe.model.model.vqmodel.decode(codes.to(self.device))
        return pixels.float().clamp(-1, 1)

    @torch.no_grad()
    def image_codes(self, pixels: Tensor) -> Tensor:
        """Codes ``(B, S)``, int64 on the CPU, of pixels ``(B, 3, H, W)`` in [-1, 1]: nearest directions."""
        vq = self.pipe.model.model.vqmodel
        features = vq.quant_conv(vq.encoder(pixels.to(self.device, vq.dtype))).flatten(2).transpose(1, 2)
        directions = torch.nn.functional.normalize(vq.quantize.embedding.weight.float(), dim=-1)
        codes: Tensor = (features.float() @ directions.T).argmax(-1).cpu()
        return codes

    def codebook(self) -> Tensor:
        """The vectors ``(V, d)`` by which tokens are compared."""
        return self.pipe.image_embedding

    def macs(self, words: int) -> int:
        """Multiply-accumulates of one row's pass, one branch, beside so many other tokens."""
        c, vq = self.pipe.model.config.text_config, self.pipe.model.config.vq_config
        image = self.grid[0] * self.grid[1]
        tokens, width = image + words, c.hidden_size
        kv = c.num_key_value_heads * width // c.num_attention_heads
        linear = 2 * width * width + 2 * width * kv + 3 * width * c.intermediate_size
        aligner = vq.embed_dim * vq.projection_dim + (vq.num_hidden_layers - 1) * vq.projection_dim**2
        head = vq.image_token_embed_dim * vq.projection_dim + vq.projection_dim * vq.num_embeddings
        layer = tokens * linear + 2 * width * tokens * tokens
        return c.num_hidden_layers * layer + image * (aligner + head)

    def _ids(self, condition: Condition) -> list[int]:
        """The ids of the prompt, the beginning of the image included."""
        ids = [self.pipe.first, *self.pipe.ids(TEMPLATE.format(text=condition.text.strip()))]
        most = TEXT_LENGTH - 3  # less the beginning and the end of the image, and one that stays free
        if len(ids) > most:
            raise ConfigError(
                f"A prompt must have at most {most} tokens for {self.pipe.name}, its template included, but "
                f"has {len(ids)}: {condition.text[:60]!r}...; shorten it."
            )
        return [*ids, self.pipe.special(START)]
