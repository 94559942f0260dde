"""EvoSearch: evolution of initial noise and of states on the way."""

from __future__ import annotations

from tts_vision.algorithms._common import fraction
from tts_vision.algorithms._generations import planned
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.moves import AddNoise, AddStepNoise
from tts_vision.ranking import argmax, top_k
from tts_vision.ranking import tournament as winners
from tts_vision.registry import register
from tts_vision.types import State


@register(
    "algorithm",
    "evosearch",
    size="particles",
    needs={"moves"},
    wants_stochastic=True,
    paper="He et al. 2025, arXiv:2505.17618",
)
def evosearch(
    ctx: SearchContext,
    *,
    particles: int | None = None,
    n: int | None = None,
    schedule: str = "sd21",
    evolution_schedule: list[int] | None = None,
    population_schedule: list[int] | None = None,
    elites: int | None = None,
    beta_noise: float = 0.2,
    beta_step: float = 0.2,
    tournament: float = 0.9,
    additive: bool = False,
    strict_reference: bool = False,
) -> State:
    """EvoSearch: generations bred from the best states of all before them (He et al. 2025).

    Every particle is denoised to its end and scored. At each evolution step, parents win tournaments
    among the states that all particles so far had there; children are mutations of them.

    Schedules, elites and the share of the tournament are those of the released code, and so is the move of
    the initial noise, ``sqrt(1 - b^2) x + b e``. The paper's move of a state on the way adds noise to it,
    ``x + s e``, which raises its variance; by default the noise of the step before is replaced in part
    instead, ``mean + sqrt(1 - b^2) s z + b s e``, which keeps it. `additive` is the paper's move. The
    released code archives states after a step and feeds children back as the states before it, one step too
    early; `strict_reference` does that too, and denoises elites again.

    Args:
        particles: Particles denoised in all, shared among the generations in proportion; those of the
            schedule without a budget.
        n: Initial noises instead, with the generations in proportion.
        schedule: Evolution and population schedule of a model: sd21, flux, wan or hunyuan; rescaled to
            the number of steps and to `particles` or `n`.
        evolution_schedule: Steps at which a generation is made, instead of the model's.
        population_schedule: Initial noises and then the size of each generation with its elites, instead.
        elites: How many of the best each generation keeps.
        beta_noise: Strength of the move of initial noise: the share of new noise is its square.
        beta_step: Strength of the move of later states: the share of the step's noise that is new, or of
            tokens drawn again, is its square.
        tournament: Share of all candidates that takes part in the choice of one parent.
        additive: Add a full draw of the step's noise to later states, as the paper does, at the right step.
        strict_reference: Do as the released code, its steps that are off by one included.
    """
    fraction(beta_noise=beta_noise, beta_step=beta_step, tournament=tournament)
    if additive and strict_reference:
        raise ConfigError("additive and strict_reference are two variants but got both; drop one.")
    plan = planned(ctx, particles, n, schedule, evolution_schedule, population_schedule, elites)
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
        pool, r = State.cat(archive[g]), ctx.current_scores(State.cat(archive[-1]))
        ctx.note(generation=g + 1, step=step, pool=len(pool), best=float(r[argmax(r)]))
        parents = winners(r, K[g + 1] - m, ctx.rng(), fraction=tournament)
        move = ctx.mutation(step, beta_step if step else beta_noise)
        if strict_reference:
            move = AddStepNoise(scale=0, blend=beta_noise) if g == 0 else AddStepNoise(scale=1)
        elif additive and step:
            move = AddNoise()
        assert move is not None
        children = ctx.mutate(pool, move, parents)
        if strict_reference:
            children = State.cat([ctx.mutate(pool, AddStepNoise(scale=0), top_k(r, m)), children])
        denoise(children, g + 1)
    return State.cat(archive[-1])
