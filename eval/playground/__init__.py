"""The fair table of the bundled world: every search on every model, at equal compute and in equal seconds.

``python -m tts_vision.eval.playground`` makes it. Searches are guided by a fallible verifier and judged by
an exact checker. The track ``easy`` has prompts of GenEval's six forms; ``hard`` has two groups of counted,
coloured shapes in a relation; ``motion`` has one or two objects that move, for models of clips.
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
"""Prompts of images."""
WorldTrack: TypeAlias = Literal["easy", "hard", "motion"]
"""Those of clips as well."""
_FILES: dict[WorldTrack, str] = {"easy": "prompts.jsonl", "hard": "hard.jsonl", "motion": "motion.jsonl"}
GUIDES: dict[WorldTrack, str] = {
    "easy": "playground_judge",
    "hard": "playground_judge",
    "motion": "playground_motion_judge",
}
"""The fallible verifier of a track."""
EVALUATORS: dict[WorldTrack, str] = {
    "easy": "playground:track=easy",
    "hard": "playground:track=hard",
    "motion": "playground_motion",
}
"""The exact checker of a track."""


def tracks_of(model: str) -> tuple[WorldTrack, ...]:
    """The tracks whose prompts a model is made for; all of a model that is not bundled."""
    if model.partition("-")[0] != "playground":
        return ("easy", "hard", "motion")
    return ("motion",) if model == "playground-video" else ("easy", "hard")


def evaluation_prompts(n: int, track: WorldTrack = "easy") -> list[Prompt]:
    """`n` distinct prompts of a track, evenly over its forms while they last.

    Args:
        n: How many at most.
        track: ``easy``: GenEval's six task forms, 123 distinct prompts. ``hard``: two groups of counted,
            coloured shapes in a relation, 150 prompts, five pairs of counts in turn. ``motion``: one and two
            objects that move, 120 prompts.
    """
    path = Path(str(files("tts_vision.pipelines.playground").joinpath(_FILES[track])))
    by_form: dict[str, dict[str, Prompt]] = {}
    for prompt in read_prompts(path):
        by_form.setdefault(prompt.metadata["tag"], {}).setdefault(prompt.text, prompt)
    rounds = zip_longest(*(form.values() for form in by_form.values()))
    return [prompt for group in rounds for prompt in group if prompt is not None][:n]
