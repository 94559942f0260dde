"""The samples that a search decoded and scored, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tts_vision.errors import ConfigError
from tts_vision.media import read_media, write_media
from tts_vision.types import Media, Score
from tts_vision.verifier import Verifier


@dataclass
class Candidate:
    """A sample that a search decoded and scored.

    Attributes:
        uid: The particle.
        score: The verifier's score.
        step: The step it was decoded at.
        preview: Whether it is unfinished.
        media: The pixels, or None while they are only in `path`.
        path: Where the sample is stored, if anywhere.
        text: Facts about the sample, for the metadata of its file.
    """

    uid: int
    score: Score
    step: int
    preview: bool = False
    media: Media | None = None
    path: Path | None = None
    text: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Media:
        """The pixels.

        Raises:
            ConfigError: If they were not kept.
        """
        if self.media is not None:
            return self.media
        if self.path is None:
            raise ConfigError(
                f"A sample must have been kept but that of particle {self.uid} was not; search with an "
                "output folder."
            )
        return read_media(self.path)

    def save(self, path: Path | str) -> None:
        """Writes the sample to `path`, with `text` in it where the format has room for that."""
        write_media(self.load(), Path(path), self.text)


class MediaStore:
    """Keeps finished samples in memory; the result folder has a subclass that writes files."""

    def save(self, uid: int, media: Media, score: Score, *, settled: bool = True) -> str | None:
        """Stores a finished sample; returns its name, if it has one.

        Args:
            uid: The particle.
            media: The sample.
            score: Its score.
            settled: Whether the value of the score is final.
        """
        return None

    def path(self, name: str) -> Path | None:
        """The file that `save` named."""
        return None


class Candidates:
    """All scored samples of a search.

    Attributes:
        finished: Finished samples by uid, in the order they were scored.
        best: The finished sample with the highest score so far.
        best_preview: The unfinished one; matters only when a budget ends before anything is finished.
    """

    def __init__(self, *, satisfied_first: bool = False) -> None:
        self.finished: dict[int, Candidate] = {}
        self.best: Candidate | None = None
        self.best_preview: Candidate | None = None
        self._satisfied_first = satisfied_first

    def keep(self, candidate: Candidate) -> None:
        """Adds a sample."""
        if candidate.preview:
            if self._is_better(candidate, self.best_preview):
                self.best_preview = candidate
            return
        self.finished[candidate.uid] = candidate
        if self._is_better(candidate, self.best):
            self.best = candidate

    def settle(self, verifier: Verifier) -> None:
        """Brings the values of all finished samples up to date, where they depend on each other."""
        if not verifier.settles:
            return
        pool = list(self.finished.values())
        self.best = None
        for candidate, value in zip(pool, verifier.settle([c.score for c in pool]), strict=True):
            candidate.score = candidate.score.model_copy(update={"value": value})
            if self._is_better(candidate, self.best):
                self.best = candidate

    def _is_better(self, candidate: Candidate, current: Candidate | None) -> bool:
        if math.isnan(candidate.score.value):
            return False
        return current is None or self._rank(candidate.score) > self._rank(current.score)

    def _rank(self, score: Score) -> tuple[bool, float]:
        return (self._satisfied_first and score.satisfied is True, score.value)
