"""Decoding by unmasking (MaskGIT, Chang et al. 2022): schedules, temperatures, and one step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.tokens.model import TokenNetwork, TokenPipeline, split_settings
from tts_vision.pipelines.var.model import OutputType, images_of
from tts_vision.rng import row_noise
from tts_vision.tokens import BELOW_ONE, draw

_POWER = re.compile(r"pow(\d+(?:\.\d+)?)")
_LEAST = 1e-6  # of a mask ratio, in schedules that reach zero
_SMALL = 1e-20


@dataclass(frozen=True)
class Decoding:
    """The schedule of one trajectory.

    Attributes:
        num_inference_steps: Steps ``T``.
        temperature: How much noise is added to the sureness by which tokens are kept, in the first step; with
            ``linear`` also the first and the last one.
        annealing: How it falls: ``compound`` multiplies it by ``1 - s / T`` in step ``s``, again and again,
            as Show-o does; ``linear`` goes to the last one, or to 0.01, as aMUSEd does.
        schedule: The share of tokens masked at a share ``r`` of the steps: ``cosine`` ``cos(pi r / 2)``,
            ``linear`` ``1 - r``, ``pow2`` and other powers ``1 - r^k``, ``sigmoid``.

    Raises:
        ConfigError: If one cannot be.
    """

    num_inference_steps: int = 18
    temperature: float | Sequence[float] = 1.0
    annealing: Literal["compound", "linear"] = "compound"
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        T = self.num_inference_steps
        if isinstance(T, bool) or not isinstance(T, int) or T < 1:
            raise ConfigError(f"num_inference_steps must be a number of at least 1 but got {T!r}; raise it.")
        _ = self.ratios, self.temperatures  # which refuse settings that cannot be

    @cached_property
    def ratios(self) -> Tensor:
        """The share of tokens that is masked after each step, ``(T,)`` float32."""
        return mask_ratios(self.schedule, self.num_inference_steps)

    @cached_property
    def temperatures(self) -> tuple[float, ...]:
        """The temperature of each step."""
        return temperatures(self.temperature, self.annealing, self.num_inference_steps)

    def ratio_before(self, step: int) -> float:
        """The share of tokens that is masked when a step begins."""
        return float(self.ratios[step - 1]) if step else 1.0

    def masks(self, tokens: int) -> list[int]:
        """How many of so many tokens are masked before each step, and at the end."""
        found = [tokens]
        for ratio in self.ratios[:-1]:
            found.append(max(1, min(found[-1] - 1, math.floor(float(tokens * ratio)))))
        return [*found, 0]

    def unmasked(
        self,
        step: int,
        logits: Tensor,
        codes: Tensor,
        uniform: Tensor | None,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step: guesses all masked tokens, and masks those again that it is least sure of.

        Args:
            step: Its number, from 0.
            logits: ``(B, S, V)`` float32.
            codes: ``(B, S)`` int64 on the CPU, ``V`` where masked.
            uniform: ``(B, 2, S)`` in [0, 1), by which tokens are drawn and noise is added to their sureness;
                without it the likeliest tokens are taken and the surest kept.
            start: ``(B,)`` factors on the share of tokens that is masked, for images of which only a part is
                drawn; 1 by default.

        Returns:
            The guess ``(B, S)``, a whole image; and the codes after the step, which at the end are the guess.

        Raises:
            PipelineError: If the logits are no finite numbers.
        """
        mask = logits.shape[-1]
        masked = codes == mask
        if logits.device.type == "mps":
            logits = logits.cpu()  # tokens are drawn in float64, which it lacks
        probability = logits[masked.to(logits.device)].softmax(-1)
        if not bool(probability.isfinite().all()):
            raise PipelineError(
                f"Logits must be finite but step {step} has some that are NaN or infinite; load the model in "
                "bfloat16 or float32."
            )
        if uniform is None:
            drawn = probability.argmax(-1)
        else:
            drawn = draw(probability, uniform[:, 0][masked].to(probability.device))
        guess = codes.clone()
        guess[masked] = drawn.cpu()
        if step == self.num_inference_steps - 1:
            return guess, guess
        sureness = torch.full(codes.shape, torch.inf)
        sureness[masked] = probability.gather(-1, drawn[:, None])[:, 0].clamp(min=_SMALL).log().cpu()
        if uniform is not None:
            sureness = sureness + self.temperatures[step] * gumbel(uniform[:, 1])
        ratio = self.ratios[step] if start is None else start[:, None] * self.ratios[step]
        left = torch.min(masked.sum(1, keepdim=True) - 1, (codes.shape[1] * ratio).floor().long())
        bound = sureness.sort(-1).values.gather(1, left.clamp(min=1))
        return guess, torch.where(sureness < bound, mask, guess)


