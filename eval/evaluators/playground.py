"""GenEval on the playground: its bundled prompts, judged by the exact checker, offline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tts_vision.eval.geneval.prompts import Record
from tts_vision.eval.geneval.self_test import try_scorer
from tts_vision.eval.geneval.task import GenEvalTask
from tts_vision.eval.playground import Track, evaluation_prompts
from tts_vision.pipelines.playground import checker, hard, world
from tts_vision.registry import register
from tts_vision.verifiers._detections import Detection, Findings, check, strongest
from tts_vision.verifiers._predicates import Demands


@register("evaluator", "playground", paper="GenEval (Ghosh et al. 2023)")
class Playground(GenEvalTask):
    """GenEval's tasks for the bundled model: plain shapes, found exactly and without any weights.

    The prompts are the distinct ones of a track of the playground. Those of the easy one are taken from the
    six tasks in turn, so that the first ones are of all tasks. Rules, figures and folders are those of the
    evaluator ``geneval``.

    Args:
        track: ``easy``, the six tasks of GenEval; or ``hard``, two groups of counted, coloured shapes in a
            relation, all of the task ``position``.
    """

    name = "playground"

    def __init__(self, *, track: Track = "easy") -> None:
        super().__init__()
        self.track: Track = track

    @property
    def notes(self) -> list[str]:
        return ["Objects are found by the playground's exact checker, for images of its plain shapes only."]

    def records(self) -> list[Record]:
        every = world.load_prompts() if self.track == "easy" else hard.load_hard_prompts()
        prompts = evaluation_prompts(len(every), self.track)
        return [{**each.metadata, "prompt": each.text} for each in prompts]

    def find(
        self, images: Sequence[Image.Image], demands: Sequence[Demands], tags: Sequence[str]
    ) -> list[Findings | str]:
        return [exact_findings(np.asarray(image), each) for image, each in zip(images, demands, strict=True)]

    def self_test(self) -> str:
        return try_scorer(lambda scene, demands: exact_findings(world.render(scene), demands), self.name)


def exact_findings(image: np.ndarray, demands: Demands) -> Findings:
    """The shapes of an image by the exact checker, and the faults by them.

    Args:
        image: RGB, uint8 of shape ``(H, W, 3)``.
        demands: Of the prompt.
    """
    found = [(Detection(d.label, d.score, d.box), d.colour) for d in checker.detect(image)]
    colours = {id(detection): colour for detection, colour in found}
    best = strongest([detection for detection, _ in found])
    return Findings(check(demands, best, lambda d, group: colours[id(d)]), best)
