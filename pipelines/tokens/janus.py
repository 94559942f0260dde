"""Janus and Janus-Pro by transformers: image tokens one after the other, row by row of a grid.

Wu et al. 2024, "Janus: decoupling visual encoding for unified multimodal understanding and generation"; Chen
et al. 2025, "Janus-Pro". The model is transformers' own; its private loop is written again here, because
searches fork and prune particles in the middle of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.var.cache import CacheRow, CacheShape, Piece
from tts_vision.pipelines.var.model import images_of, settings_of
from tts_vision.pipelines.var.sampling import guided, token_probability
from tts_vision.rng import row_uniform
from tts_vision.tokens import draw

_DEFAULTS: dict[str, Any] = {"guidance_scale": 5.0, "temperature": 1.0, "top_k": 0, "top_p": 0.0}


@dataclass(frozen=True)
class JanusPipeline:
    """Draws images of a text with a Janus.

    Attributes:
        model: `transformers.JanusForConditionalGeneration`.
        processor: `transformers.JanusProcessor`, or anything with its ``apply_chat_template`` and call.
        name: Shown in reports.
        defaults: Of the settings of a call.
    """

    model: Any
    processor: Any
    name: str = "Janus"
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> JanusPipeline:
        """Moves the model."""
        self.model.to(device)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a call, with defaults: those of the model's generation config where it has some."""
        own = self.model.generation_config
        given = {key: value for key in _DEFAULTS if (value := getattr(own, key, None)) is not None}
        return {**_DEFAULTS, **given, **self.defaults}

    def configured(self, call: Mapping[str, Any]) -> JanusNetwork:
        """The model with the settings of a call.

        Raises:
            ConfigError: If a setting is unknown or out of range.
            PipelineError: If the model cannot draw images.
        """
        return JanusNetwork(self, **settings_of(self.name, _DEFAULTS, self.settings, call))

    def __call__(self, prompt: str, *, seed: int = 0, n: int = 1, **call: Any) -> list[Image.Image]:
        """Draws images: the plain samples of a seed.

        Args:
            prompt: The text.
            seed: Root seed; image ``i`` is that of particle ``i`` of a search with this seed.
            n: How many.
            call: Settings, as in `JanusNetwork`.

        Raises:
            ConfigError: If a setting is unknown or out of range, or the prompt is too long.
        """
        network = self.configured(call)
        return images_of(network.pixels(network.samples(Condition(prompt), seed, range(n))))


