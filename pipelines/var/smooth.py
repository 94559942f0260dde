"""Smooth features (``more_smooth`` of VAR, Tian et al. 2024): mixtures of embeddings in the place of tokens.

At each scale the embedding of the drawn token gives way to a mean of all embeddings, weighted by a
Gumbel-softmax that sharpens from scale to scale. For images to look at: samples no longer follow the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from tts_vision.moves import TOKEN_NOISE, TOKEN_PROBABILITY, Move, carried, register_move, with_latents
from tts_vision.tokens import BELOW_ONE, redrawn
from tts_vision.types import State

if TYPE_CHECKING:
    from tts_vision.pipelines.var_sampler import ScaleSampler
    from tts_vision.sampler import Sampler

_TINY = torch.finfo(torch.float32).tiny


def gumbel_weights(probability: Tensor, uniform: Tensor, ratio: float) -> Tensor:
    """The weights ``(B, L, V)`` of a scale's embeddings; they sum to 1 over V.

    Args:
        probability: ``(B, L, V)`` of each token; those that top-k and top-p dropped have 0, and get 0.
        uniform: ``(B, L, V)``, in [0, 1).
        ratio: How far along the scale is, from 0 at the first to 1 at the last.
    """
    gumbel = -(-uniform.clamp(_TINY, BELOW_ONE).log()).log()
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    return (((1 + ratio) * probability.log() + gumbel) / temperature).softmax(-1)


@register_move
@dataclass(frozen=True)
class SmoothNoise(Move):
    """Draws a share of the noise behind the last scale's mixtures again; see `TokenNoise`.

    Each uniform number, one for each embedding of each mixture, is replaced by a fresh one with probability
    `share`.
    """

    share: float
    name: ClassVar[str] = "smooth_noise"

    def noise_like(self, state: State) -> Tensor:
        return carried(state, TOKEN_NOISE, "drawing mixtures again")

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        uniform = carried(state, TOKEN_NOISE, "drawing mixtures again")
        probability = carried(state, TOKEN_PROBABILITY, "drawing mixtures again")
        fresh = redrawn(uniform, noise, self.share)
        drawn = cast("ScaleSampler", sampler).drawn(probability, fresh, state.step - 1)
        latents, length = state.latents.clone(), uniform.shape[1]
        changed = (fresh != uniform).any(-1, keepdim=True)
        latents[:, -length:] = torch.where(changed, drawn, latents[:, -length:])
        child = with_latents(state, latents)
        return replace(child, carry={**child.carry, TOKEN_NOISE: fresh})
