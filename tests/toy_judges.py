"""A toy sampler that obeys its prompt, and verifiers of it that answer questions and check demands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from tts_vision.testing import contracts
from tts_vision.testing.contracts import AlgorithmContract, HalfBlind, SlowReward
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, position_of
from tts_vision.types import Media, Prompt, Score, State
from tts_vision.verifier import ALONE, Asked

REASON = "too far left"


class StepJudge(TargetReward):
    """A judge of steps whose answers are by the distance of the preview to the target.

    Args:
        clear: Value of the reward from which on a preview is clear.
        promising: Value from which on a clear one has potential.
    """

    name = "step_judge"
    questions = frozenset({"clarity", "potential"})

    def __init__(self, clear: float = -3.0, promising: float = -2.0) -> None:
        super().__init__()
        self.clear, self.promising = clear, promising
        self.asked: list[tuple[str, int]] = []

    def clarity(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        self.asked.append(("clarity", len(media)))
        return [Score(value=logistic(s.value - self.clear)) for s in super().score(media, prompts)]

    def potential(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        self.asked.append(("potential", len(media)))
        return [Score(value=logistic(s.value - self.promising)) for s in super().score(media, prompts)]


class Reasoning(StepJudge):
    """A judge that also says why a sample is rejected: all are whose reward is below `enough`."""

    name = "reasoning"
    questions = frozenset({"clarity", "potential", "reflection"})
    checks_demands = True

    def __init__(self, enough: float = -0.05) -> None:
        super().__init__(clear=-4.0, promising=-3.0)
        self.enough = enough

    def reflection(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        self.asked.append(("reflection", len(media)))
        return [
            Score(
                value=score.value,
                reason=REASON,
                satisfied=score.value >= self.enough,
                regions=((0.0, 0.0, 0.5, 1.0),),
            )
            for score in self.score(media, prompts)
        ]


class Demanding(TargetReward):
    """Checks two demands: near enough to the target in each coordinate."""

    name = "demanding"
    checks_demands = True

    def __init__(self, reach: float = 0.4) -> None:
        super().__init__()
        self.reach = reach

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        scores = []
        for item in media:
            off = abs(position_of(item) - self.target.numpy())
            parts = {name: float(max(0.0, 1 - d)) for name, d in zip(("across", "up"), off)}
            failed = [name for name, d in zip(parts, off) if d > self.reach]
            reason = f"failed: {', '.join(failed)}" if failed else None
            scores.append(
                Score(value=sum(parts.values()) / 2, parts=parts, reason=reason, satisfied=not failed)
            )
        return scores


class Obedient(GaussianMixtureSampler):
    """A toy whose samples move to the right for each reason in their prompt."""

    def decode(self, state: State) -> list[Media]:
        reasons = torch.tensor([c.text.count(REASON) for c in state.conditions], dtype=torch.float32)
        return self._images(state.latents + torch.stack([reasons, 0 * reasons], 1))

    def preview(self, state: State) -> list[Media]:
        reasons = torch.tensor([c.text.count(REASON) for c in state.conditions], dtype=torch.float64)
        preview = state.carry["preview"]
        assert isinstance(preview, torch.Tensor)
        return self._images(preview + torch.stack([reasons, 0 * reasons], 1))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class SlowJudge(SlowReward, Reasoning):
    """A judge that takes time for each score and each answer."""

    def answer(self, question: str, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        self.clock.now += self.seconds * len(media)
        return Reasoning().answer(question, media, prompts)


class BlindJudge(HalfBlind):
    """A judge that cannot score every `blind_to`-th sample it sees."""

    questions = Reasoning.questions
    checks_demands = True

    def answer(self, question: str, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        return Reasoning().answer(question, media, prompts)


class JudgedContract(AlgorithmContract):
    """The contract of an algorithm that asks questions or checks demands."""

    @pytest.fixture(autouse=True)
    def judges(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The contract's own verifiers answer questions too."""
        monkeypatch.setattr(contracts, "SlowReward", SlowJudge)
        monkeypatch.setattr(contracts, "HalfBlind", BlindJudge)
