"""The fair table of the bundled world: every search on every model, at equal compute and in equal seconds.

``python -m tts_vision.eval.playground`` makes it. Searches are guided by a fallible verifier and judged by
the exact checker. The track ``easy`` has prompts of GenEval's six forms; ``hard`` has two groups of counted,
coloured shapes in a relation.
"""

from __future__ import annotations

from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TypeAlias

from tts_vision.comparisons import read_prompts
from tts_vision.types import Prompt

JUDGE = "playground_oracle:graded=false"
Track: TypeAlias = Literal["easy", "hard"]
_FILES: dict[Track, str] = {"easy": "prompts.jsonl", "hard": "hard.jsonl"}


def evaluation_prompts(n: int, track: Track = "easy") -> list[Prompt]:
    """`n` distinct prompts of a track, evenly over its forms while they last.

    Args:
        n: How many at most.
        track: ``easy``: GenEval's six task forms, 123 distinct prompts. ``hard``: two groups of counted,
            coloured shapes in a relation, 150 prompts, five pairs of counts in turn.
    """
    path = Path(str(files("tts_vision.pipelines.playground").joinpath(_FILES[track])))
    by_form: dict[str, dict[str, Prompt]] = {}
    for prompt in read_prompts(path):
        by_form.setdefault(prompt.metadata["tag"], {}).setdefault(prompt.text, prompt)
    rounds = zip_longest(*(form.values() for form in by_form.values()))
    return [prompt for group in rounds for prompt in group if prompt is not None][:n]
