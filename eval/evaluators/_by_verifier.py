"""The base class of evaluators whose judge is one of the toolkit's verifiers."""

from __future__ import annotations

from collections.abc import Sequence

from tts_vision.errors import ConfigError, TTSVisionError, VerifierError
from tts_vision.eval.evaluator import Evaluator, Item, Sample, Verdict
from tts_vision.eval.evaluators._data import digest_of
from tts_vision.types import Media, Score
from tts_vision.verifier import Verifier


class ByVerifier(Evaluator):
    """Base class of evaluators whose metric ``score`` is the value of a verifier.

    A subclass reads its prompts and gives them to the constructor. The parts of a score are details of the
    verdict; whether a sample is correct is known for verifiers that check all demands of a prompt.

    Args:
        items: The prompts.
        judge: The verifier as a command line writes it, ``vqa_score:variant=paper,batch_size=4``; ``;`` may
            stand for the commas.

    Raises:
        ConfigError: If there is none, or its values do not compare across prompts and runs.
    """

    metric = "score"

    def __init__(self, items: Sequence[Item], judge: str | None) -> None:
        if judge is None:
            raise ConfigError(
                f"{self.name} needs a verifier as its judge but got none; give one, such as "
                f"'{self.name}:data=FILE,judge=hpsv2.1'."
            )
        self._items = list(items)
        self.verifier_text = judge.replace(";", ",")
        self.verifier = absolute_verifier(self.verifier_text, self.name)
        if self.modality not in self.verifier.accepts:
            raise ConfigError(
                f"The judge of {self.name} must take {self.modality}s but {self.verifier_text!r} takes "
                f"{', '.join(sorted(self.verifier.accepts))}; name another verifier."
            )

    @property
    def judge_name(self) -> str:
        return f"{self.name} {digest_of(self._items)} by {self.verifier_text}"

    def items(self) -> list[Item]:
        return list(self._items)

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """The verifier's scores.

        Raises:
            VerifierError: If the verifier does not return one score for each sample.
        """
        media, reasons = media_of(samples)
        scores = scores_of(self.verifier, media, samples)
        return [
            Verdict(reason=reasons[i]) if i in reasons else verdict_of(scores[i]) for i in range(len(samples))
        ]


def absolute_verifier(text: str, owner: str) -> Verifier:
    """The verifier that a text names; its model loads on first use.

    Args:
        text: As a command line writes it.
        owner: The evaluator, for messages.

    Raises:
        ConfigError: If there is none, or its values only compare the samples of one call.
    """
    from tts_vision.resolve import find_verifier, load_verifier

    verifier = load_verifier(find_verifier(text))
    if verifier.relative or verifier.settles:
        raise ConfigError(
            f"The judge of {owner} must give values that compare across prompts but {text!r} compares the "
            "samples of one call with each other; name another verifier."
        )
    return verifier


def media_of(samples: Sequence[Sample]) -> tuple[dict[int, Media], dict[int, str]]:
    """The pixels of samples by their place, and the reasons why some cannot be read."""
    media: dict[int, Media] = {}
    reasons: dict[int, str] = {}
    for i, sample in enumerate(samples):
        try:
            media[i] = sample.load()
        except (OSError, ConfigError) as error:
            reasons[i] = f"{sample.path.name} cannot be read: {error}"
    return media, reasons


def scores_of(verifier: Verifier, media: dict[int, Media], samples: Sequence[Sample]) -> dict[int, Score]:
    """The scores of samples by their place.

    Raises:
        VerifierError: If the verifier does not return one for each sample.
    """
    if not media:
        return {}
    try:
        scores = verifier.score(list(media.values()), [samples[i].item.prompt for i in media])
    except TTSVisionError:
        raise
    except Exception as error:
        raise VerifierError(
            f"Verifier {verifier.name!r} must score every sample but raised {type(error).__name__}: {error}; "
            "correct it, or name another."
        ) from error
    if len(scores) != len(media):
        raise VerifierError(
            f"Verifier {verifier.name!r} must return one score per sample, {len(media)} here, but returned "
            f"{len(scores)}; correct it."
        )
    return dict(zip(media, scores, strict=True))


def verdict_of(score: Score) -> Verdict:
    """A score as a verdict; without values where the sample could not be scored."""
    if score.value != score.value:
        return Verdict(reason=score.reason or "the verifier gave no score")
    return Verdict(
        values={"score": score.value},
        correct=score.satisfied,
        reason=score.reason,
        details={"parts": dict(score.parts)} if score.parts else {},
    )
