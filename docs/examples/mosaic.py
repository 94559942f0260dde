"""A sampler: a masked-token generator, 64 tokens of six colours that are unmasked in eight rounds."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from tts_vision import Condition, Cost, Media, ModelOptions, State, register
from tts_vision.plugins import Move, Renoise, Sampler, draw, row_uniform

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 70), "blue": (40, 80, 200)}
COLOURS |= {"yellow": (235, 205, 60), "white": (245, 245, 245), "black": (25, 25, 25)}
SIDE, MASK = 8, len(COLOURS)


class MosaicSampler(Sampler):
    """Fills a mosaic whose colours follow the words of the prompt, a few tokens in each step."""

    name = "mosaic"
    num_steps = 8
    last_noisy_step = 7
    capabilities = frozenset({"stochastic", "renoise", "moves", "preview"})

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
        # two numbers for each token, keyed by uid and step: which colour, and how early
        like = torch.empty(*tokens.shape, 2)
        colour, order = row_uniform(state.seed, "step", state.uids, state.step, like).unbind(-1)
        filled = torch.where(tokens == MASK, draw(probability, colour), tokens)
        rank = torch.where(tokens == MASK, order, -1.0).argsort(1)
        known = rank[:, : self._known(state.step + 1)]
        tokens = torch.full_like(tokens, MASK).scatter(1, known, filled.gather(1, known))
        return replace(state, latents=tokens, step=state.step + 1, carry={"preview": filled})

    def _probability(self, state: State) -> Tensor:
        """``(B, T, 6)``: neighbours agree, and colours that the prompt names are likelier."""
        words = [[word in condition.text for word in COLOURS] for condition in state.conditions]
        onehot = torch.nn.functional.one_hot(state.latents, MASK + 1)[..., :MASK].float()
        near = sum(onehot.roll(shift, 1) for shift in (-SIDE, -1, 1, SIDE))
        return (near + 2.0 * torch.tensor(words)[:, None]).softmax(-1)

    def _known(self, step: int) -> int:
        return round(SIDE * SIDE * step / self.num_steps)

    def renoise(self, state: State, to_step: int) -> State:
        order = row_uniform(state.seed, "renoise", state.uids, to_step, state.latents)
        rank = torch.where(state.latents == MASK, 2.0, order).argsort(1)
        known = rank[:, : self._known(to_step)]
        tokens = torch.full_like(state.latents, MASK).scatter(1, known, state.latents.gather(1, known))
        return replace(state, latents=tokens, step=to_step, carry={})

    def move(self, step: int, strength: float) -> Move | None:
        """Masks a share of the tokens again; there is no randomness to redo at step 0."""
        return Renoise(step - max(1, round(strength**2 * step))) if step else None

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
