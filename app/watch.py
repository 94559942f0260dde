"""A search as a page shows it: particles, previews, curve and warnings, kept while events come in."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from PIL import Image

from tts_vision.media import pixels, shrunk, still
from tts_vision.steering import ORIGINAL
from tts_vision.trace import Answer, Birth, Event
from tts_vision.types import Decoded, Invalid, Media, Video

if TYPE_CHECKING:
    from tts_vision.context import SearchContext
    from tts_vision.ledger import Spent

PREVIEW_SIDE = 256
"""Longest side of a preview image in pixels."""
CLIP_SIDE, CLIP_FRAMES = 192, 24
"""Longest side of a preview of a clip in pixels, and its frames, at most."""
PREVIEWS = 512
"""Preview images kept in memory for one search; the oldest are forgotten first."""
Fate: TypeAlias = Literal["going on", "dropped", "finished", "invalid"]


@dataclass(frozen=True)
class Particle:
    """A particle of a search, as a page shows it.

    Attributes:
        uid: Its number.
        step: The step it is at.
        born: The step it was born at.
        parents: Its parents; none for one that was drawn from a seed.
        origin: How it was made: ``init``, ``select`` (a fork), or the name of a move.
        fate: What happened to it: it goes on, was dropped, is finished, or gave an invalid sample.
        score: Score of its last preview, or of its sample; None where there is none.
        parts: Named components of the score.
        reason: Why the score is what it is, or why there is none.
        preview: Version of its preview image, which grows with each new one; 0 where there is none. The image
            itself is `Job.preview`.
        file: Path of its sample inside the folder of the search, such as ``population/00003_0.8216.png``.
        pinned: Whether the person pinned it.
        banned: Whether the person banned it.
        original: Whether the others of a refinement are made from it.
    """

    uid: int
    step: int = 0
    born: int = 0
    parents: tuple[int, ...] = ()
    origin: str = "init"
    fate: Fate = "going on"
    score: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    preview: int = 0
    file: str = ""
    pinned: bool = False
    banned: bool = False
    original: bool = False


@dataclass(frozen=True)
class Point:
    """The best score of a finished sample so far, at a cost.

    Attributes:
        compute: Network evaluations, or multiply-accumulates where they are counted.
        seconds: Wall-clock seconds.
        best: The score.
    """

    compute: float
    seconds: float
    best: float


@dataclass(frozen=True)
class Spending:
    """What a search has spent, and its limits; None where there is no limit.

    Attributes:
        nfe, macs, tokens, verifier_calls, seconds: Spent so far, as in `tts_vision.ledger.Spent`.
        limits: The limits by unit.
        share: The share of the tightest limit that is spent, from 0 to 1.
    """

    nfe: float = 0.0
    macs: float = 0.0
    tokens: float = 0.0
    verifier_calls: int = 0
    seconds: float = 0.0
    limits: Mapping[str, float] = field(default_factory=dict)
    share: float = 0.0


class Watch:
    """Reads the events of a search; thread-safe, and changes nothing about the search."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.number = 0
        self.particles: dict[int, Particle] = {}
        self.changed: dict[int, int] = {}
        self.curve: list[Point] = []
        self.warnings: list[str] = []
        self.best: int | None = None
        self.spending = Spending()
        self._images: dict[int, bytes] = {}
        self._group: dict[int, int] = {}

    def observe(self, context: SearchContext, event: Event) -> None:
        """Takes note of an event of a running search, and of the samples that were decoded with it."""
        from tts_vision.progress import fraction_spent

        images = {uid: _shown(sample) for uid, sample in context.decoded.items()}
        with self.lock:
            self.add(event)
            for uid, image in images.items():
                if image is not None:
                    self._show(uid, image)
            budget = context.ledger.budget
            units = ("nfe", "macs", "tokens", "verifier_calls", "seconds")
            limits = {u: float(v) for u in units if (v := getattr(budget, u)) is not None}
            self._spend(event.spent, limits, fraction_spent(context))
            best = context.best or context.best_preview
            self._improve(None if best is None else best.uid)
            if event.kind == "answer" and event.what == "score" and not event.preview and context.best:
                self._point(context.best.score.value)

    def read(self, events: Iterable[Event], limits: Mapping[str, float]) -> None:
        """Takes note of a recorded search."""
        with self.lock:
            best: tuple[float, int] | None = None
            for event in events:
                self.add(event)
                if event.spent.elapsed:
                    self._spend(event.spent, limits, 0.0)
                if event.kind == "answer" and event.what == "score" and not event.preview:
                    for uid, score in zip(event.uids, event.scores):
                        if not math.isnan(score.value) and (best is None or score.value > best[0]):
                            best = score.value, uid
                    if best is not None:
                        self._improve(best[1])
                        self._point(best[0])
                if event.kind == "done" and event.best is not None:
                    self._improve(event.best)

    def add(self, event: Event) -> None:
        """Takes note of an event."""
        with self.lock:
            self.number += 1
            if event.kind == "birth":
                self._born(event)
            elif event.kind == "computed" and event.what != "decode":
                for uid in event.uids:
                    self._change(uid, step=event.step, fate="going on")
                    self._group[uid] = event.op
            elif event.kind == "answer":
                self._answered(event)
            elif event.kind == "recovered":
                self.warnings.append(event.message)
            elif event.kind == "done":
                self.end()

    def touch(self) -> None:
        """Something beside the particles changed."""
        with self.lock:
            self.number += 1

    def end(self) -> None:
        """No particle goes on any more."""
        with self.lock:
            for uid, particle in list(self.particles.items()):
                if particle.fate == "going on":
                    self._change(uid, fate="dropped")

    def mark(self, pinned: Iterable[int], banned: Iterable[int]) -> None:
        """Takes note of what the person pinned and banned."""
        pins, bans = set(pinned), set(banned)
        with self.lock:
            self.number += 1
            for uid, particle in list(self.particles.items()):
                if (particle.pinned, particle.banned) != (uid in pins, uid in bans):
                    self._change(uid, pinned=uid in pins, banned=uid in bans)

    def image(self, uid: int) -> bytes | None:
        """The last preview of a particle as a `thumbnail`, if there is one."""
        with self.lock:
            return self._images.get(uid)

    def forget_images(self) -> None:
        """Frees the memory of previews."""
        with self.lock:
            self._images.clear()

    def since(self, number: int) -> list[Particle]:
        """The particles that changed after an event, by uid."""
        with self.lock:
            return [p for uid, p in sorted(self.particles.items()) if self.changed[uid] > number]

    def _born(self, event: Birth) -> None:
        if event.what == "select":
            # who was computed together with the selected ones and is not among them is left behind
            groups = {self._group.get(uid) for uid in event.parents}
            kept = {*event.parents, *event.uids}
            for uid, particle in list(self.particles.items()):
                if (
                    uid not in kept
                    and self._group.get(uid) in groups
                    and particle.fate == "going on"
                    and particle.step == event.from_step
                ):
                    self._change(uid, fate="dropped")
        for i, uid in enumerate(event.uids):
            parent = event.parents[i] if event.parents else None
            if uid != parent:
                self.particles[uid] = Particle(
                    uid,
                    step=event.step,
                    born=event.step,
                    parents=() if parent is None else (parent,),
                    origin=event.what,
                )
            elif self.particles[uid].fate == "dropped":
                self._change(uid, fate="going on")
            self._group[uid] = event.op
            self.changed[uid] = self.number

    def _answered(self, event: Answer) -> None:
        if event.what == "warning":
            self.warnings.append(str(event.value))
        elif event.what == "steering":
            self.mark(event.value["pinned"], event.value["banned"])
        elif event.what == "note" and ORIGINAL in event.value:
            self._change(int(event.value[ORIGINAL]), original=True)
        elif event.what == "score":
            for i, (uid, score) in enumerate(zip(event.uids, event.scores)):
                value = None if math.isnan(score.value) else score.value
                file = event.files[i] if event.files else ""
                fate: Fate = self.particles[uid].fate if event.preview else "finished"
                self._change(
                    uid,
                    score=value,
                    parts=score.parts,
                    reason=score.reason,
                    step=event.step,
                    fate="invalid" if score.is_invalid else fate,
                    file=file,
                    # of a search of a former session, the stored sample is all there is to show
                    preview=max(self.particles[uid].preview, 1 if file else 0),
                )

    def _show(self, uid: int, image: bytes) -> None:
        self._images.pop(uid, None)
        self._images[uid] = image
        self._change(uid, preview=self.particles[uid].preview + 1)
        if len(self._images) > PREVIEWS:
            del self._images[next(iter(self._images))]

    def _change(self, uid: int, **facts: object) -> None:
        self.particles[uid] = replace(self.particles[uid], **facts)  # type: ignore[arg-type]
        self.changed[uid] = self.number

    def _spend(self, spent: Spent, limits: Mapping[str, float], share: float) -> None:
        self.spending = Spending(
            nfe=spent.nfe,
            macs=spent.macs,
            tokens=spent.tokens,
            verifier_calls=spent.verifier_calls,
            seconds=spent.elapsed,
            limits=dict(limits),
            share=share,
        )

    def _improve(self, uid: int | None) -> None:
        if uid is not None and uid != self.best:
            for changed in (self.best, uid):
                if changed is not None:
                    self.changed[changed] = self.number
            self.best = uid

    def _point(self, best: float) -> None:
        spent = self.spending
        self.curve.append(Point(spent.macs or spent.nfe, spent.seconds, best))


