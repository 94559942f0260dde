"""The hard track: 150 prompts of two counted, coloured groups in a relation, none of them in any training.

``python -m tts_vision.pipelines.playground.hard`` writes them again, to `hard.jsonl` beside this file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.world import Group, Spec

COUNTS = ((3, 1), (1, 3), (2, 2), (2, 1), (1, 2))
SEED = 20261126


def make_hard_prompts(per_counts: int = 30, seed: int = SEED) -> list[dict[str, Any]]:
    """Distinct held-out prompts, `per_counts` of each pair of counts, the relations in turn.

    Args:
        per_counts: Prompts of each pair.
        seed: Seed of the choice.

    Returns:
        Metadata records in GenEval's schema, the pairs of counts in turn.
    """
    rng = np.random.default_rng(seed)
    chosen: dict[Spec, None] = {}
    while len(chosen) < per_counts * len(COUNTS):
        k = len(chosen)
        counts = COUNTS[k % len(COUNTS)]
        relation = world.RELATIONS[k // len(COUNTS) % len(world.RELATIONS)]
        shapes = [world.SHAPES[i] for i in rng.choice(len(world.SHAPES), 2, replace=False)]
        colours = [list(world.COLOURS)[i] for i in rng.choice(len(world.COLOURS), 2, replace=False)]
        spec = Spec(tuple(map(Group, shapes, counts, colours)), relation)
        if world.is_held_out(spec):
            chosen[spec] = None
    return [world.metadata(spec) for spec in chosen]


def write_hard_prompts(path: Path) -> None:
    """Writes `make_hard_prompts()` as JSON lines.

    Args:
        path: File to write.
    """
    path.write_text("".join(json.dumps(record) + "\n" for record in make_hard_prompts()))


def load_hard_prompts() -> list[dict[str, Any]]:
    """The prompts of the hard track that ship with the package.

    Returns:
        150 metadata records in GenEval's schema.
    """
    path = Path(__file__).with_name("hard.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    write_hard_prompts(Path(__file__).with_name("hard.jsonl"))
