"""The sampler of masked-token models: a decision step unmasks some tokens of all particles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tts_vision.condition import ORIGINAL, Condition, distinct
from tts_vision.config import SamplerOptions
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.moves import PREVIEW, Blend, Move, carried, register_move
from tts_vision.pipelines.tokens.amused import AmusedTokens, is_amused
from tts_vision.pipelines.tokens.masked import (
    SETTINGS,
    Decoding,
    plain_codes,
    spread,
    step_noise,
)
from tts_vision.pipelines.tokens.model import TokenPipeline, split_settings
from tts_vision.pipelines.tokens.network_sampler import NetworkSampler
from tts_vision.registry import register
from tts_vision.rng import row_uniform
from tts_vision.sampler import Sampler, shared_rows
from tts_vision.types import Cost, Decoded, Rows, State

FAMILY = "masked"
UNMASKED = "unmasked"  # which tokens the last step made known
START = "start"  # factor on the share of tokens that is masked, 1 for whole images
ADOPTED = "adopted"  # of codes that stand for an image of the user
NOISE = "noise"  # of all steps, where it belongs to the initial state


@register_move
@dataclass(frozen=True)
class RemaskStep(Move):
    """Masks a share of the tokens that the last step made known, and goes back before that step.

    Each of them is masked with probability `share`. The step is then done, and paid for, once more, and draws
    the masked tokens again, given all others.
    """

    share: float
    name: ClassVar[str] = "remask_step"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share must be in [0, 1] but got {self.share}; 0.1 masks a tenth of them.")

    def target(self, step: int) -> int:
        if step < 1:
            raise ConfigError(f"Masking tokens again needs one step done but got {step}; advance first.")
        return step - 1

    def noise_like(self, state: State) -> Tensor:
        return carried(state, UNMASKED, "masking tokens again").float()

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        fresh = carried(state, UNMASKED, "masking tokens again")
        again = fresh & (torch.special.ndtr(noise.double()) < self.share)
        return _masked_sampler(sampler, self).back(state, again, self.target(state.step))


@register_move
@dataclass(frozen=True)
class RemaskTokens(Move):
    """Masks chosen tokens again, so that they alone are drawn anew, from the earlier `to_step` on.

    The masked tokens become known along the schedule from that step on, as those of a whole image would: an
    earlier step draws them more carefully, for a higher price.

    Attributes:
        tokens: Their numbers, row by row of the grid.
        to_step: From 1 on.
    """

    tokens: tuple[int, ...]
    to_step: int
    name: ClassVar[str] = "remask_tokens"
    draws_noise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # a trace has lists
        object.__setattr__(self, "tokens", tuple(sorted(set(map(int, self.tokens)))))
        if not self.tokens:
            raise ConfigError("At least one token must be masked but got none; name those to draw again.")

    def target(self, step: int) -> int:
        if not 1 <= self.to_step < step:
            raise ConfigError(
                f"Tokens are masked again from an earlier step on, at least 1, but got {self.to_step} for "
                f"particles at step {step}; change to_step."
            )
        return self.to_step

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        mask = torch.zeros(len(state), state.latents.shape[1], dtype=torch.bool)
        if not 0 <= self.tokens[0] <= self.tokens[-1] < mask.shape[1]:
            raise ConfigError(
                f"Tokens are numbered from 0 to {mask.shape[1] - 1} but got {self.tokens[0]} to "
                f"{self.tokens[-1]}; name others."
            )
        mask[:, list(self.tokens)] = True
        return _masked_sampler(sampler, self).remask(state, mask, self.to_step)


@register(
    "sampler",
    "masked",
    paper="MaskGIT (Chang et al. 2022, arXiv:2202.04200); Show-o (Xie et al. 2024, arXiv:2408.12528)",
    notes={"drives": "Show-o, aMUSEd and other masked-token models"},
)
class MaskedSampler(NetworkSampler):
    """Drives a network that predicts all masked tokens of an image; a step keeps the surest ones.

    The state's latents are the codes ``(B, S)``, of which ``V`` is a mask; at the end there is none.
    Particles whose codes and conditions agree, such as fresh forks or all of them at the start, share one
    evaluation; each then draws with noise of its own. The preview is the guess of the last step, a whole
    image.

    With ``stochastic=False`` the noise of all steps belongs to the initial state, as that of an ODE does: the
    latents of step 0 are standard normal ``(B, T, 2, S)``, whose numbers are those that a stochastic
    trajectory of the same particle draws on its way. So its neighbours can be searched, and other prompts
    tried under the same noise; copies do not differ.

    Args:
        pipe: The generator: a `TokenPipeline` of the family ``masked``, or diffusers' `AmusedPipeline`.
        options: Settings of its call (those of `Decoding`, and the network's own), and the preview:
            ``decode`` shows the guess as it was drawn, ``complete`` takes all further steps without noise.

    Raises:
        ConfigError: If a setting is neither the sampler's nor the network's, or cannot be.
        PipelineError: If the generator cannot be driven.
    """

    shares_forwards = True
    draws_start = True
    preview_shows_step = True
    images = frozenset({ORIGINAL})

    def __init__(self, pipe: Any, *, options: SamplerOptions | None = None) -> None:
        options = options or SamplerOptions()
        if is_amused(pipe):
            pipe = AmusedTokens(pipe)
        self._pipe: TokenPipeline = pipe
        self._settings = dict(options.pipeline_kwargs)
        own, networks = split_settings(pipe, SETTINGS, self._settings)
        self._network = pipe.configured(networks)
        super().__init__(pipe.name, self._network)
        self.grid = self._network.grid
        options.refuse_rollout(pipe.name)
        if options.preview == "expected":
            raise ConfigError(
                f"preview of {pipe.name} must be 'decode' or 'complete' but got 'expected', which is for "
                "scales of an image; use 'complete'."
            )
        self._completes = options.preview == "complete"
        self._decoding = Decoding(**own)
        self._tokens = self.grid[0] * self.grid[1]
        self._masks = self._decoding.masks(self._tokens)
        self.num_steps = self._decoding.num_inference_steps
        self._is_stochastic = options.stochastic is not False
        self.last_noisy_step = self.num_steps - 1 if self._is_stochastic else -1
        noise = "stochastic" if self._is_stochastic else "noise"
        can_move = not self._is_stochastic or self.num_steps > 1
        moves = ["moves"] if can_move else []
        self.capabilities = frozenset({noise, "preview", "renoise", "adopt", *moves})

    @staticmethod
    def accepts(pipe: Any) -> bool:
        """Whether `pipe` is a masked-token model."""
        return is_amused(pipe) or (isinstance(pipe, TokenPipeline) and pipe.family == FAMILY)

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        self.encode(condition)
        codes = torch.full((len(uids), self._tokens), self._network.vocabulary)
        state = State.initial(codes, uids, condition, seed)
        return self._placed(state, codes, 0)

    def recondition(self, state: State) -> State:
        for condition in distinct(state.conditions):
            self.encode(condition)
        return super().recondition(state)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            state = state.in_groups(lambda condition: condition, self._next)
        return state

    def price(self, state: State, steps: int) -> Cost:
        return super().price(state if state.is_placeholder else self._with_codes(state), steps)

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        n = self._network.branches * steps
        return Cost(nfe=n, tokens=n * self._tokens, macs=n * self._network.macs(self.words(condition)))

    def move(self, step: int, strength: float) -> Move | None:
        if step == 0:
            return None if self._is_stochastic else Blend(strength)
        # the noise of step 0 is all that a state has there
        first = 1 if self._is_stochastic else 2
        return RemaskStep(strength**2) if first <= step < self.num_steps else None

    def remasking(self, tokens: Sequence[int], to_step: int) -> Move:
        """The move that draws chosen tokens again and keeps the others; see `RemaskTokens`."""
        return RemaskTokens(tuple(tokens), to_step)

    def adopt(self, state: State, to_step: int, noise: Tensor) -> State:
        """The codes of images, which decode to the images themselves as long as none is drawn again."""
        with self.meter.phase("encode"):
            pixels = torch.stack([_pixels_of(self._original(c)) for c in state.conditions])
            codes = self._network.image_codes(pixels)
        carry = {START: torch.ones(len(state)), ADOPTED: torch.ones(len(state), dtype=torch.bool)}
        return replace(state, latents=codes, step=to_step, carry=carry)

    def _original(self, condition: Condition) -> Image.Image:
        """The image that a condition names `ORIGINAL`, at the size of samples.

        Raises:
            ConfigError: If it names none.
        """
        asset = condition.images.get(ORIGINAL)
        if asset is None or not isinstance(asset.value, Image.Image):
            raise ConfigError(
                f"An image is adopted from a condition that names {ORIGINAL!r} but it has images "
                f"{sorted(condition.images)}; add it."
            )
        return ImageOps.fit(asset.value.convert("RGB"), self._image_size, Image.Resampling.LANCZOS)

    @cached_property
    def _image_size(self) -> tuple[int, int]:
        """Width and height of samples."""
        height, width = self._network.pixels(torch.zeros(1, self._tokens, dtype=torch.long)).shape[-2:]
        return width, height

    def renoise(self, state: State, to_step: int) -> State:
        """The state with as many tokens masked as at an earlier step, chosen at random."""
        codes = self._codes(state)
        number = row_uniform(state.seed, "renoise", state.uids, to_step, codes)
        # those that are masked already come first
        order = torch.where(codes == self._network.vocabulary, -1.0, number).argsort(1)
        masked = torch.zeros_like(codes, dtype=torch.bool).scatter(1, order[:, : self._masks[to_step]], True)
        return self.back(replace(state, carry={}), masked, to_step)

    def remask(self, state: State, mask: Tensor, to_step: int) -> State:
        """The state with chosen tokens masked, at a step from which on only they are drawn.

        Args:
            state: Particles, finished or not; with uids of their own.
            mask: ``(B, S)`` bool.
            to_step: An earlier step, from 1 on; see `RemaskTokens`, which is this as a move.
        """
        masked = mask | (state.latents == self._network.vocabulary)
        start = masked.sum(1) / self._tokens / self._decoding.ratio_before(to_step)
        return self.back(replace(state, carry={START: start.float()}), masked, to_step)

    def back(self, state: State, again: Tensor, to_step: int) -> State:
        """The state at an earlier step with some tokens masked again, which fresh noise decides.

        Args:
            state: Particles, with uids of their own.
            again: ``(B, S)`` bool.
            to_step: The earlier step.
        """
        codes = torch.where(again, self._network.vocabulary, self._codes(state))
        return self._placed(state, codes, to_step)

    def preview(self, state: State) -> list[Decoded]:
        if not self._completes:
            return self.decoded(carried(state, PREVIEW, "a preview"))
        if not state.step:
            raise CapabilityError(
                "A preview needs at least one step but the state has none yet; advance it first."
            )
        return self.decoded(state.in_groups(lambda condition: condition, self._completed).latents)

    def preview_cost(self, condition: Condition, step: int) -> Cost:
        left = self.num_steps - step
        return self.cost(condition, step, left) if self._completes and left else Cost()

    def decode(self, state: State) -> list[Decoded]:
        if ADOPTED in state.carry:
            return [self._original(condition) for condition in state.conditions]
        return self.decoded(state.latents)

    def plain(self, condition: Condition, uids: Sequence[int], *, seed: int) -> list[Decoded]:
        codes = plain_codes(self._network, self._decoding, condition, seed, max(uids) + 1)
        return self.decoded(codes[list(uids)])

    def facts(self, condition: Condition) -> dict[str, Any]:
        own = {name: getattr(self._decoding, name) for name in SETTINGS}
        steps = own.pop("num_inference_steps")
        device = self._network.device.type
        settings = {"device": device, "pipeline_kwargs": self._settings}
        return {**super().facts(condition), "steps": steps, **own, **settings}

    def _next(self, state: State) -> State:
        """The state one step later, whose rows have one condition."""
        step, network = state.step, self._network
        codes = self._codes(state)
        first, of_row = shared_rows(self._with_codes(state))
        encoded = self.encode(state.conditions[0])
        self.meter.charge(self.cost(state.conditions[0], step, 1) * len(first))
        with self.meter.phase("denoise"):
            logits = network.logits(encoded, codes[first])
            logits = logits if len(first) == len(state) else logits[of_row]
            start = carried(state, START)
            uniform = spread(self._noise(state))
            guess, after = self._decoding.unmasked(step, logits, codes, uniform, start)
        known = (codes == network.vocabulary) & (after != network.vocabulary)
        carry: dict[str, Tensor | Rows] = {PREVIEW: guess, UNMASKED: known, START: start}
        if not self._is_stochastic:
            carry[NOISE] = state.carry[NOISE] if step else state.latents
        return replace(state, latents=after, step=step + 1, carry=carry)

    def _completed(self, state: State) -> State:
        """The rows, which have one condition, after all further steps without noise."""
        encoded, codes = self.encode(state.conditions[0]), state.latents
        self.meter.charge(self.preview_cost(state.conditions[0], state.step) * len(state))
        with self.meter.phase("denoise"):
            for step in range(state.step, self.num_steps):
                logits = self._network.logits(encoded, codes)
                _, codes = self._decoding.unmasked(step, logits, codes, None, carried(state, START))
        return replace(state, latents=codes, carry={})

    def _placed(self, state: State, codes: Tensor, step: int) -> State:
        """A state at a step, with codes; of its noises those of its uids."""
        start = state.carry.get(START)
        carry = {START: torch.ones(len(state)) if start is None else start}
        if not self._is_stochastic:
            noise = torch.stack(
                [step_noise(state.seed, state.uids, k, self._tokens) for k in range(self.num_steps)], 1
            )
            codes = codes if step else noise
            carry |= {NOISE: noise} if step else {}
        return replace(state, latents=codes, step=step, carry=carry)

    def _noise(self, state: State) -> Tensor:
        """The noise ``(B, 2, S)`` of the next step."""
        if self._is_stochastic:
            return step_noise(state.seed, state.uids, state.step, self._tokens)
        own = carried(state, NOISE) if state.step else state.latents
        return own[:, state.step]

    def _codes(self, state: State) -> Tensor:
        """The codes ``(B, S)`` of a state."""
        if state.step or self._is_stochastic:
            return state.latents
        return torch.full((len(state), self._tokens), self._network.vocabulary)

    def _with_codes(self, state: State) -> State:
        """The state with its codes as latents, by which rows are compared."""
        return replace(state, latents=self._codes(state))


def _pixels_of(image: Image.Image) -> Tensor:
    """An RGB image as pixels ``(3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def _masked_sampler(sampler: Sampler, move: Move) -> MaskedSampler:
    """The sampler, if it can make a move.

    Raises:
        CapabilityError: If it is no masked-token sampler.
    """
    if isinstance(sampler, MaskedSampler):
        return sampler
    raise CapabilityError(
        f"Move {move.name!r} masks tokens of a masked-token model but {sampler.name!r} is none; use "
        "ctx.mutation(step, strength), the sampler's own move."
    )
