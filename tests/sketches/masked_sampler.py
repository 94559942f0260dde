"""A masked-token model (MaskGIT, Chang et al. 2022; Show-o) as a sampler, small enough to have no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.moves import PREVIEW, Move, carried, register_move
from tts_vision.rng import row_uniform
from tts_vision.sampler import Sampler
from tts_vision.tokens import draw
from tts_vision.types import Cost, Media, State

SIDE, IDS = 4, 8
TOKENS = SIDE * SIDE
MASK = IDS  # the id of a token that is not known yet
UNMASKED = "unmasked"  # carried: 1 where the last step made a token known


@register_move
@dataclass(frozen=True)
class Remask(Move):
    """Masks a share of the tokens that the last step made known and sends the state back before that step.

    Each of them is masked with probability `share`. The step is done, and paid for, once more: it draws the
    masked tokens again, given all others. At 0 it gives the parent, at 1 a fresh draw of the step.
    """

    share: float
    name: ClassVar[str] = "remask"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share must be in [0, 1] but got {self.share}; 0.1 masks a tenth of them.")

    def target(self, step: int) -> int:
        if step < 1:
            raise ConfigError(f"Masking tokens again needs one step done but got {step}; advance first.")
        return step - 1

    def noise_like(self, state: State) -> Tensor:
        return carried(state, UNMASKED, "masking tokens again")

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        unmasked = carried(state, UNMASKED, "masking tokens again")
        again = (unmasked > 0) & (torch.special.ndtr(noise.double()) < self.share)
        latents = torch.where(again, MASK, state.latents)
        return replace(state, latents=latents, step=self.target(state.step), carry={})


class MaskedSampler(Sampler):
    """Draws all masked tokens at each step and keeps those that it is surest of.

    A token tends to agree with its neighbours and with the favourite id of the prompt.

    Args:
        num_steps: Steps until all tokens are known.
    """

    name = "masked"
    preview_shows_step = True
    capabilities = frozenset({"stochastic", "preview", "renoise", "moves"})

    def __init__(self, num_steps: int = 6) -> None:
        self.num_steps, self.last_noisy_step = num_steps, num_steps - 1

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        return State.initial(torch.full((len(uids), TOKENS), MASK), uids, condition, seed)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            self.meter.charge(self.price(state, 1))
            with self.meter.phase("denoise"):
                state = self._unmask(state)
        return state

    def move(self, step: int, strength: float) -> Move | None:
        return Remask(strength**2) if 1 <= step < self.num_steps else None

    def renoise(self, state: State, to_step: int) -> State:
        """The state with as many tokens, chosen at random, as are known at `to_step`."""
        like = state.latents.float()
        order = row_uniform(state.seed, "renoise", state.uids, to_step, like).argsort(1)
        known = order[:, : self._known(to_step)]
        latents = torch.full_like(state.latents, MASK).scatter(1, known, state.latents.gather(1, known))
        return replace(state, latents=latents, step=to_step, carry={})

    def preview(self, state: State) -> list[Media]:
        return self._images(carried(state, PREVIEW, "a preview"))

    def decode(self, state: State) -> list[Media]:
        return self._images(state.latents)

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        return Cost(nfe=steps, tokens=TOKENS * steps)

    def probability(self, tokens: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """The probabilities ``(B, TOKENS, IDS)`` of all tokens, given the known ones of ``(B, TOKENS)``."""
        known = torch.nn.functional.one_hot(tokens, IDS + 1)[..., :IDS].float()
        favourite = torch.nn.functional.one_hot(torch.tensor([favourite_of(c) for c in conditions]), IDS)
        neighbours = known.roll(1, 1) + known.roll(-1, 1)
        return (1.5 * neighbours + known.mean(1, keepdim=True) + favourite[:, None]).softmax(-1)

    def _unmask(self, state: State) -> State:
        tokens, masked = state.latents, state.latents == MASK
        probability = self.probability(tokens, state.conditions)
        # two draws of one step have keys of their own
        drawing = row_uniform(state.seed, "step", state.uids, 2 * state.step, probability[..., 0])
        ranking = row_uniform(state.seed, "step", state.uids, 2 * state.step + 1, probability[..., 0])
        drawn = torch.where(masked, draw(probability, drawing), tokens)
        sureness = probability.gather(-1, drawn[..., None])[..., 0].log() + ranking
        order = torch.where(masked, sureness, torch.inf).argsort(1, descending=True)
        known = order[:, : self._known(state.step + 1)]
        latents = torch.full_like(tokens, MASK).scatter(1, known, drawn.gather(1, known))
        carry = {PREVIEW: drawn, UNMASKED: (masked & (latents != MASK)).float()}
        return replace(state, latents=latents, step=state.step + 1, carry=carry)

    def _known(self, step: int) -> int:
        """The number of tokens that are known after `step` steps."""
        return round(TOKENS * step / self.num_steps)

    def _images(self, tokens: Tensor) -> list[Media]:
        with self.meter.phase("decode"):
            greys = (tokens * 255 // IDS).to(torch.uint8).view(-1, SIDE, SIDE)
            return [Image.fromarray(np.asarray(grey)).convert("RGB") for grey in greys]


def favourite_of(condition: Condition) -> int:
    """The id that a prompt prefers."""
    return sum(map(ord, condition.text)) % IDS
