"""Prompts of the stages of a clip."""

from __future__ import annotations

from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.rewriting import load_rewriter
from tts_vision.units import STAGES


def stage_prompts_of(ctx: SearchContext, prompts: list[str] | None, rewriter: str | None) -> list[str] | None:
    """The prompts of the stages: those that are given, or of a rewriter; None without either.

    Raises:
        ConfigError: If both are given, or the rewriter gives other than three.
    """
    if prompts is not None and rewriter is not None:
        raise ConfigError(
            f"Prompts of stages are given or come from a rewriter but got both, stage_prompts={prompts} and "
            f"rewriter={rewriter!r}; drop one."
        )
    if rewriter is None:
        return prompts
    text, by = ctx.prompt.text, load_rewriter(rewriter)
    cost = {by.name: by.calls} if by.calls else None
    found = ctx.ask("stages", by.rewrite, text, len(STAGES), cost=cost, expected=[text] * len(STAGES))
    if len(found) != len(STAGES):
        raise ConfigError(
            f"A rewriter must split a prompt into {len(STAGES)} stages, {', '.join(STAGES)}, but "
            f"{rewriter!r} gave {len(found)}: {found}; give the prompts yourself, or use another one."
        )
    return list(found)
