"""Rollouts: previews that finish a sample by a few cheap steps.

A rollout takes the loop from the present step to its end over some of the remaining timesteps, by
first-order deterministic steps (DDIM, Song et al. 2021; for flows the Euler step), whatever the scheduler's
own solver and its history are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tts_vision.errors import ConfigError
from tts_vision.pipelines.stochastic import Level, ddim_step

ROLLOUT = "rollout:"


def rollout_steps(preview: str) -> int | None:
    """The steps of the rollout that `SamplerOptions.preview` asks for; None if it asks for something else."""
    return int(preview.removeprefix(ROLLOUT)) if preview.startswith(ROLLOUT) else None


@dataclass(frozen=True)
class Coarse:
    """A coarser end of a schedule.

    Attributes:
        before: Timesteps up to the present step; they are kept, so that the loop's numbers keep their
            meaning.
        chosen: Those to compute, the present one first.
        after: The first of the timesteps behind the end of the loop, where it ends early; they are kept too.
    """

    before: int
    chosen: tuple[int, ...]
    after: int

    @classmethod
    def of(cls, levels: Sequence[Level], step: int, offset: int, steps: int) -> Coarse:
        """The schedule of a rollout: timesteps evenly spread over the remaining ones.

        Args:
            levels: Before each step of the loop, and after the last one.
            step: The present step of the loop.
            offset: Position of the loop's first timestep among the scheduler's.
            steps: Steps of the rollout; all remaining ones if these are fewer.
        """
        # half-steps of a second-order solver come back to a level, which needs no step
        left = [i for i in range(step, len(levels) - 1) if i == step or levels[i] != levels[i - 1]]
        picked = [left[round(j * len(left) / steps)] for j in range(steps)] if steps < len(left) else left
        return cls(offset + step, tuple(offset + i for i in picked), offset + len(levels) - 1)

    def cut(self, scheduler: Any) -> None:
        """Drops the timesteps in between from a scheduler on which `set_timesteps` was called."""
        n = len(scheduler.timesteps)
        kept = [*range(self.before), *self.chosen, *range(self.after, n)]
        scheduler.timesteps = scheduler.timesteps[kept]
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is not None and len(sigmas) > n:
            scheduler.sigmas = torch.as_tensor(sigmas)[[*kept, *range(n, len(sigmas))]]


def straight_step(
    x: Tensor, output: Tensor, x0: Tensor, eps: Tensor, levels: Sequence[Level], index: int
) -> tuple[Tensor, Tensor, float]:
    """The deterministic step from one level to the next."""
    prev, added = ddim_step(x0, eps, levels[index + 1], 0.0, torch.zeros_like(eps))
    return prev, added, 0.0


def check_rollout(scheduler: Any, levels: Sequence[Level] | None, name: str, whole: str | None) -> None:
    """Checks that unfinished samples of a pipeline can be rolled out.

    Args:
        scheduler: Of the pipeline.
        levels: Its noise levels; None if they are unknown.
        name: Of the pipeline.
        whole: Why the pipeline is driven whole, if it is.

    Raises:
        ConfigError: If they cannot.
    """
    why = ""
    if whole is not None:
        why = f"that is driven step by step but {name} is driven whole, because {whole}"
    elif levels is None:
        why = f"whose noise levels are known but {name} has {type(scheduler).__name__}, which tells none"
    elif hasattr(scheduler, "sigmas_interpol"):
        why = (
            f"whose steps start at noise levels of the schedule but {name} has {type(scheduler).__name__}, "
            "which evaluates the network between them"
        )
    if why:
        raise ConfigError(f"A rollout preview needs a pipeline {why}; use preview='decode'.")
