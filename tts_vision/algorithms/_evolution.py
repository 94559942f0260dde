"""Schedules of EvoSearch: when a population evolves and how large it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tts_vision.context import SearchContext


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

    def shared(self, particles: int) -> Schedule:
        """The schedule with so many denoised particles in all, shared among its generations in proportion.

        The first has at least two; late generations are dropped where there are too few for one each.
        """
        weights, m = self.fresh, max(1, round(particles / sum(self.fresh) * self.elites))
        generations = min(len(self.evolution), max(0, particles - 2))
        least = [min(2, particles), *[1] * generations]
        shares = [int(particles * weight / sum(weights)) for weight in weights]
        sizes = least if particles < sum(map(max, least, shares)) else [*map(max, least, shares)]
        while sum(sizes) < particles:  # where the population is furthest behind its share
            at = min(range(len(sizes)), key=lambda i: (sizes[i] + 1) / weights[i])
            sizes[at] += 1
        population = (sizes[0], *(size + m for size in sizes[1:]))
        return replace(self, evolution=self.evolution[:generations], population=population, elites=m)

    def at(self, ctx: SearchContext, steps: Sequence[int] | None) -> Schedule:
        """The schedule in steps of another model, or at the steps that are asked for.

        Of its own generations, those that the model cannot breed are left out, all but one if it can breed.
        """
        able = [step for step in range(ctx.num_steps) if ctx.mutation(step, 0.5)]
        sizes: dict[int, int] = {}
        if steps is None:
            for step, size in zip(self.evolution, self.population[1:]):
                if (at := round(step / self.steps * ctx.num_steps)) in able:
                    sizes.setdefault(at, size)
            sizes = sizes or dict.fromkeys(able[:1], self.population[1])
        else:
            sizes = {at: self.population[min(i, len(self.evolution))] for i, at in enumerate(steps, start=1)}
        return Schedule(ctx.num_steps, tuple(sizes), (self.population[0], *sizes.values()), self.elites)


# Of the released configurations; none was released for Hunyuan, which gets that of the other video model.
SCHEDULES = {
    "sd21": Schedule(50, (0, 20, 30, 40), (42, 26, 26, 26, 30), 5),
    "flux": Schedule(50, (5, 20, 30, 40), (14, 7, 7, 7, 10), 3),
    "wan": Schedule(50, (5, 20, 30, 45), (10, 5, 5, 5, 5), 2),
    "hunyuan": Schedule(50, (5, 20, 30, 45), (10, 5, 5, 5, 5), 2),
}
