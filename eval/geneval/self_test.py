"""Tests of a scorer on scenes of known verdicts, drawn by the playground's painter, and of its models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tts_vision.errors import VerifierError
from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.world import Scene, Spec, Thing
from tts_vision.verifiers._detections import Detection, Findings, check
from tts_vision.verifiers._predicates import COLOURS, Demands, Group, from_record

PHOTO, PHOTO_SHOWS = "grace_hopper.jpg", "person"
"""A portrait among the sample data of matplotlib, and the class of COCO that it shows."""
LEAST_CONFIDENCE = 0.5
LEAST_COLOURS = 5


def known_scenes(each: int, seed: int = 0) -> list[tuple[Spec, Scene, bool]]:
    """Scenes of every task with the verdict that is right by their making: true ones and spoilt ones.

    Args:
        each: Scenes of a task; every other is spoilt.
        seed: Of the drawing.
    """
    rng = np.random.default_rng(seed)
    found = []
    for task in world.TASKS:
        for number in range(each):
            spec = world.sample_spec(rng, task)
            scene = world.sample_scene(rng, spec)
            found.append((spec, spoilt(scene, spec) if number % 2 else scene, number % 2 == 0))
    return found


def spoilt(scene: Scene, spec: Spec) -> Scene:
    """A scene with one demand of its prompt broken: mirrored, recoloured, or without its first thing."""
    if spec.relation is not None:
        return replace(scene, things=tuple(_mirrored(thing) for thing in scene.things))
    first, *others = scene.things
    if spec.groups[0].colour is not None:
        other = next(c for c in world.COLOURS if c not in {thing.colour for thing in scene.things})
        return replace(scene, things=(replace(first, colour=other), *others))
    return replace(scene, things=tuple(others))


def _mirrored(thing: Thing) -> Thing:
    return replace(thing, x=world.SIZE - thing.x, y=world.SIZE - thing.y)


def truth(scene: Scene) -> list[tuple[Detection, str]]:
    """The things of a scene as a faultless detector would find them, each with its colour."""
    return [
        (
            Detection(
                t.shape, 1.0 - 0.01 * i, (t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius)
            ),
            t.colour,
        )
        for i, t in enumerate(scene.things)
    ]


def by_truth(scene: Scene, demands: Demands) -> Findings:
    """The findings of a faultless detector in a scene."""
    found = truth(scene)
    colours = {id(detection): colour for detection, colour in found}
    detections = [detection for detection, _ in found]
    return Findings(check(demands, detections, lambda d, group: colours[id(d)]), detections)


def try_scorer(find: Callable[[Scene, Demands], Findings], name: str, each: int = 10) -> str:
    """Tests findings on scenes of known verdicts.

    Args:
        find: Finds the objects of a scene, and the faults by them.
        name: Of the evaluator, for the message.
        each: Scenes of a task.

    Returns:
        A sentence for the report.

    Raises:
        VerifierError: If a verdict is not the one that is right by the making of the scene.
    """
    scenes = known_scenes(each)
    for spec, scene, right in scenes:
        demands = from_record(world.metadata(spec))
        assert demands is not None
        faults = [fault for fault in find(scene, demands).faults.values() if fault]
        if (not faults) != right:
            verdict = f"{'wrong' if right else 'right'} ({'; '.join(faults) or 'no fault'})"
            raise VerifierError(
                f"The scorer of {name} must find drawn scenes right or wrong as they are but calls one of "
                f"{world.caption(spec)!r} {verdict}. "
                "This installation is damaged; install the package again."
            )
    return f"{len(scenes)} drawn scenes of known verdicts were judged as they are."


def photo() -> Image.Image | None:
    """A portrait photograph; None if matplotlib came without its sample data."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "sample_data" / PHOTO
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.convert("RGB")


def try_detector(detections: Sequence[Detection], name: str) -> str:
    """Tests the detections of persons in `photo`: a trained detector finds one.

    Raises:
        VerifierError: If none is confident.
    """
    best = max((each.score for each in detections if each.label == PHOTO_SHOWS), default=0.0)
    if best < LEAST_CONFIDENCE:
        raise VerifierError(
            f"The detector of {name} must see the person in a portrait photograph with a confidence of "
            f"{LEAST_CONFIDENCE} but gives {best:.2f}, so it was not trained on COCO; give the published "
            "checkpoint."
        )
    return f"The detector found the person in a photograph (confidence {best:.2f})."


def try_colours(names: Callable[[Sequence[Image.Image], Sequence[Group]], list[str]], name: str) -> str:
    """Tests the colours of plain discs on GenEval's grey.

    Raises:
        VerifierError: If fewer than half of the ten colours are named right.
    """
    discs = [_disc(colour) for colour in COLOURS]
    named = names(discs, [Group("circle", colour=colour) for colour in COLOURS])
    right = sum(a == b for a, b in zip(named, COLOURS, strict=True))
    if right < LEAST_COLOURS:
        raise VerifierError(
            f"The CLIP of {name} must name at least {LEAST_COLOURS} of ten plain colours but names {right}, "
            "so it was not trained, or its configuration has another activation than its weights; give the "
            "published checkpoint."
        )
    return f"The CLIP named {right} of 10 plain colours."


def _disc(colour: str, size: int = 224) -> Image.Image:
    image = Image.new("RGB", (size, size), (0x99, 0x99, 0x99))
    ImageDraw.Draw(image).ellipse((16, 16, size - 16, size - 16), fill=world.COLOURS[colour])
    return image
