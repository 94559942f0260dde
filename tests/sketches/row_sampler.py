"""A model that predicts an image's tokens in raster order, one row of the grid at a time, as a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import CapabilityError
from tts_vision.moves import TOKEN_NOISE, TOKEN_PROBABILITY, Move, TokenNoise
from tts_vision.rng import row_uniform
from tts_vision.sampler import Sampler, shared_rows
from tts_vision.tokens import draw
from tts_vision.types import Cost, Media, State


class RowSampler(Sampler):
    """A decision step is one row of tokens, all of which follow from the rows above.

    A token tends to continue the three above it and towards the favourite id of the prompt. Particles whose
    rows so far and prompts agree share one forward.

    Args:
        rows: Rows of the grid, which are the steps.
        columns: Tokens of each.
        ids: Size of the vocabulary.
    """

    name = "rows"
    shares_forwards = True
    preview_shows_step = True
    capabilities = frozenset({"stochastic", "preview", "renoise", "moves"})

    def __init__(self, rows: int = 6, columns: int = 5, ids: int = 7) -> None:
        self.columns, self.ids = columns, ids
        self.num_steps, self.last_noisy_step = rows, rows - 1

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        return State.initial(torch.empty(len(uids), 0, dtype=torch.int64), uids, condition, seed)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            self.meter.charge(self.price(state, 1))
            with self.meter.phase("denoise"):
                state = self._next_row(state)
        return state

    def move(self, step: int, strength: float) -> Move | None:
        return TokenNoise(strength**2) if 1 <= step < self.num_steps else None

    def renoise(self, state: State, to_step: int) -> State:
        """The state with only its first `to_step` rows."""
        return replace(state, latents=state.latents[:, : to_step * self.columns], step=to_step, carry={})

    def preview(self, state: State) -> list[Media]:
        """The rows so far, the last of them repeated to the full height."""
        if not state.step:
            raise CapabilityError(
                "A preview needs at least one row but the state has none; advance it first."
            )
        missing = (self.num_steps - state.step) * self.columns
        last = state.latents[:, -self.columns :].repeat(1, self.num_steps)[:, :missing]
        return self._images(torch.cat([state.latents, last], 1))

    def decode(self, state: State) -> list[Media]:
        return self._images(state.latents)

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        # every token attends to all tokens up to the end of its row
        attended = sum(self.columns * (row + 1) for row in range(step, step + steps))
        return Cost(nfe=steps, tokens=steps * self.columns, macs=self.columns * attended)

    def probability(self, tokens: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """The probabilities ``(B, columns, ids)`` of the next row, given all ``(B, T)`` tokens before it."""
        favourites = torch.tensor([sum(map(ord, c.text)) % self.ids for c in conditions])
        logits = torch.nn.functional.one_hot(favourites, self.ids).float()[:, None].repeat(1, self.columns, 1)
        if tokens.shape[1]:
            above = torch.nn.functional.one_hot(tokens[:, -self.columns :], self.ids).float()
            logits += 1.2 * above + 0.5 * (above.roll(1, 1) + above.roll(-1, 1))
        return logits.softmax(-1)

    def _next_row(self, state: State) -> State:
        first, of_row = shared_rows(state)
        computed = state.select(first)
        probability = self.probability(computed.latents, computed.conditions)[of_row]
        uniform = row_uniform(state.seed, "step", state.uids, state.step, probability[..., 0])
        latents = torch.cat([state.latents, draw(probability, uniform)], 1)
        carry = {TOKEN_NOISE: uniform, TOKEN_PROBABILITY: probability}
        return replace(state, latents=latents, step=state.step + 1, carry=carry)

    def _images(self, tokens: Tensor) -> list[Media]:
        with self.meter.phase("decode"):
            greys = (tokens * 255 // self.ids).to(torch.uint8).view(-1, self.num_steps, self.columns)
            return [Image.fromarray(np.asarray(grey)).convert("RGB") for grey in greys]
