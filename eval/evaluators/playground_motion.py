"""Clips of the playground: its bundled prompts of motions, judged by the exact motion checker, offline."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from tts_vision.errors import VerifierError
from tts_vision.eval.evaluator import Item
from tts_vision.eval.evaluators._by_verifier import ByVerifier
from tts_vision.eval.playground import evaluation_prompts
from tts_vision.pipelines.playground import motion, motion_checker
from tts_vision.registry import register
from tts_vision.types import Modality


@register("evaluator", "playground_motion")
class PlaygroundMotion(ByVerifier):
    """One and two objects that move, grow, shrink or stand still: the share of clips that are wholly right.

    The prompts are those of the playground's track ``motion``, of its two forms in turn. A clip is right if
    every frame shows exactly the asked objects, and they move as asked in every chunk.
    """

    name = "playground_motion"
    modality: ClassVar[Modality] = "video"

    def __init__(self) -> None:
        prompts = evaluation_prompts(len(motion.load_prompts()), "motion")
        items = [
            Item(f"{number:05d}", prompt, (str(prompt.metadata["tag"]),))
            for number, prompt in enumerate(prompts)
        ]
        super().__init__(items, "playground_motion:graded=false")

    @property
    def judge_name(self) -> str:
        return self.verifier_text

    @property
    def notes(self) -> list[str]:
        return [
            "Objects are found by the playground's exact checker, for clips of its plain shapes only.",
            "MP4 blurs colours at edges, which the checker sees: judge lossless clips (.mkv).",
        ]

    def self_test(self) -> str:
        rng = np.random.default_rng(0)
        specs = [motion.sample_spec(rng, form) for form in motion.FORMS * 3]
        for spec in specs:
            first, *others = spec.actors
            other = next(way for way in motion.MOTIONS if way != first.motion)
            spoilt = motion.MotionSpec((replace(first, motion=other), *others))
            for drawn, right in ((spec, True), (spoilt, False)):
                frames = motion.render(motion.sample_clip(rng, drawn))
                if motion_checker.evaluate(frames, spec).correct is not right:
                    raise VerifierError(
                        f"{self.name} must tell whether a drawn clip shows {motion.caption(spec)!r} but errs "
                        f"about one of {motion.caption(drawn)!r}; reinstall tts-vision."
                    )
        return f"{2 * len(specs)} drawn clips, half of them with another motion"
