"""VAR's transformer: predicts the tokens of a scale at once, of a class of images, from all coarser scales.

Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction". Plain
torch; the parameters are named as in the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tts_vision.pipelines.var.cache import KVCache
from tts_vision.pipelines.var.infinity import (
    FeedForward,
    Past,
    SelfAttention,
    block_causal,
    linear,
    modulated,
)
from tts_vision.pipelines.var.schedules import Schedule


def square(*sides: int) -> Schedule:
    """A schedule of square grids."""
    grids = tuple((side, side) for side in sides)
    return Schedule(grids, grids[-1])


SCHEDULE_256 = square(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCHEDULE_512 = square(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclass(frozen=True)
class VARConfig:
    """Architecture of a transformer.

    Attributes:
        depth: Blocks.
        width: Channels ``W`` of a token.
        heads: Attention heads.
        schedule: The scales; every token of them has a learned position.
        shared_modulation: Whether blocks share the map from the class to their modulation.
        vocabulary: Tokens ``V`` to choose from.
        channels: Of the tokenizer's features.
        classes: Classes that can be drawn; one more embedding stands for none of them.
    """

    depth: int
    width: int
    heads: int
    schedule: Schedule = SCHEDULE_256
    shared_modulation: bool = False
    vocabulary: int = 4096
    channels: int = 32
    classes: int = 1000

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Hidden channels of the feed-forward layers."""
        return 4 * self.width


SIZES = {
    "d16": VARConfig(16, 1024, 16),
    "d20": VARConfig(20, 1280, 20),
    "d24": VARConfig(24, 1536, 24),
    "d30": VARConfig(30, 1920, 30),
    "d36": VARConfig(36, 2304, 36, SCHEDULE_512, shared_modulation=True),
}


@dataclass(frozen=True)
class ClassCondition:
    """A class as all scales take it; computed once per prompt.

    Attributes:
        pooled: ``(N, W)``, also the input of scale 0.
        modulation: ``(N, 1, 6, W)`` of each block.
        head: ``(N, 1, 2 W)`` modulation of the last layer.
    """

    pooled: Tensor
    modulation: tuple[Tensor, ...]
    head: Tensor

    def rows(self, copies: int) -> ClassCondition:
        """Each row `copies` times: of one class per branch of guidance, a batch of particles."""

        def of(x: Tensor) -> Tensor:
            return x.repeat_interleave(copies, 0)

        return ClassCondition(of(self.pooled), tuple(of(m) for m in self.modulation), of(self.head))


