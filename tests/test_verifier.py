"""The forms in which a user's verifier may return its scores, and those that are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from toy_search import toy_context
from tts_vision.errors import VerifierError
from tts_vision.scoring import safe_scores
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import FunctionVerifier, as_verifier

PROMPT = Prompt("x")
COLUMN = np.array([[0.5], [1.0], [-2.0]], dtype=np.float32)


def images(n: int) -> list[Media]:
    return [Image.new("RGB", (2, 2))] * n


def scored(found: Any, n: int = 3) -> list[Score]:
    return safe_scores(FunctionVerifier(lambda media, prompts: found, "mine"), images(n), [PROMPT] * n)


@pytest.mark.parametrize(
    "found",
    [
        [0.5, 1, -2.0],
        (0.5, 1.0, -2.0),
        COLUMN,
        COLUMN[:, 0],
        COLUMN[..., None],
        torch.tensor(COLUMN, requires_grad=True),
        torch.tensor(COLUMN[:, 0], dtype=torch.bfloat16),
        [torch.tensor(0.5), torch.tensor([1.0], requires_grad=True), np.float32(-2)],
        list(COLUMN),
        [[0.5], [1.0], [-2.0]],
        (value for value in (0.5, 1.0, -2.0)),
        [Score(value=0.5), 1.0, np.array([-2.0])],
    ],
    ids=lambda found: type(found).__name__,
)
def test_a_column_is_taken_like_a_list(found: Any) -> None:
    scores = scored(found)
    assert [score.value for score in scores] == [0.5, 1.0, -2.0]
    assert all(type(score.value) is float and score.reason is None for score in scores)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("found", "told"),
    [
        (0.5, "float"),
        (np.float64(0.5), r"float64 of shape \(\)"),
        (np.array(0.5), r"ndarray of shape \(\)"),
        (torch.tensor(0.5), r"Tensor of shape \(\)"),
        (np.zeros((3, 2)), r"ndarray of shape \(3, 2\)"),
        (torch.zeros(1, 3), r"Tensor of shape \(1, 3\)"),
        ({"a.png": 0.5}, "dict"),
        ({0.5}, "set"),
        ("0.5", "str"),
        (None, "None"),
        ([{"score": 1.0}] * 3, "a list of dict"),
        ([[1.0, 2.0]] * 3, "a list of list"),
        ([0.5, 1.0], "2"),
        (np.zeros((4, 1)), "4"),
    ],
    ids=str,
)
def test_another_shape_is_refused_at_the_first_scoring(found: Any, told: str, n: int) -> None:
    with pytest.raises(
        VerifierError,
        match=f"'mine' must return one score per sample, {n} here, but returned {told}.*; return ",
    ):
        scored(found, n)


def test_a_search_pays_for_no_more_than_its_first_batch_of_a_reward_of_the_wrong_shape() -> None:
    ctx = toy_context(verifier=FunctionVerifier(lambda media, prompts: {"score": 1.0}, "mine"), times=8)
    with pytest.raises(VerifierError, match=r"'mine' must return one score per sample, 2 here, .* dict"):
        ctx.score(ctx.finish(ctx.init(2)))
    assert ctx.ledger.spent.verifier_calls == 2  # not tried again for each sample


def test_an_entry_that_is_no_number_costs_only_its_own_sample() -> None:
    scores = scored([0.5, None, "bad"])
    assert [math.isnan(score.value) for score in scores] == [False, True, True]
    assert [score.reason for score in scores] == [
        None,
        "mine returned None for it",
        "mine returned no number for it",
    ]
    assert all(math.isnan(score.value) for score in scored([None, None, None]))


@pytest.mark.parametrize("wrap", [lambda x: x, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_infinity_is_no_score(wrap: Callable[[Any], Any]) -> None:
    scores = scored(wrap([math.inf, 1.0, -math.inf]))
    assert math.isnan(scores[0].value) and scores[0].reason == "mine returned inf"
    assert [score.value for score in scores[1:]] == [1.0, -math.inf]  # a penalty that ranks last


def test_a_sample_of_infinite_score_never_wins() -> None:
    values = iter([math.inf, 0.0, 1.0, math.nan])
    ctx = toy_context(
        verifier=FunctionVerifier(lambda media, prompts: [next(values) for _ in media]), times=8
    )
    ctx.score(ctx.finish(ctx.init(4)))
    assert ctx.best is not None and ctx.best.score.value == 1.0


def test_an_object_may_return_numbers() -> None:
    class Mine:
        name, accepts = "mine", {"image"}

        def score(self, media: Any, prompts: Any) -> Any:
            return COLUMN

    found = safe_scores(as_verifier(Mine()), images(3), [PROMPT] * 3)
    assert [score.value for score in found] == [0.5, 1.0, -2.0]
