"""A person as verifier: asked once, recorded at once, alone or beside a model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tts_vision import Result, search
from tts_vision.errors import VerifierError
from tts_vision.registry import lookup
from tts_vision.resolve import find_verifier, load_verifier
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, draw_position
from tts_vision.trace import answers
from tts_vision.types import Media, Prompt, Score, Video
from tts_vision.verifier import ALONE, Asked, Best
from tts_vision.verifiers.ensemble import Ensemble
from tts_vision.verifiers.human import Answer, Human, Question, answered_by

PROMPT = Prompt("x")


class Person:
    """A person who prefers what the toy's reward prefers, and remembers the questions.

    Args:
        leaves_after: Questions after which the process is killed.
    """

    def __init__(self, leaves_after: int | None = None) -> None:
        self.asked: list[Question] = []
        self.leaves_after = leaves_after

    def __call__(self, question: Question) -> Answer:
        if len(self.asked) == self.leaves_after:
            raise KeyboardInterrupt
        self.asked.append(question)
        values = [s.value for s in TargetReward().score(question.media, [PROMPT] * len(question.media))]
        if question.kind == "rate":
            return float(np.exp(values[0]))
        return "first" if values[0] > values[1] else "second"


def positions(*xs: float) -> list[Media]:
    return [draw_position(np.array([x, 1.0])) for x in xs]


def scored(human: Human, media: Sequence[Media], asked: Asked = ALONE) -> list[Score]:
    return human.score(media, [PROMPT] * len(media), asked)


def test_ratings_are_the_persons_own_numbers() -> None:
    person = Person()
    scores = scored(Human(how="rate", person=person), positions(1.0, 0.0))
    assert [score.value for score in scores] == pytest.approx([1.0, math.exp(-1)])
    assert [(q.kind, q.prompt, len(q.media)) for q in person.asked] == [("rate", PROMPT, 1)] * 2


def test_votes_rank_samples() -> None:
    human = Human(rounds=3, person=Person())
    values = [score.value for score in scored(human, positions(-2.0, 1.0, 0.0, 3.9))]
    assert sorted(range(4), key=lambda i: -values[i]) == [1, 2, 3, 0]
    assert human.relative


def test_each_pair_meets_once() -> None:
    person = Person()
    scored(Human(rounds=9, person=person), positions(-2.0, 1.0, 0.0, 3.9))
    pairs = [frozenset(np.asarray(m).tobytes() for m in q.media) for q in person.asked]
    assert len(pairs) == len(set(pairs)) == 6, "4 samples have 6 pairs"


def test_the_best_so_far_takes_part_and_keeps_its_value() -> None:
    (guest,) = positions(1.0)
    asked = Asked(best=Best(lambda: guest, Score(value=2.5)))
    low, high = scored(Human(rounds=3, person=Person()), positions(-2.0, 0.9), asked)
    assert low.value < high.value < 2.5
    (better,) = scored(
        Human(rounds=1, person=Person()),
        positions(1.0),
        Asked(best=Best(lambda: positions(0.0)[0], Score(value=2.5))),
    )
    worse = scored(Human(rounds=1, person=Person()), positions(0.0), asked)[0]
    assert better.value > worse.value
    assert len(scored(Human(person=Person()), positions(1.0))) == 1, "a single sample meets nobody"


def test_a_person_may_pass() -> None:
    (rating,) = scored(Human(how="rate", person=lambda question: None), positions(1.0))
    assert math.isnan(rating.value) and rating.reason == "the person could not tell"
    votes = scored(Human(person=lambda question: None), positions(1.0, 0.0))
    assert all(math.isnan(vote.value) for vote in votes)
    ties = scored(Human(person=lambda question: "tie"), positions(1.0, 0.0))
    assert ties[0].value == pytest.approx(ties[1].value) and ties[0].parts["games"] == 1


@pytest.mark.parametrize(
    ("how", "answer"), [("rate", 2.0), ("rate", "first"), ("pairs", 0.5), ("pairs", "x")]
)
def test_answers_of_another_kind_are_refused(how: Any, answer: Any) -> None:
    with pytest.raises(VerifierError, match=f"but the answer was {answer!r}"):
        scored(Human(how=how, person=lambda question: answer), positions(1.0, 0.0))


def test_clips_are_told_apart_frame_by_frame() -> None:
    import torch

    frames = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    other = frames.clone()
    other[2, 0, 0, 0] = 1
    keys = {Question("rate", (Video(clip),), PROMPT).key for clip in (frames, other, frames.clone())}
    assert len(keys) == 2
    assert Question("rate", (Video(frames),), Prompt("y")).key not in keys


def test_without_a_person_it_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match="needs a person who answers but there is none here; use it in"):
        search(GaussianMixtureSampler(), "x", verifier="human", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_by_name_the_person_at_hand_is_asked() -> None:
    person = Person()
    assert lookup("verifier", "human").target is Human
    verifier = load_verifier(find_verifier("ensemble(human:how=rate, jpeg_compressibility)"))
    with answered_by(person):
        verifier.load()
        scores = verifier.score(positions(1.0, 0.0), [PROMPT] * 2)
    assert len(person.asked) == 2 and scores[0].parts["human"] == 1.0
    with pytest.raises(VerifierError, match="there is none here"):
        verifier.load()


def searched(folder: Path, verifier: Any, *, resume: bool = False, algorithm: str = "fk_steering") -> Result:
    return search(
        GaussianMixtureSampler(num_steps=5),
        "x",
        algorithm=algorithm,
        verifier=verifier,
        budget="6x",
        output=folder,
        resume=resume,
    )


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "result.json").read_text())
    del report["timing"]
    return report


@pytest.mark.parametrize("how", ["rate", "pairs"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_killed_search_asks_nothing_twice_and_has_the_same_result(
    tmp_path: Path, how: Any, mixed: bool
) -> None:
    def judge(person: Person) -> Any:
        human = Human(how=how, person=person)
        return Ensemble([human, TargetReward()]) if mixed else human

    everything = Person()
    searched(tmp_path / "whole", judge(everything))
    total = len(everything.asked)
    assert total > 8
    for leaves_after in range(0, total, max(1, total // 6)):
        folder = tmp_path / f"killed-{leaves_after}"
        first, second = Person(leaves_after), Person()
        with pytest.raises(KeyboardInterrupt):
            searched(folder, judge(first))
        searched(folder, judge(second), resume=True)
        assert len(first.asked) + len(second.asked) == total
        assert [q.key for q in first.asked + second.asked] == [q.key for q in everything.asked]
        assert report_of(folder) == report_of(tmp_path / "whole"), f"killed after {leaves_after} answers"


def test_answers_are_in_the_trace_and_calls_in_the_ledger(tmp_path: Path) -> None:
    person = Person()
    result = searched(tmp_path, Human(how="rate", person=person), algorithm="best_of_n")
    parts = [answer.value for answer in answers(result.trace, "part")]
    assert [part["key"] for part in parts] == [f"human {q.key}" for q in person.asked]
    assert result.spent.calls == {"human": 6} and result.spent.seconds["ask"] >= 0
    assert [c.score.value for c in result.population] == sorted((p["answer"] for p in parts), reverse=True)


def test_equal_samples_are_asked_about_once_in_a_scoring(tmp_path: Path) -> None:
    person = Person()
    human = Human(how="rate", person=person)
    result = search(
        GaussianMixtureSampler(num_steps=5, eta=0), "x", verifier=human, budget="2x", output=tmp_path
    )
    assert len(person.asked) == len(result.population) == 2
    same: list[Media] = [Image.new("RGB", (4, 4))] * 2
    remembered: dict[str, Any] = {}

    def remember(key: str, function: Any) -> Any:
        if key not in remembered:
            remembered[key] = function()
        return remembered[key]

    human = Human(how="rate", person=lambda question: 0.5)
    assert [s.value for s in scored(human, same, Asked(remember=remember))] == [0.5, 0.5]
    assert len(remembered) == 1