def thumbnail(media: Media) -> bytes:
    """A small JPEG of an image; of a clip an animated WebP of some of its frames, which lasts as long."""
    if isinstance(media, Video) and len(media.frames) > 1:
        return _animated(media)
    image = still(media).convert("RGB")
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def kind_of(data: bytes) -> str:
    """The media type of a `thumbnail`."""
    return "image/webp" if data[:4] == b"RIFF" else "image/jpeg"


def _animated(clip: Video) -> bytes:
    step = math.ceil(len(clip.frames) / CLIP_FRAMES)
    small = shrunk(Video(clip.frames[::step], clip.fps / step), CLIP_SIDE)
    first, *rest = [Image.fromarray(frame) for frame in pixels(small)]
    buffer = io.BytesIO()
    # the first frame is shown by itself where nothing is to move
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=max(20, round(1000 / clip.fps * step)),
        loop=0,
        quality=80,
        method=0,
    )
    return buffer.getvalue()


def thumbnail_of(path: Path) -> bytes:
    """`thumbnail` of a stored sample."""
    from tts_vision.media import read_media

    return thumbnail(read_media(path))


def _shown(sample: Decoded) -> bytes | None:
    media = sample.media if isinstance(sample, Invalid) else sample
    return None if media is None else thumbnail(media)
