"""The playground's step verifier: is a preview clear, will it become right, is the image right?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor

from tts_vision.pipelines.playground import weights_path
from tts_vision.pipelines.playground.step_judge import Answers, StepJudge
from tts_vision.registry import register
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifiers.playground_judge import PlaygroundJudge, wording


@register(
    "verifier",
    "playground_parm",
    paper="Can We Generate Images with CoT? (Guo et al. 2025)",
    notes={"licence": "Apache-2.0", "weights": "bundled", "gradients": "yes"},
)
class PlaygroundPARM(PlaygroundJudge):
    """A small step verifier: P(yes) of its final question for finished images, of two more for previews.

    The architecture of `playground_judge` with a head for each question, trained on the previews and images
    of `playground-masked` with the exact checker's verdicts. A preview counts as clear if it shows the
    objects that the finished image has. It errs.

    Args:
        path: Folder of the model; the bundled one by default.
    """

    name = "playground_parm"
    questions = frozenset({"clarity", "potential", "reflection"})

    def __init__(self, *, path: Path | None = None, device: str | None = None, batch_size: int = 16) -> None:
        super().__init__(
            path=weights_path("parm") if path is None else path, device=device, batch_size=batch_size
        )

    def clarity(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        """Whether unfinished images are clear enough to judge their potential: P(yes) in [0, 1]."""
        return self._in_batches(lambda s, p: _verdicts(self._answers(s, p).clarity), media, prompts)

    def potential(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        """Whether unfinished images will become right for their prompts: P(yes) in [0, 1]."""
        return self._in_batches(lambda s, p: _verdicts(self._answers(s, p).potential), media, prompts)

    def reflection(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        """Whether images are right: P(yes) in [0, 1]; if not, the reason names the words that are not met."""
        return self._in_batches(self._reflections, media, prompts)

    @property
    def _class(self) -> type[StepJudge]:
        return StepJudge

    def _reflections(self, samples: list[Future[Tensor]], prompts: list[Prompt]) -> list[Score]:
        answers = self._answers(samples, prompts)
        met = answers.met.softmax(-1)[..., 1].tolist()
        texts = [wording(prompt.text).split() for prompt in prompts]
        return [
            score if score.satisfied else score.model_copy(update={"reason": _reason(words, chances)})
            for score, words, chances in zip(_verdicts(answers.final), texts, met)
        ]

    @torch.no_grad()
    def _answers(self, samples: list[Future[Tensor]], prompts: list[Prompt]) -> Answers:
        words = self._words([prompt.text for prompt in prompts])
        return self._model.answers(self._ready(samples), words.input_ids, words.attention_mask)


def _verdicts(logits: Tensor) -> list[Score]:
    values = logits.float().softmax(-1)[:, 1].tolist()
    return [Score(value=value, satisfied=None if math.isnan(value) else value > 0.5) for value in values]


def _reason(words: Sequence[str], met: Sequence[float]) -> str:
    """Names the words of a prompt that are probably not met, or the least met one.

    Args:
        words: Of `world.caption`, "a photo of" first.
        met: Probability of each token being met; the first token opens the text.
    """
    demands = [(chance, word) for chance, word in list(zip(met[1:], words))[3:] if word not in ("of", "and")]
    missed = [word for chance, word in demands if chance < 0.5]
    return "not met: " + ", ".join(missed or [min(demands)[1]])
