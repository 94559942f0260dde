"""ReflectionFlow: the best samples are reflected on and corrected, round by round."""

from __future__ import annotations

from collections.abc import Sequence

from tts_vision.algorithms._attempts import Attempt, drawn
from tts_vision.algorithms._common import at_least
from tts_vision.algorithms._refinement import refine
from tts_vision.algorithms._reflection import Rejections, refined, reflect
from tts_vision.context import SearchContext
from tts_vision.correcting import load_corrector
from tts_vision.critics import load_critic
from tts_vision.registry import register
from tts_vision.rewriting import load_rewriter
from tts_vision.types import State


@register("algorithm", "reflection_flow", size="rounds", paper="Zhuo et al. 2025, arXiv:2504.16080")
def reflection_flow(
    ctx: SearchContext,
    *,
    rounds: int = 4,
    n: int = 4,
    branches: int = 2,
    corrector: str | None = None,
    critic: str = "verifier",
    refine_by: str = "",
    holds: float | None = None,
    patience: int = 2,
    children_only: bool = False,
) -> State:
    """ReflectionFlow: rounds in which the best samples are reflected on and corrected (Zhuo et al. 2025).

    After plain samples, each round judges the best `branches` by the user's prompt, states what is wrong with
    each, refines its prompt, and lets the corrector begin a new sample from the image, the prompt and the
    reason, with noise of its own. The result is the best of all samples, the plain ones among them.

    Args:
        rounds: Rounds of reflection.
        n: Plain samples to begin with.
        branches: Samples that are corrected in each round.
        corrector: As in `parm_pp`.
        critic: States the reasons: ``verifier``, or ``chat:base_url=URL,model=NAME``.
        refine_by: A rewriter that refines the prompt of each branch, such as
            ``chat:base_url=URL,model=NAME``; none by default.
        holds: Score from which on a sample is good enough, which ends the search; so does a verdict of the
            verifier that all demands are met.
        patience: Rounds without progress after which a sample is dropped.
        children_only: Correct the samples of the last round alone, better or not, as the released code does;
            by default a sample is followed by its corrections only if one is better.
    """
    at_least(1, n=n, branches=branches, patience=patience)
    at_least(0, rounds=rounds)
    fix, reader = load_corrector(corrector, ctx), load_critic(critic)
    rewriter = load_rewriter(refine_by) if refine_by else None

    def judged(attempts: Sequence[Attempt]) -> Rejections:
        found = reflect(ctx, attempts, critic=reader, holds=holds)
        return found if rewriter is None else refined(ctx, rewriter, found)

    return refine(
        ctx,
        drawn(ctx, n),
        judged,
        [fix],
        rounds=rounds,
        parents=branches,
        patience=patience,
        children_only=children_only,
    )
