"""The loop of reflection: rounds in which the best attempts are judged and corrected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple

from tts_vision.algorithms._attempts import Attempt, drawn, finished
from tts_vision.algorithms._reflection import Rejections, correct
from tts_vision.context import SearchContext
from tts_vision.correcting import Begun, Corrector
from tts_vision.ranking import top_k
from tts_vision.types import Cost, State


def refine(
    ctx: SearchContext,
    pool: list[Attempt],
    judged: Callable[[Sequence[Attempt]], Rejections],
    actions: Sequence[Corrector],
    *,
    rounds: int,
    parents: int,
    children: int = 1,
    patience: int = 1,
    children_only: bool = False,
) -> State:
    """Rounds of reflection: the best attempts are judged, and actions compete to correct the rejected ones.

    A child that is better takes the place of its parent. One that is not is dropped; so is a parent after
    `patience` such rounds, and fresh samples are drawn when none is left. The search concludes as soon as an
    attempt holds.

    Args:
        ctx: Of the search's own generator.
        pool: Attempts to begin with.
        judged: Judges attempts, best first.
        actions: Correctors.
        rounds: How many, while the budget pays for another one.
        parents: Attempts that are judged in each round.
        children: Children of each parent by each action.
        patience: Rounds without progress after which an attempt is dropped.
        children_only: Whether children are the parents of the next round, better or not.

    Returns:
        The best attempt of the last pool, one row.
    """
    last, dearest = pool, Cost()
    for _ in range(rounds):
        # fresh samples can be dearer than the corrections that the search was sized by
        if not pays_for(ctx, dearest if pool else dearest + ctx.cost() * parents):
            break
        last = pool = pool or drawn(ctx, parents)
        before = ctx.ledger.spent
        rejections = judged(best_first(pool)[:parents])
        if any(rejected is None for _, rejected in rejections):
            ctx.conclude()
            break
        made = corrected(ctx, rejections, actions, children)
        pool = [child for found in made.values() for child in found]
        pool = pool if children_only else survivors(last, made, patience)
        dearest = dearer(dearest, ctx.ledger.spent - before)
    return best_first(pool or last)[0].state


def corrected(
    ctx: SearchContext, rejections: Rejections, actions: Sequence[Corrector], children: int
) -> dict[Attempt, list[Attempt]]:
    """The children of each rejected attempt by all actions, run together."""
    begun: list[tuple[Begun, str]] = []
    owners: list[Attempt] = []
    for parent, rejected in rejections:
        assert rejected is not None
        begun += [(correct(ctx, action, rejected, children), rejected.prompt) for action in actions]
        owners += [parent] * len(actions)
    made: dict[Attempt, list[Attempt]] = {}
    for parent, found in zip(owners, finished(begun)):
        made.setdefault(parent, []).extend(found)
    return made


def survivors(
    pool: Sequence[Attempt], made: Mapping[Attempt, Sequence[Attempt]], patience: int
) -> list[Attempt]:
    """The attempts that go on to the next round, by their children."""
    left = list(pool)
    for parent, children in made.items():
        better = [child for child in children if child.beats(parent)]
        if better or parent.fails(patience):
            left.remove(parent)
        left += better
    return left


def best_first(pool: Sequence[Attempt]) -> list[Attempt]:
    """Attempts by falling score."""
    return [pool[i] for i in top_k([each.value for each in pool], len(pool))]


def pays_for(ctx: SearchContext, cost: Cost) -> bool:
    """Whether the budget pays for something."""
    times = ctx.affordable(cost)
    return times is None or times >= 1


def dearer(a: Cost, b: Cost) -> Cost:
    """The larger one in each unit."""
    return Cost(*map(max, astuple(a), astuple(b)))
