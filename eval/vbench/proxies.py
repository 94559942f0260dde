"""Stand-ins for VBench's object dimensions, by the COCO detector of GenEval in place of GRiT.

They follow VBench's rules on the detections of 16 frames. The detector, and for colours CLIP in place of
dense captions, decide otherwise than VBench's models, so their scores compare with no leaderboard.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from PIL import Image

from tts_vision.eval.vbench.measures import Measure, Measured
from tts_vision.eval.vbench.prompts import label
from tts_vision.model_verifier import UnusableSample
from tts_vision.types import Prompt, Video
from tts_vision.verifiers._colour_namer import ColourNamer
from tts_vision.verifiers._detections import Box, Detection
from tts_vision.verifiers._frames import frame_images, middles
from tts_vision.verifiers._mask2former import Mask2Former
from tts_vision.verifiers._predicates import Group

FRAMES = 16
TOUCHING = 0.1
"""Intersection over union from which on two objects count as less than apart."""
# along which axis object_a lies from object_b, and on which side
SIDES = {
    "on the left of": (0, -1),
    "on the right of": (0, 1),
    "on the top of": (1, -1),
    "on the bottom of": (1, 1),
}


def intersection_over_union(a: Box, b: Box) -> float:
    """Of two boxes; 0 where both are empty."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def side_score(a: Box, relation: str, b: Box, *, directed: bool) -> float:
    """VBench's score of two boxes: 1 if they lie along the right axis and apart, less if they overlap.

    Args:
        a: Of the first object.
        relation: One of `SIDES`.
        b: Of the second object.
        directed: Whether the side matters too. VBench's own rule does not look at it: left and right score
            alike.
    """
    axis, side = SIDES[relation]
    offsets = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    if abs(offsets[axis]) <= abs(offsets[1 - axis]) or (directed and offsets[axis] * side < 0):
        return 0.0
    overlap = intersection_over_union(a, b)
    return 1.0 if overlap < TOUCHING else TOUCHING / overlap


def best_pair(found: Sequence[Detection], demand: Mapping[str, str], *, directed: bool) -> float:
    """The best `side_score` of two objects of a frame; 0 without two.

    Args:
        found: Detections of both objects.
        demand: ``object_a``, ``object_b`` and ``relationship``.
        directed: See `side_score`. Without it any two objects count, even of one kind, as in VBench.
    """
    relation = demand["relationship"]
    if directed:
        first, second = ([d for d in found if d.label == demand[key]] for key in ("object_a", "object_b"))
        pairs = [(a, b) for a in first for b in second if a is not b]
    else:
        pairs = list(combinations(found, 2))
    return max((side_score(a.box, relation, b.box, directed=directed) for a, b in pairs), default=0.0)


class Frames:
    """Detects objects in the 16 frames that VBench looks at.

    Args:
        detector: Of COCO's classes.
        threshold: Confidence that a detection must exceed.
    """

    def __init__(self, detector: Mask2Former, threshold: float) -> None:
        self.detector, self.threshold = detector, threshold

    def load(self) -> None:
        """Loads the detector."""
        self.detector.load()

    def detect(self, video: Video, nouns: Sequence[str]) -> tuple[list[Image.Image], list[list[Detection]]]:
        """The frames, and the detections in each.

        Raises:
            UnusableSample: If the detector does not know one of the objects.
        """
        unknown = [noun for noun in nouns if not self.detector.knows(noun)]
        if unknown:
            raise UnusableSample(f"the detector does not know {', '.join(map(repr, unknown))}")
        chosen = middles(len(video.frames), FRAMES)
        distinct = list(dict.fromkeys(chosen))  # frames of a short clip repeat
        images = frame_images(video, distinct)
        wanted = list(dict.fromkeys(nouns))
        found = self.detector.detect(images, [wanted] * len(images), [self.threshold] * len(images))
        at = {frame: number for number, frame in enumerate(distinct)}
        return [images[at[frame]] for frame in chosen], [found[at[frame]] for frame in chosen]


class Objects(Measure):
    """Share of frames in which all objects of the prompt are found.

    Args:
        frames: Detects.
        dimension: ``object_class`` or ``multiple_objects``.
    """

    def __init__(self, frames: Frames, dimension: str) -> None:
        self.frames, self.dimension = frames, dimension

    def load(self) -> None:
        self.frames.load()

    def measure(self, video: Video, prompt: Prompt) -> Measured:
        text = label(prompt, self.dimension)
        nouns = [text] if self.dimension == "object_class" else [part.strip() for part in text.split(" and ")]
        _, found = self.frames.detect(video, nouns)
        seen = [set(nouns) <= {detection.label for detection in frame} for frame in found]
        return Measured(sum(seen) / FRAMES, FRAMES, {"frames": FRAMES, "found": sum(seen)})


class Colour(Measure):
    """Share of the frames with the object in which one of them has the colour.

    Args:
        frames: Detects.
        namer: Names the colour of a detection.
        keep: Whether a clip that never shows the object scores 0. VBench's own rule drops such clips from
            the mean.
    """

    def __init__(self, frames: Frames, namer: ColourNamer, *, keep: bool) -> None:
        self.frames, self.namer, self.keep = frames, namer, keep

    def load(self) -> None:
        self.frames.load()
        self.namer.load()

    def measure(self, video: Video, prompt: Prompt) -> Measured:
        colour = label(prompt, "color")
        noun = coloured_noun(prompt.text, colour)
        images, found = self.frames.detect(video, [noun])
        group = Group(noun=noun, colour=colour)
        shown = [(image, frame) for image, frame in zip(images, found, strict=True) if frame]
        right = sum(any(self.namer.name(image, d, group) == colour for d in frame) for image, frame in shown)
        if not shown and not self.keep:
            raise UnusableSample(f"no frame shows a {noun}, and VBench drops such clips")
        return Measured(right / max(1, len(shown)), details={"shown": len(shown), "right": right})


class Side(Measure):
    """Mean over frames of `best_pair`.

    Args:
        frames: Detects.
        directed: Whether the side matters; see `side_score`.
    """

    def __init__(self, frames: Frames, *, directed: bool) -> None:
        self.frames, self.directed = frames, directed

    def load(self) -> None:
        self.frames.load()

    def measure(self, video: Video, prompt: Prompt) -> Measured:
        demand: Mapping[str, Any] = label(prompt, "spatial_relationship")
        if demand["relationship"] not in SIDES:
            raise UnusableSample(
                f"the relation must be one of {', '.join(SIDES)} but is {demand['relationship']!r}"
            )
        _, found = self.frames.detect(video, [demand["object_a"], demand["object_b"]])
        scores = [best_pair(frame, demand, directed=self.directed) for frame in found]
        return Measured(sum(scores) / FRAMES, FRAMES, {"frames": FRAMES})


def coloured_noun(text: str, colour: str) -> str:
    """The object of a prompt such as "a red car"."""
    return re.sub(rf"^an? |\b{re.escape(colour)}\b", "", text).strip()
