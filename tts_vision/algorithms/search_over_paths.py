"""Search over paths: back and forth along the denoising trajectory."""

from __future__ import annotations

from tts_vision.algorithms._common import at_least, check_affordable, fraction, measured
from tts_vision.algorithms.best_of_n import best_of_n, spend_rest
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.ledger import Remaining
from tts_vision.ranking import top_k
from tts_vision.registry import register
from tts_vision.types import Cost, State


@register(
    "algorithm", "search_over_paths", needs={"renoise", "preview"}, paper="Ma et al. 2025, arXiv:2501.09732"
)
def search_over_paths(
    ctx: SearchContext,
    *,
    n: int | None = None,
    forks: int = 3,
    start: float = 0.4,
    back: float = 0.2,
    forward: float = 0.5,
) -> State:
    """Search over paths: fork by noising a little back, denoise further on, keep the best (Ma et al. 2025).

    Args:
        n: Paths kept; by default as many as the budget pays for, or 4 without a budget.
        forks: Noised copies of each path in a round; where n is left open, the rest of the budget adds some.
        start: Share of the trajectory that is denoised before the first fork.
        back: Share of the trajectory that a fork is noised back.
        forward: Share of the trajectory that a fork is denoised; more than `back`.
    """
    at_least(1, n=n, forks=forks)
    fraction(start=start, back=back, forward=forward)
    first, rounds = levels(ctx.num_steps, start, back, forward)
    left = measured(ctx)
    plan = plan_paths(ctx, left, first, rounds, n, forks)
    if plan is None:  # not even one path can be forked
        return best_of_n(ctx)
    fill, (n, widths) = n is None, plan
    paths = ctx.advance(ctx.init(n), first)
    for (low, high), width in zip(rounds, widths):
        # paths are in order of merit, so an uneven share goes to the better ones
        forked = ctx.renoise(paths, low, [i % len(paths) for i in range(width)])
        forked = ctx.advance(forked, high - low)
        paths = ctx.select(forked, top_k(ctx.score(forked), n))
    if fill and "tokens" in ctx.capabilities:
        spend_rest(ctx)  # forks of one path share forwards, which no plan knows beforehand
    return paths


def levels(num_steps: int, start: float, back: float, forward: float) -> tuple[int, list[tuple[int, int]]]:
    """The step of the first fork and, for each round, the steps it goes back to and forward to.

    Raises:
        ConfigError: If a round would not get further than where it began.
    """
    f, b = max(1, round(back * num_steps)), round(forward * num_steps)
    if b <= f:
        raise ConfigError(
            f"forward must be more than back by at least one of {num_steps} steps but got {forward:g} and "
            f"{back:g}; raise forward or lower back."
        )
    first = step = min(max(round(start * num_steps), f), num_steps - 1)
    rounds = []
    while step < num_steps:
        rounds.append((step - f, min(step - f + b, num_steps)))
        step = rounds[-1][1]
    return first, rounds


def plan_paths(
    ctx: SearchContext, left: Remaining, first: int, rounds: list[tuple[int, int]], n: int | None, forks: int
) -> tuple[int, list[int]] | None:
    """How many paths to keep and how many forks to make in each round; None if none can be paid for."""
    start = ctx.cost(first, scored=False)
    each = [ctx.cost(high - low, step=low) for low, high in rounds]

    def total(n: int, widths: list[int]) -> Cost:
        return sum((c * w for c, w in zip(each, widths)), start * n)

    if n is not None:
        check_affordable(left, total(n, [forks * n] * len(rounds)), f"n={n} with forks={forks}")
        return n, [forks * n] * len(rounds)
    affordable = left.times(total(1, [forks] * len(rounds)))
    if affordable is None:
        return 4, [4 * forks] * len(rounds)
    n, widths = (affordable, [forks * affordable] * len(rounds)) if affordable else (1, [2] * len(rounds))
    if not left.affords(total(n, widths)):
        return None
    # the rest of the budget goes to more forks, the same in all rounds as far as it reaches
    while grown := [
        wider
        for at in range(len(widths))
        if left.affords(total(n, wider := [w + (i >= at) for i, w in enumerate(widths)]))
    ]:
        widths = grown[0]
    return n, widths
