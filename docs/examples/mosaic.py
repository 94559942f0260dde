"""A sampler: a masked-token generator, 256 tokens of six colours that are unmasked in eight rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from tts_vision import ModelOptions
from tts_vision.plugins import Condition, Cost, Media, Move, Sampler, State, register, register_move
from tts_vision.rng import row_uniform
from tts_vision.tokens import draw, redrawn

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 70), "blue": (40, 80, 200)}
COLOURS |= {"yellow": (235, 205, 60), "white": (245, 245, 245), "black": (25, 25, 25)}
SIDE, MASK = 16, len(COLOURS)


@register_move
@dataclass(frozen=True)
class Redraw(Move):
    """Draws a share of the tokens of the last round again, with the probabilities that they had."""

    share: float
    name: ClassVar[str] = "redraw"

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        uniform = redrawn(state.carry["uniform"], noise, self.share)
        tokens = torch.where(state.carry["new"], draw(state.carry["probability"], uniform), state.latents)
        return replace(state, latents=tokens, carry={**state.carry, "uniform": uniform})


class MosaicSampler(Sampler):
    """Fills a mosaic whose colours follow the words of the prompt, some tokens in each step."""

    name = "mosaic"
    num_steps = 8
    last_noisy_step = 7
    preview_shows_step = True  # its preview has the tokens that the last step drew
    capabilities = frozenset({"stochastic", "moves", "renoise", "preview"})

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        return State.initial(torch.full((len(uids), SIDE * SIDE), MASK), uids, condition, seed)

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        return Cost(nfe=steps)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            self.meter.charge(self.price(state, 1))  # before it is spent
            with self.meter.phase("denoise"):
                state = self._unmask(state)
        return state

    def _unmask(self, state: State) -> State:
        tokens, probability = state.latents, self._probability(state)
        # two numbers for each token, keyed by uid and step: its colour, and its place in the order
        like = torch.empty(*tokens.shape, 2)
        uniform, order = row_uniform(state.seed, "step", state.uids, state.step, like).unbind(-1)
        filled = torch.where(tokens == MASK, draw(probability, uniform), tokens)
        known = self._first(torch.where(tokens == MASK, order, -1.0), state.step + 1)
        carry = {"preview": filled, "probability": probability, "uniform": uniform}
        carry["new"] = known & (tokens == MASK)
        return replace(state, latents=torch.where(known, filled, MASK), step=state.step + 1, carry=carry)

    def _probability(self, state: State) -> Tensor:
        """``(B, T, 6)``: neighbours agree, and colours that the prompt names are likelier."""
        words = [[word in condition.text for word in COLOURS] for condition in state.conditions]
        onehot = torch.nn.functional.one_hot(state.latents, MASK + 1)[..., :MASK].float()
        near = sum(onehot.roll(shift, 1) for shift in (-SIDE, -1, 1, SIDE))
        return (0.5 * near + 2.0 * torch.tensor(words)[:, None]).softmax(-1)

    def _first(self, order: Tensor, step: int) -> Tensor:
        """``(B, T)``: the tokens that are known after `step` rounds, the first ones in an order."""
        count = round(SIDE * SIDE * step / self.num_steps)
        return torch.zeros_like(order, dtype=torch.bool).scatter(1, order.argsort(1)[:, :count], True)

    def renoise(self, state: State, to_step: int) -> State:
        """Masks random tokens again."""
        order = row_uniform(state.seed, "renoise", state.uids, to_step, state.latents)
        kept = self._first(torch.where(state.latents == MASK, 2.0, order), to_step)
        return replace(state, latents=torch.where(kept, state.latents, MASK), step=to_step, carry={})

    def move(self, step: int, strength: float) -> Move | None:
        return Redraw(strength**2) if 0 < step < self.num_steps else None

    def preview(self, state: State) -> list[Media]:
        return self._images(state.carry["preview"])

    def decode(self, state: State) -> list[Media]:
        return self._images(state.latents)

    def _images(self, tokens: Tensor) -> list[Media]:
        with self.meter.phase("decode"):
            palette = torch.tensor([*COLOURS.values()], dtype=torch.uint8)
            grids = palette[tokens].view(-1, SIDE, SIDE, 3).numpy()
            return [Image.fromarray(grid).resize((64, 64), Image.Resampling.NEAREST) for grid in grids]


@register("model", "mosaic")
def mosaic(name: str = "mosaic", *, options: ModelOptions | None = None) -> MosaicSampler:
    """Coloured mosaics, without weights."""
    return MosaicSampler()
