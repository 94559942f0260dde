"""The settings of a discrete flow, and its plain samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.tokens.kinetic import Metric, Schedule, device_for, euler_step, sample_path
from tts_vision.pipelines.tokens.model import TokenNetwork
from tts_vision.pipelines.var.sampling import token_probability
from tts_vision.rng import row_uniform
from tts_vision.tokens import BELOW_ONE, draw


@dataclass(frozen=True)
class FlowSettings:
    """How a discrete flow is integrated.

    Attributes:
        num_inference_steps: ``N``, points ``i / N`` of the grid of times.
        temperature: Of the predicted tokens; 1 leaves the network's probabilities.
        top_k: Draws predicted tokens from so many of the likeliest; 0 from all.
        top_p: Leaves out the least likely of them, up to a probability of ``1 - top_p``; 0 none.
        c: Factor of the schedule ``beta_t = c (t / (1 - t))^a``.
        a: Its exponent.
        strict_reference: Whether the first point of the grid is computed too, as the authors' code does.
            Nothing can move there, because the velocity at time 0 is taken as 0; the network does not see
            the time, so the same particle goes through it twice. By default that step is left out: one
            evaluation less, and the same tokens.
    """

    num_inference_steps: int = 50
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    c: float = 3.0
    a: float = 0.9
    strict_reference: bool = False

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ConfigError(
                f"num_inference_steps must be at least 1 but got {self.num_inference_steps}; FUDOKI uses 50."
            )
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature must be above 0 but got {self.temperature:g}; for the likeliest tokens set "
                "top_k to 1."
            )
        if self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise ConfigError(
                f"top_k must be at least 0 and top_p in [0, 1] but got {self.top_k} and {self.top_p:g}; 0 "
                "keeps all tokens."
            )
        Schedule(self.c, self.a)

    @property
    def schedule(self) -> Schedule:
        """Of the path."""
        return Schedule(self.c, self.a)

    @property
    def first(self) -> int:
        """The first point of the grid that is computed."""
        return 0 if self.strict_reference or self.num_inference_steps == 1 else 1

    @property
    def num_steps(self) -> int:
        """Decision steps."""
        return self.num_inference_steps - self.first

    def time(self, step: int) -> float:
        """The time of a state after so many decision steps; at the start it is 0, whatever is left out."""
        return (step + self.first) / self.num_inference_steps if step else 0.0


def flow_settings(values: Mapping[str, Any]) -> FlowSettings:
    """Settings of a call.

    Raises:
        ConfigError: If one is no number of its kind, or out of range.
    """
    kinds = {name: type(default) for name, default in vars(FlowSettings()).items()}
    for name, value in values.items():
        if name not in kinds:
            raise ConfigError(
                f"A setting of a discrete flow must be one of {', '.join(kinds)} but got {name!r}; leave "
                "it out of the pipeline's own."
            )
        wanted = (int, float) if kinds[name] is float else kinds[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and kinds[name] is not bool):
            raise ConfigError(f"{name} must be of type {kinds[name].__name__} but got {value!r}; change it.")
    return FlowSettings(**values)


class DiscreteFlow:
    """A network that is integrated with some settings.

    Args:
        network: Predicts the tokens at time 1.
        settings: Of the integration.
    """

    def __init__(self, network: TokenNetwork, settings: FlowSettings) -> None:
        self.network, self.settings = network, settings
        self._device = device_for(network.device)
        self.metric = Metric(network.codebook().to(self._device, torch.float32))
        height, width = network.grid
        self.tokens = height * width

    def start(self, seed: int, uids: Sequence[int]) -> Tensor:
        """Uniform tokens ``(B, S)`` of particles."""
        like = torch.empty(len(uids), self.tokens)
        return self.uniform_tokens(row_uniform(seed, "init", uids, 0, like))

    def uniform_tokens(self, uniform: Tensor) -> Tensor:
        """Tokens of time 0 by uniform numbers."""
        return (uniform.double() * self.network.vocabulary).long()

    def noise(self, seed: int, uids: Sequence[int], step: int) -> Tensor:
        """The uniform numbers of a step, ``(3, B, S)``: of the target, of the jump, and of where it leads.

        They belong to a point of the grid, so that they do not depend on whether the first one is left out.
        """
        like = torch.empty(len(uids), self.tokens, 3)
        return row_uniform(seed, "step", uids, step + self.settings.first, like).movedim(-1, 0)

    @torch.no_grad()
    def probability(self, encoded: Any, x: Tensor) -> Tensor:
        """The probabilities ``(B, S, V)`` of the tokens at time 1, where the path is computed."""
        settings = self.settings
        logits = self.network.logits(encoded, x).to(self._device)
        return token_probability(logits, settings.temperature, settings.top_k, settings.top_p)

    def moved(self, x: Tensor, x1: Tensor, step: int, uniform: Tensor) -> Tensor:
        """The tokens after a step, on the CPU: jumps towards the targets `x1`, and at the end the targets.

        Args:
            x: ``(B, S)``.
            x1: ``(B, S)``.
            step: Which step.
            uniform: ``(2, B, S)``, of the jump and of where it leads.
        """
        number = self.settings.num_inference_steps
        point = step + self.settings.first
        if point == number - 1:
            return x1.cpu()
        x, x1, uniform = (tensor.to(self._device) for tensor in (x, x1, uniform))
        schedule = self.settings.schedule
        return euler_step(self.metric, x, x1, point / number, 1 / number, schedule, uniform).cpu()

    def noised(self, x1: Tensor, step: int, uniform: Tensor) -> Tensor:
        """Tokens ``(B, S)`` on the path to the targets `x1` where a state at `step` is, on the CPU.

        Args:
            x1: ``(B, S)``.
            step: Which, before the last.
            uniform: ``(B, S)``.
        """
        time = self.settings.time(step)
        if not time:
            return self.uniform_tokens(uniform)
        x1, uniform = x1.to(self._device), uniform.to(self._device).clamp(0, BELOW_ONE)
        return sample_path(self.metric, x1, time, self.settings.schedule, uniform).cpu()

    @torch.no_grad()
    def samples(self, condition: Condition, seed: int, uids: Sequence[int]) -> Tensor:
        """The tokens ``(B, S)`` of the plain samples of some particles, drawn in one go."""
        encoded, x = self.network.encode(condition), self.start(seed, uids)
        for step in range(self.settings.num_steps):
            target, *jump = self.noise(seed, uids, step)
            probability = self.probability(encoded, x)
            x = self.moved(x, draw(probability, target.to(probability.device)), step, torch.stack(jump))
        return x
