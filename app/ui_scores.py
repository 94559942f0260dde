"""Scores of files that somebody brings, as HTML."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tts_vision.app.jobs import Jobs
from tts_vision.app.scores import check_scoring, scores_by
from tts_vision.app.ui_words import for_artists
from tts_vision.app.uploads import read
from tts_vision.app.watch import kind_of, thumbnail
from tts_vision.errors import ConfigError
from tts_vision.types import Media, Score

FILES = 64
"""Files that are scored at once, at most."""


@dataclass(frozen=True)
class ScoredUpload:
    """An uploaded file with its scores.

    Attributes:
        name: Name of the file.
        image: A small image of it, see `thumbnail`; empty where it could not be read.
        scores: Scores by verifier.
    """

    name: str
    image: bytes
    scores: Mapping[str, Score]


def score_uploads(
    jobs: Jobs, paths: Sequence[Path], prompt: str, verifiers: Sequence[str]
) -> list[ScoredUpload]:
    """Scores uploaded files on the worker of the searches; a file that cannot be read says why.

    Raises:
        ConfigError: If something cannot be used as given, or is not allowed here.
        QueueFullError: If the queue is full.
    """
    if not paths or not verifiers:
        raise ConfigError("Scoring needs files and verifiers but one of them is missing; choose both.")
    if len(paths) > FILES:
        raise ConfigError(f"At most {FILES} files are scored at once but got {len(paths)}; choose fewer.")
    check_scoring(jobs.rules, [prompt], verifiers)
    media: dict[Path, Media] = {}
    failures: dict[Path, str] = {}
    for path in paths:
        try:
            media[path] = read(path)
        except ConfigError as error:
            failures[path] = str(error)
    samples = list(media.values())
    prompts = [prompt] * len(samples)
    rows = jobs.call(lambda: scores_by(jobs.models, samples, prompts, verifiers)).result() if samples else []
    scores: dict[Path, Mapping[str, Score]] = dict(zip(media, rows, strict=True))
    for path, reason in failures.items():
        scores[path] = dict.fromkeys(verifiers, Score.unscored(reason))
    images = {path: thumbnail(sample) for path, sample in media.items()}
    return [ScoredUpload(path.name, images.get(path, b""), scores[path]) for path in paths]


def table(rows: Sequence[ScoredUpload], verifiers: Sequence[str]) -> str:
    """The scores as a table, with the demands that are not met."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in verifiers)
    body = "".join(_row(row, verifiers) for row in rows)
    return (
        '<div class="tv-scroll"><table class="tv-table tv-scores"><thead><tr><th scope="col">File</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: ScoredUpload, verifiers: Sequence[str]) -> str:
    image = (
        f'<img src="data:{kind_of(row.image)};base64,{base64.b64encode(row.image).decode()}" alt="">'
        if row.image
        else ""
    )
    cells = "".join(
        f'<td data-label="{html.escape(name)}">{_cell(row.scores[name])}</td>' for name in verifiers
    )
    name = html.escape(row.name)
    return f'<tr data-file="{name}"><th scope="row">{image}<span>{name}</span></th>{cells}</tr>'


def _cell(score: Score) -> str:
    reason = html.escape(for_artists(score.reason or ""))
    if math.isnan(score.value):
        return f'<strong>no score</strong><p class="tv-told">{reason}</p>'
    lines = [f"<strong>{score.value:.4g}</strong>"]
    if score.satisfied is True:
        lines.append('<p class="tv-met">All that the prompt asks for is there.</p>')
    elif score.satisfied is False:
        lines.append(f'<p class="tv-told">Not as asked: {reason}</p>')
    elif reason:
        lines.append(f'<p class="tv-noted">{reason}</p>')
    if score.parts:
        parts = "".join(
            f'<tr><th scope="row">{html.escape(name)}</th><td>{value:.4g}</td></tr>'
            for name, value in score.parts.items()
        )
        lines.append(f"<details><summary>Parts</summary><table>{parts}</table></details>")
    return "".join(lines)
