"""Schedules of EvoSearch: when a population evolves and how large it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tts_vision.algorithms._common import at_least
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """When a population evolves and how large it is.

    Attributes:
        steps: Denoising steps that `evolution` counts in.
        evolution: Steps S at which a generation is made.
        population: Sizes K: the initial noises, then each generation with its elites.
        elites: The m best that each generation keeps.
    """

    steps: int
    evolution: tuple[int, ...]
    population: tuple[int, ...]
    elites: int

    @property
    def fresh(self) -> list[int]:
        """Particles denoised in each generation: elites were denoised before."""
        return [self.population[0], *(size - self.elites for size in self.population[1:])]

    def scaled(self, n: int) -> Schedule:
        """The schedule with `n` initial noises and all else in proportion, no generation empty."""
        factor = n / self.population[0]
        first, *children = [max(1, round(factor * size)) for size in self.fresh]
        m = max(1, round(factor * self.elites))
        return replace(self, population=(first, *(size + m for size in children)), elites=m)

    def at(self, ctx: SearchContext, steps: Sequence[int] | None) -> Schedule:
        """The schedule in steps of another model, or at the steps that are asked for.

        Generations that the model cannot breed are left out, all but one if it can breed any.

        Raises:
            ConfigError: If the asked steps do not increase, lie outside the trajectory, or cannot be bred at.
        """
        able = [step for step in range(ctx.num_steps) if ctx.mutation(step, 0.5)]
        sizes: dict[int, int] = {}
        if steps is None:
            for step, size in zip(self.evolution, self.population[1:]):
                if (at := round(step / self.steps * ctx.num_steps)) in able:
                    sizes.setdefault(at, size)
            sizes = sizes or dict.fromkeys(able[:1], self.population[1])
        else:
            _check_steps(steps, able, ctx.num_steps)
            sizes = {at: self.population[min(i, len(self.evolution))] for i, at in enumerate(steps, start=1)}
        return Schedule(ctx.num_steps, tuple(sizes), (self.population[0], *sizes.values()), self.elites)


# Of the released configurations; none was released for Hunyuan, which gets that of the other video model.
SCHEDULES = {
    "sd21": Schedule(50, (0, 20, 30, 40), (42, 26, 26, 26, 30), 5),
    "flux": Schedule(50, (5, 20, 30, 40), (14, 7, 7, 7, 10), 3),
    "wan": Schedule(50, (5, 20, 30, 45), (10, 5, 5, 5, 5), 2),
    "hunyuan": Schedule(50, (5, 20, 30, 45), (10, 5, 5, 5, 5), 2),
}


def planned(
    ctx: SearchContext,
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
    at_least(1, n=n, elites=elites)
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"schedule must be one of {', '.join(SCHEDULES)} but got {schedule!r}; for any other model give "
            "evolution_schedule and population_schedule."
        )
    plan = SCHEDULES[schedule].at(ctx, evolution)
    if population is not None:
        if n is not None:
            raise ConfigError(
                f"A population_schedule gives the number of initial noises but so does n={n}; drop one."
            )
        plan = replace(plan, population=tuple(population))
    elif n is not None:
        plan = plan.scaled(n)
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


def _check_steps(steps: Sequence[int], able: Sequence[int], num_steps: int) -> None:
    if not steps or sorted(set(steps)) != list(steps):
        raise ConfigError(f"evolution_schedule must be increasing steps but got {steps}; sort it.")
    if steps[0] < 0 or steps[-1] >= num_steps:
        raise ConfigError(
            f"evolution_schedule must lie between 0 and {num_steps - 1}, the last of {num_steps} "
            f"steps, but got {steps}; lower it or raise the number of steps."
        )
    if not set(steps) <= set(able):
        raise ConfigError(
            f"evolution_schedule must name steps whose randomness can be redone, here {list(able)}, but got "
            f"{steps}; leave the others out."
        )
