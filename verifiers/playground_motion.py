"""The playground's exact motion checker as a verifier: is a clip right, and if not, when does it fail?"""

from __future__ import annotations

from collections.abc import Sequence

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import UnusableSample
from tts_vision.pipelines.playground import motion, motion_checker
from tts_vision.registry import register
from tts_vision.types import FAILS_AT, Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier
from tts_vision.verifiers._frames import clip


@register("verifier", "playground_motion")
class PlaygroundMotion(Verifier):
    """The exact motion checker: 1 for a right clip, else the share of demands that are met.

    The first chunks of a clip are judged on what they show. A clip that fails says when, in seconds, in
    ``parts["fails_at"]``.

    Args:
        graded: Whether a wrong clip gets its share of met demands, to tell the better from the worse; else it
            gets 0, so that a mean over clips is the share of right ones.
    """

    name = "playground_motion"
    accepts: frozenset[Modality] = frozenset({"video"})
    checks_demands = True

    def __init__(self, *, graded: bool = True) -> None:
        self.graded = graded

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        """One score per clip.

        Args:
            media: Clips.
            prompts: Their prompts; a record of the playground's motions in the metadata takes precedence over
                the text.
            asked: Not used.

        Returns:
            Scores in [0, 1]; unscored where a sample is no clip of the playground.

        Raises:
            ConfigError: If a prompt names something that the playground's clips do not have.
        """
        specs = [spec_of(prompt) for prompt in prompts]
        return [self._score(item, spec) for item, spec in zip(media, specs, strict=True)]

    def _score(self, sample: Media, spec: motion.MotionSpec) -> Score:
        try:
            video = clip(sample, self.name)
            verdict = motion_checker.evaluate(video.frames.numpy(), spec, video.fps)
        except (UnusableSample, ValueError) as error:
            return Score.unscored(str(error))
        parts = {"correct": float(verdict.correct), "fraction": verdict.fraction}
        value = parts["fraction" if self.graded else "correct"]
        if verdict.fails_at is not None:
            parts[FAILS_AT] = verdict.fails_at / video.fps
        return Score(value=value, parts=parts, reason=verdict.reason or None, satisfied=verdict.correct)


def spec_of(prompt: Prompt) -> motion.MotionSpec:
    """What a prompt asks of a clip: by its record, or else by its text.

    Raises:
        ConfigError: If it is not of the grammar of the playground's clips.
    """
    try:
        if "actors" in prompt.metadata:
            return motion.spec_of(prompt.metadata)
        return motion.parse_spec(prompt.text)
    except (ValueError, KeyError) as error:
        raise ConfigError(str(error)) from error
