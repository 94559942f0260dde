"""Gradients of rewards, by a differentiable sampler and a differentiable verifier together.

A step with a gradient is `Sampler.advance` whose result also carries, row by row, the gradient of the
reward with respect to the latents that it came from. So gradients are reindexed, stored and dropped with
their particles, and an algorithm never handles autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tts_vision.engine import Engine
from tts_vision.errors import BudgetSpent, CapabilityError, VerifierError
from tts_vision.judging import Judging
from tts_vision.memory import out_of_memory
from tts_vision.moves import carried
from tts_vision.sampler import RewardFunction, Sampler
from tts_vision.types import Cost, Prompt, Rows, State
from tts_vision.verifier import Verifier

OWN = "own/"
"""Prefix of carried entries that belong to an algorithm and outlive its steps with gradients."""


def require_gradients(verifier: Verifier, what: str) -> None:
    """Checks that a verifier gives gradients.

    Args:
        verifier: The verifier.
        what: What needs the gradients, for the message.

    Raises:
        CapabilityError: If it gives none.
    """
    if not verifier.differentiable:
        raise CapabilityError(
            f"{what[0].upper()}{what[1:]} needs a verifier that gives gradients but {verifier.name!r} gives "
            "none; use one with a method rewards(pixels, prompts), such as a reward model of the CLIP "
            "family, or another algorithm."
        )


def compute_gradient(
    engine: Engine, judging: Judging, sampler: Sampler, state: State, steps: int
) -> tuple[State, Tensor]:
    """The state `steps` steps later with the gradient of its reward; see `SearchContext.gradient`."""
    verifier, prompt, score_cost = judging.verifier, judging.prompt, judging.score_cost
    sampler.requires("differentiable", "a gradient")
    require_gradients(verifier, "a gradient")
    step = state.step + steps
    if step < sampler.num_steps:
        sampler.requires("preview", f"the gradient of a preview at step {step} of {sampler.num_steps}")
    op, past = engine.begin("gradient")

    def price(rows: State) -> Cost:
        return sum((sampler.gradient_cost(c, rows.step, steps) + score_cost for c in rows.conditions), Cost())

    def work(rows: State) -> tuple[State, dict[str, Any]]:
        why: dict[int, str | None] = {}

        def differentiate(part: State) -> State:
            def reward(pixels: Tensor) -> Tensor:
                with engine.ledger.phase("verify"):
                    rewards, reasons = safe_rewards(verifier, pixels, [prompt] * len(part))
                why.update(zip(part.uids, reasons))
                return rewards

            return with_gradient(sampler, part, steps, reward)

        engine.ledger.charge(Cost(decodes=len(rows)))
        engine.ledger.charge_calls(verifier.calls(len(rows)))
        ahead = State.cat(engine.halving(rows, differentiate))
        forth = sum(sampler.cost(c, rows.step, steps).nfe for c in rows.conditions)
        facts = {
            "rewards": tuple(carried(ahead, "reward").tolist()),
            "reasons": tuple(why.get(uid) for uid in rows.uids),
            "backwards": price(rows).nfe - forth,
        }
        return ahead, facts

    ahead, computed = engine.compute(op, past, "gradient", state, step, price, work)
    rewards = [reward for event in computed for reward in event.rewards]
    return ahead, torch.tensor(rewards, dtype=torch.float64)


def with_gradient(sampler: Sampler, state: State, steps: int, reward: RewardFunction) -> State:
    """The state `steps` steps later with the gradient of its reward, on the CPU.

    It carries the entries that `Sampler.gradient` names; ``origin``, the latents of `state`; and the
    algorithm's own entries of `state`. A row whose reward or gradient is no finite number has gradient 0.
    """
    ahead = sampler.gradient(state, steps, reward).to("cpu")
    gradient, rewards = carried(ahead, "gradient"), carried(ahead, "reward")
    fine = gradient.flatten(1).isfinite().all(1) & rewards.isfinite()
    gradient = torch.where(fine.view(-1, *(1,) * (gradient.ndim - 1)), gradient, 0.0)
    own = {key: value for key, value in state.carry.items() if key.startswith(OWN)}
    carry: dict[str, Tensor | Rows] = {**ahead.carry, **own, "gradient": gradient, "origin": state.latents}
    return replace(ahead, carry=carry)


def gradient_by_step(state: State) -> Tensor:
    """The carried gradient with respect to the sample that the step worked on, ``(B, ...)`` float32.

    It differs from that with respect to the state's latents where noise is scaled on entry.
    """
    gradient = carried(state, "gradient")
    return gradient / per_row(carried(state, "gradient_scale"), gradient).float()


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """``(B,)`` values, broadcastable to the rows of `like`."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def safe_rewards(
    verifier: Verifier, pixels: Tensor, prompts: Sequence[Prompt]
) -> tuple[Tensor, list[str | None]]:
    """Rewards ``(B,)`` with their gradient, and the reason for each that is NaN.

    When the whole batch fails, each sample is tried alone, so that only those which really fail stay
    without a reward.

    Raises:
        VerifierError: If the verifier does not return one reward per sample, with its gradient.
    """
    try:
        rewards = verifier.rewards(pixels, prompts)
    except (VerifierError, BudgetSpent):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        if len(pixels) > 1:
            parts = [safe_rewards(verifier, pixels[i : i + 1], [p]) for i, p in enumerate(prompts)]
            return torch.cat([part for part, _ in parts]), [reason for _, (reason,) in parts]
        # still depends on the pixels, with a gradient of zero
        return pixels.flatten(1).sum(1) * 0 + torch.nan, [
            f"{verifier.name} raised {type(error).__name__}: {error}"
        ]
    if rewards.shape != (len(pixels),) or not rewards.requires_grad:
        raise VerifierError(
            f"Verifier {verifier.name!r} must return one reward per sample with its gradient, shape "
            f"({len(pixels)},), but returned shape {tuple(rewards.shape)}"
            + ("" if rewards.requires_grad else " without a gradient")
            + "; compute it from the pixels with torch alone."
        )
    answers = rewards.tolist()
    return rewards, [None if math.isfinite(a) else f"{verifier.name} answered {a}" for a in answers]


def norm_penalty(x: Tensor) -> Tensor:
    """``|x|^2 / 2 - (d - 1) log |x|`` of each row: minus the log-density of the norm of Gaussian noise."""
    norm = x.flatten(1).norm(dim=1)
    return norm.square() / 2 - (x[0].numel() - 1) * norm.log()


def norm_penalty_gradient(x: Tensor) -> Tensor:
    """``x (1 - (d - 1) / |x|^2)``: zero at the norm ``sqrt(d - 1)``."""
    square = x.flatten(1).square().sum(1)
    return x * per_row(1 - (x[0].numel() - 1) / square, x)


def clipped(gradient: Tensor, most: float) -> Tensor:
    """The gradient with the norm of each row at most `most`."""
    norm = gradient.flatten(1).norm(dim=1)
    return gradient * per_row(torch.clamp(most / (norm + 1e-6), max=1.0), gradient)
