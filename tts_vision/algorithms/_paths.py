"""Paths of PARM: judged at each step, stopped where they have no potential, refilled within the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tts_vision.algorithms._begun import by_context
from tts_vision.algorithms._potential import first_clear, path_price
from tts_vision.context import SearchContext
from tts_vision.correcting import Begun
from tts_vision.ledger import Remaining
from tts_vision.ranking import argmax
from tts_vision.types import Cost, Score, State

Begin: TypeAlias = Callable[[int], Begun]
"""Begins so many paths, all of one generator and at one step."""


@dataclass
class Judged:
    """Paths that ran together.

    Attributes:
        promising: Those with potential, finished; None if there is none.
        others: All others, each where it stopped, with the answer about its potential; None if it was never
            clear.
    """

    promising: State | None = None
    others: list[tuple[Score | None, State]] = field(default_factory=list)


def judge_paths(ctx: SearchContext, paths: State, *, stops: bool) -> Judged:
    """Runs paths as one batch; each is judged at every step until it is clear.

    Then, once, it is judged for its potential. Where the verifier fails to answer, the path goes on and is
    asked again.

    Args:
        ctx: Of their generator.
        paths: Unfinished particles.
        stops: Whether paths without potential stop; else all run to the end.
    """
    found = Judged()
    answers: dict[int, Score] = {}
    going: State | None = paths
    shows = "preview" in ctx.capabilities  # else the finished image alone is judged
    while going is not None and going.step < ctx.num_steps:
        unclear = [i for i, uid in enumerate(going.uids) if uid not in answers]
        going = ctx.advance(going, 1) if unclear and shows else ctx.finish(going)
        answers |= first_clear(ctx, going.select(unclear), ctx.num_steps) if unclear else {}
        hopeless = [i for i, uid in enumerate(going.uids) if uid in answers and not answers[uid].satisfied]
        if stops and hopeless and going.step < ctx.num_steps:
            found.others += [(answers[going.uids[i]], going.select([i])) for i in hopeless]
            kept = [i for i in range(len(going)) if i not in hopeless]
            going = ctx.select(going, kept) if kept else None
    if going is None:
        return found
    promising = []
    for i, uid in enumerate(going.uids):
        answer = answers.get(uid)
        if answer is not None and answer.satisfied:
            promising.append(i)
        else:
            found.others.append((answer, going.select([i])))
    found.promising = going.select(promising) if promising else None
    return found


def fresh_paths(ctx: SearchContext, n: int) -> Begun:
    """Paths by the user's prompt, from the start."""
    return ctx, ctx.init(n)


def best_of_paths(begin: Begin, n: int, *, refill: bool = True, reference_mode: bool = False) -> list[Begun]:
    """The paths with potential, finished and scored by the final question; without any, the likeliest one.

    Args:
        begin: Begins them.
        n: Paths that run at a time, and paths with potential to look for.
        refill: Whether fresh paths take the places of stopped ones, paid for by what stopping saved.
        reference_mode: Whether all paths run to the end, without refilling.
    """
    kept: list[Begun] = []
    others: list[tuple[Score | None, Begun]] = []
    ctx, paths = begin(n)
    price, start = path_price(ctx, paths.step), ctx.ledger.spent
    while True:
        judged = judge_paths(ctx, paths, stops=not reference_mode)
        others += [(answer, (ctx, row)) for answer, row in judged.others]
        if judged.promising is not None:
            ctx.score(judged.promising)
            kept.append((ctx, judged.promising))
        saved = times_saved(ctx, price, n, start) if refill and not reference_mode else 0
        # one path must be left to finish where none has potential
        free = min(saved - (not kept), n - sum(len(state) for _, state in kept))
        if free < 1:
            return kept or likeliest(others, reference_mode=reference_mode)
        ctx, paths = begin(free)


def times_saved(ctx: SearchContext, price: Cost, n: int, start: Cost) -> int:
    """How many paths can still be paid for with the price of `n`, of which a part has been spent."""
    budget = ctx.ledger.budget
    left = price * n - (ctx.ledger.spent - start)
    asking = budget.verifier_calls is not None or budget.seconds is not None
    rest = Remaining(
        nfe=left.nfe,
        tokens=left.tokens,
        macs=left.macs,
        verifier_calls=left.verifier_calls if asking else None,
    )
    return rest.times(price) or 0


def likeliest(others: Sequence[tuple[Score | None, Begun]], *, reference_mode: bool) -> list[Begun]:
    """Of paths without potential the one that has most of it, finished and scored.

    One that was never clear has potential 0. If none ever was, the final question decides among all; in
    reference mode the first one is taken.
    """
    if reference_mode or any(answer is not None for answer, _ in others):
        best = argmax([0.0 if answer is None else answer.value for answer, _ in others])
        others = [others[best]]
    chosen = [(ctx, ctx.finish(row)) for _, (ctx, row) in others]
    for ctx, states in by_context(chosen):
        ctx.score(states)
    return chosen
