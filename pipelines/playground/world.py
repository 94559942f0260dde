"""A procedural world of plain shapes: scenes, drawings, captions and the prompts that describe them.

Seven shapes in the ten colours of GenEval (Ghosh et al. 2023), one to four to an image, on a plain grey
ground, 64x64 pixels. Captions follow GenEval's six task forms, and metadata follow its schema, so that
whatever reads GenEval's prompt files reads these. Two freer forms ("two red circles", "two red circles left
of a blue star") are understood as well.

Everything random takes a :class:`numpy.random.Generator`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 64
SHAPES = ("circle", "square", "triangle", "ring", "cross", "diamond", "star")
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
COLOURS = {
    "red": (220, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (250, 220, 30),
    "green": (30, 160, 60),
    "blue": (35, 75, 220),
    "purple": (125, 40, 170),
    "pink": (250, 130, 190),
    "brown": (125, 75, 35),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
GREYS = (64, 96, 128, 160, 192)
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
FREE_TASKS = ("colored_counting", "colored_position")
# The hard forms get the larger share; the last two are the freer ones.
TASK_MIX = {
    "single_object": 0.05,
    "two_object": 0.13,
    "counting": 0.15,
    "colors": 0.07,
    "position": 0.19,
    "color_attr": 0.21,
    "colored_counting": 0.08,
    "colored_position": 0.12,
}
PROMPTS_SEED = 20240611

# How far a shape reaches from its centre, in radii, and by how much two shapes keep clear of one another.
_REACH = 1.12
_GAP = 3.0
_RADII = {1: (10.0, 14.0), 2: (9.0, 12.5), 3: (8.5, 11.0), 4: (8.0, 9.5), 5: (7.0, 8.0), 6: (6.5, 7.5)}
_STAR_INNER = 0.5


@dataclass(frozen=True)
class Thing:
    """One drawn shape; position and radius in pixels, y pointing down."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """What an image holds: its shapes and the grey level of its ground."""

    things: tuple[Thing, ...]
    background: int


@dataclass(frozen=True)
class Group:
    """`count` shapes of one kind, all of `colour` or of any colour when it is None."""

    shape: str
    count: int = 1
    colour: str | None = None


@dataclass(frozen=True)
class Spec:
    """The meaning of a prompt: one or two groups, and how the first lies to the second.

    Attributes:
        groups: In the order in which the prompt names them.
        relation: One of `RELATIONS`, or None for "and" or a single group.
    """

    groups: tuple[Group, ...]
    relation: str | None = None

    @property
    def tag(self) -> str:
        """GenEval's name of the task form; freer prompts get the nearest one."""
        if self.relation is not None:
            return "position"
        if len(self.groups) == 1:
            group = self.groups[0]
            if group.count > 1:
                return "counting"
            return "single_object" if group.colour is None else "colors"
        return "color_attr" if all(group.colour for group in self.groups) else "two_object"