SETTINGS: dict[str, Any] = {setting.name: setting.default for setting in fields(Decoding)}


def mask_ratios(schedule: str, steps: int) -> Tensor:
    """The share of tokens that is masked after each step, ``(steps,)`` float32.

    Raises:
        ConfigError: If there is no such schedule.
    """
    r = torch.arange(1, steps + 1) / steps
    if schedule == "cosine":
        return torch.cos(r * math.pi * 0.5)
    if schedule == "sigmoid":
        low, high = torch.sigmoid(torch.tensor([-3.0, 3.0]))
        return ((high - torch.sigmoid(6 * r - 3)) / (high - low)).clamp(_LEAST, 1.0)
    power = _POWER.fullmatch(schedule) if isinstance(schedule, str) else None
    if schedule != "linear" and power is None:
        raise ConfigError(
            f"schedule must be cosine, linear, sigmoid or a power such as pow2 but got {schedule!r}."
        )
    return (1 - r ** (float(power[1]) if power else 1.0)).clamp(_LEAST, 1.0)


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise of uniform numbers."""
    return -(-uniform.clamp(min=_SMALL).log()).clamp(min=_SMALL).log()


def step_noise(seed: int, uids: Sequence[int], step: int, tokens: int) -> Tensor:
    """The noise ``(B, 2, S)`` of one step of particles, standard normal: two numbers for each token."""
    return row_noise(seed, "step", uids, step, torch.empty(len(uids), 2, tokens))


def spread(noise: Tensor) -> Tensor:
    """Standard normal numbers as uniform ones in [0, 1), in order."""
    return torch.special.ndtr(noise.double()).float().clamp(0, BELOW_ONE)


@torch.no_grad()
def plain_codes(network: TokenNetwork, decoding: Decoding, condition: Condition, seed: int, n: int) -> Tensor:
    """The codes ``(n, S)`` of the plain samples of a seed."""
    tokens = network.grid[0] * network.grid[1]
    encoded, codes = network.encode(condition), torch.full((n, tokens), network.vocabulary)
    for step in range(decoding.num_inference_steps):
        uniform = spread(step_noise(seed, range(n), step, tokens))
        _, codes = decoding.unmasked(step, network.logits(encoded, codes), codes, uniform)
    return codes


def plain_samples(
    pipe: TokenPipeline, call: Mapping[str, Any], text: str, seed: int, n: int, output_type: OutputType
) -> list[Image.Image] | Tensor:
    """The plain samples of a seed, as images or as their codes ``(n, S)``.

    Raises:
        ConfigError: If a setting is unknown or cannot be, or another type of output is asked for.
    """
    if output_type not in ("pil", "tokens"):
        raise ConfigError(f"output_type must be 'pil' or 'tokens' but got {output_type!r}; change it.")
    own, networks = split_settings(pipe, SETTINGS, call)
    network = pipe.configured(networks)
    codes = plain_codes(network, Decoding(**own), Condition(text), seed, n)
    return codes if output_type == "tokens" else images_of(network.pixels(codes))


def temperatures(temperature: float | Sequence[float], annealing: str, steps: int) -> tuple[float, ...]:
    """The temperature of each step.

    Raises:
        ConfigError: If they cannot be made.
    """
    numbers = list(temperature) if isinstance(temperature, Sequence) else [temperature]
    valid = all(
        isinstance(t, (int, float)) and not isinstance(t, bool) and 0 <= t < math.inf for t in numbers
    )
    if not valid or len(numbers) not in (1, 2):
        raise ConfigError(
            f"temperature must be a number of at least 0, or the first and the last one, but got "
            f"{temperature!r}; change it."
        )
    if annealing == "linear":
        first, last = numbers if len(numbers) == 2 else (numbers[0], 0.01)
        return tuple(torch.linspace(first, last, steps).tolist())
    if annealing != "compound":
        raise ConfigError(f"annealing must be compound or linear but got {annealing!r}; change it.")
    if len(numbers) == 2:
        raise ConfigError(
            f"A temperature that compounds is one number but got {temperature!r}; give the first one, or set "
            "annealing to linear."
        )
    found, now = [], float(numbers[0])
    for step in range(1, steps + 1):
        now *= 1.0 - step / steps
        found.append(now)
    return tuple(found)
