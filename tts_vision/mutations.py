"""Mutations: how a child particle is made from its parent's noise.

Each is a small frozen dataclass that says which capability of the sampler it needs and, given fresh
standard normal noise, returns the child's latents. All act row by row on ``(B, ...)`` tensors.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.tokens import draw, redrawn
from tts_vision.types import State


class Mutation(Protocol):
    """A way to make children.

    One that uses the gradient carried by its parents also has `gradient_steps`, the number of steps that the
    gradient went back through. One whose noise is shaped as something else than the latents has `noise_like`,
    the name of the carried entry that it is shaped as.
    """

    name: ClassVar[str]
    needs: ClassVar[str]

    @property
    def back(self) -> int:
        """How many steps earlier than their parents the children stand."""

    def apply(self, state: State, noise: Tensor) -> State:
        """Children of the rows of `state`; `noise` is standard normal, shaped as `noise_shape` says."""


@dataclass(frozen=True)
class Blend:
    """``sqrt(1 - beta^2) x + beta e``: a step towards fresh noise that stays Gaussian (EvoSearch, x_T)."""

    beta: float
    name: ClassVar[str] = "blend"
    needs: ClassVar[str] = "noise"
    back: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _in_unit_interval("beta", self.beta)

    def apply(self, state: State, noise: Tensor) -> State:
        return with_latents(state, math.sqrt(1 - self.beta**2) * state.latents + self.beta * noise)


@dataclass(frozen=True)
class Neighbour:
    """A neighbour at exact cosine `tau` and equal norm (zero-order search, Ma et al. 2025)."""

    tau: float
    name: ClassVar[str] = "neighbour"
    needs: ClassVar[str] = "noise"
    back: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not 0 <= self.tau < 1:
            raise ConfigError(
                f"tau must be in [0, 1) but got {self.tau}; 0.95 is a near neighbour, 0 an orthogonal one."
            )

    def apply(self, state: State, noise: Tensor) -> State:
        return with_latents(state, neighbours(state.latents, noise, self.tau))


@dataclass(frozen=True)
class StepNoise:
    """Replaces part of the noise of the last step: ``mean + sqrt(1-b^2) s z + b s e`` (EvoSearch, x_t).

    The variance of the step is kept.
    """

    beta: float
    name: ClassVar[str] = "step_noise"
    needs: ClassVar[str] = "step_noise"
    back: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _in_unit_interval("beta", self.beta)

    def apply(self, state: State, noise: Tensor) -> State:
        injected, std = step_noise(state)
        change = (math.sqrt(1 - self.beta**2) - 1) * injected + self.beta * std * noise
        carry = {**state.carry, "step_noise": injected + change}
        return replace(state, latents=state.latents + change, carry=carry)


@dataclass(frozen=True)
class AddStepNoise:
    """What EvoSearch's released code does to the state *after* a step, then fed back as the one before it.

    ``sqrt(1-b^2) x + b e`` with ``blend = b``, or another full draw of the step's noise on top of the
    first, ``x + s e``, with ``scale = 1``; neither for an elite. Kept for comparison only.
    """

    scale: float = 1.0
    blend: float = 0.0
    name: ClassVar[str] = "add_step_noise"
    needs: ClassVar[str] = "step_noise"
    back: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _in_unit_interval("blend", self.blend)

    def apply(self, state: State, noise: Tensor) -> State:
        _, std = step_noise(state)
        keep = math.sqrt(1 - self.blend**2)
        latents = keep * state.latents + (self.blend + self.scale * std) * noise
        return replace(with_latents(state, latents), step=state.step - self.back)


@dataclass(frozen=True)
class TokenNoise:
    """Draws a share of the last scale's tokens again, from the probabilities that they had.

    Each uniform number that decided a token, or a bit of one, is replaced by a fresh one with probability
    `share`. Whatever the share, tokens follow their probabilities; at 1 the scale is drawn afresh. A token
    often comes out as it was, all the more surely the surer the model is of it.
    """

    share: float
    name: ClassVar[str] = "token_noise"
    needs: ClassVar[str] = "tokens"
    back: ClassVar[int] = 0
    noise_like: ClassVar[str] = "token_noise"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(
                f"share must be in [0, 1] but got {self.share}; 0.1 draws a tenth of the tokens again."
            )

    def apply(self, state: State, noise: Tensor) -> State:
        uniform, probability = _token_entry(state, "token_noise"), _token_entry(state, "token_probability")
        fresh = redrawn(uniform, noise, self.share)
        latents, length = state.latents.clone(), uniform.shape[1]
        # what was not redrawn stays as it is, also where it was drawn with another device's rounding
        latents[:, -length:] = torch.where(
            fresh == uniform, latents[:, -length:], draw(probability, fresh).to(latents.dtype)
        )
        child = with_latents(state, latents)
        return replace(child, carry={**child.carry, "token_noise": fresh})


MUTATIONS: dict[str, type[Any]] = {m.name: m for m in (Blend, Neighbour, StepNoise, AddStepNoise, TokenNoise)}
Kind = TypeVar("Kind", bound=type[Any])


def register_mutation(kind: Kind) -> Kind:
    """Makes a mutation that lives beside its algorithm known to replays by its name."""
    MUTATIONS[kind.name] = kind
    return kind


def gradient_steps(mutation: Mutation) -> int:
    """How many steps the gradient that a mutation uses went back through; 0 if it uses none."""
    return int(getattr(mutation, "gradient_steps", 0))


def noise_shape(mutation: Mutation, state: State) -> Tensor:
    """The tensor of `state`, ``(B, ...)``, that the noise of a mutation is shaped as: by default its latents.

    Raises:
        CapabilityError: If the state does not carry it.
    """
    key: str | None = getattr(mutation, "noise_like", None)
    return state.latents if key is None else _token_entry(state, key)


def describe(mutation: Mutation) -> dict[str, Any]:
    """The mutation as plain values for the trace."""
    return {"name": mutation.name, **asdict(mutation)}  # type: ignore[call-overload]


def from_description(description: dict[str, Any]) -> Mutation:
    """The mutation that `describe` described."""
    values = dict(description)
    mutation: Mutation = MUTATIONS[values.pop("name")](**values)
    return mutation


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
    injected, std = state.carry.get("step_noise"), state.carry.get("step_noise_std")
    if not isinstance(injected, Tensor) or not isinstance(std, Tensor):
        raise CapabilityError(
            f"Mutating step noise needs a sampler that adds noise at each step, but step {state.step} "
            "carries none; build the sampler with stochastic=True."
        )
    return injected, std.view(-1, *(1,) * (injected.ndim - 1))


def _token_entry(state: State, key: str) -> Tensor:
    value = state.carry.get(key)
    if not isinstance(value, Tensor):
        raise CapabilityError(
            f"Drawing tokens again needs a state that carries {key!r} of its last scale, but the one at step "
            f"{state.step} does not; advance it by a scale first."
        )
    return value


def with_latents(state: State, latents: Tensor) -> State:
    """The state with other latents; what was predicted for the old ones no longer holds."""
    carry = {k: v for k, v in state.carry.items() if k != "preview"}
    return replace(state, latents=latents, carry=carry)


def _in_unit_interval(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} must be in [0, 1] but got {value}; the paper uses 0.2.")
