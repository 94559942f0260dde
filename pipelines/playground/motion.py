"""Clips of the playground: one or two shapes that move, grow, shrink or stand still, and their captions.

The shapes, colours and painter of `world`, 64x64 pixels, 16 frames at 8 a second in four chunks of four
frames. The pace of each object is drawn anew for every chunk. Objects stay inside the frame and clear of one
another.

``python -m tts_vision.pipelines.playground.motion`` writes the evaluation prompts again, to `motion.jsonl`
beside this file. Everything random takes a :class:`numpy.random.Generator`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.world import COLOURS, SHAPES, SIZE, Scene, Thing, plain_words

FRAMES, CHUNK, FPS = 16, 4, 8.0
CHUNKS = FRAMES // CHUNK
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# The first wording of each motion is the canonical one.
WORDINGS = {
    **{way: (f"moving {way}", f"moving to the {way}", f"that moves {way}") for way in ("left", "right")},
    **{way: (f"moving {way}", f"that moves {way}") for way in ("up", "down")},
    "grow": ("growing", "that grows"),
    "shrink": ("shrinking", "that shrinks"),
    "still": ("standing still", "that stands still"),
}
MOTIONS = tuple(WORDINGS)
WORDS = (
    *("moving", "moves", "up", "down", "growing", "grows", "shrinking", "shrinks", "standing", "stands"),
    *("still", "that", "video", "clip"),
)
FORMS = ("one_object", "two_objects")
PROMPTS_SEED = 20261127

# Per frame: pixels of a moving object, and the logarithm of the radius of a growing one.
_PACE = (1.0, 2.2)
_GROWTH = (0.022, 0.038)
_SMALLEST, _GAP = 7.5, 4.0
_REACH = 1.12  # of a shape from its centre, in radii
_RADII = {1: (8.5, 12.0), 2: (8.0, 10.5)}
_LARGEST = {1: 13.5, 2: 13.0}
_PREFIXES = ("a video of ", "a clip of ")


@dataclass(frozen=True)
class Actor:
    """One object and how it moves; a motion of None may be any."""

    shape: str
    colour: str
    motion: str | None = None


@dataclass(frozen=True)
class MotionSpec:
    """The meaning of a prompt: one or two objects that differ in shape or colour."""

    actors: tuple[Actor, ...]

    @property
    def tag(self) -> str:
        """One of `FORMS`."""
        return FORMS[len(self.actors) - 1]

    @property
    def objects(self) -> MotionSpec:
        """The same objects, whatever they do."""
        return MotionSpec(tuple(Actor(actor.shape, actor.colour) for actor in self.actors))


@dataclass(frozen=True)
class Clip:
    """What a clip shows, frame by frame."""

    scenes: tuple[Scene, ...]


# ------------------------------------------------------------------------------------------------- language


def caption(spec: MotionSpec, wordings: Sequence[int] = (0, 0), prefix: str = "") -> str:
    """Words for a spec.

    Args:
        spec: What to say.
        wordings: Of the motion of each object, a number in its tuple of `WORDINGS`.
        prefix: What to begin with.

    Returns:
        The caption, lower case.
    """
    phrases = []
    for actor, k in zip(spec.actors, wordings):
        words = f"{'an' if actor.colour[0] in 'aeiou' else 'a'} {actor.colour} {actor.shape}"
        phrases.append(words if actor.motion is None else f"{words} {WORDINGS[actor.motion][k]}")
    return prefix + " and ".join(phrases)


_PREFIX = re.compile(r"^(?:(?:a|an|the) )?(?:video|clip|photo) of ")
_MOTION_OF = {words: motion for motion, wordings in WORDINGS.items() for words in wordings}


def parse_spec(text: str) -> MotionSpec:
    """Reads a prompt: an optional "a video of", then one object, or two joined by "and".

    An object is an article, a colour, a shape and, if it is to be judged, a motion: "moving left", "moving to
    the left", "that moves left"; likewise right, up and down; "growing", "shrinking", "standing still".

    Args:
        text: The prompt; case and closing full stop do not matter.

    Returns:
        What the prompt means.

    Raises:
        ValueError: The prompt is not of this grammar.
    """
    clean = _PREFIX.sub("", plain_words(text))
    phrases = clean.split(" and ")
    if len(phrases) > 2:
        raise ValueError(
            f"A clip of the playground has at most two objects but {text!r} names {len(phrases)}; join two "
            "by one 'and'."
        )
    actors = tuple(_actor(phrase.split(), text) for phrase in phrases)
    if len({(actor.shape, actor.colour) for actor in actors}) < len(actors):
        raise ValueError(
            f"Two objects must differ in shape or colour to be told apart but got {text!r}; change one."
        )
    return MotionSpec(actors)


def _actor(words: list[str], text: str) -> Actor:
    rest = words[1:] if words[:1] in (["a"], ["an"], ["the"], ["one"]) else words
    if len(rest) < 2 or rest[0] not in COLOURS or rest[1] not in SHAPES:
        raise ValueError(
            f"An object is a colour ({', '.join(COLOURS)}) and a shape ({', '.join(SHAPES)}) in that order "
            f"but got {' '.join(words)!r} in {text!r}; write it as in 'a red circle moving left'."
        )
    motion = " ".join(word for word in rest[2:] if word != "is")
    motion = f"that {motion}" if motion.split(" ")[0] in ("moves", "grows", "shrinks", "stands") else motion
    if motion and motion not in _MOTION_OF:
        known = ", ".join(wordings[0] for wordings in WORDINGS.values())
        raise ValueError(f"A motion is one of {known} but got {motion!r} in {text!r}; use one of these.")
    return Actor(rest[1], rest[0], _MOTION_OF[motion] if motion else None)


def metadata(spec: MotionSpec) -> dict[str, Any]:
    """A spec as a record: `tag`, `actors` and the canonical `prompt`."""
    actors = [{"class": a.shape, "color": a.colour, "motion": a.motion} for a in spec.actors]
    return {"tag": spec.tag, "actors": actors, "prompt": caption(spec)}


def spec_of(record: Mapping[str, Any]) -> MotionSpec:
    """The spec of a record of `metadata`."""
    return MotionSpec(tuple(Actor(a["class"], a["color"], a["motion"]) for a in record["actors"]))


# -------------------------------------------------------------------------------------------------- drawing


def render(clip: Clip) -> np.ndarray:
    """Draws a clip: RGB, uint8 of shape `(16, 64, 64, 3)`."""
    return world.render_batch(clip.scenes)


def render_batch(clips: Sequence[Clip]) -> np.ndarray:
    """Draws clips of equal length: RGB, uint8 of shape `(n, 16, 64, 64, 3)`."""
    frames = world.render_batch([scene for clip in clips for scene in clip.scenes])
    return frames.reshape(len(clips), -1, *frames.shape[1:])


# ------------------------------------------------------------------------------------------------- sampling


def sample_spec(rng: np.random.Generator, form: str) -> MotionSpec:
    """Draws a random spec of one of `FORMS`."""
    count = 1 + FORMS.index(form)
    while True:
        actors = tuple(
            Actor(
                SHAPES[rng.integers(len(SHAPES))],
                list(COLOURS)[rng.integers(len(COLOURS))],
                MOTIONS[rng.integers(len(MOTIONS))],
            )
            for _ in range(count)
        )
        if len({(actor.shape, actor.colour) for actor in actors}) == count:
            return MotionSpec(actors)


def sample_training_spec(rng: np.random.Generator, two: float = 0.65) -> MotionSpec:
    """Draws a spec that no evaluation uses.

    Args:
        rng: Source of randomness.
        two: Share of specs of two objects.
    """
    form = FORMS[int(rng.random() < two)]
    while is_held_out(spec := sample_spec(rng, form)):
        continue
    return spec


def sample_clip(rng: np.random.Generator, spec: MotionSpec) -> Clip:
    """Draws a clip that a spec describes; a motion that is None is drawn too."""
    return sample_changing_clip(rng, [spec] * CHUNKS)


def sample_changing_clip(rng: np.random.Generator, specs: Sequence[MotionSpec]) -> Clip:
    """Draws a clip whose chunks show different specs, as when a prompt changes between chunks.

    Shapes, colours and motions change where the specs say so; places and sizes go on.

    Args:
        rng: Source of randomness.
        specs: One per chunk, all of one number of objects.

    Returns:
        The clip.
    """
    count = len(specs[0].actors)
    drawn = [MOTIONS[rng.integers(len(MOTIONS))] for _ in range(count)]
    motions = [[spec.actors[a].motion or drawn[a] for spec in specs] for a in range(count)]
    background = world.GREYS[rng.integers(len(world.GREYS))]
    for _ in range(10_000):
        paths = [_path(rng, each, count) for each in motions]
        places = _placed(rng, paths)
        if places is not None:
            return Clip(_scenes(specs, paths, places, background))
    raise RuntimeError(f"No layout for {specs} was found in 10,000 tries; lower the radii.")


@dataclass(frozen=True)
class _Path:
    """Offsets of the centre `(frames, 2)` and radii `(frames,)` of an object."""

    offset: np.ndarray
    radius: np.ndarray


def _path(rng: np.random.Generator, motions: Sequence[str], count: int) -> _Path:
    frames = len(motions) * CHUNK
    steps = np.zeros((frames, 3))
    for chunk, motion in enumerate(motions):
        pace, growth = rng.uniform(*_PACE), rng.uniform(*_GROWTH)
        move = (0.0, 0.0, 0.0)
        if motion in DIRECTIONS:
            across, down = DIRECTIONS[motion]
            move = (pace * across, pace * down, 0.0)
        elif motion != "still":
            move = (0.0, 0.0, growth if motion == "grow" else -growth)
        steps[chunk * CHUNK : (chunk + 1) * CHUNK] = move
    steps[0] = 0
    way = steps.cumsum(0)
    low, high = _RADII[count]
    least, most = way[:, 2].min(), way[:, 2].max()
    if least < most:
        low, high = _SMALLEST / np.exp(least), _LARGEST[count] / np.exp(most)
    return _Path(way[:, :2], rng.uniform(low, max(high, low)) * np.exp(way[:, 2]))


def _placed(rng: np.random.Generator, paths: Sequence[_Path], tries: int = 24) -> list[np.ndarray] | None:
    """First centres that keep all objects inside and apart in all frames, each `(2,)`; None if not found."""
    offset = np.stack([path.offset for path in paths])
    radius = np.stack([path.radius for path in paths])
    margin = (radius * _REACH + 1.5)[..., None]
    low, high = (margin - offset).max(1), (SIZE - margin - offset).min(1)
    if (low > high).any() or (radius > _LARGEST[len(paths)] + 1e-6).any():
        return None
    start = low + rng.random((tries, *low.shape)) * (high - low)
    if len(paths) == 1:
        return [start[0, 0]]
    centre = start[:, :, None] + offset
    apart = np.linalg.norm(centre[:, 0] - centre[:, 1], axis=-1)
    fine = (apart >= _REACH * radius.sum(0) + _GAP).all(1)
    return list(start[fine.argmax()]) if fine.any() else None


def _scenes(
    specs: Sequence[MotionSpec], paths: Sequence[_Path], places: Sequence[np.ndarray], background: int
) -> tuple[Scene, ...]:
    scenes = []
    for frame in range(len(paths[0].radius)):
        things = []
        for actor, path, place in zip(specs[frame // CHUNK].actors, paths, places):
            x, y = place + path.offset[frame]
            things.append(Thing(actor.shape, actor.colour, float(x), float(y), float(path.radius[frame])))
        scenes.append(Scene(tuple(things), background))
    return tuple(scenes)


def sample_caption(rng: np.random.Generator, spec: MotionSpec) -> str:
    """Words for a spec as training uses them: any wording, either order, sometimes without the motions.

    Args:
        rng: Source of randomness.
        spec: What to say.

    Returns:
        The caption.
    """
    actors = list(spec.actors)
    if rng.random() < 0.5:
        actors.reverse()
    if rng.random() < 0.08:  # as a prompt for the first chunk may
        actors = [Actor(actor.shape, actor.colour) for actor in actors]
    wordings = [
        0 if a.motion is None or rng.random() < 0.5 else int(rng.integers(len(WORDINGS[a.motion])))
        for a in actors
    ]
    prefix = _PREFIXES[rng.integers(len(_PREFIXES))] if rng.random() < 0.3 else ""
    return caption(MotionSpec(tuple(actors)), wordings, prefix)


# --------------------------------------------------------------------------------------- evaluation prompts


def is_held_out(spec: MotionSpec) -> bool:
    """Whether a prompt is kept out of training, by a hash of its words in one order: about a fifth."""
    ordered = MotionSpec(tuple(sorted(spec.actors, key=lambda a: (a.shape, a.colour))))
    return hashlib.sha256(caption(ordered).encode()).digest()[0] % 5 == 0


def make_prompts(per_form: int = 60, seed: int = PROMPTS_SEED) -> list[dict[str, Any]]:
    """The evaluation prompts: distinct held-out ones, the forms in turn, each motion about equally often.

    Args:
        per_form: Prompts of each form.
        seed: Seed of the choice.

    Returns:
        Records of `metadata`.
    """
    rng = np.random.default_rng(seed)
    chosen: dict[MotionSpec, None] = {}
    while len(chosen) < len(FORMS) * per_form:
        k = len(chosen)
        spec = sample_spec(rng, FORMS[k % len(FORMS)])
        first = MOTIONS[k // len(FORMS) % len(MOTIONS)]
        if spec.actors[0].motion == first and is_held_out(spec):
            chosen[spec] = None
    return [metadata(spec) for spec in chosen]


def write_prompts(path: Path) -> None:
    """Writes `make_prompts()` as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in make_prompts()))


def load_prompts() -> list[dict[str, Any]]:
    """The evaluation prompts that ship with the package: 120 records of `metadata`."""
    path = Path(__file__).with_name("motion.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    write_prompts(Path(__file__).with_name("motion.jsonl"))