# -------------------------------------------------------------------------------------------------- drawing


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the edge of a shape of radius one, negative inside.

    Exact near edges, which is all that anti-aliasing looks at.

    Args:
        shape: One of `SHAPES`.
        u: Horizontal coordinate, any shape.
        v: Vertical coordinate, pointing down, same shape.

    Returns:
        Distances, same shape as `u`.
    """
    if shape == "circle":
        return np.hypot(u, v) - 1.0
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.78) - 0.24
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.9
    if shape == "diamond":
        return (np.abs(u) * 1.12 + np.abs(v) * 0.82 - 0.92) / np.hypot(1.12, 0.82)
    if shape == "cross":
        low, high = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
        return np.maximum(low - 0.34, high - 1.05)
    if shape == "triangle":
        slope = np.hypot(1.9, 1.05)
        return np.maximum(v - 0.85, (1.9 * np.abs(u) - 1.05 * (v + 1.05)) / slope)
    if shape == "star":
        sector = 2 * np.pi / 5
        radius, angle = np.hypot(u, v), np.abs((np.arctan2(u, -v) + sector / 2) % sector - sector / 2)
        tip, dent = np.array([1.12, 0.0]), _STAR_INNER * np.array([np.cos(sector / 2), np.sin(sector / 2)])
        edge = dent - tip
        normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
        return normal[0] * (radius * np.cos(angle) - tip[0]) + normal[1] * (radius * np.sin(angle) - tip[1])
    raise ValueError(f"A shape must be one of {', '.join(SHAPES)}; got {shape!r}. Use one of these.")


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, size: int = SIZE) -> np.ndarray:
    """How much of each pixel a shape covers.

    Args:
        shape: One of `SHAPES`.
        x: Centres in pixels, shape `(n,)`.
        y: Centres in pixels, shape `(n,)`.
        radius: Radii in pixels, shape `(n,)`.
        size: Side of the canvas in pixels.

    Returns:
        Coverage in [0, 1], float32 of shape `(n, size, size)`.
    """
    pixels = np.arange(size, dtype=np.float32) + 0.5
    x, y, radius = (np.asarray(value, np.float32)[:, None, None] for value in (x, y, radius))
    u = np.broadcast_to((pixels[None, None, :] - x) / radius, (len(radius), size, size))
    v = np.broadcast_to((pixels[None, :, None] - y) / radius, (len(radius), size, size))
    return np.clip(0.5 - _distance(shape, u, v) * radius, 0.0, 1.0).astype(np.float32)


def render_batch(scenes: Sequence[Scene]) -> np.ndarray:
    """Draws scenes, anti-aliased.

    Args:
        scenes: n scenes.

    Returns:
        RGB images, uint8 of shape `(n, 64, 64, 3)`.
    """
    canvas = np.empty((len(scenes), SIZE, SIZE, 3), np.float32)
    canvas[:] = np.array([scene.background for scene in scenes], np.float32)[:, None, None, None]
    for shape in SHAPES:
        found = [
            (i, thing) for i, scene in enumerate(scenes) for thing in scene.things if thing.shape == shape
        ]
        if not found:
            continue
        # A window just wide enough: drawing whole canvases would cost four times as much.
        window = 32
        corner = np.array([[round(t.y) - window // 2, round(t.x) - window // 2] for _, t in found])
        corner = np.clip(corner, 0, SIZE - window)
        alpha = coverage(
            shape,
            np.array([t.x for _, t in found]) - corner[:, 1],
            np.array([t.y for _, t in found]) - corner[:, 0],
            np.array([t.radius for _, t in found]),
            window,
        )[..., None]
        for (i, thing), (top, left), a in zip(found, corner, alpha):
            view = canvas[i, top : top + window, left : left + window]
            view += a * (np.array(COLOURS[thing.colour], np.float32) - view)
    return np.rint(canvas).astype(np.uint8)


def render(scene: Scene) -> np.ndarray:
    """Draws one scene.

    Args:
        scene: The scene.

    Returns:
        An RGB image, uint8 of shape `(64, 64, 3)`.
    """
    return render_batch([scene])[0]


# ------------------------------------------------------------------------------------------------- language


def caption(spec: Spec, prefix: bool = True) -> str:
    """Words for a spec, in GenEval's templates.

    Args:
        spec: What to say.
        prefix: Begin with "a photo of".

    Returns:
        The caption, lower case.
    """
    words = [_noun_phrase(group) for group in spec.groups]
    text = f" {spec.relation or 'and'} ".join(words)
    return f"a photo of {text}" if prefix else text


def _noun_phrase(group: Group) -> str:
    noun = group.shape if group.count == 1 else PLURALS[group.shape]
    words = noun if group.colour is None else f"{group.colour} {noun}"
    if group.count > 1:
        return f"{list(NUMBERS)[group.count - 1]} {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def metadata(spec: Spec) -> dict[str, Any]:
    """A spec in GenEval's schema.

    For a relation, `include[0]` is the reference and `include[1]` the group that is placed. A prompt that
    counts means all of its numbers exactly: each group then excludes one more of its kind, unless both groups
    are of one kind.

    Args:
        spec: What to describe.

    Returns:
        A mapping with `tag`, `include`, `exclude` where counts matter, and `prompt`.
    """
    entries: list[dict[str, Any]] = []
    for group in spec.groups:
        entry: dict[str, Any] = {"class": group.shape, "count": group.count}
        if group.colour is not None:
            entry["color"] = group.colour
        entries.append(entry)
    if spec.relation is not None:
        entries.reverse()
        entries[1]["position"] = [spec.relation, 0]
    record: dict[str, Any] = {"tag": spec.tag, "include": entries}
    one_kind = len({group.shape for group in spec.groups}) < len(spec.groups)
    if any(group.count > 1 for group in spec.groups) and not one_kind:
        record["exclude"] = [{"class": group.shape, "count": group.count + 1} for group in spec.groups]
    record["prompt"] = caption(spec)
    return record


_PREFIX = re.compile(r"^(?:(?:a|an) )?(?:photo|picture|image) of ")
_JOIN = re.compile(
    r" (?:(?P<and>and)|(?:is )?(?:(?:to|on) the )?(?P<side>left|right)(?: side)? of"
    r"|(?:is )?(?P<level>above|below)) "
)


def plain_words(text: str) -> str:
    """A prompt in lower case, without commas, marks at its ends and further spaces."""
    return " ".join(text.lower().strip(" .!").replace(",", " ").split())


def parse_spec(text: str) -> Spec:
    """Reads a prompt of the world's grammar: an optional "a photo of", then one group or two.

    A group is an article or a number up to four, an optional colour, and a shape; two groups are joined by
    "and" or by a relation ("left of", "to the right of", "above", "below").

    Args:
        text: The prompt; case and closing full stop do not matter.

    Returns:
        What the prompt means.

    Raises:
        ValueError: The prompt is not of this grammar.
    """
    clean = _PREFIX.sub("", plain_words(text))
    joins = list(_JOIN.finditer(f" {clean} "))
    if len(joins) > 1:
        raise ValueError(
            f"A playground prompt joins at most two groups; got {text!r}. Use one 'and' or one relation "
            f"({', '.join(RELATIONS)})."
        )
    if not joins:
        return Spec((_parse_group(clean, text),))
    join = joins[0]
    padded = f" {clean} "
    groups = (
        _parse_group(padded[: join.start()].strip(), text),
        _parse_group(padded[join.end() :].strip(), text),
    )
    if groups[0].shape == groups[1].shape and (
        None in (groups[0].colour, groups[1].colour) or groups[0].colour == groups[1].colour
    ):
        raise ValueError(
            f"Two groups of one shape need two different colours to be told apart; got {text!r}. Colour "
            f"both, as in 'a red {groups[0].shape} left of a blue {groups[0].shape}', or count them, as in "
            f"'two {PLURALS[groups[0].shape]}'."
        )
    relation = f"{join['side']} of" if join["side"] else join["level"]
    return Spec(groups, relation)


def _parse_group(words: str, text: str) -> Group:
    tokens = words.split()
    if not tokens:
        raise ValueError(f"Each group needs a shape; got {text!r}. Name one of {', '.join(SHAPES)}.")
    known = {"a", "an", *NUMBERS, *COLOURS, *SHAPES, *PLURALS.values()}
    for token in tokens:
        if token not in known:
            raise ValueError(
                f"The playground knows the shapes {', '.join(SHAPES)}, the colours {', '.join(COLOURS)} and "
                f"the numbers one to four; got {token!r} in {text!r}. Use these words only."
            )
    count, colour = 1, None
    if tokens[0] in ("a", "an", *NUMBERS):
        count = NUMBERS.get(tokens.pop(0), 1)
    if tokens and tokens[0] in COLOURS:
        colour = tokens.pop(0)
    singular = {**{shape: shape for shape in SHAPES}, **{plural: shape for shape, plural in PLURALS.items()}}
    if len(tokens) != 1 or tokens[0] not in singular:
        raise ValueError(
            f"A group is a number, a colour and a shape in that order; got {words!r} in {text!r}. Write it "
            f"as in 'two red circles'."
        )
    return Group(singular[tokens[0]], count, colour)


def parse_prompt(text: str) -> dict[str, Any]:
    """Reads a prompt into GenEval-schema metadata.

    Args:
        text: A prompt of the world's grammar, see `parse_spec`.

    Returns:
        Metadata as of `metadata`, with `prompt` as typed.

    Raises:
        ValueError: The prompt is not of this grammar.
    """
    return {**metadata(parse_spec(text)), "prompt": text}


# ------------------------------------------------------------------------------------------------- sampling


def relation_offset(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float], dead_band: float = 0.1
) -> tuple[float, float]:
    """GenEval's direction from box b to box a: the offset of centres, shortened by a dead-band, over its
    length.

    Args:
        a: Box of the placed object, `(x0, y0, x1, y1)`.
        b: Box of the reference, `(x0, y0, x1, y1)`.
        dead_band: Share of the summed sizes that is taken off each axis.

    Returns:
        `(u_x, u_y)`; left of means `u_x < -0.5`, above `u_y < -0.5`. Zeros where both axes fall into the
        dead-band.
    """
    size_a, size_b = np.array([a[2] - a[0], a[3] - a[1]]), np.array([b[2] - b[0], b[3] - b[1]])
    offset = np.array([a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]]) / 2
    reduced = np.sign(offset) * np.maximum(np.abs(offset) - dead_band * (size_a + size_b), 0)
    if np.all(np.abs(reduced) < 1e-3):
        return 0.0, 0.0
    u = reduced / np.linalg.norm(offset)
    return float(u[0]), float(u[1])


def holds(relation: str, direction: tuple[float, float], threshold: float = 0.5) -> bool:
    """Whether a direction of `relation_offset` satisfies a relation.

    Args:
        relation: One of `RELATIONS`.
        direction: `(u_x, u_y)`.
        threshold: How far along its axis the direction must point.

    Returns:
        The verdict.
    """
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    return direction[axis] * sign > threshold


def sample_spec(rng: np.random.Generator, task: str) -> Spec:
    """Draws a random spec of a task form.

    Args:
        rng: Source of randomness.
        task: One of `TASKS` or `FREE_TASKS`.

    Returns:
        The spec.
    """
    a, b = (SHAPES[i] for i in rng.choice(len(SHAPES), 2, replace=False))
    names = list(COLOURS)
    red, blue = (names[i] for i in rng.choice(len(names), 2, replace=False))
    relation = RELATIONS[rng.integers(4)]
    count = int(rng.integers(2, 5))
    if task == "single_object":
        return Spec((Group(a),))
    if task == "two_object":
        return Spec((Group(a), Group(b)))
    if task == "counting":
        return Spec((Group(a, count),))
    if task == "colors":
        return Spec((Group(a, 1, red),))
    if task == "position":
        return Spec((Group(a), Group(b)), relation)
    if task == "color_attr":
        return Spec((Group(a, 1, red), Group(b, 1, blue)))
    if task == "colored_counting":
        return Spec((Group(a, count, red),))
    if task == "colored_position":
        counts = ((1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (1, 3))[rng.integers(6)]
        b = a if rng.random() < 0.1 else b
        joined = relation if rng.random() < 0.75 else None
        return Spec((Group(a, counts[0], red), Group(b, counts[1], blue)), joined)
    raise ValueError(f"A task is one of {', '.join(TASKS + FREE_TASKS)}; got {task!r}. Use one of these.")


def sample_scene(rng: np.random.Generator, spec: Spec) -> Scene:
    """Draws a scene that a spec describes.

    Args:
        rng: Source of randomness.
        spec: What the scene shows; it holds nothing else.

    Returns:
        The scene.
    """
    names = list(COLOURS)
    total = sum(group.count for group in spec.groups)
    kinds: list[tuple[str, str]] = []
    for group in spec.groups:
        same = rng.random() < 0.5
        drawn = rng.integers(len(names), size=group.count)
        for i in range(group.count):
            kinds.append((group.shape, group.colour or names[drawn[0] if same else drawn[i]]))
    places = _sample_layout(rng, total, spec.groups[0].count, spec.relation)
    things = tuple(Thing(s, c, float(x), float(y), float(r)) for (s, c), (x, y, r) in zip(kinds, places))
    return Scene(things, GREYS[rng.integers(len(GREYS))])


def _sample_layout(rng: np.random.Generator, total: int, first: int, relation: str | None) -> np.ndarray:
    """Centres and radii of shapes that stay clear of one another and of the frame.

    Args:
        rng: Source of randomness.
        total: How many shapes.
        first: How many of them belong to the group that `relation` places.
        relation: One of `RELATIONS`, or None.

    Returns:
        Rows `(x, y, radius)`, shape `(total, 3)`.
    """
    low, high = _RADII[total]
    for attempt in range(10_000):
        # Crowded draws fail often: let the shapes shrink slowly instead of looping for long.
        shrink = 1.0 - min(attempt / 4000, 0.2)
        tries = 32
        radius = rng.uniform(low, high, (tries, total)) * shrink
        margin = radius * _REACH + 1.5
        centre = margin[..., None] + rng.random((tries, total, 2)) * (SIZE - 2 * margin[..., None])
        apart = np.linalg.norm(centre[:, :, None] - centre[:, None], axis=-1)
        need = _REACH * (radius[:, :, None] + radius[:, None]) + _GAP
        fine = (apart >= need) | np.eye(total, dtype=bool)
        for k in np.flatnonzero(fine.all((1, 2))):
            places = np.concatenate([centre[k], radius[k][:, None]], 1)
            if relation is None or _all_hold(places, first, relation):
                return places
    raise RuntimeError(
        f"No layout of {total} shapes was found in 320,000 tries; lower the radii in `_RADII`."
    )


def _all_hold(places: np.ndarray, first: int, relation: str) -> bool:
    boxes = [(x - r, y - r, x + r, y + r) for x, y, r in places]
    return all(
        holds(relation, relation_offset(a, b), threshold=0.6) for a in boxes[:first] for b in boxes[first:]
    )


def is_held_out(spec: Spec) -> bool:
    """Whether a prompt is kept out of training, by a hash of its words: about a fifth of each form that has
    enough.

    The seven single shapes and the 21 counts are too few to hold any out, so those two forms are all
    trained on.

    Args:
        spec: The prompt's meaning.

    Returns:
        True for prompts that only the evaluation uses.
    """
    if spec.tag in ("single_object", "counting"):
        return False
    digest = hashlib.sha256(caption(spec, prefix=False).encode()).digest()
    return digest[0] % 5 == 0


def make_prompts(per_task: int = 50, seed: int = PROMPTS_SEED) -> list[dict[str, Any]]:
    """The evaluation prompts: the six task forms, held-out ones where the form has any.

    A form with fewer prompts than `per_task` is gone through again in a new order, so that each of its
    prompts comes up about equally often.

    Args:
        per_task: Prompts of each form.
        seed: Seed of the choice.

    Returns:
        Metadata records, `6 * per_task` of them.
    """
    rng = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for task in TASKS:
        pool = [
            spec for spec in all_specs(task) if is_held_out(spec) or task in ("single_object", "counting")
        ]
        chosen: list[Spec] = []
        while len(chosen) < per_task:
            chosen += [pool[i] for i in rng.permutation(len(pool))]
        records += [metadata(spec) for spec in chosen[:per_task]]
    return records


def all_specs(task: str) -> list[Spec]:
    """Every spec of one of GenEval's task forms.

    Args:
        task: One of `TASKS`.

    Returns:
        The specs, in a fixed order.
    """
    pairs = [(a, b) for a in SHAPES for b in SHAPES if a != b]
    if task == "single_object":
        return [Spec((Group(a),)) for a in SHAPES]
    if task == "two_object":
        return [Spec((Group(a), Group(b))) for a, b in pairs]
    if task == "counting":
        return [Spec((Group(a, n),)) for a in SHAPES for n in (2, 3, 4)]
    if task == "colors":
        return [Spec((Group(a, 1, c),)) for a in SHAPES for c in COLOURS]
    if task == "position":
        return [Spec((Group(a), Group(b)), relation) for a, b in pairs for relation in RELATIONS]
    if task == "color_attr":
        return [
            Spec((Group(a, 1, c), Group(b, 1, d)))
            for a, b in pairs
            for c in COLOURS
            for d in COLOURS
            if c != d
        ]
    raise ValueError(f"A task form is one of {', '.join(TASKS)}; got {task!r}. Use one of these.")


def write_prompts(path: Path) -> None:
    """Writes `make_prompts()` as JSON lines.

    Args:
        path: File to write.
    """
    path.write_text("".join(json.dumps(record) + "\n" for record in make_prompts()))


def load_prompts() -> list[dict[str, Any]]:
    """The evaluation prompts that ship with the package.

    Returns:
        300 metadata records in GenEval's schema, 50 of each task form.
    """
    path = Path(__file__).with_name("prompts.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def sample_example(rng: np.random.Generator, held_out: bool = False) -> tuple[Spec, Scene]:
    """Draws a training pair by the task mix.

    Args:
        rng: Source of randomness.
        held_out: Draw among held-out prompts instead of training ones.

    Returns:
        A spec and a scene that it describes.
    """
    task = str(rng.choice(list(TASK_MIX), p=list(TASK_MIX.values())))
    while is_held_out(spec := sample_spec(rng, task)) != held_out:
        task = str(rng.choice(list(TASK_MIX), p=list(TASK_MIX.values())))
    return spec, sample_scene(rng, spec)


def sample_caption(rng: np.random.Generator, spec: Spec) -> str:
    """Words for a spec as training uses them.

    Sometimes without "a photo of", sometimes "to the left of", and sometimes a coloured pair without its
    colours, since pairs without colours are few and are learnt last.

    Args:
        rng: Source of randomness.
        spec: What to say.

    Returns:
        The caption.
    """
    plain = Spec(tuple(Group(group.shape, group.count) for group in spec.groups))
    if spec.tag == "color_attr" and spec.groups[0].shape != spec.groups[1].shape and not is_held_out(plain):
        spec = plain if rng.random() < 0.35 else spec
    text = caption(spec, prefix=rng.random() < 0.7)
    if spec.relation in ("left of", "right of") and rng.random() < 0.15:
        text = text.replace(spec.relation, f"to the {spec.relation}")
    return text