class JanusNetwork:
    """A Janus with the settings of a search.

    Args:
        pipe: The model.
        guidance_scale: Of classifier-free guidance; 1 is none.
        temperature: Of the tokens.
        top_k: Draws from so many of the likeliest tokens; 0 from all.
        top_p: Leaves out the least likely tokens, up to a probability of ``1 - top_p``; 0 none.
    """

    def __init__(
        self, pipe: JanusPipeline, guidance_scale: float, temperature: float, top_k: int, top_p: float
    ) -> None:
        self.pipe, self.guidance_scale = pipe, float(guidance_scale)
        self.temperature, self.top_k, self.top_p = float(temperature), int(top_k), float(top_p)
        if self.guidance_scale < 1:
            raise ConfigError(
                f"guidance_scale of {pipe.name} must be at least 1 but got {guidance_scale:g}; 1 is none."
            )
        token_probability(torch.zeros(1, 1, 2), self.temperature, self.top_k, self.top_p)  # checks them
        config = pipe.model.config
        side, tokens = config.vq_config.num_patches, config.vision_config.num_image_tokens
        if side**2 != tokens:
            raise PipelineError(
                f"The image of {pipe.name} must have as many tokens as its VQ decoder draws, {side}x{side}, "
                f"but its config has {tokens}; correct vision_config.num_image_tokens."
            )
        self.grid = (side, side)
        self.text_config = config.text_config

    @property
    def vocabulary(self) -> int:
        """How many image tokens there are to choose from."""
        size: int = self.pipe.model.config.vq_config.num_embeddings
        return size

    @property
    def branches(self) -> int:
        """Passes of each row: 2 with classifier-free guidance, else 1."""
        return 2 if self.guidance_scale > 1 else 1

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.pipe.model.device
        return device

    @property
    def overrides(self) -> frozenset[str]:
        """None."""
        return frozenset()

    @property
    def facts(self) -> Mapping[str, Any]:
        """The settings."""
        names = ("guidance_scale", "temperature", "top_k", "top_p")
        return {**{name: getattr(self, name) for name in names}, "device": self.device.type}

    def encode(self, condition: Condition) -> Tensor:
        """The ids ``(branches, L)`` of the prompt, and without guidance's text in the second branch.

        Raises:
            ConfigError: If it is too long.
        """
        messages = [{"role": "user", "content": [{"type": "text", "text": condition.text}]}]
        prompt = self.pipe.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self.pipe.processor(text=prompt, generation_mode="image", return_tensors="pt")
        ids: Tensor = inputs["input_ids"][:1]
        height, width = self.grid
        most = self.text_config.max_position_embeddings - height * width
        if ids.shape[1] > most:
            raise ConfigError(
                f"A prompt must have at most {most} tokens for {self.pipe.name} but has {ids.shape[1]}: "
                f"{condition.text[:60]!r}...; shorten it."
            )
        if self.branches == 1:
            return ids
        bos, boi, pad = self._special
        kept = (ids == bos) | (ids == boi)
        return torch.cat([ids, torch.where(kept, ids, pad)])

    def words(self, condition: Condition) -> int:
        """Tokens of the prompt."""
        return self.encode(condition).shape[1]

    @torch.no_grad()
    def start(self, encoded: Tensor) -> tuple[Any, Tensor]:
        """The cache of the prompt, for one row, and the logits ``(1, V)`` of the first token."""
        from transformers import DynamicCache

        cache = DynamicCache()
        embeddings = self.pipe.model.get_input_embeddings()(encoded.to(self.device))
        return cache, self._logits(embeddings, cache)

    @torch.no_grad()
    def next(self, tokens: Tensor, cache: Any) -> Tensor:
        """The logits ``(n, V)`` of the token after `tokens` ``(n,)``, which are added to the cache."""
        ids = tokens.to(self.device).repeat(self.branches).unsqueeze(1)
        return self._logits(self.pipe.model.prepare_embeddings_for_image_generation(ids), cache)

    def probability(self, logits: Tensor) -> Tensor:
        """Probabilities ``(n, V)`` on the CPU."""
        return token_probability(logits, self.temperature, self.top_k, self.top_p).cpu()

    @torch.no_grad()
    def cached(self, encoded: Tensor, tokens: Tensor) -> Any:
        """The cache of the prompt and of tokens ``(n, T)``, made in one pass."""
        from transformers import DynamicCache

        cache, model = DynamicCache(), self.pipe.model
        text = model.get_input_embeddings()(encoded.to(self.device)).repeat_interleave(len(tokens), 0)
        ids = tokens.to(self.device).repeat(self.branches, 1)
        image = model.prepare_embeddings_for_image_generation(ids)
        model.model.language_model(
            inputs_embeds=torch.cat([text, image], 1), past_key_values=cache, use_cache=True
        )
        return cache

    @torch.no_grad()
    def pixels(self, codes: Tensor) -> Tensor:
        """RGB pixels ``(B, 3, H, W)`` in [-1, 1] of codes ``(B, S)``."""
        pixels: Tensor = self.pipe.model.model.vqmodel.decode(codes.to(self.device))
        return pixels.float().clamp(-1, 1)

    def macs(self, tokens: int, context: int) -> int:
        """Multiply-accumulates of one row's pass over some tokens, one branch, which ends at one prediction.

        Args:
            tokens: How many go in.
            context: How many are there afterwards.
        """
        c, vq = self.text_config, self.pipe.model.config.vq_config
        width, kv = c.hidden_size, c.num_key_value_heads * c.hidden_size // c.num_attention_heads
        linear = 2 * width * width + 2 * width * kv + 3 * width * c.intermediate_size
        attended = tokens * context - tokens * (tokens - 1) // 2
        head = vq.image_token_embed_dim * vq.projection_dim + vq.projection_dim * vq.num_embeddings
        return c.num_hidden_layers * (tokens * linear + 2 * width * attended) + head

    @torch.no_grad()
    def samples(self, condition: Condition, seed: int, uids: Sequence[int]) -> Tensor:
        """The tokens ``(B, S)`` of the plain samples of some particles, drawn in one go."""
        height, width = self.grid
        cache, logits = self.start(self.encode(condition))
        cache.batch_repeat_interleave(len(uids))
        logits, drawn = logits.expand(len(uids), -1), list[Tensor]()
        for row in range(height):
            numbers = row_uniform(seed, "step", uids, row, torch.empty(len(uids), width))
            for column in range(width):
                if drawn:
                    logits = self.next(drawn[-1], cache)
                drawn.append(draw(self.probability(logits), numbers[:, column]))
        return torch.stack(drawn, 1)

    def _logits(self, embeddings: Tensor, cache: Any) -> Tensor:
        """Guided logits ``(n, V)`` of the token after embeddings ``(branches * n, T, W)``."""
        model = self.pipe.model.model
        out = model.language_model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        logits: Tensor = model.generation_head(out.last_hidden_state[:, -1]).float()
        if self.branches == 1:
            return logits
        cond, uncond = logits.chunk(2)
        return guided(cond, uncond, self.guidance_scale)

    @property
    def _special(self) -> tuple[int, int, int]:
        """The ids of the beginning, of the beginning of an image, and of padding."""
        config = self.pipe.model.generation_config
        more = getattr(config, "generation_kwargs", None) or {}
        found = {
            "bos_token_id": config.bos_token_id,
            "boi_token_id": more.get("boi_token_id"),
            "pad_token_id": config.pad_token_id,
        }
        lacking = [name for name, value in found.items() if not isinstance(value, int)]
        if lacking:
            raise PipelineError(
                f"Guidance of {self.pipe.name} needs the ids of its special tokens but generation_config has "
                f"no {', '.join(lacking)}; load it with its generation_config.json, or set guidance_scale=1."
            )
        return found["bos_token_id"], found["boi_token_id"], found["pad_token_id"]


