"""The sampler of discrete flow matching: a decision step is one jump step of all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tts_vision.condition import Condition, distinct
from tts_vision.config import SamplerOptions
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.moves import PREVIEW, Move, carried, register_move
from tts_vision.pipelines.tokens.flow import DiscreteFlow, FlowSettings, flow_settings
from tts_vision.pipelines.tokens.model import TokenPipeline, split_settings
from tts_vision.pipelines.tokens.network_sampler import NetworkSampler
from tts_vision.registry import register
from tts_vision.rng import row_uniform
from tts_vision.sampler import Sampler, shared_rows
from tts_vision.tokens import draw, redrawn
from tts_vision.types import Cost, Decoded, Rows, State

FAMILY = "discrete_flow"
LIKELIEST = "likeliest"  # the likeliest tokens of the last step, for previews that show them


@register_move
@dataclass(frozen=True)
class PathNoise(Move):
    """Draws a share of the tokens again from their path, ``x_t ~ p_t(. | x1)``, towards the same targets.

    Each token is drawn again with probability `share`, given the target that the last step drew for it; at
    step 0 from the uniform distribution. Whatever the share, tokens stay distributed as the path is at
    their time. It takes no evaluation of the network.
    """

    share: float
    name: ClassVar[str] = "path_noise"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(
                f"share must be in [0, 1] but got {self.share}; 0.1 draws a tenth of the tokens again."
            )

    def noise_like(self, state: State) -> Tensor:
        return state.latents.float()  # tokens are whole numbers, noise is not

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        if not isinstance(sampler, DiscreteFlowSampler):
            raise CapabilityError(
                f"Move {self.name!r} needs the sampler of a discrete flow but got {sampler.name!r}; use "
                "ctx.mutation(step, strength), the sampler's own move."
            )
        fresh = redrawn(torch.full_like(noise, -1), noise, self.share)
        tokens = sampler.noised(state, fresh.clamp_min(0))
        return replace(state, latents=torch.where(fresh >= 0, tokens, state.latents))


@register(
    "sampler",
    "discrete_flow",
    paper="Shaul et al. 2024, arXiv:2412.03487; Wang et al. 2025, arXiv:2505.20147",
    notes={"drives": "FUDOKI and other discrete flows over metric-induced paths"},
)
class DiscreteFlowSampler(NetworkSampler):
    """Drives a network that predicts all tokens at time 1 from those at time t.

    A step draws targets ``x1`` from the prediction and lets tokens jump towards them; the last step takes
    the targets. The state's latents are the tokens ``x_t`` ``(B, S)``; the targets of the last step, a whole
    image, are the preview. Copies of a particle share one evaluation in their next step, and each draws
    targets of its own: several candidates from one set of logits.

    Args:
        pipe: The generator.
        options: Settings of its call (those of `FlowSettings`, and the network's own), and the preview:
            ``decode`` shows the targets that the last step drew, ``expected`` the likeliest ones.

    Raises:
        ConfigError: If a setting is neither the sampler's nor the network's, or cannot be.
    """

    shares_forwards = True
    draws_start = True
    preview_shows_step = True
    capabilities = frozenset({"stochastic", "preview", "renoise", "moves"})

    def __init__(self, pipe: TokenPipeline, *, options: SamplerOptions | None = None) -> None:
        options = options or SamplerOptions()
        own, networks = split_settings(pipe, vars(FlowSettings()), options.pipeline_kwargs)
        self._settings = flow_settings(own)
        self._network = pipe.configured(networks)
        super().__init__(pipe.name, self._network)
        options.refuse_rollout(pipe.name)
        if options.preview == "complete":
            raise ConfigError(
                f"preview of {pipe.name} must be 'decode' or 'expected' but got 'complete', which is for "
                "tokens that are drawn one after the other; use 'expected'."
            )
        self._shows_likeliest = options.preview == "expected"
        self._flow = DiscreteFlow(self._network, self._settings)
        self.num_steps = self._settings.num_steps
        self.last_noisy_step = self.num_steps - 1

    @staticmethod
    def accepts(pipe: Any) -> bool:
        """Whether `pipe` is a generator by discrete flow matching."""
        return isinstance(pipe, TokenPipeline) and pipe.family == FAMILY

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        self.encode(condition)
        return State.initial(self._flow.start(seed, uids), uids, condition, seed)

    def recondition(self, state: State) -> State:
        for condition in distinct(state.conditions):
            self.encode(condition)
        dropped = {PREVIEW, LIKELIEST}  # predicted for the old text
        return replace(state, carry={key: v for key, v in state.carry.items() if key not in dropped})

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            state = state.in_groups(lambda condition: condition, self._next)
        return state

    def move(self, step: int, strength: float) -> Move | None:
        return PathNoise(strength**2) if 0 <= step < self.num_steps else None

    def renoise(self, state: State, to_step: int) -> State:
        """The state drawn again at an earlier time of the paths to its tokens: exact, without evaluations.

        The tokens are those of a finished state, and the targets of the last step of one on its way.
        """
        like = state.latents.float()
        uniform = row_uniform(state.seed, "renoise", state.uids, to_step, like)
        targets = self._targets(state)
        tokens = self._flow.noised(targets, to_step, uniform)
        carry: dict[str, Tensor | Rows] = {}
        if to_step:
            carry = {PREVIEW: targets, **({LIKELIEST: targets} if self._shows_likeliest else {})}
        return replace(state, latents=tokens, step=to_step, carry=carry)

    def noised(self, state: State, uniform: Tensor) -> Tensor:
        """Tokens ``(B, S)`` drawn from the paths at the time of a state, to the targets of its last step."""
        targets = self._targets(state) if state.step else state.latents
        return self._flow.noised(targets, state.step, uniform)

    def preview(self, state: State) -> list[Decoded]:
        if not state.step:
            raise CapabilityError(
                "A preview needs at least one step but the state has none yet; advance it first."
            )
        return self.decoded(carried(state, LIKELIEST if self._shows_likeliest else PREVIEW, "a preview"))

    def decode(self, state: State) -> list[Decoded]:
        return self.decoded(state.latents)

    def plain(self, condition: Condition, uids: Sequence[int], *, seed: int) -> list[Decoded]:
        return self.decoded(self._flow.samples(condition, seed, uids))

    def facts(self, condition: Condition) -> dict[str, Any]:
        own = dict(vars(self._settings))
        return {**super().facts(condition), "steps": own.pop("num_inference_steps"), **own}

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        n = self._network.branches * steps
        macs = self._network.macs(self.words(condition))
        return Cost(nfe=n, tokens=n * self._flow.tokens, macs=n * macs)

    def _targets(self, state: State) -> Tensor:
        if state.step == self.num_steps:
            return state.latents
        return carried(state, PREVIEW, "going back along the path")

    def _next(self, state: State) -> State:
        """The state one step later, whose rows have one condition."""
        condition, step = state.conditions[0], state.step
        first, of_row = shared_rows(state)
        encoded = self.encode(condition)
        self.meter.charge(self.cost(condition, step, 1) * len(first))
        with self.meter.phase("denoise"):
            probability = self._flow.probability(encoded, state.latents[first])
            targets, *jump = self._flow.noise(state.seed, state.uids, step)
            numbers = targets.to(probability.device)
            # row by row, because probabilities are large
            x1 = torch.stack([draw(probability[i], u) for i, u in zip(of_row, numbers)]).cpu()
            carry: dict[str, Tensor | Rows] = {PREVIEW: x1}
            if self._shows_likeliest:
                carry[LIKELIEST] = probability.argmax(-1).cpu()[of_row]
            x = self._flow.moved(state.latents, x1, step, torch.stack(jump))
        return replace(state, latents=x, step=step + 1, carry=carry)
