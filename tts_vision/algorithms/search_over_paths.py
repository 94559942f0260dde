"""Search over paths: back and forth along the denoising trajectory."""

from __future__ import annotations

from tts_vision.algorithms._common import at_least, fraction
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.ranking import top_k
from tts_vision.registry import register
from tts_vision.types import State


@register(
    "algorithm",
    "search_over_paths",
    size="n",
    needs={"renoise", "preview"},
    paper="Ma et al. 2025, arXiv:2501.09732",
)
def search_over_paths(
    ctx: SearchContext,
    *,
    n: int = 4,
    forks: int = 3,
    start: float = 0.4,
    back: float = 0.2,
    forward: float = 0.5,
) -> State:
    """Search over paths: fork by noising a little back, denoise further on, keep the best (Ma et al. 2025).

    Args:
        n: Paths kept.
        forks: Noised copies of each path in a round.
        start: Share of the trajectory that is denoised before the first fork.
        back: Share of the trajectory that a fork is noised back.
        forward: Share of the trajectory that a fork is denoised; more than `back`.
    """
    at_least(1, n=n, forks=forks)
    fraction(start=start, back=back, forward=forward)
    first, rounds = levels(ctx.num_steps, start, back, forward)
    paths = ctx.advance(ctx.init(n), first)
    for low, high in rounds:
        forked = ctx.renoise(paths, low, [i % n for i in range(forks * n)])
        forked = ctx.advance(forked, high - low)
        paths = ctx.select(forked, top_k(ctx.score(forked), n))
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
