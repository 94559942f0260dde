"""Scores of image and video files by any verifiers, for ``tts-vision score``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.media import open_media, read_text
from tts_vision.metadata import prompt_in
from tts_vision.resolve import VerifierSpec, find_verifier, load_verifier
from tts_vision.scoring import safe_scores
from tts_vision.types import Media, Prompt, Score, Video
from tts_vision.verifier import Verifier

_BATCH = 32  # samples held in memory at once, unless a verifier compares them


@dataclass
class ScoredFile:
    """The scores of one file.

    Attributes:
        path: The file.
        prompt: Its prompt.
        scores: Scores by verifier, as that was written.
    """

    path: Path
    prompt: str
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def complaints(self) -> list[str]:
        """A line for each reason why verifiers have no score."""
        by_reason: dict[str, list[str]] = {}
        for name, score in self.scores.items():
            if math.isnan(score.value):
                by_reason.setdefault(score.reason or "no reason was given", []).append(name)
        lines = []
        for reason, names in by_reason.items():
            by = "" if len(names) == len(self.scores) else f" by {', '.join(names)}"
            lines.append(f"{self.path} is not scored{by}: {reason}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """The file and its scores as JSON has them; null where there is none."""
        return {
            "file": str(self.path),
            "prompt": self.prompt,
            "scores": {name: _as_json(score) for name, score in self.scores.items()},
        }


def score_files(
    paths: Sequence[Path | str], prompts: Sequence[str] | None, verifiers: Sequence[str]
) -> list[ScoredFile]:
    """Scores files by verifiers, one verifier after the other, so that one model is in memory at a time.

    A file that cannot be read, or a verifier that cannot be loaded, costs its own scores alone: they are
    NaN with the reason. Verifiers that compare samples compare those files that have one prompt.

    Args:
        paths: Image and video files.
        prompts: One for all files, or one each; None for those that the files were made by, which they say.
        verifiers: As `Spec` reads them.

    Raises:
        ConfigError: If the numbers do not match, a file does not say its prompt, or a verifier or parameter
            is unknown; found before anything is loaded.
    """
    if not paths or not verifiers:
        raise ConfigError(
            f"Scoring needs files and verifiers but got {len(paths)} and {len(verifiers)}; name at least one "
            "of each ('tts-vision list verifiers' shows all)."
        )
    prompts = [_prompt_of(Path(path)) for path in paths] if prompts is None else prompts
    if len(prompts) not in {1, len(paths)}:
        raise ConfigError(
            f"Scoring needs one prompt for all files or one for each, {len(paths)} here, but got "
            f"{len(prompts)}; give --prompt once, or once per file in their order."
        )
    each = list(prompts) * len(paths) if len(prompts) == 1 else list(prompts)
    files = [ScoredFile(Path(path), prompt) for path, prompt in zip(paths, each)]
    specs = {name: find_verifier(name) for name in dict.fromkeys(verifiers)}
    for name, spec in specs.items():
        for file, score in zip(files, _column(spec, files), strict=True):
            file.scores[name] = score
    return files


def _prompt_of(path: Path) -> str:
    """The prompt in the metadata of a file.

    Raises:
        ConfigError: If there is none.
    """
    prompt = prompt_in(read_text(path))
    if prompt is None:
        raise ConfigError(
            f"Scoring needs a prompt but none was given and {str(path)!r} does not say its own, as files of "
            "searches do; give --prompt."
        )
    return prompt


def _column(spec: VerifierSpec, files: Sequence[ScoredFile]) -> list[Score]:
    """The scores of all files by one verifier."""
    try:
        verifier = load_verifier(spec)
        verifier.load()
    except (VerifierError, ImportError) as error:
        return [Score.unscored(str(error))] * len(files)
    compares = verifier.relative or verifier.settles
    size = len(files) if compares else _BATCH
    return [score for at in range(0, len(files), size) for score in _batch(verifier, files[at : at + size])]


def _batch(verifier: Verifier, files: Sequence[ScoredFile]) -> Iterator[Score]:
    """Scores of some files, in order."""
    samples = [_usable(file.path, verifier) for file in files]
    media = [sample for sample in samples if not isinstance(sample, str)]
    prompts = [Prompt(file.prompt) for file, sample in zip(files, samples) if not isinstance(sample, str)]
    try:
        found = iter(safe_scores(verifier, media, prompts))
    except VerifierError as error:
        found = iter([Score.unscored(str(error))] * len(media))
    for sample in samples:
        yield Score.unscored(sample) if isinstance(sample, str) else next(found)


def _usable(path: Path, verifier: Verifier) -> Media | str:
    """The sample in a file, or the reason why a verifier cannot score it."""
    if path.is_dir():
        return "it is a folder; name the files in it"
    try:
        sample = open_media(path)
    except OSError as error:
        return error.strerror or str(error)
    kind, rest = ("video", "clips") if isinstance(sample, Video) else ("image", "images")
    if kind in verifier.accepts:
        return sample
    remedy = f"; frame_mean({verifier.name}) scores clips" if kind == "video" else ""
    return f"{verifier.name} does not score {rest}{remedy}"


def _as_json(score: Score) -> dict[str, Any]:
    return {
        "value": _number(score.value),
        "parts": {name: _number(value) for name, value in score.parts.items()},
        "reason": score.reason,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
