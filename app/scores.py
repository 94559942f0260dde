"""Scores of samples that somebody brings, by any verifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tts_vision.app.rules import Rules, check_prompt
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.scoring import safe_scores
from tts_vision.trust import allowing
from tts_vision.types import Media, Prompt, Score, Video

if TYPE_CHECKING:
    from tts_vision.loaded import Models


def check_scoring(rules: Rules, prompts: Sequence[str], verifiers: Sequence[str]) -> None:
    """Checks that samples may be scored by verifiers.

    Raises:
        ConfigError: If they may not.
    """
    from tts_vision.resolve import find_verifier

    for prompt in prompts:
        if not prompt.strip():
            raise ConfigError("A prompt must say what the sample should show but got none; write it.")
        check_prompt(prompt)
    for text in verifiers:
        rules.check_verifier(text)
        with allowing(()):
            find_verifier(text)


def scores_by(
    models: Models, media: Sequence[Media], prompts: Sequence[str], verifiers: Sequence[str]
) -> list[dict[str, Score]]:
    """For each sample its scores by verifier; NaN with the reason where there is none.

    Args:
        models: Loads verifiers.
        media: Samples.
        prompts: One each.
        verifiers: As `Spec` reads them.
    """
    rows: list[dict[str, Score]] = [{} for _ in media]
    for text in dict.fromkeys(verifiers):
        with allowing(()):
            for row, score in zip(rows, _column(models, media, prompts, text), strict=True):
                row[text] = score
    return rows


def _column(models: Models, media: Sequence[Media], prompts: Sequence[str], text: str) -> list[Score]:
    try:
        verifier = models.verifier(text)
        verifier.load()
    except (VerifierError, ImportError) as error:
        return [Score.unscored(str(error))] * len(media)
    kinds = ["video" if isinstance(sample, Video) else "image" for sample in media]
    usable = [i for i, kind in enumerate(kinds) if kind in verifier.accepts]
    try:
        found = safe_scores(verifier, [media[i] for i in usable], [Prompt(prompts[i]) for i in usable])
    except VerifierError as error:
        found = [Score.unscored(str(error))] * len(usable)
    by_row = dict(zip(usable, found, strict=True))
    wrong = {
        kind: Score.unscored(f"{verifier.name} does not score {'clips' if kind == 'video' else 'images'}")
        for kind in ("image", "video")
    }
    return [by_row.get(i, wrong[kind]) for i, kind in enumerate(kinds)]
