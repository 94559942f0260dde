"""The tree of a search as an image: a thumbnail for each partial sample, those that were pruned in grey."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont, ImageOps

from tts_vision.figures import BEST, FAINT, fit, shortened, strip
from tts_vision.trace import SCORES, Event, ancestry, answers
from tts_vision.types import Media, Video

Key = tuple[int, int]
"""A node: a particle at a step."""

_SIDE, _FRAMES = 64, 4  # of a thumbnail
_MOST_ENDS = 120
_RANK = {"judge": 0, "stage_score": 1, "score": 2}  # which score of a node is shown


def thumbnail(media: Media) -> Image.Image:
    """An image, or four frames of a clip side by side, small."""
    if isinstance(media, Video):
        return strip(media, _SIDE, frames=_FRAMES)
    return fit(media, _SIDE)


@dataclass
class Tree:
    """What was judged in a search, as a tree.

    Attributes:
        scores: Of each node, a particle at a step at which it was judged; NaN where it could not be.
        parents: The node that each one continues; none of fresh particles.
        best: The nodes of the winner.
        last: The last step.
    """

    scores: dict[Key, float] = field(default_factory=dict)
    parents: dict[Key, Key | None] = field(default_factory=dict)
    best: frozenset[Key] = frozenset()
    last: int = 0

    @classmethod
    def of(cls, events: Sequence[Event], best: int | None, *, until: str | None = None) -> Tree:
        """The tree of a trace.

        Args:
            events: The trace.
            best: The winner.
            until: Name of an answer after which new particles do not belong to the tree, but for the winner.
        """
        stop = next((event.op for event in answers(events, until)), None) if until else None
        tree, born, ranks = cls(), ancestry(events), dict[Key, int]()
        for event in events:
            if event.kind != "answer" or event.what not in SCORES - {"heldout"}:
                continue
            tree.last = max(tree.last, event.step)
            for uid, value in zip(event.uids, event.values):
                key, late = (uid, event.step), stop is not None and event.op > stop
                if (not late or uid == best) and _RANK[event.what] >= ranks.get(key, 0):
                    tree.scores[key], ranks[key] = value, _RANK[event.what]
        steps: dict[int, list[int]] = {}
        for uid, step in tree.scores:
            steps.setdefault(uid, []).append(step)
        for uid, step in tree.scores:
            at, below, found = uid, step, None
            while found is None:
                earlier = [s for s in steps.get(at, []) if s < below and s >= born[at].step]
                if earlier:
                    found = (at, max(earlier))
                elif (parent := born[at].parent) is not None:
                    at, below = parent, (born[at].parent_step or 0) + 1
                else:
                    break
            tree.parents[uid, step] = found
        line: set[Key] = set()
        won = max((key for key in tree.scores if key[0] == best), key=lambda key: key[1], default=None)
        while won is not None:
            line.add(won)
            won = tree.parents[won]
        tree.best = frozenset(line)
        return tree

    @property
    def children(self) -> dict[Key | None, list[Key]]:
        """The nodes that continue each one, best first; those of fresh particles under None."""
        found: dict[Key | None, list[Key]] = {}
        for key, parent in self.parents.items():
            found.setdefault(parent, []).append(key)
        for each in found.values():
            each.sort(key=self._order)
        return found

    def is_pruned(self, key: Key) -> bool:
        """Whether a node is unfinished and nothing continues it."""
        return key[1] < self.last and key not in set(self.parents.values())

    def smaller(self, ends: int) -> Tree:
        """The nodes before so many of its ends, of which those of the winner and finished ones come first."""
        inner = set(self.parents.values())
        leaves = [key for key in self.parents if key not in inner]
        leaves.sort(key=lambda key: (key not in self.best, self.is_pruned(key), self._order(key)))
        kept: set[Key] = set()
        for leaf in leaves[:ends]:
            at: Key | None = leaf
            while at is not None and at not in kept:
                kept.add(at)
                at = self.parents[at]
        scores = {key: value for key, value in self.scores.items() if key in kept}
        return Tree(scores, {key: self.parents[key] for key in scores}, self.best, self.last)

    def _order(self, key: Key) -> tuple[bool, float, Key]:
        score = self.scores[key]
        return math.isnan(score), 0.0 if math.isnan(score) else -score, key


def tree_sheet(
    tree: Tree, thumbnails: Callable[[Key], Image.Image | None], *, title: str = ""
) -> Image.Image:
    """The nodes of a tree from left to right by step, each with its thumbnail and its score.

    Nodes that were pruned are grey; those of the winner are framed and joined in red. Of a tree with more
    than 120 ends, the best are shown.

    Args:
        tree: The tree.
        thumbnails: Gets the thumbnail of a node; None where there is none.
        title: Of the sheet.
    """
    shown = tree.smaller(_MOST_ENDS)
    images = {key: thumbnails(key) for key in shown.scores}
    width = max((image.width for image in images.values() if image), default=_SIDE)
    height = max((image.height for image in images.values() if image), default=_SIDE)
    steps = sorted({step for _, step in shown.scores})
    rows, count = _rows(shown)
    across, down, left, top = width + 36, height + 20, 8, 52
    font, head = ImageFont.load_default(11), ImageFont.load_default(15)
    hidden = len(tree.scores) - len(shown.scores)
    text = shortened(title, 100) + (f"  ({hidden} more nodes are not shown)" if hidden else "")
    sheet = Image.new(
        "RGB",
        (
            max(left + len(steps) * across, math.ceil(head.getlength(text)) + 16),
            top + max(1, count) * down + 8,
        ),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 8), text, fill="black", font=head)
    at = {key: (left + steps.index(key[1]) * across, top + round(row * down)) for key, row in rows.items()}
    for column, step in enumerate(steps):
        name = "finished" if step == tree.last else f"step {step}"
        draw.text((left + column * across, 32), name, fill="#777777", font=font)
    # the line of the winner last, on top
    for key in sorted(shown.parents, key=lambda key: key in tree.best):
        parent = shown.parents[key]
        if parent is not None:
            (x, y), (from_x, from_y) = at[key], at[parent]
            start, end = (from_x + width, from_y + height // 2), (x, y + height // 2)
            bend = x - 14
            path = [start, (bend, start[1]), (bend, end[1]), end]
            draw.line(path, fill=BEST if key in tree.best else FAINT, width=2 if key in tree.best else 1)
    for key, (x, y) in at.items():
        _draw_node(
            sheet, images[key], (x, y, width, height), is_best=key in tree.best, grey=tree.is_pruned(key)
        )
        score = tree.scores[key]
        label = f"#{key[0]}  {'unscored' if math.isnan(score) else f'{score:.4g}'}"
        color = BEST if key in tree.best else FAINT if tree.is_pruned(key) else "black"
        draw.text((x, y + height + 2), label, fill=color, font=font)
    return sheet


def _draw_node(
    sheet: Image.Image,
    image: Image.Image | None,
    box: tuple[int, int, int, int],
    *,
    is_best: bool,
    grey: bool,
) -> None:
    """Draws a thumbnail into a box of left, top, width and height."""
    x, y, width, height = box
    image = Image.new("RGB", (width, height), "white") if image is None else image.convert("RGB")
    if grey:
        image = Image.blend(
            ImageOps.grayscale(image).convert("RGB"), Image.new("RGB", image.size, "white"), 0.6
        )
    sheet.paste(image, (x, y))
    outline, thick = (BEST, 2) if is_best else (FAINT, 1)
    frame = (x - 1, y - 1, x + image.width, y + image.height)
    ImageDraw.Draw(sheet).rectangle(frame, outline=outline, width=thick)


def _rows(tree: Tree) -> tuple[dict[Key, float], int]:
    """The row of each node, that of an inner one amid its children; and how many rows there are."""
    children: Mapping[Key | None, list[Key]] = tree.children
    rows: dict[Key, float] = {}
    count = 0
    stack = [(key, False) for key in reversed(children.get(None, []))]
    while stack:
        key, done = stack.pop()
        own = children.get(key, [])
        if not own:
            rows[key], count = count, count + 1
        elif done:
            rows[key] = (rows[own[0]] + rows[own[-1]]) / 2
        else:
            stack += [(key, True), *((child, False) for child in reversed(own))]
    return rows, count
