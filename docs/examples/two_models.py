"""Two generators in one search: an equal number of samples of each competes for one budget."""

from tts_vision import SearchContext
from tts_vision.plugins import State, register


@register("algorithm", "two_models", size="n")
def two_models(ctx: SearchContext, *, n: int = 4, other: str = "playground-var") -> State:
    """Samples of the model of the search and of another one.

    Args:
        n: Samples of each.
        other: The other model, as ``--model`` takes it.
    """
    second = ctx.using(other)  # shares ledger, record and candidates
    drafts = second.finish(second.init(n))
    second.score(drafts)
    state = ctx.finish(ctx.init(n))
    ctx.score(state)
    return state
