"""The sampler of Janus and Janus-Pro: a decision step is one row of the grid of image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tts_vision.condition import Condition, distinct
from tts_vision.config import SamplerOptions
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.moves import Move, carried, register_move
from tts_vision.pipelines.tokens.janus import JanusPipeline, joined, pieces, select_rows, shape_of
from tts_vision.pipelines.tokens.network_sampler import NetworkSampler
from tts_vision.pipelines.var.cache import CacheRow
from tts_vision.registry import register
from tts_vision.rng import row_uniform
from tts_vision.sampler import Sampler, shared_rows
from tts_vision.tokens import draw, redrawn
from tts_vision.types import Cost, Decoded, Invalid, Rows, State

CACHE = "cache"
USED, GIVEN = (
    "used",
    "given",
)  # uniform numbers: of the rows drawn, and of the next one where a move gave some
TAIL = "tail"  # tokens of the finished sample that a particle was sent back from
UNKNOWN = -1


@register_move
@dataclass(frozen=True)
class RowNoise(Move):
    """Sends particles back by a row, which is drawn again with a share of its uniform numbers replaced.

    Each number is replaced by a fresh one with probability `share`. Whatever the share, tokens follow the
    model, because those behind a token that comes out otherwise are predicted anew; at 0 the row comes out
    as it was, at 1 it is drawn afresh. The row has to be computed again.
    """

    share: float
    name: ClassVar[str] = "row_noise"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(
                f"share must be in [0, 1] but got {self.share}; 0.1 draws a tenth of the tokens again."
            )

    def target(self, step: int) -> int:
        if step < 1:
            raise ConfigError(f"A row is drawn again after the first one, but the state is at step {step}.")
        return step - 1

    def noise_like(self, state: State) -> Tensor:
        return carried(state, GIVEN, "drawing a row again")

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        if not isinstance(sampler, JanusSampler):
            raise CapabilityError(
                f"Move {self.name!r} needs the sampler of Janus but got {sampler.name!r}; use "
                "ctx.mutation(step, strength), the sampler's own move."
            )
        numbers = redrawn(carried(state, USED)[:, -noise.shape[1] :], noise, self.share)
        back = sampler.first_rows(state, state.step - 1)
        return replace(back, carry={**back.carry, GIVEN: numbers})


@register(
    "sampler",
    "janus",
    paper="Wu et al. 2024, arXiv:2410.13848; Chen et al. 2025, arXiv:2501.17811",
    notes={"drives": "Janus and Janus-Pro by transformers"},
)
class JanusSampler(NetworkSampler):
    """Drives a Janus row by row of its grid of image tokens.

    The state's latents are the tokens of all rows done, ``(B, rows * width)``; keys and values, those of the
    branch without text with those of the branch with it, are pieces that descendants share. Rows whose
    tokens and conditions agree, such as fresh forks, share the first pass of a step, and all particles of a
    prompt share the pass over it.

    A preview needs tokens for the rows that are not drawn yet. Its ``info["real_tokens"]`` is the share of
    its tokens that are the particle's own.

    Args:
        pipe: The model.
        options: Settings of its call, and the preview's missing rows: ``decode`` takes those of the finished
            sample that the particle was sent back from, and where there is none repeats the last row;
            ``expected`` draws the next row greedily, at the price of a row, and repeats that; ``complete``
            draws all of them greedily, at their price.

    Raises:
        ConfigError: If a setting is none of the model's.
    """

    preview_shows_step = True
    capabilities = frozenset({"stochastic", "preview", "renoise", "moves"})

    def __init__(self, pipe: JanusPipeline, *, options: SamplerOptions | None = None) -> None:
        options = options or SamplerOptions()
        self._network = pipe.configured(options.pipeline_kwargs)
        super().__init__(pipe.name, self._network)
        options.refuse_rollout(pipe.name)
        self._preview = options.preview
        self.num_steps, self._width = self._network.grid
        self.last_noisy_step = self.num_steps - 1
        self._shape = shape_of(self._network)

    @staticmethod
    def accepts(pipe: Any) -> bool:
        """Whether `pipe` is a Janus."""
        return isinstance(pipe, JanusPipeline)

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        self.encode(condition)
        n, width = len(uids), self._width
        carry: dict[str, Tensor | Rows] = {
            CACHE: Rows([None] * n),
            USED: torch.empty(n, 0),
            GIVEN: torch.full((n, width), float(UNKNOWN)),
            TAIL: torch.full((n, self.num_steps * width), UNKNOWN),
        }
        return State.initial(torch.empty(n, 0, dtype=torch.int64), uids, condition, seed, carry)

    def recondition(self, state: State) -> State:
        """Takes up new conditions before the first row, and none later.

        Raises:
            ConfigError: If the model cannot take one of them.
            CapabilityError: If rows are drawn.
        """
        if state.step:
            raise CapabilityError(
                "A new condition must come before the first row, because the rows drawn and their cached "
                f"keys follow the old text, but the state is at row {state.step}; go back to step 0 or start "
                "with fresh particles."
            )
        for condition in distinct(state.conditions):
            self.encode(condition)
        return state

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            state = state.in_groups(lambda condition: condition, self._next_row)
        return state

    def move(self, step: int, strength: float) -> Move | None:
        return RowNoise(strength**2) if 1 <= step < self.num_steps else None

    def renoise(self, state: State, to_step: int) -> State:
        """The state with only its first `to_step` rows, so that new ones are drawn."""
        back = self.first_rows(state, to_step)
        if state.step < self.num_steps:
            return back
        return replace(back, carry={**back.carry, TAIL: state.latents})

    def first_rows(self, state: State, rows: int) -> State:
        """The state with only its first rows and their keys and values."""
        kept = rows * self._width
        carry = {
            **state.carry,
            CACHE: Rows(self._first(place, kept) for place in self._places(state)),
            USED: carried(state, USED)[:, :kept],
            GIVEN: torch.full_like(carried(state, GIVEN), UNKNOWN),
        }
        return replace(state, latents=state.latents[:, :kept], step=rows, carry=carry)

    def preview(self, state: State) -> list[Decoded]:
        if not state.step:
            raise CapabilityError(
                "A preview needs at least one row but the state has none yet; advance it first."
            )
        ahead = state
        if self._preview != "decode":
            for condition in distinct(state.conditions):
                rows = state.conditions.count(condition)
                self.meter.charge(self.preview_cost(condition, state.step) * rows)
            with self.meter.phase("denoise"):
                stop = state.step + 1 if self._preview == "expected" else self.num_steps
                ahead = state.in_groups(lambda condition: condition, lambda part: self._greedy(part, stop))
        previews = self.decoded(self._filled(ahead))
        for preview in previews:
            image = preview.media if isinstance(preview, Invalid) else preview
            image.info["real_tokens"] = f"{state.step / self.num_steps:.3f}"  # type: ignore[union-attr]
        return previews

    def preview_cost(self, condition: Condition, step: int) -> Cost:
        if self._preview == "decode" or step >= self.num_steps:
            return Cost()
        return self.cost(condition, step, 1 if self._preview == "expected" else self.num_steps - step)

    def decode(self, state: State) -> list[Decoded]:
        return self.decoded(state.latents)

    def plain(self, condition: Condition, uids: Sequence[int], *, seed: int) -> list[Decoded]:
        return self.decoded(self._network.samples(condition, seed, uids))

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        stop = (step + steps) * self._width
        return sum((self._pass_cost(condition, token) for token in range(step * self._width, stop)), Cost())

    def price(self, state: State, steps: int) -> Cost:
        total = super().price(state, steps)
        if steps and not state.is_placeholder:
            for i in set(range(len(state))) - set(shared_rows(state)[0]):
                total -= self._pass_cost(state.conditions[i], state.step * self._width)
        return total

    def _pass_cost(self, condition: Condition, token: int) -> Cost:
        """The cost of the pass that predicts a token: over the prompt for the first, over one token later."""
        words, n = self.words(condition), self._network.branches
        taken = 1 if token else words
        macs = self._network.macs(taken, words + token)
        return Cost(nfe=n, tokens=n * taken, macs=n * macs)

    def _next_row(self, state: State) -> State:
        """The state one row later, whose rows have one condition."""
        network, step, condition = self._network, state.step, state.conditions[0]
        first, of_row = shared_rows(state)
        encoded = self.encode(condition)
        numbers = self._numbers(state)
        self.meter.charge(self.price(state, 1))
        with self.meter.phase("denoise"):
            if step:
                before = [place.pieces for place in self._cached(state, encoded)]
                cache = joined([CacheRow(self._shape, before[i]) for i in first])
                logits = network.next(state.latents[first, -1], cache)
            else:
                cache, logits = network.start(encoded)
                before = [tuple(pieces(cache, self._shape, 0))] * len(state)
            done = sum(piece.tokens for piece in before[0])
            select_rows(cache, of_row, len(first), network.branches)
            logits = logits[torch.tensor(of_row, device=logits.device)]
            drawn: list[Tensor] = []
            for column in range(self._width):
                if drawn:
                    logits = network.next(drawn[-1], cache)
                drawn.append(draw(network.probability(logits), numbers[:, column]))
        if step + 1 < self.num_steps:  # nothing reads the keys of the last row
            new = pieces(cache, self._shape, done)
            before = [(*old, piece) for old, piece in zip(before, new, strict=True)]
        carry = {
            **state.carry,
            CACHE: Rows(CacheRow(self._shape, of_row) for of_row in before),
            USED: torch.cat([carried(state, USED), numbers], 1),
            GIVEN: torch.full_like(numbers, UNKNOWN),
        }
        tokens = torch.cat([state.latents, torch.stack(drawn, 1)], 1)
        return replace(state, latents=tokens, step=step + 1, carry=carry)

    def _numbers(self, state: State) -> Tensor:
        """The uniform numbers of the next row ``(B, width)``: those that a move gave, else fresh ones."""
        given = carried(state, GIVEN)
        return torch.where(given >= 0, given, row_uniform(state.seed, "step", state.uids, state.step, given))

    def _greedy(self, state: State, stop: int) -> State:
        """The state with the likeliest tokens of the rows up to `stop`, of one condition."""
        tokens = state.latents
        cache = joined(self._cached(state, self.encode(state.conditions[0])))
        while tokens.shape[1] < stop * self._width:
            logits = self._network.next(tokens[:, -1], cache)
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True).cpu()], 1)
        return replace(state, latents=tokens)

    def _filled(self, state: State) -> Tensor:
        """All tokens ``(B, S)``, with those of the rows that are not drawn yet filled in."""
        tail, known = carried(state, TAIL), state.latents.shape[1]
        missing = self.num_steps - known // self._width
        repeated = state.latents[:, -self._width :].repeat(1, missing)
        rest = tail[:, known:]
        return torch.cat([state.latents, torch.where(rest == UNKNOWN, repeated, rest)], 1)

    def _places(self, state: State) -> Sequence[CacheRow | None]:
        places = state.carry.get(CACHE)
        return places if isinstance(places, Rows) else Rows([None] * len(state))

    def _first(self, place: CacheRow | None, tokens: int) -> CacheRow | None:
        """The pieces of the prompt and of so many tokens, of which the last one has not gone in yet."""
        if place is None or not tokens:
            return None
        return place.first(place.pieces[0].tokens + tokens - 1)

    def _cached(self, state: State, encoded: Tensor) -> list[CacheRow]:
        """Keys and values of all tokens but the last, which goes in next; there is one at least.

        They are made again where a state was read from disk; that was paid for in the session before.
        """
        places = [place for place in self._places(state) if place is not None]
        if len(places) == len(state):
            return places
        made = self._network.cached(encoded, state.latents[:, :-1])
        words, width = encoded.shape[1], self._width
        starts = [0, words, *range(words + width - 1, words + state.latents.shape[1] - 1, width)]
        stops = [*starts[1:], words + state.latents.shape[1] - 1]
        by_piece = [pieces(made, self._shape, start, stop) for start, stop in zip(starts, stops)]
        return [CacheRow(self._shape, of_row) for of_row in zip(*by_piece)]
