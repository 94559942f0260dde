"""Training data of the playground's judge: images with captions, and which demands of a caption are met.

Images are painted scenes and samples of the bundled models. Captions are the prompt an image was made for,
descriptions of the objects in it, and versions of both with one thing wrong (as in ARO, Yuksekgonul et al.
2023): a count, a colour, a shape, the relation, or the attributes exchanged between the groups. Labels follow
from the detections of an image, by the rules of `checker.judge`. No evaluation prompt is ever a caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.checker import Detection
from tts_vision.pipelines.playground.tokenizer import END, MAX_TOKENS, vocabulary
from tts_vision.pipelines.playground.world import Group, Scene, Spec, Thing

CAPTIONS = 8
GRID = 8
WAYS = ("count", "colour", "shape", "relation", "exchange")
# How often each is made wrong: those that are learnt last most.
_SHARES = {"count": 2, "colour": 1, "shape": 1, "relation": 3, "exchange": 3}
COUNTS = ((1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2))
_IGNORED = -1
# Smaller than the world's smallest in crowded scenes: samples err to that side too.
_RADII = {1: (9.0, 14.0), 2: (8.5, 12.5), 3: (8.0, 11.0), 4: (7.5, 9.5), 5: (7.0, 8.5)}
_AXES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
_START = vocabulary()[END]


@dataclass(frozen=True)
class Examples:
    """Images with `CAPTIONS` captions each.

    Attributes:
        images: uint8 of shape `(n, 64, 64, 3)`.
        tokens: Token ids, uint8 of shape `(n, captions, 16)`, padded with zeros.
        met: For each token whether its demand is met, 1 or 0, and -1 for words that demand nothing; int8 of
            shape `(n, captions, 16)`.
        right: Whether all demands are met, int8 of shape `(n, captions)`.
        cells: For each cell of an 8x8 grid the shape (1 to 7) and the colour (1 to 10) of the object centred
            in it, 0 for none; int8 of shape `(n, 64, 2)`.
    """

    images: np.ndarray
    tokens: np.ndarray
    met: np.ndarray
    right: np.ndarray
    cells: np.ndarray


# ----------------------------------------------------------------------------------------------- captions


def kept_out(spec: Spec) -> bool:
    """Whether a prompt is kept out of the judge's training.

    Besides `world.is_held_out`, one group without a colour is kept out: the evaluation set has all of those.

    Args:
        spec: The prompt's meaning.
    """
    single = len(spec.groups) == 1 and spec.groups[0].colour is None
    return single or world.is_held_out(spec)


def sample_prompt(rng: np.random.Generator) -> Spec:
    """Draws a training prompt: mostly two coloured groups, of up to four shapes in all.

    Args:
        rng: Source of randomness.
    """
    while True:
        a, b = (world.SHAPES[i] for i in rng.choice(len(world.SHAPES), 2, replace=False))
        red, blue = (list(world.COLOURS)[i] for i in rng.choice(len(world.COLOURS), 2, replace=False))
        if rng.random() < 0.15:
            spec = Spec((Group(a, int(rng.integers(1, 5)), red),))
        else:
            counts = COUNTS[rng.integers(len(COUNTS))]
            relation = world.RELATIONS[rng.integers(4)] if rng.random() < 0.6 else None
            form = rng.random()
            if form < 0.08:
                b = a
            if form < 0.8:
                groups = (Group(a, counts[0], red), Group(b, counts[1], blue))
            elif form < 0.9:
                groups = (Group(a, counts[0]), Group(b, counts[1]))
            else:
                groups = (Group(a, 1), Group(b, 1))
            spec = Spec(groups, relation)
        if not kept_out(spec):
            return spec


def ways_of(spec: Spec) -> list[str]:
    """The single things of a prompt that can be made wrong, some of `WAYS`.

    Args:
        spec: The prompt's meaning.
    """
    coloured = [group for group in spec.groups if group.colour is not None]
    ways = ["count", "shape"] + ["colour"] * bool(coloured)
    if spec.relation is not None:
        ways.append("relation")
    if len(spec.groups) == 2:
        a, b = spec.groups
        if a.shape != b.shape and ((a.colour != b.colour and len(coloured) == 2) or a.count != b.count):
            ways.append("exchange")
    return ways


def altered(spec: Spec, rng: np.random.Generator, way: str) -> Spec:
    """A prompt with one thing changed.

    Args:
        spec: A true description.
        rng: Source of randomness.
        way: One of `ways_of(spec)`.
    """
    groups, relation = list(spec.groups), spec.relation
    coloured = [i for i, group in enumerate(groups) if group.colour is not None]
    k = int(coloured[rng.integers(len(coloured))] if way == "colour" else rng.integers(len(groups)))
    group = groups[k]
    if way == "count":
        # Near misses are the common errors of samples.
        near = [n for n in (group.count - 1, group.count + 1) if 1 <= n <= 4]
        groups[k] = Group(group.shape, near[rng.integers(len(near))], group.colour)
    elif way == "shape":
        others = [shape for shape in world.SHAPES if shape not in {g.shape for g in groups}]
        groups[k] = Group(others[rng.integers(len(others))], group.count, group.colour)
    elif way == "colour":
        others = [c for c in world.COLOURS if c not in {g.colour for g in groups}]
        groups[k] = Group(group.shape, group.count, others[rng.integers(len(others))])
    elif way == "relation":
        others = [r for r in world.RELATIONS if r != relation]
        relation = others[rng.integers(3)]
    else:
        a, b = groups
        colours = a.colour != b.colour and a.colour is not None and b.colour is not None
        if a.count == b.count or (colours and rng.random() < 0.6):
            groups = [Group(a.shape, a.count, b.colour), Group(b.shape, b.count, a.colour)]
        else:
            groups = [Group(a.shape, b.count, a.colour), Group(b.shape, a.count, b.colour)]
    return Spec(tuple(groups), relation)


def described(rng: np.random.Generator, detections: Sequence[Detection]) -> Spec | None:
    """A prompt that names one or two kinds of the objects found, with their counts.

    Args:
        rng: Source of randomness.
        detections: Objects of an image.

    Returns:
        The prompt, right for the image or nearly so; None if no object is known or counts pass four.
    """
    kinds: dict[tuple[str, str], list[Detection]] = {}
    for found in detections:
        if found.label in world.SHAPES:
            kinds.setdefault((found.label, found.colour), []).append(found)
    names = list(kinds)
    order = [names[i] for i in rng.permutation(len(names))[:2]]
    if not order or any(len(kinds[kind]) > 4 for kind in order):
        return None
    bare = rng.random() < 0.15 and len({shape for shape, _ in order}) == 2
    groups = tuple(Group(kind[0], len(kinds[kind]), None if bare else kind[1]) for kind in order)
    if len(order) == 1:
        return Spec((Group(order[0][0], len(kinds[order[0]]), order[0][1]),))
    held = [r for r in world.RELATIONS if _related(r, kinds[order[0]], kinds[order[1]])]
    relation = held[rng.integers(len(held))] if held and rng.random() < 0.75 else None
    return Spec(groups, relation)


def _related(relation: str, placed: Sequence[Detection], reference: Sequence[Detection]) -> bool:
    return all(world.holds(relation, world.relation_offset(a.box, b.box)) for a in placed for b in reference)


def demands(detections: Sequence[Detection], spec: Spec) -> dict[str, bool]:
    """Whether each demand of a prompt is met; all are exactly if `checker.judge` calls the image right.

    Args:
        detections: Objects of an image, by falling score.
        spec: The prompt's meaning.

    Returns:
        A mapping with `shape0`, `count0`, `colour0` for the first group, where it has a colour, the same
        with 1 for a second one, and `relation` if there is one.
    """
    one_kind = len({group.shape for group in spec.groups}) < len(spec.groups)
    exact = any(group.count > 1 for group in spec.groups) and not one_kind
    met: dict[str, bool] = {}
    chosen: list[list[Detection]] = []
    for k, group in enumerate(spec.groups):
        pool = [
            d for d in detections if d.label == group.shape and (not one_kind or d.colour == group.colour)
        ]
        chosen.append(pool[: group.count])
        met[f"shape{k}"] = bool(pool)
        met[f"count{k}"] = len(pool) == group.count if exact else len(pool) >= group.count
        if group.colour is not None:
            met[f"colour{k}"] = bool(pool) and all(d.colour == group.colour for d in chosen[k])
    if spec.relation is not None:
        met["relation"] = all(map(bool, chosen)) and _related(spec.relation, *chosen)
    return met


def worded(rng: np.random.Generator, spec: Spec) -> list[tuple[str, str | None]]:
    """A caption as words, each with the demand that it states, or None.

    Args:
        rng: Source of randomness; it chooses "a photo of" and "to the".
        spec: What to say.
    """
    words: list[tuple[str, str | None]] = []
    if rng.random() < 0.5:
        words += [(word, None) for word in ("a", "photo", "of")]
    for k, group in enumerate(spec.groups):
        if k:
            if spec.relation in ("left of", "right of") and rng.random() < 0.15:
                words += [("to", None), ("the", None)]
            joint = (spec.relation or "and").split()
            words.append((joint[0], "relation" if spec.relation else None))
            words += [(word, None) for word in joint[1:]]
        parts = world.caption(Spec((group,)), prefix=False).split()
        words.append((parts[0], f"count{k}"))
        if group.colour is not None:
            words.append((parts[1], f"colour{k}"))
        words.append((parts[-1], f"shape{k}"))
    return words


# ------------------------------------------------------------------------------------------------- images


def found_in(scene: Scene) -> list[Detection]:
    """The objects of a painted scene as a perfect detector finds them.

    Args:
        scene: The scene.
    """
    return [Detection(t.shape, t.colour, _box(t), 1.0, 0) for t in scene.things]


def _box(thing: Thing) -> tuple[float, float, float, float]:
    return thing.x - thing.radius, thing.y - thing.radius, thing.x + thing.radius, thing.y + thing.radius


def painted(rng: np.random.Generator, spec: Spec) -> Scene:
    """A scene of a prompt, at times with one more object than asked, at times without its relation.

    Args:
        rng: Source of randomness.
        spec: What to paint.
    """
    groups, relation = spec.groups, spec.relation
    chance, names = rng.random(), list(world.COLOURS)
    if chance < 0.15:
        other = world.SHAPES[rng.integers(len(world.SHAPES))]
        groups = (*groups, Group(other, 1, names[rng.integers(len(names))]))
    elif chance < 0.25:
        relation = None
    kinds = []
    for group in groups:
        drawn = rng.integers(len(names), size=group.count)
        drawn[:] = drawn[0] if rng.random() < 0.5 else drawn
        kinds += [(group.shape, group.colour or names[k]) for k in drawn]
    counts = [group.count for group in spec.groups]
    places = _layout(rng, len(kinds), counts[0], sum(counts), relation)
    things = [
        Thing(s, c, float(x), float(y), float(r)) for (s, c), (x, y, r) in zip(kinds, places, strict=True)
    ]
    return Scene(tuple(things), world.GREYS[rng.integers(len(world.GREYS))])


def _layout(
    rng: np.random.Generator, total: int, first: int, related: int, relation: str | None
) -> np.ndarray:
    """Places of shapes that stay clear of one another; hundreds are tried at once, as most fail.

    Args:
        rng: Source of randomness.
        total: Number of shapes.
        first: Number of those, at the beginning, that `relation` places.
        related: Number of those, at the beginning, that it concerns; the rest lies anywhere.
        relation: One of `world.RELATIONS`, or None.

    Returns:
        Rows `(x, y, radius)`, shape `(total, 3)`.
    """
    low, high = _RADII[total]
    tries = 512
    while True:
        radius = rng.uniform(low, high, (tries, total))
        margin = 1.12 * radius + 1.5
        centre = margin[..., None] + rng.random((tries, total, 2)) * (world.SIZE - 2 * margin[..., None])
        offset = centre[:, :, None] - centre[:, None]
        distance = np.hypot(offset[..., 0], offset[..., 1])
        need = 1.12 * (radius[:, :, None] + radius[:, None]) + 3.0
        fine = ((distance >= need) | np.eye(total, dtype=bool)).all((1, 2))
        if relation is not None:
            axis, sign = _AXES[relation]
            sizes = 2 * (radius[:, :first, None] + radius[:, None, first:related])
            along = sign * offset[:, :first, first:related, axis] - 0.1 * sizes
            fine &= (along > 0.55 * distance[:, :first, first:related]).all((1, 2))
        kept = np.flatnonzero(fine)
        if len(kept):
            return np.concatenate([centre[kept[0]], radius[kept[0]][:, None]], 1)
        low, high = 0.98 * low, 0.98 * high


def cells_of(detections: Sequence[Detection]) -> np.ndarray:
    """Shape and colour of the objects centred in each cell, see `Examples.cells`: int8 `(64, 2)`."""
    cells = np.zeros((GRID, GRID, 2), np.int8)
    side = world.SIZE / GRID
    for found in detections:
        if found.label in world.SHAPES:
            column = int(np.clip((found.box[0] + found.box[2]) / 2 // side, 0, GRID - 1))
            row = int(np.clip((found.box[1] + found.box[3]) / 2 // side, 0, GRID - 1))
            shape, colour = world.SHAPES.index(found.label), list(world.COLOURS).index(found.colour)
            cells[row, column] = (shape + 1, colour + 1)
    return cells.reshape(-1, 2)


def captions_of(rng: np.random.Generator, asked: Spec, detections: Sequence[Detection]) -> list[Spec]:
    """The captions that one image is judged by, none of them kept out.

    Args:
        rng: Source of randomness.
        asked: The prompt the image was made for.
        detections: Its objects.

    Returns:
        `CAPTIONS` prompts: the asked one, descriptions of the objects, and both with one thing wrong.

    Raises:
        ValueError: If the asked one is kept out.
    """
    if kept_out(asked):
        raise ValueError(
            f"A caption must be a training prompt but {world.caption(asked)!r} is kept out; draw another."
        )
    specs = [asked]
    for _ in range(2):
        spec = described(rng, detections)
        if spec is not None and not kept_out(spec):
            specs.append(spec)
    known = len(specs)
    while len(specs) < CAPTIONS:
        base = specs[0] if rng.random() < 0.6 else specs[rng.integers(known)]
        ways = [way for way in ways_of(base) for _ in range(_SHARES[way])]
        spec = altered(base, rng, ways[rng.integers(len(ways))])
        if not kept_out(spec):
            specs.append(spec)
    return specs


def label(
    rng: np.random.Generator,
    images: np.ndarray,
    asked: Sequence[Spec],
    detections: Sequence[Sequence[Detection]],
) -> Examples:
    """Captions and labels for images.

    Args:
        rng: Source of randomness.
        images: uint8 of shape `(n, 64, 64, 3)`.
        asked: The prompt each was made for.
        detections: The objects of each, by falling score.
    """
    n = len(images)
    words = vocabulary()
    tokens = np.zeros((n, CAPTIONS, MAX_TOKENS), np.uint8)
    met = np.full((n, CAPTIONS, MAX_TOKENS), _IGNORED, np.int8)
    right = np.zeros((n, CAPTIONS), np.int8)
    for i in range(n):
        for j, spec in enumerate(captions_of(rng, asked[i], detections[i])):
            state = demands(detections[i], spec)
            right[i, j] = all(state.values())
            tokens[i, j, 0] = _START
            caption = worded(rng, spec)
            for k, (word, demand) in enumerate(caption, start=1):
                tokens[i, j, k] = words[word]
                if demand is not None:
                    met[i, j, k] = state[demand]
            tokens[i, j, len(caption) + 1] = words[END]
    return Examples(images, tokens, met, right, np.stack([cells_of(found) for found in detections]))


def paint(seed: int, count: int) -> Examples:
    """Painted examples.

    Args:
        seed: Seed of prompts, scenes and captions.
        count: Number of images.
    """
    rng = np.random.default_rng(seed)
    specs = [sample_prompt(rng) for _ in range(count)]
    scenes = [painted(rng, spec) for spec in specs]
    return label(rng, world.render_batch(scenes), specs, [found_in(scene) for scene in scenes])
