"""Reflection: a critic looks at the best sample so far and rewrites the prompt, round by round."""

from tts_vision import Candidate, SearchContext
from tts_vision.plugins import State, register


def critic(prompt: str, best: Candidate) -> str:
    """The next prompt. A real critic would show the image to a vision-language model."""
    image = best.load()
    ground = "a plain background" if image.getpixel((0, 0)) != (255, 255, 255) else "a grey background"
    return f"{prompt}, on {ground}"


@register("algorithm", "reflect", size="n")
def reflect(ctx: SearchContext, *, n: int = 4, rounds: int = 2) -> State:
    """Samples, asks the critic for a better prompt, and samples again.

    Args:
        n: Samples in each round.
        rounds: Rounds, the first one with the user's own prompt.
    """
    text = ctx.prompt.text
    state = ctx.finish(ctx.init(n))
    ctx.score(state)
    for _ in range(rounds - 1):
        if ctx.best is not None:
            text = ctx.ask("critic", critic, text, ctx.best, cost={"critic": 1}, expected=text)
        state = ctx.finish(ctx.init(n, condition=text))
        ctx.score(state)  # judged by the prompt that the user asked for
    return state