class VAR(nn.Module):
    """The transformer.

    Args:
        config: Its architecture.
    """

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = config
        W = config.width
        self.class_emb = nn.Embedding(config.classes + 1, W)
        self.pos_start = nn.Parameter(torch.empty(1, config.schedule.lengths[0], W))
        self.pos_1LC = nn.Parameter(torch.empty(1, config.schedule.starts[-1], W))
        self.lvl_embed = nn.Embedding(len(config.schedule), W)
        self.word_embed = nn.Linear(config.channels, W)
        if config.shared_modulation:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(W, 6 * W))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = nn.ModuleDict({"ada_lin": nn.Sequential(nn.SiLU(), nn.Linear(W, 2 * W))})
        self.head = nn.Linear(W, config.vocabulary)

    @property
    def no_class(self) -> int:
        """The label of no class, for guidance."""
        return self.config.classes

    def condition(self, labels: Tensor) -> ClassCondition:
        """Classes ``(N,)`` as all scales take them."""
        pooled = self.class_emb(labels)
        shared = self.shared_ada_lin(pooled) if self.config.shared_modulation else None
        return ClassCondition(
            pooled=pooled,
            modulation=tuple(block.modulation(pooled, shared) for block in self.blocks),  # type: ignore[operator]
            head=self.head_nm["ada_lin"](pooled)[:, None],
        )

    def embed(self, condition: ClassCondition, inputs: Tensor | None, scale: int) -> Tensor:
        """The tokens ``(N, L, W)`` that go into the first block.

        Args:
            condition: Of the class.
            inputs: ``(N, L, C)`` sum of the scales before, at the size of this one; None at scale 0.
            scale: Which scale.
        """
        starts = self.config.schedule.starts
        place = self.lvl_embed.weight[scale] + self.pos_1LC[:, starts[scale] : starts[scale + 1]]
        x = condition.pooled[:, None] + self.pos_start if inputs is None else linear(self.word_embed, inputs)
        return x.float() + place

    def scale(self, condition: ClassCondition, inputs: Tensor | None, scale: int, cache: KVCache) -> Tensor:
        """Logits ``(N, L, V)`` of the tokens of one scale, and its keys and values into the cache.

        Args:
            condition: Of the class, one row per row of the cache.
            inputs: As in `embed`.
            scale: Which scale, the next one of the cache.
            cache: Keys and values of the scales before.
        """
        x = self.embed(condition, inputs, scale)
        for layer, block in enumerate(self.blocks):
            x = block(x, condition.modulation[layer], partial(cache.extended, layer))
        cache.grow(x.shape[1])
        return self.logits(x, condition)

    def forward(self, condition: ClassCondition, inputs: Tensor) -> Tensor:
        """Logits ``(N, T, V)`` of all scales at once, each given the scales before it.

        Args:
            condition: Of the class.
            inputs: ``(N, T - L_0, C)`` inputs of all scales after the first.
        """
        schedule = self.config.schedule
        parts = [self.embed(condition, None, 0)]
        for k, of_scale in enumerate(inputs.split(schedule.lengths[1:], 1), 1):
            parts.append(self.embed(condition, of_scale, k))
        x = torch.cat(parts, 1)
        mask = block_causal(schedule, x.device)
        for layer, block in enumerate(self.blocks):
            x = block(x, condition.modulation[layer], None, mask)
        return self.logits(x, condition)

    def logits(self, x: Tensor, condition: ClassCondition) -> Tensor:
        """Logits ``(N, L, V)``."""
        scale, shift = condition.head.float().chunk(2, -1)
        return linear(self.head, modulated(x, scale, shift)).float()


class Block(nn.Module):
    """Self attention over scales, feed-forward; modulated by the class."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        W = config.width
        if config.shared_modulation:
            self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, W))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(W, 6 * W))
        self.attn = SelfAttention(W, config.heads)
        self.ffn = FeedForward(W, config.hidden)

    def modulation(self, pooled: Tensor, shared: Tensor | None) -> Tensor:
        """Gates, scales and shifts ``(N, 1, 6, W)`` of classes: of its own map, or of the shared one."""
        if shared is None:
            dtype = self.attn.mat_qkv.weight.dtype
            return self.ada_lin(pooled.to(dtype)).float().unflatten(-1, (1, 6, -1))
        return self.ada_gss.float() + shared.float().unflatten(-1, (1, 6, -1))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        past: Past | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
        x = x + gate1 * self.attn(modulated(x, scale1, shift1), None, past, mask)
        return x + gate2 * self.ffn(modulated(x, scale2, shift2))


def parameter_count(config: VARConfig) -> int:
    """Parameters of a transformer; makes none."""
    with torch.device("meta"):
        return sum(p.numel() for p in VAR(config).parameters())


def macs_of_scale(config: VARConfig, scale: int) -> int:
    """Multiply-accumulates of one row's pass over one scale: all linear layers and attention."""
    W, schedule = config.width, config.schedule
    linears = 4 * W * W + 2 * W * config.hidden
    attention = 2 * W * schedule.starts[scale + 1]
    ends = (W * config.channels if scale else 0) + W * config.vocabulary
    return schedule.lengths[scale] * (config.depth * (linears + attention) + ends)


def total_macs(config: VARConfig, scales: Sequence[int] | None = None) -> int:
    """Multiply-accumulates of one row's passes over some scales, by default all."""
    return sum(macs_of_scale(config, k) for k in (range(len(config.schedule)) if scales is None else scales))
