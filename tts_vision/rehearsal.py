"""The cost of a search, found by running its algorithm on stand-ins that charge and compute nothing.

So no algorithm plans its own spending: the largest size that a budget pays for is the largest whose rehearsal
fits. Where the cost depends on scores, the rehearsal is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Asset, Condition, distinct
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError, TTSVisionError
from tts_vision.ledger import Remaining
from tts_vision.media import open_image
from tts_vision.moves import PREVIEW, Move
from tts_vision.sampler import RewardFunction, Sampler
from tts_vision.trace import answers
from tts_vision.types import Cost, FeatureExtractor, Media, Modality, Prompt, Score, State, Video
from tts_vision.verifier import ALONE, Asked, Verifier

_TRIED = (1, 2, 3, 4, 6, 8, 16, 32, 64)  # sizes among which the smallest valid one is looked for
_MOST = 10**6
_FAR = 32  # a cost that is the same at so many times the size does not depend on it
_UNITS = ("nfe", "tokens", "macs", "verifier_calls")


class StandInSampler(Sampler):
    """Charges like the sampler that it stands for, and computes nothing.

    Where rows of equal latents share forwards, latents are the uids by which each step was drawn, so that
    rows share as much as those of the real sampler do, unless these agree by chance.
    """

    def __init__(self, real: Sampler) -> None:
        self.real = real
        self.name, self.modality, self.num_steps = real.name, real.modality, real.num_steps
        self.last_noisy_step, self.shares_forwards = real.last_noisy_step, real.shares_forwards
        self.capabilities, self.preview_shows_step = real.capabilities, real.preview_shows_step
        self.grid = real.grid
        self.draws_start = real.draws_start
        self.units, self.branch_noise = real.units, real.branch_noise

    def condition_of(self, prompt: Prompt) -> Condition:
        return self.real.condition_of(prompt)

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        self.cost(condition, 0, 1)  # refuses what the real one refuses here
        state = State.initial(torch.zeros(len(uids), 0), uids, condition, seed)
        own = self.draws_start or not self.shares_forwards
        return replace(state, latents=_marks(state)) if own else state

    def recondition(self, state: State) -> State:
        for condition in distinct(state.conditions):
            self.cost(condition, 0, 1)
        return super().recondition(state)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps if self.shares_forwards else 1):
            taken = 1 if self.shares_forwards else steps
            self.meter.charge(self.price(state, taken))
            latents = state.latents
            if self.shares_forwards:
                latents = torch.cat([latents, _marks(state)], 1)
            carry: dict[str, Any] = {PREVIEW: latents}
            state = replace(state, latents=latents, step=state.step + taken, carry=carry)
        return state

    def decode(self, state: State) -> list[Media]:
        if self.modality == "video":
            return [Video(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))] * len(state)
        return [Image.new("RGB", (8, 8))] * len(state)

    def preview(self, state: State) -> list[Media]:
        for condition in state.conditions:
            self.meter.charge(self.preview_cost(condition, state.step))
        return self.decode(state)

    def preview_cost(self, condition: Condition, step: int) -> Cost:
        return self.real.preview_cost(condition, step)

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        return self.real.cost(condition, step, steps)

    def gradient(self, state: State, steps: int, reward: RewardFunction) -> State:
        for condition in state.conditions:
            self.meter.charge(self.gradient_cost(condition, state.step, steps))
        flat = torch.ones(len(state))
        carry = {
            PREVIEW: state.latents,
            "reward": flat.double(),
            "gradient": torch.ones_like(state.latents),
            "gradient_scale": flat,
            "guidance_gain": flat,
        }
        return replace(state, step=state.step + steps, carry=carry)

    def gradient_cost(self, condition: Condition, step: int, steps: int) -> Cost:
        return self.real.gradient_cost(condition, step, steps)

    def move(self, step: int, strength: float) -> Move | None:
        return self.real.move(step, strength)

    def remasking(self, tokens: Sequence[int], to_step: int) -> Move | None:
        return self.real.remasking(tokens, to_step)

    def apply(self, move: Move, state: State) -> State:
        step = move.target(state.step)
        latents = state.latents
        if self.shares_forwards:
            latents = latents[:, : step + self.draws_start].clone()
            goes_back = self.draws_start and step < state.step
            if (move.draws_noise or goes_back) and latents.shape[1]:
                latents[:, -1:] = _marks(state)
        return replace(state, latents=latents, step=step)


class StandInVerifier(Verifier):
    """Announces the calls of the verifier that it stands for, and looks at nothing.

    Its scores are equal within a call, so that resampling copies as little as it can, and rise from call to
    call, so that no search stops for lack of progress. Questions get the verdict that is expected.

    Attributes:
        expected: The verdict of the next answers.
    """

    def __init__(self, real: Verifier) -> None:
        self.real, self.name, self.accepts = real, real.name, real.accepts
        self.differentiable, self.questions = real.differentiable, real.questions
        self.checks_demands = real.checks_demands
        self.expected = True
        self._asked = 0

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        self._asked += 1
        return [Score(value=float(self._asked))] * len(media)

    def calls(self, n: int) -> dict[str, int]:
        return self.real.calls(n)

    def answer(self, question: str, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(value=float(self.expected), satisfied=self.expected)] * len(media)

    def calls_to_answer(self, question: str, n: int) -> dict[str, int]:
        return self.real.calls_to_answer(question, n)


class StandInFeatures:
    """Embeddings that all differ."""

    name = "stand-in"
    accepts: frozenset[Modality] = frozenset({"image", "video"})

    def features(self, media: Sequence[Media]) -> Tensor:
        return torch.rand(len(media), 4, generator=torch.Generator().manual_seed(len(media)))


class EvenDraws(np.random.Generator):
    """Draws arrays of one half, with which every scheme resamples equal weights into the fewest copies."""

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        return super().random() if size is None else np.full(size, 0.5, dtype)


class Rehearsal(SearchContext):
    """A context on stand-ins: operations cost what they would and nobody is asked.

    Args:
        real: The context that the search will run in; it is left as it is, but for generators that it opens.
    """

    def __init__(self, real: SearchContext) -> None:
        find = None if real.open_sampler is None else lambda name: StandInSampler(real.using(name).sampler)
        super().__init__(
            StandInSampler(real.sampler),
            StandInVerifier(real.verifier),
            real.prompt,
            seed=real.seed,
            max_batch=real.max_batch,
            open_sampler=find,
        )
        self._chunk, self._early = real._chunk, real._may_end_early
        self._journal = real._engine.journal

    @property
    def _may_end_early(self) -> bool:
        return self._early

    def rng(self) -> np.random.Generator:
        return EvenDraws(super().rng().bit_generator)

    def extractor(self, name: str) -> FeatureExtractor:
        super().extractor(name)  # refuses what the search would refuse
        return StandInFeatures()

    def another_verifier(self, text: str) -> Verifier:
        return StandInVerifier(super().another_verifier(text))

    def measure(self, state: State, key: str) -> Tensor:
        return torch.zeros(len(state), dtype=torch.float64)

    def ask(
        self,
        name: str,
        function: Callable[..., Any],
        *arguments: Any,
        cost: Cost | Mapping[str, int] | None = None,
        expected: Any = None,
        about: State | None = None,
    ) -> Any:
        return super().ask(name, lambda: expected, cost=cost)

    def judge(self, state: State, question: str, *, expected: bool = True) -> list[Score]:
        assert isinstance(self.verifier, StandInVerifier)
        self.verifier.expected = expected
        return super().judge(state, question)

    def image(self, source: str) -> Asset:
        known = next(answers(self._journal.events, "image"), None)
        # a search that is resumed has it, perhaps without the file
        return Asset.of(open_image(source)) if known is None else self._journal.asset(known.value)

    def warn(self, message: str) -> None:
        return None

    def using(self, generator: Sampler | str) -> SearchContext:
        if isinstance(generator, str):
            return super().using(generator)
        return super().using(self._others.get(generator.name) or StandInSampler(generator))


def rehearse(ctx: SearchContext, algorithm: Callable[..., Any], params: Mapping[str, Any]) -> Cost | None:
    """The cost of a search, at most; None if it would finish and score no sample.

    Args:
        ctx: The context that the search will run in; it is left as it is.
        algorithm: The search.
        params: All parameters, the size included.
    """
    stage = Rehearsal(ctx)
    try:
        algorithm(stage, **params)
    except TTSVisionError:
        raise
    except Exception as error:
        raise ConfigError(
            "A search is sized by running its algorithm on a stand-in, with equal scores and the `expected` "
            f"answers, but that raised {type(error).__name__}: {error}; give the size, or an `expected` "
            "answer to each ctx.ask."
        ) from error
    return stage.ledger.spent if stage.candidates else None


def largest_size(
    ctx: SearchContext, algorithm: Callable[..., Any], params: Mapping[str, Any], size: str
) -> int | None:
    """The largest value of the size parameter that the rest of the budget pays for; 0 if none does.

    None if other parameters decide the size, so that the algorithm refuses this one or ignores it, or if
    nothing that the budget limits grows with it.

    Raises:
        ConfigError: If the algorithm refuses its parameters, at any but the smallest sizes.
    """
    left = ctx.ledger.remaining()  # the answer is recorded as a whole, so nothing in it is
    known: dict[int, Cost | None] = {}
    refusals: dict[int, ConfigError] = {}

    def cost(n: int) -> Cost | None:
        if n not in known:
            known[n] = None
            try:
                known[n] = rehearse(ctx, algorithm, {**params, size: n})
            except ConfigError as error:
                refusals[n] = error
        return known[n]

    def fits(n: int) -> bool:
        price = cost(n)
        if n in refusals:
            raise refusals[n]
        return price is not None and left.affords(price)

    least = next((n for n in _TRIED if cost(n) is not None), 0)  # some need two particles or more
    if not least and refusals:
        rehearse(ctx, algorithm, params)  # refused without the size as well: raises
        return None
    if not least:
        raise ConfigError(
            f"An algorithm must finish and score a sample but this one does not at sizes {_TRIED[0]} to "
            f"{_TRIED[-1]}; score the finished state with ctx.score."
        )
    if _limited(left, cost(least)) == _limited(left, cost(2 * least)) == _limited(left, cost(_FAR * least)):
        return None
    if not fits(least):
        return 0

    def share(n: int) -> float:
        return _share(left, cost(n))

    low, high = least, 2 * least
    while fits(high):
        if high >= _MOST:
            return high
        # most costs are affine in the size, so two of them tell where the budget ends
        guess = _crossing(low, high, share)
        low, high = high, min(max(math.floor(guess), high + 1), _FAR * high)
    halves = False
    while (width := high - low) > 1:
        guess = (low + high) / 2 if halves else _crossing(low, high, share)
        middle = min(max(math.floor(guess), low + 1), high - 1)
        low, high = (middle, high) if fits(middle) else (low, middle)
        halves = not halves and 2 * (high - low) > width
    return low


def _limited(left: Remaining, cost: Cost | None) -> dict[str, float] | None:
    """The part of a cost that counts against the limits."""
    if cost is None:
        return None
    units = {unit: getattr(cost, unit) for unit in _UNITS if getattr(left, unit) is not None}
    return units if left.seconds is None else {**units, "seconds": left.forecast(cost)}


def _share(left: Remaining, cost: Cost | None) -> float:
    """The share of the tightest limit that a cost takes."""
    limited = _limited(left, cost)
    if limited is None:
        return math.inf
    return max(
        (price / has if (has := getattr(left, unit)) > 0 else math.inf for unit, price in limited.items()),
        default=0.0,
    )


def _crossing(low: int, high: int, share: Callable[[int], float]) -> float:
    """Where a limit is reached, on the line through the shares that two sizes take."""
    before, after = share(low), share(high)
    if not before < after < math.inf:
        return (low + high) / 2 if after > 1 else 2.0 * high
    return low + (high - low) * (1 - before) / (after - before)


def _marks(state: State) -> Tensor:
    return torch.tensor(state.uids, dtype=torch.float32)[:, None]
