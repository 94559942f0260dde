"""The generations of an EvoSearch: a schedule at the sizes and steps that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tts_vision.algorithms._common import at_least
from tts_vision.algorithms._evolution import SCHEDULES, Schedule
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError


def planned(
    ctx: SearchContext,
    particles: int | None,
    n: int | None,
    schedule: str,
    evolution: list[int] | None,
    population: list[int] | None,
    elites: int | None,
) -> Schedule:
    """The schedule to run: a model's, in steps of this sampler, at the sizes that are asked for.

    Raises:
        ConfigError: If sizes and steps do not go together.
    """
    at_least(1, particles=particles, n=n, elites=elites)
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"schedule must be one of {', '.join(SCHEDULES)} but got {schedule!r}; for any other model give "
            "evolution_schedule and population_schedule."
        )
    if evolution is not None:
        _check_steps(ctx, evolution)
    plan = SCHEDULES[schedule].at(ctx, evolution)
    sizes_given = {"particles": particles, "n": n, "population_schedule": population}
    given = [name for name, value in sizes_given.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"A population has one size but got {' and '.join(given)}; keep one.")
    if population is not None:
        plan = replace(plan, population=tuple(population))
    elif n is not None:
        plan = plan.scaled(n)
    elif particles is not None:
        plan = plan.shared(particles)
    plan = plan if elites is None else replace(plan, elites=elites)
    sizes, m = list(plan.population), plan.elites
    if len(sizes) != len(plan.evolution) + 1:
        raise ConfigError(
            f"population_schedule must have {len(plan.evolution) + 1} sizes, the initial one and one for "
            f"each of {len(plan.evolution)} evolution steps, but got {len(sizes)}: {sizes}; add or drop some."
        )
    at_least(1, **{"the initial population": sizes[0]})
    if any(size <= m for size in sizes[1:]):
        raise ConfigError(
            f"Each generation must be larger than its {m} elites but population_schedule is {sizes}; "
            "lower elites or raise the sizes."
        )
    return plan


def _check_steps(ctx: SearchContext, steps: Sequence[int]) -> None:
    num_steps = ctx.num_steps
    able = [step for step in range(num_steps) if ctx.mutation(step, 0.5)]
    if not steps or sorted(set(steps)) != list(steps):
        raise ConfigError(f"evolution_schedule must be increasing steps but got {steps}; sort it.")
    if steps[0] < 0 or steps[-1] >= num_steps:
        raise ConfigError(
            f"evolution_schedule must lie between 0 and {num_steps - 1}, the last of {num_steps} "
            f"steps, but got {steps}; lower it or raise the number of steps."
        )
    if not set(steps) <= set(able):
        raise ConfigError(
            f"evolution_schedule must name steps whose randomness can be redone, here {able}, but got "
            f"{steps}; leave the others out."
        )
