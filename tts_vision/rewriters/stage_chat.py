"""Stages of a prompt by a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import ClassVar

from tts_vision.registry import register
from tts_vision.rewriters.chat import ChatRewriter


@register(
    "rewriter", "stage_chat", paper="hierarchical prompts of Video-T1 (Liu et al. 2025, arXiv:2503.18942)"
)
class StageChatRewriter(ChatRewriter):
    """Scene, motion and ending of a prompt, by a language model behind an OpenAI-compatible endpoint.

    Its parameters are those of ``chat``.
    """

    name = "stage_chat"
    question: ClassVar[str] = (
        'A video generator is to make a clip of: "{prompt}". Write {n} prompts for its stages: the first for '
        "the static scene at the beginning, the second for the motion in the middle, the last for the "
        "ending. Each names all objects with their numbers, colours and positions, and adds none. Write one "
        "prompt per line and nothing else."
    )
