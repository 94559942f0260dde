"""The cascade: examined samples, values of the others, charges, members that fail, searches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toy_members import NAN, PROMPT, Table, numbered

from toy_search import run, toy_context
from tts_vision.errors import ConfigError
from tts_vision.registry import lookup
from tts_vision.scoring import safe_scores
from tts_vision.testing.contracts import VerifierContract, kill_everywhere, values
from tts_vision.testing.toys import GaussianMixtureSampler, LinearReward, TargetReward
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import Asked, Best
from tts_vision.verifiers.cascade import Cascade

ALGORITHMS = ("best_of_n", "zero_order", "evosearch", "fk_steering", "search_over_paths")
CHEAP, EXPENSIVE = [0.1, 0.9, 0.5, 0.7, 0.3, 0.2, 0.6, 0.8], [8.0, 1.0, 2.0, 5.0, 9.0, 9.0, 9.0, 3.0]


def cascade(cheap: Sequence[Any] = CHEAP, expensive: Sequence[Any] = EXPENSIVE, **options: Any) -> Cascade:
    return Cascade([Table("cheap", cheap), Table("expensive", expensive)], **options)


class TestContract(VerifierContract):
    """With everything examined it is the expensive verifier."""

    @pytest.fixture
    def verifier(self) -> Cascade:
        return cascade(fraction=1.0)

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        return numbered(8)


def test_the_dear_verifier_sees_the_top_fraction() -> None:
    verifier = cascade()
    found = verifier.score(numbered(8), [PROMPT] * 8)
    cheap, expensive = verifier.members
    assert cheap.seen == [list(range(8))] and expensive.seen == [[1, 7]]  # type: ignore[attr-defined]
    assert verifier.settles and verifier.relative and lookup("verifier", "cascade").target is Cascade
    # 1 and 7 keep what the expensive one said, 1 and 3; the others go down in steps of (3 - 1) / 2
    assert values(found) == [-5, 1, -2, 0, -3, -4, -1, 3]
    assert found[1].parts == {"cheap": 0.9, "expensive": 1.0, "cheap/number": 1, "expensive/number": 1}
    assert "expensive" not in found[0].parts and found[0].reason is None


@pytest.mark.parametrize(
    ("fraction", "n", "examined"),
    [(0.25, 8, 2), (0.25, 9, 3), (0.25, 1, 1), (0.01, 5, 1), (1.0, 5, 5), (0.3, 10, 3), (0.5, 3, 2)],
)
def test_the_fraction_is_rounded_up(fraction: float, n: int, examined: int) -> None:
    verifier = cascade([0.0] * n, [0.0] * n, fraction=fraction)
    assert verifier.calls(n) == {"cheap": n, "expensive": examined}
    verifier.score(numbered(n), [PROMPT] * n)
    assert len(verifier.members[1].seen[0]) == examined  # type: ignore[attr-defined]


def test_what_was_not_examined_never_beats_what_was() -> None:
    verifier = cascade(fraction=0.5)
    first = verifier.score(numbered(8)[:4], [PROMPT] * 4)  # examines 1 and 3
    second = verifier.score(numbered(8)[4:], [PROMPT] * 4)  # examines 6 and 7
    pooled = verifier.settle([*first, *second])
    # 2, with 0.5 the best of the others, then 4, 5, 0
    step = (9 - 1) / 4
    assert pooled == [1 - 4 * step, 1, 1 - step, 5, 1 - 2 * step, 1 - 3 * step, 9, 3]


def test_equals_stay_equal() -> None:
    found = cascade([0.9, 0.2, 0.2, 0.1], [5.0] * 4).score(numbered(4), [PROMPT] * 4)
    assert values(found) == [5, 4, 4, 3], "without a spread of the expensive scores, steps are 1"


def test_order_does_not_matter() -> None:
    verifier, media = cascade(), numbered(8)
    order = [3, 0, 7, 5, 1, 6, 2, 4]
    whole = verifier.score(media, [PROMPT] * 8)
    shuffled = verifier.score([media[i] for i in order], [PROMPT] * 8)
    assert values(shuffled) == [whole[i].value for i in order]
    assert verifier.settle(whole) == values(whole)
    assert verifier.score([], []) == [] and verifier.settle([]) == []


def test_each_prompt_has_a_cascade_of_its_own() -> None:
    verifier = cascade()
    charged: list[dict[str, int]] = []
    prompts = [Prompt("x"), *[Prompt("y")] * 7]
    found = safe_scores(verifier, numbered(8), prompts, asked=Asked(lambda c: charged.append(dict(c))))
    assert verifier.members[1].seen == [[0], [1, 7]]  # type: ignore[attr-defined]
    assert found[0].value == 8
    assert charged == [{"cheap": 8, "expensive": 2}, {"expensive": 1}], "one more than of a single prompt"


# Members that fail


def test_what_the_cheap_one_cannot_score_is_neither_favoured_nor_held_back() -> None:
    verifier = cascade([0.1, NAN, 0.9, 0.4], [1.0, 2.0, 3.0, 4.0], fraction=0.5)
    found = verifier.score(numbered(4), [PROMPT] * 4)
    # image 1 counts as 0.4, the median; the earlier of equals goes first
    assert verifier.members[1].seen == [[2, 1]]  # type: ignore[attr-defined]
    assert values(found) == [1, 2, 3, 1.5] and found[1].reason == "cheap: blind to 1"
    unexamined = cascade([0.1, NAN, 0.9, 0.8, 0.7], [1.0] * 5).score(numbered(5), [PROMPT] * 5)
    assert [math.isnan(value) for value in values(unexamined)] == [False, True, False, False, False]


def test_without_any_cheap_score_the_dear_one_still_judges() -> None:
    verifier = cascade([NAN] * 4, [1.0, 2.0, 3.0, 4.0], fraction=0.5)
    found = verifier.score(numbered(4), [PROMPT] * 4)
    assert values(found)[:2] == [1, 2] and all(math.isnan(value) for value in values(found)[2:])


def test_what_the_dear_one_cannot_score_takes_its_place_by_the_cheap_one() -> None:
    found = cascade([0.1, 0.4, 0.9, 0.8], [9.0, 9.0, NAN, 5.0], fraction=0.5).score(numbered(4), [PROMPT] * 4)
    assert values(found) == [2, 3, 4, 5] and found[2].reason == "expensive: blind to 2"
    nothing = cascade([0.1, 0.4, 0.9, 0.8], [NAN] * 4, fraction=0.5).score(numbered(4), [PROMPT] * 4)
    assert values(nothing) == [-4, -3, -1, -2]


def test_a_dear_one_that_raises_is_tried_one_by_one_and_charged() -> None:
    verifier = cascade(expensive=[*EXPENSIVE[:7], "raise"])
    charged: list[dict[str, int]] = []
    found = safe_scores(verifier, numbered(8), [PROMPT] * 8, asked=Asked(lambda c: charged.append(dict(c))))
    assert charged == [{"cheap": 8, "expensive": 2}, {"expensive": 1}, {"expensive": 1}]
    assert found[1].value == 1 and found[7].reason == "expensive: expensive raised RuntimeError: image 7"
    assert sorted(values(found))[-2:] == [0, 1]


# Searches


def search_verifier() -> Cascade:
    return Cascade([LinearReward(), TargetReward()], fraction=0.5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_searches_by_it_and_each_member_is_charged(algorithm: str) -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), search_verifier(), times=8)
    run(lookup("algorithm", algorithm).target, ctx)
    scores = [candidate.score for candidate in ctx.candidates.values()]
    assert values(scores) == pytest.approx(search_verifier().settle(scores))
    assert ctx.best is not None and ctx.best.score.value == max(values(scores))
    assert ctx.best.score.parts["target_reward"] == ctx.best.score.value
    calls = ctx.ledger.calls
    assert 0 < calls["target_reward"] < calls["linear_reward"]
    assert sum(calls.values()) == ctx.ledger.spent.verifier_calls


def test_a_search_by_it_keeps_its_number_of_calls() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), search_verifier(), verifier_calls=20)
    run(lookup("algorithm", "best_of_n").target, ctx)
    assert 18 <= ctx.ledger.spent.verifier_calls <= 20
    assert len(ctx.candidates) == ctx.ledger.calls["linear_reward"] > 10


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_search_by_it_survives_a_kill_anywhere(algorithm: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"n": 4}
    if algorithm == "evosearch":
        sizes = {"evolution_schedule": [0, 3], "population_schedule": [3, 2, 3], "elites": 1}
    search = partial(lookup("algorithm", algorithm).target, **sizes)
    kill_everywhere(search, lambda: GaussianMixtureSampler(num_steps=6, order=2), search_verifier(), tmp_path)


def test_the_expensive_one_gets_its_own_score_of_the_best_sample() -> None:
    verifier, media = cascade(), numbered(8)
    score = verifier.score(media, [PROMPT] * 8)[7]
    safe_scores(verifier, media[:4], [PROMPT] * 4, asked=Asked(best=Best(lambda: media[7], score)))
    best = verifier.members[1].asked[-1].best  # type: ignore[attr-defined]
    assert best.score == Score(value=3.0, parts={"number": 7.0})


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        (["a"], {}, "made of two verifiers, the cheap one first, but got a; for more stages"),
        (["a", "b", "c"], {}, "but got a, b, c"),
        (["a", "b"], {"fraction": 0.0}, "fraction must be above 0 and at most 1 but got 0"),
        (["a", "b"], {"fraction": 1.5}, "fraction must be above 0 and at most 1 but got 1.5"),
        (["a", "b"], {"fraction": NAN}, "fraction must be above 0"),
    ],
)
def test_mistakes_are_told(members: list[str], options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cascade([Table(name, CHEAP) for name in members], **options)