def shape_of(network: JanusNetwork) -> CacheShape:
    """The sizes of a particle's cache, with room for its image beside the prompt."""
    config, (height, width) = network.text_config, network.grid
    return CacheShape(
        config.num_hidden_layers,
        network.branches,
        config.num_key_value_heads,
        height * width,
        config.hidden_size // config.num_attention_heads,
        device=network.device,
        dtype=network.pipe.model.dtype,
    )


def joined(rows: Sequence[CacheRow]) -> Any:
    """A cache of transformers with the keys and values of some particles."""
    from transformers import DynamicCache

    cache, shape = DynamicCache(), rows[0].shape
    for layer in range(shape.layers):
        keys, values = (
            torch.stack([torch.cat([getattr(p, name)[layer] for p in row.pieces], 2) for row in rows], 1)
            for name in ("keys", "values")
        )
        cache.update(keys.flatten(0, 1), values.flatten(0, 1), layer)
    return cache


def pieces(cache: Any, shape: CacheShape, start: int, stop: int | None = None) -> list[Piece]:
    """The keys and values of some tokens of a cache, by row; copies that keep nothing else alive."""
    of_layers = [
        tuple(
            tensor[:, :, start:stop].unflatten(0, (shape.branches, -1))
            for tensor in (layer.keys, layer.values)
        )
        for layer in cache.layers
    ]
    return [
        Piece(
            tuple(keys[:, row].clone() for keys, _ in of_layers),
            tuple(values[:, row].clone() for _, values in of_layers),
        )
        for row in range(of_layers[0][0].shape[1])
    ]


def select_rows(cache: Any, index: Sequence[int], rows: int, branches: int) -> None:
    """Puts the rows at `index` into a cache of `rows` rows: those of all branches together."""
    chosen = torch.tensor(index)
    cache.batch_select_indices(torch.cat([chosen + branch * rows for branch in range(branches)]))
