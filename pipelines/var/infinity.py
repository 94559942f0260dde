"""Infinity's transformer: predicts the bits of all tokens of a scale at once, from all coarser scales.

Han et al. 2024, "Infinity: Scaling Bitwise AutoRegressive Modeling for High-Resolution Image Synthesis".
Plain torch; the parameters are named as in the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tts_vision.pipelines.var.cache import KVCache
from tts_vision.pipelines.var.sampling import guided
from tts_vision.pipelines.var.schedules import Grid, Schedule

EPS = 1e-6
NOWHERE: Mapping[int, float] = MappingProxyType({})
Past: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Puts the keys and values of a new scale behind those of the scales before."""


@dataclass(frozen=True)
class InfinityConfig:
    """Architecture of a transformer.

    Attributes:
        depth: Blocks.
        width: Channels ``W`` of a token.
        heads: Attention heads.
        bits: Bits ``D`` of a token.
        chunks: Groups of blocks in the names of the parameters.
        text_dim: Channels of the text encoder.
        text_length: Rows of the learned embedding of no text; the longest prompt.
        pool_heads: Heads of the pooling of the text.
        levels: Rows of the scale embedding; the most scales.
    """

    depth: int
    width: int
    heads: int
    bits: int
    chunks: int = 4
    text_dim: int = 2048
    text_length: int = 512
    pool_heads: int = 16
    levels: int = 15

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Hidden channels of the feed-forward layers."""
        return round(4 * self.width / 256) * 256


SIZES = {
    "125m": InfinityConfig(12, 768, 8, 16),
    "layer16": InfinityConfig(16, 1152, 12, 32),
    "1b": InfinityConfig(24, 1536, 16, 32),
    "2b": InfinityConfig(32, 2048, 16, 32, chunks=8),
    "8b": InfinityConfig(40, 3584, 28, 56, chunks=8),
}


@dataclass(frozen=True)
class TextCondition:
    """A text as all scales take it; computed once per prompt.

    Attributes:
        pooled: ``(N, W)``, also the input of scale 0.
        modulation: ``(N, 1, 6, W)`` of the blocks.
        head: ``(N, 1, 2 W)`` modulation of the last layer.
        text: Keys and values ``(N, heads, L, head_dim)`` of each block's cross attention.
        mask: ``(N, 1, 1, L)``, True where there is text; None if all of it is.
    """

    pooled: Tensor
    modulation: Tensor
    head: Tensor
    text: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None = None

    def rows(self, copies: int) -> TextCondition:
        """Each row `copies` times: of one text per branch of guidance, a batch of particles."""

        def of(x: Tensor) -> Tensor:
            return x.repeat_interleave(copies, 0)

        def shared(x: Tensor) -> Tensor:
            return (
                x[:, None].expand(-1, copies, *x.shape[1:]).flatten(0, 1)
                if len(x) > 1
                else x.expand(copies, *x.shape[1:])
            )

        return TextCondition(
            of(self.pooled),
            of(self.modulation),
            of(self.head),
            tuple((shared(k), shared(v)) for k, v in self.text),
            None if self.mask is None else of(self.mask),
        )


class Infinity(nn.Module):
    """The transformer.

    Args:
        config: Its architecture.
    """

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.config = config
        W, text_dim = config.width, config.text_dim
        self.cfg_uncond = nn.Parameter(torch.empty(config.text_length, text_dim))
        self.pos_start = nn.Parameter(torch.empty(1, 1, W))
        self.text_norm = nn.RMSNorm(text_dim, eps=EPS)
        self.text_proj_for_sos = nn.ModuleDict({"ca": TextPool(config)})
        self.text_proj_for_ca = nn.Sequential(nn.Linear(text_dim, W), nn.GELU("tanh"), nn.Linear(W, W))
        self.lvl_embed = nn.Embedding(config.levels, W)
        self.word_embed = nn.Linear(config.bits, W)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(W, 6 * W))
        per_chunk = config.depth // config.chunks
        self.block_chunks = nn.ModuleList(
            nn.ModuleDict({"module": nn.ModuleList(Block(config) for _ in range(per_chunk))})
            for _ in range(config.chunks)
        )
        self.head_nm = nn.ModuleDict({"ada_lin": nn.Sequential(nn.SiLU(), nn.Linear(W, 2 * W))})
        self.head = nn.Linear(W, 2 * config.bits)

    @property
    def blocks(self) -> list[Block]:
        """All blocks, first to last."""
        return [block for chunk in self.block_chunks for block in chunk["module"]]  # type: ignore[index]

    def condition(self, text: Tensor, mask: Tensor | None = None) -> TextCondition:
        """The text as all scales take it.

        Args:
            text: ``(N, L, text_dim)`` last hidden states of the text encoder, or rows of `cfg_uncond`.
            mask: ``(N, L)``, True where there is text; None if all of it is.
        """
        text = F.rms_norm(text.float(), text.shape[-1:], self.text_norm.weight.float(), EPS)
        pooled = self.text_proj_for_sos["ca"](text, mask).to(self.head.weight.dtype)
        words = self.text_proj_for_ca(text.to(self.head.weight.dtype))
        return TextCondition(
            pooled=pooled,
            modulation=self.shared_ada_lin(pooled).view(-1, 1, 6, self.config.width),
            head=self.head_nm["ada_lin"](pooled)[:, None],
            text=tuple(block.ca.keys_values(words) for block in self.blocks),
            mask=None if mask is None else mask[:, None, None],
        )

    def uncond_text(self, length: int) -> Tensor:
        """The text features of no text, ``(1, length, text_dim)``."""
        return self.cfg_uncond[None, :length]

    def embed(self, condition: TextCondition, inputs: Tensor | None, scale: int) -> Tensor:
        """The tokens ``(N, L, W)`` that go into the first block.

        Args:
            condition: Of the text.
            inputs: ``(N, L, D)`` sum of the scales before, at the size of this one; None at scale 0.
            scale: Which scale.
        """
        if inputs is None:
            x = condition.pooled[:, None] + self.pos_start
        else:
            x = self.word_embed(inputs.to(self.word_embed.weight.dtype))
        return x.float() + self.lvl_embed.weight[scale]

    def scale(
        self,
        condition: TextCondition,
        inputs: Tensor | None,
        scale: int,
        schedule: Schedule,
        cache: KVCache,
        mixed: Mapping[int, float] = NOWHERE,
    ) -> Tensor:
        """Logits ``(N, L, D, 2)`` of the bits of one scale, and its keys and values into the cache.

        Args:
            condition: Of the text, one row per row of the cache.
            inputs: As in `embed`.
            scale: Which scale, the next one of the cache.
            schedule: All scales.
            cache: Keys and values of the scales before.
            mixed: Guidance scales by the number of a block: there the outputs of both branches, the first
                and the second half of the rows, give way to the guided one.
        """
        x = self.embed(condition, inputs, scale)
        rope = rotary(schedule.grids[scale], schedule.positions, self.config.head_dim, x.device)
        for layer, block in enumerate(self.blocks):
            past = partial(cache.extended, layer)
            x = block(x, condition.modulation, condition.text[layer], condition.mask, rope, past)
            if layer in mixed:
                cond, uncond = x.chunk(2)
                x = guided(cond, uncond, mixed[layer]).repeat(2, 1, 1)
        cache.grow(x.shape[1])
        return self.logits(x, condition)

    def forward(self, condition: TextCondition, inputs: Tensor, schedule: Schedule) -> Tensor:
        """Logits ``(N, T, D, 2)`` of all scales at once, each given the scales before it.

        Args:
            condition: Of the text.
            inputs: ``(N, T - L_0, D)`` inputs of all scales after the first.
            schedule: The scales.
        """
        starts = [s - schedule.lengths[0] for s in schedule.starts]
        parts = [self.embed(condition, None, 0)]
        for k in range(1, len(schedule)):
            parts.append(self.embed(condition, inputs[:, starts[k] : starts[k + 1]], k))
        x = torch.cat(parts, 1)
        tables = [rotary(g, schedule.positions, self.config.head_dim, x.device) for g in schedule.grids]
        rope = torch.cat(tables, 1)
        mask = block_causal(schedule, x.device)
        for layer, block in enumerate(self.blocks):
            x = block(x, condition.modulation, condition.text[layer], condition.mask, rope, None, mask)
        return self.logits(x, condition)

    def logits(self, x: Tensor, condition: TextCondition) -> Tensor:
        """Logits ``(N, L, D, 2)``; the second of a pair is that of a set bit."""
        scale, shift = condition.head.float().chunk(2, -1)
        x = modulated(x, scale, shift)
        return self.head(x.to(self.head.weight.dtype)).float().unflatten(-1, (self.config.bits, 2))


class Block(nn.Module):
    """Self attention over scales, cross attention to the text, feed-forward; modulated by the pooled text."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, config.width))
        self.sa = SelfAttention(config.width, config.heads)
        self.ca = CrossAttention(config)
        self.ca_norm = nn.LayerNorm(config.width, eps=EPS)
        self.ffn = FeedForward(config.width, config.hidden)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: tuple[Tensor, Tensor],
        text_mask: Tensor | None,
        rope: Tensor,
        past: Past | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = (self.ada_gss + modulation).float().unbind(2)
        x = x + gate1 * self.sa(modulated(x, scale1, shift1), rope, past, mask)
        x = x + self.ca(
            F.layer_norm(x, x.shape[-1:], self.ca_norm.weight.float(), self.ca_norm.bias.float(), EPS),
            text,
            text_mask,
        )
        return x + gate2 * self.ffn(modulated(x, scale2, shift2))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them.

    Args:
        width: Channels of a token.
        hidden: Channels between the layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.fc2, F.gelu(linear(self.fc1, x), approximate="tanh")).float()


