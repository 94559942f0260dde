"""Search over wordings of the prompt by successive halving."""

from __future__ import annotations

import math

import torch

from tts_vision.algorithms._common import at_least
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.ranking import top_k
from tts_vision.registry import register
from tts_vision.rewriting import load_rewriter
from tts_vision.types import State


@register(
    "algorithm",
    "prompt_search",
    size="n",
    paper="successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) over wordings",
)
def prompt_search(
    ctx: SearchContext,
    *,
    n: int = 2,
    rewrites: list[str] | None = None,
    rewriter: str = "phrasings",
    count: int = 7,
) -> State:
    """Prompt search: wordings of the prompt compete under the same noises, by successive halving.

    Every wording is tried on the same initial noises; then the better half, by their mean score, is tried on
    twice as many new ones, and so on until one is left. Samples are judged by the user's own prompt, whatever
    wording they were generated for. The user's wording competes too. Token models, which start from no noise,
    draw fresh numbers for each wording.

    Args:
        n: Noises in the first round.
        rewrites: Other wordings; ``{prompt}`` in one stands for the prompt. On a command line a JSON list,
            because prompts have commas.
        rewriter: Gives the wordings where there are no `rewrites`: ``phrasings``,
            ``chat:base_url=URL,model=NAME``, or your function ``file.py@name`` of a text and a number.
        count: How many wordings to ask the rewriter for.
    """
    at_least(1, n=n, count=count)
    texts = wordings(ctx, rewrites, rewriter, count)
    scores: dict[str, list[float]] = {text: [] for text in texts}
    done: list[State] = []
    while True:
        noise = ctx.init(n)
        for text in texts:
            own = text == ctx.prompt.text
            done.append(ctx.finish(noise if own else ctx.recondition(noise, text)))
            scores[text] += ctx.score(done[-1]).tolist()
        if len(texts) == 1:
            return State.cat(done)
        means = [torch.tensor(scores[text]).nanmean().item() for text in texts]
        kept = top_k(means, math.ceil(len(texts) / 2))
        texts, n = [texts[i] for i in kept], 2 * n
        ctx.note(wordings=len(texts), best=max(means, default=math.nan))


def wordings(ctx: SearchContext, rewrites: list[str] | None, rewriter: str, count: int) -> list[str]:
    """The user's prompt and the other wordings, each once.

    Raises:
        ConfigError: If there is none but the user's.
    """
    prompt = ctx.prompt.text
    if rewrites is None:
        by = load_rewriter(rewriter)
        expected = [f"{prompt} {i}" for i in range(count)]
        cost = {by.name: by.calls} if by.calls else None
        rewrites = ctx.ask("rewrites", by.rewrite, prompt, count, cost=cost, expected=expected)
    others = [text.replace("{prompt}", prompt).strip() for text in rewrites]
    found = list(dict.fromkeys([prompt, *(text for text in others if text)]))
    if len(found) < 2:
        raise ConfigError(
            f"A prompt search needs other wordings of {prompt!r} but got none; give rewrites, or a rewriter."
        )
    return found
