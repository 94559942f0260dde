"""Tree-of-Frames: search over a clip, chunk by chunk."""

from __future__ import annotations

from typing import Literal

from tts_vision.algorithms._backtracking import backtracked
from tts_vision.algorithms._common import at_least
from tts_vision.algorithms._released_tree import check_released
from tts_vision.algorithms._stage_prompts import stage_prompts_of
from tts_vision.algorithms._tree import Tree
from tts_vision.algorithms._tree_orders import best_first, breadth_first
from tts_vision.algorithms._tree_settings import tree_plan
from tts_vision.context import SearchContext
from tts_vision.pruning import Rule
from tts_vision.registry import register
from tts_vision.types import State


@register(
    "algorithm",
    "tree_of_frames",
    size="n",
    needs={"stochastic", "preview"},
    wants_stochastic=True,
    paper="Video-T1 (Liu et al. 2025, arXiv:2503.18942); backtracking: Jun et al. 2026, arXiv:2606.13861",
)
def tree_of_frames(
    ctx: SearchContext,
    *,
    n: int = 5,
    branch: list[int] | None = None,
    candidates: list[int] | None = None,
    prune: Rule = "top_k",
    keep: list[int] | None = None,
    threshold: float = 0.0,
    prune_after: list[int] | None = None,
    order: Literal["breadth", "best"] = "breadth",
    stage_prompts: list[str] | None = None,
    rewriter: str | None = None,
    stage_verifiers: list[str] | None = None,
    image_verifier: str | None = None,
    backtrack: bool = False,
    strict_reference: bool = False,
) -> State:
    """Tree-of-Frames: a tree of clips that branches and is pruned at the ends of chunks (Liu et al. 2025).

    The units of a clip are the chunks that its model makes one after the other. Of each new node some
    candidates are made for its unit, of which image-level alignment keeps the best; nodes are judged by the
    clip so far and pruned; finished clips are scored by the prompt of the user. On models that make a sample
    as a whole, units are single steps or pairs of steps.

    Args:
        n: Nodes of the first unit.
        branch: Children of each node at each unit after the first, the last number for all further ones; by
            default 1.
        candidates: Versions of each node, of which the best is kept, at each unit, the last number for all
            further ones; by default those of the paper in proportion, 5 at first, and 1 with `backtrack`.
        prune: Which nodes go on: ``top_k`` of them, those from the ``median`` or the ``threshold`` of their
            scores on, or all (``none``).
        keep: Nodes that ``top_k`` keeps at each pruning, the last number for all further ones; by default
            half, rounded up.
        threshold: Score from which on nodes go on; without any, the best one does, or with `backtrack` the
            unit is made again.
        prune_after: Units, from 0, after which nodes are pruned; by default those of the paper in proportion.
        order: ``breadth`` makes all nodes of a unit together; ``best`` expands the node with the best score,
            in as many steps, and prunes none.
        stage_prompts: Prompts of the stages, which clips are generated for, and judged by until they are
            finished: one for each unit, or three, for the first unit, those between and the last. On a
            command line a JSON list.
        rewriter: Splits the prompt into three stages: ``stages`` by rules,
            ``stage_chat:base_url=URL,model=NAME`` by a language model.
        stage_verifiers: Verifiers that nodes are judged by, like `stage_prompts` one for each unit or stage.
        image_verifier: Verifier that candidates are judged by, such as ``last_frame(NAME)``.
        backtrack: Whether half of the nodes give way to branches at the units in which finished clips fail.
        strict_reference: Follows the released code of Video-T1 where it differs from the paper.
    """
    at_least(1, n=n)
    if strict_reference:
        check_released(ctx, prune=prune, keep=keep, order=order, backtrack=backtrack, judge=image_verifier)
    plan = tree_plan(
        ctx,
        branch=branch or [1],
        candidates=candidates,
        rule="median" if strict_reference else prune,
        keep=keep,
        threshold=threshold,
        prune_after=prune_after,
        prompts=stage_prompts_of(ctx, stage_prompts, rewriter),
        stage_verifiers=stage_verifiers,
        image_verifier=image_verifier,
        best_first=order == "best",
        backtracks=backtrack,
        released=strict_reference,
    )
    ctx.keep_thumbnails()
    tree = Tree(ctx, plan)
    if backtrack:
        finished = backtracked(ctx, tree, n)
    elif order == "best":
        finished = best_first(tree, n)
    else:
        finished = breadth_first(tree, [], 0, n)
    return State.cat([node.state for node in finished])