class SelfAttention(nn.Module):
    """Attention with queries and keys of unit length and a learned scale per head.

    Args:
        width: Channels of a token.
        heads: Attention heads.
    """

    zero_k_bias: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale_mul_1H11 = nn.Parameter(torch.empty(1, heads, 1, 1))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Tensor | None, past: Past | None, mask: Tensor | None) -> Tensor:
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        weight = self.mat_qkv.weight
        qkv = F.linear(x.to(weight.dtype), weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = F.normalize(q.float(), dim=-1) * self.scale_mul_1H11.float().clamp_max(math.log(100)).exp()
        k = F.normalize(k.float(), dim=-1)
        if rope is not None:
            q, k = rotated(q, rope), rotated(k, rope)
        if past is not None:
            k, v = past(k, v)
        v = v.to(k.dtype)
        out = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask, scale=1.0)
        return linear(self.proj, out.transpose(1, 2).flatten(2)).float()


class CrossAttention(nn.Module):
    """Attention to the words of the prompt."""

    zero_k_bias: Tensor

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        W = config.width
        self.heads = config.heads
        self.mat_q = nn.Linear(W, W)
        self.mat_kv = nn.Linear(W, 2 * W, bias=False)
        self.v_bias = nn.Parameter(torch.empty(W))
        self.register_buffer("zero_k_bias", torch.zeros(W))
        self.proj = nn.Linear(W, W)

    def keys_values(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``(N, heads, L, head_dim)`` of words ``(N, L, W)``."""
        weight = self.mat_kv.weight
        kv = F.linear(words.to(weight.dtype), weight, torch.cat((self.zero_k_bias, self.v_bias)))
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        q = linear(self.mat_q, x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = text
        out = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask)
        return linear(self.proj, out.transpose(1, 2).flatten(2)).float()


class TextPool(nn.Module):
    """Pools the words of a prompt by one learned query per head."""

    zero_k_bias: Tensor

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        W, heads = config.width, config.pool_heads
        self.heads = heads
        self.mat_q = nn.Parameter(torch.empty(1, heads, W // heads))
        self.mat_kv = nn.Linear(config.text_dim, 2 * W, bias=False)
        self.v_bias = nn.Parameter(torch.empty(W))
        self.register_buffer("zero_k_bias", torch.zeros(W))
        self.proj = nn.Linear(W, W)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        weight = self.mat_kv.weight
        kv = F.linear(text.to(weight.dtype), weight, torch.cat((self.zero_k_bias, self.v_bias)))
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.mat_q.to(k.dtype)[:, :, None].expand(len(k), -1, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        return linear(self.proj, out.flatten(1)).float()


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without weights of its own, scaled and shifted by the condition; in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS) * (1 + scale) + shift


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer in the precision of its weights."""
    return layer(x.to(layer.weight.dtype))  # type: ignore[arg-type]


def rotary(grid: Grid, positions: Grid, head_dim: int, device: torch.device | str) -> Tensor:
    """Angles of the rotary embedding of a grid of tokens: ``(1, L, head_dim / 2)``.

    A token sits where it would in the grid `positions`; half of the pairs of channels turn with its row, the
    other half with its column.
    """
    (h, w), (rows, columns) = grid, positions
    half = head_dim // 2
    theta = 10_000 ** (-2 * torch.arange(half // 2, device=device).float() / half)
    row = (torch.arange(h, device=device) * (rows / h)).round()  # halves go to the even number
    column = (torch.arange(w, device=device) * (columns / w)).round()
    angles = torch.cat(
        (
            (row[:, None] * theta)[:, None].expand(h, w, -1),
            (column[:, None] * theta)[None].expand(h, w, -1),
        ),
        -1,
    )
    return angles.reshape(1, h * w, half)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Neighbouring pairs of channels of ``(N, heads, L, head_dim)``, turned by ``(1, L, head_dim / 2)``."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def block_causal(schedule: Schedule, device: torch.device | str) -> Tensor:
    """``(T, T)``, True where a token of a scale may look: at its own scale and all coarser ones."""
    lengths = torch.tensor(schedule.lengths, device=device)
    scale = torch.arange(len(schedule), device=device).repeat_interleave(lengths)
    return scale[:, None] >= scale[None]


def initialise(model: Infinity, generator: torch.Generator) -> Infinity:
    """Fresh weights to train from, in place.

    Gates and the output start small, so that each block starts near the identity.
    """
    width, depth = model.config.width, model.config.depth
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and "ca_norm" not in name:
                parameter.zero_()
            elif parameter.ndim >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        for block in model.blocks:
            block.sa.scale_mul_1H11.fill_(math.log(4))
            block.ada_gss.zero_()
            block.ada_gss[:, :, :2] = 0.1
            for out in (block.sa.proj, block.ca.proj, block.ffn.fc2):
                out.weight.div_(math.sqrt(2 * depth))
        for layer in ("shared_ada_lin.1", "head_nm.ada_lin.1", "head"):
            model.get_parameter(f"{layer}.weight").mul_(0.02)
        for embedding in (model.pos_start, model.lvl_embed.weight):
            embedding.normal_(std=width**-0.5, generator=generator)
        model.get_parameter("text_proj_for_sos.ca.mat_q").normal_(std=1.0, generator=generator)
    return model


def parameter_count(config: InfinityConfig) -> int:
    """Parameters of a transformer; makes none."""
    with torch.device("meta"):
        return sum(p.numel() for p in Infinity(config).parameters())


def macs_of_scale(config: InfinityConfig, schedule: Schedule, scale: int, words: int) -> int:
    """Multiply-accumulates of one row's pass over one scale: all linear layers and both attentions.

    Args:
        config: The transformer.
        schedule: The scales.
        scale: Which scale.
        words: Tokens of the prompt.
    """
    W, length = config.width, schedule.lengths[scale]
    seen = schedule.starts[scale + 1]
    layers = 4 * W * W + 2 * W * W + 2 * W * config.hidden
    attention = 2 * W * seen + 2 * W * words
    ends = (W * config.bits if scale else 0) + 2 * W * config.bits
    return length * (config.depth * (layers + attention) + ends)


def total_macs(
    config: InfinityConfig, schedule: Schedule, words: int, scales: Sequence[int] | None = None
) -> int:
    """Multiply-accumulates of one row's passes over some scales, by default all."""
    chosen = range(len(schedule)) if scales is None else scales
    return sum(macs_of_scale(config, schedule, k, words) for k in chosen)
