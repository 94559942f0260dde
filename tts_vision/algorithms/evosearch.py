"""EvoSearch: evolution of initial noise and of states on the way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tts_vision.algorithms._common import at_least, check_affordable, fraction, measured
from tts_vision.algorithms.best_of_n import best_of_n, spend_rest
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.ledger import Remaining
from tts_vision.mutations import AddStepNoise, Blend, Mutation, StepNoise, TokenNoise
from tts_vision.ranking import argmax, top_k
from tts_vision.ranking import tournament as winners
from tts_vision.registry import register
from tts_vision.types import Cost, State


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


# Of the released configurations; none was released for Hunyuan, which gets that of the other video model.
SCHEDULES = {
    "sd21": Schedule(50, (0, 20, 30, 40), (42, 26, 26, 26, 30), 5),
    "flux": Schedule(50, (5, 20, 30, 40), (14, 7, 7, 7, 10), 3),
    "wan": Schedule(50, (5, 20, 30, 45), (10, 5, 5, 5, 5), 2),
    "hunyuan": Schedule(50, (5, 20, 30, 45), (10, 5, 5, 5, 5), 2),
}


@register(
    "algorithm",
    "evosearch",
    needs={"noise or tokens"},
    wants_stochastic=True,
    paper="He et al. 2025, arXiv:2505.17618",
)
def evosearch(
    ctx: SearchContext,
    *,
    n: int | None = None,
    schedule: str = "sd21",
    evolution_schedule: list[int] | None = None,
    population_schedule: list[int] | None = None,
    elites: int | None = None,
    beta: float = 0.2,
    tournament: float = 0.9,
    strict_reference: bool = False,
) -> State:
    """EvoSearch: generations bred from the best states of all before them (He et al. 2025).

    Every particle is denoised to its end and scored. At each evolution step, parents win tournaments
    among the states that all particles so far had there; children are mutations of them.

    Args:
        n: Initial noises; sizes the schedule where no budget or population does.
        schedule: Evolution and population schedule of a model: sd21, flux, wan or hunyuan; rescaled to
            the number of steps, and its population to the budget.
        evolution_schedule: Steps at which a generation is made, instead of the model's.
        population_schedule: Initial noises and then the size of each generation with its elites.
        elites: How many of the best each generation keeps.
        beta: Strength of mutation: the share of noise that is new, or of tokens drawn again, is its square.
        tournament: Share of all candidates that takes part in the choice of one parent.
        strict_reference: Do as the released code: states after the evolution step are bred and fed back
            as the ones before it, noise is added on top, elites are denoised again.
    """
    fraction(beta=beta, tournament=tournament)
    plan = plan_generations(
        ctx, measured(ctx), schedule, n, evolution_schedule, population_schedule, elites, strict_reference
    )
    if plan is None:  # not even one generation
        return best_of_n(ctx)
    S, K, m = plan.evolution, plan.population, plan.elites
    archive: list[list[State]] = [[] for _ in (*S, "end")]

    def denoise(x: State, generation: int) -> None:
        for j, step in enumerate(S[generation:], start=generation):
            x = ctx.advance(x, step + strict_reference - x.step)
            archive[j].append(x)
        archive[-1].append(ctx.finish(x))
        ctx.score(archive[-1][-1])

    denoise(ctx.init(K[0]), 0)
    for g, step in enumerate(S):
        pool, r = State.cat(archive[g]), ctx.standing(State.cat(archive[-1]))
        ctx.note(generation=g + 1, step=step, pool=len(pool), best=float(r[argmax(r)]))
        parents = winners(r, K[g + 1] - m, ctx.rng(), fraction=tournament)
        tokens = "tokens" in ctx.capabilities
        children = ctx.mutate(pool, mutation(step, g, beta, strict_reference, tokens=tokens), parents)
        if strict_reference:
            children = State.cat([ctx.mutate(pool, AddStepNoise(scale=0), top_k(r, m)), children])
        denoise(children, g + 1)
    if "tokens" in ctx.capabilities and n is None and population_schedule is None:
        spend_rest(ctx)  # equal particles share forwards, which no plan knows beforehand
    return State.cat(archive[-1])


def mutation(
    step: int, generation: int, beta: float, strict_reference: bool, *, tokens: bool = False
) -> Mutation:
    """The operator for x_T at step 0, the one for x_t later; where that is tokens, they are drawn again."""
    if strict_reference:
        return AddStepNoise(scale=0, blend=beta) if generation == 0 else AddStepNoise(scale=1)
    if tokens and step:
        return TokenNoise(beta**2)
    return Blend(beta) if step == 0 else StepNoise(beta)


def plan_generations(
    ctx: SearchContext,
    left: Remaining,
    schedule: str,
    n: int | None,
    evolution: list[int] | None,
    population: list[int] | None,
    elites: int | None,
    strict_reference: bool,
) -> Schedule | None:
    """The schedule to run: what was asked for, else the model's, rescaled; None if no generation fits.

    Raises:
        ConfigError: If what was asked for is no schedule, or cannot be paid for.
    """
    at_least(1, n=n, elites=elites)
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"schedule must be one of {', '.join(SCHEDULES)} but got {schedule!r}; for any other model give "
            "evolution_schedule and population_schedule."
        )
    plan = (
        rescaled(SCHEDULES[schedule], ctx)
        if evolution is None
        else asked(SCHEDULES[schedule], evolution, ctx)
    )
    if not plan.evolution:  # nothing that could be mutated
        return None
    if population is None and n is None:
        affordable = left.times(ctx.cost())
        if affordable is not None:
            return filled(plan, elites, left, ctx, strict_reference)
    elif population is not None:
        plan = replace(plan, population=tuple(population))
    elif n is not None:
        plan = scaled(plan, n / plan.population[0])
    plan = checked(plan if elites is None else replace(plan, elites=elites))
    check_affordable(left, total_cost(plan, ctx, strict_reference), f"population {list(plan.population)}")
    return plan


def rescaled(base: Schedule, ctx: SearchContext) -> Schedule:
    """The schedule in steps of this sampler, less the generations that it cannot mutate."""
    steps: dict[int, int] = {}
    for step, size in zip(base.evolution, base.population[1:]):
        at = round(step / base.steps * ctx.num_steps)
        if can_mutate(ctx, at):
            steps.setdefault(at, size)
    if not steps:
        steps = {at: base.population[1] for at in range(ctx.num_steps) if can_mutate(ctx, at)}
        steps = dict([*steps.items()][:1])
    return Schedule(ctx.num_steps, tuple(steps), (base.population[0], *steps.values()), base.elites)


def can_mutate(ctx: SearchContext, step: int) -> bool:
    """Whether states at a step can be mutated: the initial noise, later the noise of the step before."""
    if step == 0:
        return "noise" in ctx.capabilities
    if step == ctx.num_steps:
        return False  # at the end there is nothing to grow from
    return not ctx.capabilities.isdisjoint({"step_noise", "tokens"}) and ctx.can_fork_at(step - 1)


def asked(base: Schedule, evolution: list[int], ctx: SearchContext) -> Schedule:
    """The schedule with the steps that were asked for.

    Raises:
        ConfigError: If they do not increase or lie outside the trajectory.
    """
    if not evolution or sorted(set(evolution)) != evolution:
        raise ConfigError(f"evolution_schedule must be increasing steps but got {evolution}; sort it.")
    if evolution[0] < 0 or evolution[-1] >= ctx.num_steps:
        raise ConfigError(
            f"evolution_schedule must lie between 0 and {ctx.num_steps - 1}, the last of {ctx.num_steps} "
            f"steps, but got {evolution}; lower it or raise the number of steps."
        )
    if evolution[0] == 0 and not can_mutate(ctx, 0):
        raise ConfigError(
            "evolution_schedule must begin at 1 or later where there is no initial noise to mutate, as here, "
            f"but got {evolution}; leave 0 out."
        )
    sizes = (*base.population[1:], *[base.population[-1]] * len(evolution))[: len(evolution)]
    return Schedule(ctx.num_steps, tuple(evolution), (base.population[0], *sizes), base.elites)


def checked(plan: Schedule) -> Schedule:
    """The schedule, if its sizes go with its steps.

    Raises:
        ConfigError: If they do not.
    """
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


def scaled(plan: Schedule, factor: float) -> Schedule:
    """The schedule with all populations in proportion, none of them empty."""
    first, *children = [max(1, round(factor * size)) for size in plan.fresh]
    m = max(1, round(factor * plan.elites))
    return replace(plan, population=(first, *(size + m for size in children)), elites=m)


def filled(
    plan: Schedule, elites: int | None, left: Remaining, ctx: SearchContext, strict_reference: bool
) -> Schedule | None:
    """The largest schedule in proportion to `plan` that can be paid for, less late generations if need be."""
    whole = total_cost(plan, ctx, strict_reference)
    share = (left.times(ctx.cost()) or 0) * ctx.cost().compute / whole.compute
    m = max(1, round(share * plan.elites)) if elites is None else elites

    def sized(fresh: list[int]) -> Schedule:
        return replace(plan, population=(fresh[0], *(size + m for size in fresh[1:])), elites=m)

    def fits(fresh: list[int]) -> bool:
        return left.affords(total_cost(sized(fresh), ctx, strict_reference))

    weights, fresh = plan.fresh, [2] + [1] * len(plan.evolution)
    while not fits(fresh):
        if len(fresh) == 2:
            return None
        fresh, plan = fresh[:-1], replace(plan, evolution=plan.evolution[:-1])
    # one more particle at a time, where the population is furthest behind its share
    while grown := [
        larger
        for at in sorted(range(len(fresh)), key=lambda at: (fresh[at] + 1) / weights[at])
        if fits(larger := [size + (i == at) for i, size in enumerate(fresh)])
    ]:
        fresh = grown[0]
    return sized(fresh)


def total_cost(plan: Schedule, ctx: SearchContext, strict_reference: bool) -> Cost:
    """What a schedule costs: each particle from the step it is made at to its end, and its score."""
    sizes = plan.population if strict_reference else plan.fresh
    return sum((ctx.cost(step=step) * size for step, size in zip((0, *plan.evolution), sizes)), Cost())
