"""The grid of a run: every arm under every verifier on every prompt and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tts_vision.config import RunConfig
from tts_vision.figures import Point
from tts_vision.resolve import fill_defaults, find_verifier
from tts_vision.runs.task import Record, Task, prompt_key, search_name
from tts_vision.types import Prompt

PLAIN = "plain"
"""The arm of one sample without search."""
PLAIN_ALGORITHM = "best_of_n:n=1"


def grid(
    base: RunConfig,
    prompts: Sequence[Prompt],
    *,
    arms: Mapping[str, str],
    verifiers: Sequence[str],
    seeds: Sequence[int],
    ids: Sequence[str] | None = None,
    folder: Sequence[str] = (),
) -> list[Task]:
    """All searches of a run, by verifier, arm, prompt and seed.

    Args:
        base: Settings of all of them.
        prompts: The prompts, each once.
        arms: Algorithms, with parameters as ``name:key=value``, by the names of their arms.
        verifiers: What guides.
        seeds: Root seeds.
        ids: Names of the prompts; by default their texts with their facts.
        folder: Words of the folder that holds theirs; by default that of the run.

    Raises:
        ConfigError: If an algorithm or a verifier cannot be used as given.
    """
    for verifier in verifiers:
        find_verifier(verifier)
        for algorithm in arms.values():
            fill_defaults(_with(base, algorithm=algorithm, verifier=verifier))
    return [
        Task(
            name=search_name((*folder, verifier, arm), prompt, seed),
            arm=arm,
            prompt_id=ids[i] if ids is not None else prompt_key(prompt),
            config=_with(
                base,
                prompt=prompt.text,
                prompt_metadata=dict(prompt.metadata),
                algorithm=algorithm,
                verifier=verifier,
                seed=seed,
            ),
        )
        for verifier in verifiers
        for arm, algorithm in arms.items()
        for i, prompt in enumerate(prompts)
        for seed in seeds
    ]


def curve_of(record: Record) -> list[Point]:
    """How the best score of a search grew."""
    return [Point(best.compute, best.seconds, -1, best.score, -1, best.score) for best in record.bests]


def _with(base: RunConfig, **settings: object) -> RunConfig:
    """The settings with some of them changed, and checked again."""
    return RunConfig(**{**{name: getattr(base, name) for name in RunConfig.model_fields}, **settings})
