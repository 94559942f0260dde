"""The samples that a search decoded and scored, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tts_vision.errors import ConfigError
from tts_vision.media import copied, read_media, read_text, write_media
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
        facts: Facts about how it was generated, as its sampler gave them.
    """

    uid: int
    score: Score
    step: int
    preview: bool = False
    media: Media | None = None
    path: Path | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Media:
        """The pixels that were judged; a copy, so that nobody changes the sample itself.

        Raises:
            ConfigError: If they were not kept, or there never were any.
        """
        if self.media is not None:
            return copied(self.media)
        if self.path is None and self.score.is_invalid:
            raise ConfigError(
                f"A sample must have pixels but that of particle {self.uid} has none ({self.score.reason}); "
                "take another one of the population."
            )
        if self.path is None:
            raise ConfigError(
                f"A sample must have been kept but that of particle {self.uid} was not; search with an "
                "output folder."
            )
        return read_media(self.path)

    def save(self, path: Path | str) -> None:
        """Writes the sample to `path`, with the facts about it where the format has room for them.

        Args:
            path: Its suffix decides the format; see `tts_vision.media.write_media`.

        Raises:
            ConfigError: If the format is unknown.
        """
        write_media(self.load(), Path(path), self.file_text)

    @property
    def file_text(self) -> dict[str, str]:
        """The facts that a file of the sample says about it."""
        return {**({} if self.path is None else read_text(self.path)), **self.text}

    @property
    def files(self) -> list[Path]:
        """The files of the sample: the one with its exact pixels, and the MP4 beside that of a clip."""
        if self.path is None:
            return []
        shown = self.path.with_suffix(".mp4")
        return [self.path, shown] if self.path.suffix == ".mkv" and shown.is_file() else [self.path]


class MediaStore:
    """Keeps finished samples in memory; the result folder has a subclass that writes files."""

    def save(
        self,
        uid: int,
        media: Media,
        score: Score,
        *,
        settled: bool = True,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> str | None:
        """Stores a finished sample; returns its name, if it has one.

        Args:
            uid: The particle.
            media: The sample.
            score: Its score.
            settled: Whether the value of the score is final.
            facts: How it was generated.
        """
        return None

    def path(self, name: str) -> Path | None:
        """The file that `save` named."""
        return None

    def show(self, uid: int, step: int, media: Media) -> None:
        """Keeps a thumbnail of a particle at a step, for figures of the search.

        Args:
            uid: The particle.
            step: The step.
            media: Its preview there, or the finished sample.
        """


class Candidates:
    """All scored samples of a search.

    Attributes:
        finished: Finished samples by uid, in the order they were scored.
        best: The finished sample with the highest score so far.
        best_preview: The unfinished one; matters only when a budget ends before anything is finished.
        banned: Particles that a person banned, which are never the best.
    """

    def __init__(self, *, satisfied_first: bool = False) -> None:
        self.finished: dict[int, Candidate] = {}
        self.best: Candidate | None = None
        self.best_preview: Candidate | None = None
        self._satisfied_first = satisfied_first
        self.banned: frozenset[int] = frozenset()

    def keep(self, candidate: Candidate) -> None:
        """Adds a sample."""
        if candidate.preview:
            if self._is_better(candidate, self.best_preview):
                self.best_preview = candidate
            return
        self.finished[candidate.uid] = candidate
        if self._is_better(candidate, self.best):
            self.best = candidate

    def ban(self, uids: frozenset[int]) -> None:
        """Lets the best be one of the particles that are not banned."""
        if uids == self.banned:
            return
        self.banned, self.best = uids, None
        for candidate in self.finished.values():
            if self._is_better(candidate, self.best):
                self.best = candidate
        if self.best_preview is not None and self.best_preview.uid in uids:
            self.best_preview = None

    def settle(self, verifier: Verifier) -> None:
        """Brings the values of all finished samples up to date, where they depend on each other."""
        if not verifier.settles:
            return
        pool = [candidate for candidate in self.finished.values() if not candidate.score.is_invalid]
        self.best = None
        for candidate, value in zip(pool, verifier.settle([c.score for c in pool]), strict=True):
            candidate.score = candidate.score.model_copy(update={"value": value})
            if self._is_better(candidate, self.best):
                self.best = candidate

    def _is_better(self, candidate: Candidate, current: Candidate | None) -> bool:
        if math.isnan(candidate.score.value) or candidate.uid in self.banned:
            return False
        return current is None or self._rank(candidate.score) > self._rank(current.score)

    def _rank(self, score: Score) -> tuple[bool, float]:
        return (self._satisfied_first and score.satisfied is True, score.value)
