"""Moves: how child particles are made from their parents.

Each is a small frozen dataclass that the trace records by its name and values. All act row by row, and draw
from the noise that they are given, which is keyed by each child's uid.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.tokens import draw, redrawn
from tts_vision.types import State

if TYPE_CHECKING:
    from tts_vision.sampler import Sampler

# Keys of `State.carry` that samplers fill and moves read.
STEP_NOISE = "step_noise"
STEP_NOISE_STD = "step_noise_std"
TOKEN_NOISE = "token_noise"
TOKEN_PROBABILITY = "token_probability"
PREVIEW = "preview"


class Move(ABC):
    """A way to make children.

    Attributes:
        name: How the trace calls it.
        needs: The capability of the sampler without which it cannot be made; none if empty.
        gradient_steps: Steps that the gradient carried by the parents went back through; 0 if it uses none.
        draws_noise: Whether `apply` uses its noise.
    """

    name: ClassVar[str]
    needs: ClassVar[str] = ""
    draws_noise: ClassVar[bool] = True

    @property
    def gradient_steps(self) -> int:
        return 0

    def target(self, step: int) -> int:
        """The step of children whose parents are at `step`.

        Raises:
            ConfigError: If parents at that step cannot have such children.
        """
        return step

    def noise_like(self, state: State) -> Tensor:
        """The tensor of `state`, ``(B, ...)``, that the noise is shaped as: by default its latents."""
        return state.latents

    @abstractmethod
    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        """The children.

        Args:
            sampler: The sampler of the state.
            state: One row for each child: its parent's, with the uid and the condition of the child.
            noise: Standard normal, shaped as `noise_like` says.
        """


MOVES: dict[str, type[Move]] = {}
Kind = TypeVar("Kind", bound=type[Move])


def register_move(kind: Kind) -> Kind:
    """Makes a move known to replays by its name; for moves beside their sampler or algorithm too."""
    MOVES[kind.name] = kind
    return kind


@register_move
@dataclass(frozen=True)
class Select(Move):
    """Copies of the parents: prune, reorder, resample. The first copy of a row keeps its uid."""

    name: ClassVar[str] = "select"
    draws_noise: ClassVar[bool] = False

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        return state


@register_move
@dataclass(frozen=True)
class Recondition(Move):
    """Copies of the parents that are generated for other conditions from here on."""

    name: ClassVar[str] = "recondition"
    draws_noise: ClassVar[bool] = False

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        return sampler.recondition(state)


@register_move
@dataclass(frozen=True)
class Renoise(Move):
    """Sends the parents back to the earlier `to_step` with fresh noise."""

    to_step: int
    name: ClassVar[str] = "renoise"
    needs: ClassVar[str] = "renoise"
    draws_noise: ClassVar[bool] = False  # the sampler draws its own

    def target(self, step: int) -> int:
        if not 0 <= self.to_step < step:
            raise ConfigError(
                f"Renoising must go to an earlier step but got {self.to_step} from step {step}; lower it."
            )
        return self.to_step

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        return sampler.renoise(state, self.to_step)


@register_move
@dataclass(frozen=True)
class Adopt(Move):
    """Puts the image that the condition of a parent names `ORIGINAL` at the end of a trajectory.

    Attributes:
        to_step: The end.
    """

    to_step: int
    name: ClassVar[str] = "adopt"
    needs: ClassVar[str] = "adopt"

    def target(self, step: int) -> int:
        if step:
            raise ConfigError(
                f"An image is adopted by a particle at step 0 but got one at step {step}; use ctx.init."
            )
        return self.to_step

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        return sampler.adopt(state, self.to_step, noise)


class InitialNoiseMove(Move):
    """A move of the initial noise, at step 0 alone."""

    needs: ClassVar[str] = "noise"

    def target(self, step: int) -> int:
        if step:
            raise ConfigError(
                f"Move {self.name!r} acts on initial noise, step 0, but the state is at step {step}; use "
                "ctx.mutation(step, strength) there."
            )
        return 0


@register_move
@dataclass(frozen=True)
class Blend(InitialNoiseMove):
    """``sqrt(1 - beta^2) x + beta e``: a step towards fresh noise that stays Gaussian (EvoSearch, x_T)."""

    beta: float
    name: ClassVar[str] = "blend"

    def __post_init__(self) -> None:
        _in_unit_interval("beta", self.beta)

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        return with_latents(state, math.sqrt(1 - self.beta**2) * state.latents + self.beta * noise)


@register_move
@dataclass(frozen=True)
class Neighbour(InitialNoiseMove):
    """A neighbour at exact cosine `tau` and equal norm (zero-order search, Ma et al. 2025)."""

    tau: float
    name: ClassVar[str] = "neighbour"

    def __post_init__(self) -> None:
        if not 0 <= self.tau < 1:
            raise ConfigError(
                f"tau must be in [0, 1) but got {self.tau}; 0.95 is a near neighbour, 0 an orthogonal one."
            )

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        return with_latents(state, neighbours(state.latents, noise, self.tau))


@register_move
@dataclass(frozen=True)
class StepNoise(Move):
    """Replaces part of the noise of the last step: ``mean + sqrt(1-b^2) s z + b s e`` (EvoSearch, x_t).

    The variance of the step is kept.
    """

    beta: float
    name: ClassVar[str] = "step_noise"
    needs: ClassVar[str] = "step_noise"

    def __post_init__(self) -> None:
        _in_unit_interval("beta", self.beta)

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        injected, std = step_noise(state)
        change = (math.sqrt(1 - self.beta**2) - 1) * injected + self.beta * std * noise
        carry = {**state.carry, STEP_NOISE: injected + change}
        return replace(state, latents=state.latents + change, carry=carry)


@register_move
@dataclass(frozen=True)
class AddNoise(Move):
    """Adds a full draw of the last step's noise on top of the first: ``x + s e`` (EvoSearch, x_t).

    The variance of the step is doubled.
    """

    name: ClassVar[str] = "add_noise"
    needs: ClassVar[str] = "step_noise"

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        injected, std = step_noise(state)
        added = std * noise
        return replace(
            state, latents=state.latents + added, carry={**state.carry, STEP_NOISE: injected + added}
        )


@register_move
@dataclass(frozen=True)
class AddStepNoise(Move):
    """EvoSearch's released move: the state *after* a step, mutated, is fed back as the one before it.

    ``sqrt(1-b^2) x + b e`` with ``blend = b``, or another full draw of the step's noise on top of the
    first, ``x + s e``, with ``scale = 1``; neither for an elite. Kept for comparison only.
    """

    scale: float = 1.0
    blend: float = 0.0
    name: ClassVar[str] = "add_step_noise"
    needs: ClassVar[str] = "step_noise"

    def __post_init__(self) -> None:
        _in_unit_interval("blend", self.blend)

    def target(self, step: int) -> int:
        return step - 1

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        _, std = step_noise(state)
        keep = math.sqrt(1 - self.blend**2)
        latents = keep * state.latents + (self.blend + self.scale * std) * noise
        return replace(with_latents(state, latents), step=state.step - 1)


@register_move
@dataclass(frozen=True)
class TokenNoise(Move):
    """Resamples a share of the last step's tokens from the probabilities that they had.

    Each uniform number that decided a token, or a bit of one, is replaced by a fresh one with probability
    `share`. Whatever the share, tokens follow their probabilities; at 1 the step is drawn afresh. A token
    often comes out as it was, the more often the surer the model is of it.
    """

    share: float
    name: ClassVar[str] = "token_noise"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(
                f"share must be in [0, 1] but got {self.share}; 0.1 draws a tenth of the tokens again."
            )

    def noise_like(self, state: State) -> Tensor:
        return carried(state, TOKEN_NOISE, "drawing tokens again")

    def apply(self, sampler: Sampler, state: State, noise: Tensor) -> State:
        uniform = carried(state, TOKEN_NOISE, "drawing tokens again")
        probability = carried(state, TOKEN_PROBABILITY, "drawing tokens again")
        fresh = redrawn(uniform, noise, self.share)
        latents, length = state.latents.clone(), uniform.shape[1]
        # what was not redrawn stays as it is, also where it was drawn with another device's rounding
        latents[:, -length:] = torch.where(
            fresh == uniform, latents[:, -length:], draw(probability, fresh).to(latents.dtype)
        )
        child = with_latents(state, latents)
        return replace(child, carry={**child.carry, TOKEN_NOISE: fresh})


def describe(move: Move) -> dict[str, Any]:
    """The move as plain values for the trace."""
    return {"name": move.name, **asdict(move)}  # type: ignore[call-overload]


def from_description(description: dict[str, Any]) -> Move:
    """The move that `describe` described.

    Raises:
        ConfigError: If no move of that name is registered.
    """
    values = dict(description)
    name = values.pop("name")
    if name not in MOVES:
        raise ConfigError(
            f"A recorded move must be registered but {name!r} is not; import the module that defines it, "
            "with @register_move."
        )
    return MOVES[name](**values)


def neighbours(x: Tensor, noise: Tensor, tau: float) -> Tensor:
    """Rows at cosine `tau` to the rows of `x` and of equal norm.

    ``y = |x| (tau u + sqrt(1 - tau^2) w)``, where ``u`` is the direction of ``x`` and ``w`` that of the
    part of `noise` orthogonal to it; computed in float64.

    Args:
        x: ``(B, ...)`` pivots.
        noise: ``(B, ...)`` standard normal draws.
        tau: Cosine, in [0, 1).

    Source: Ma et al. 2025, "Inference-time scaling for diffusion models beyond scaling denoising steps".
    """
    flat, v = x.flatten(1).double(), noise.flatten(1).double()
    norm = flat.norm(dim=1, keepdim=True)
    u = flat / norm
    w = torch.nn.functional.normalize(v - (v * u).sum(1, keepdim=True) * u, dim=1)
    return (norm * (tau * u + math.sqrt(1 - tau**2) * w)).to(x.dtype).view_as(x)


def step_noise(state: State) -> tuple[Tensor, Tensor]:
    """The noise that the last step added, ``(B, ...)``, and its standard deviation, broadcastable.

    Raises:
        CapabilityError: If the last step was deterministic.
    """
    injected, std = state.carry.get(STEP_NOISE), state.carry.get(STEP_NOISE_STD)
    if not isinstance(injected, Tensor) or not isinstance(std, Tensor):
        raise CapabilityError(
            f"Mutating step noise needs a sampler that adds noise at each step, but step {state.step} "
            "carries none; build the sampler with stochastic=True."
        )
    return injected, std.view(-1, *(1,) * (injected.ndim - 1))


def carried(state: State, key: str, what: str = "this") -> Tensor:
    """The rows that a state carries under `key`.

    Args:
        state: The state.
        key: Of `State.carry`.
        what: What needs them, for the message.

    Raises:
        CapabilityError: If it carries none.
    """
    value = state.carry.get(key)
    if isinstance(value, Tensor):
        return value
    raise CapabilityError(
        f"{what[0].upper()}{what[1:]} needs a state that carries {key!r} but the one at step {state.step} "
        f"carries {sorted(state.carry)}; take it from ctx.advance or ctx.gradient."
    )


def with_latents(state: State, latents: Tensor) -> State:
    """The state with other latents; the x0 estimate of the old ones no longer holds."""
    carry = {k: v for k, v in state.carry.items() if k != PREVIEW}
    return replace(state, latents=latents, carry=carry)


def _in_unit_interval(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} must be in [0, 1] but got {value}; the paper uses 0.2.")
