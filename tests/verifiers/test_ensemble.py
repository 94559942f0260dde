"""The ensemble: closed-form values of each rule, members that fail, order, and searches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_members import NAN, PROMPT, Table, numbered

from toy_search import run, toy_context
from tts_vision.errors import CapabilityError, ConfigError, VerifierError
from tts_vision.registry import lookup
from tts_vision.resolve import find_verifier, load_verifier
from tts_vision.scoring import safe_scores
from tts_vision.testing.contracts import VerifierContract, kill_everywhere, values
from tts_vision.testing.toys import GaussianMixtureSampler, LinearReward, TargetReward
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Best, Verifier
from tts_vision.verifiers import _members
from tts_vision.verifiers._members import part_of
from tts_vision.verifiers.calibrated import Calibrated
from tts_vision.verifiers.cascade import Cascade
from tts_vision.verifiers.ensemble import Ensemble, filled, pareto_fronts, ranks, z_scores
from tts_vision.verifiers.frame_mean import FrameMean

ALGORITHMS = ("best_of_n", "zero_order", "evosearch", "fk_steering", "search_over_paths")
A, B = [0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 100.0, 40.0, 30.0, 20.0]


def scored(*members: Verifier, n: int | None = None, **options: Any) -> list[Score]:
    n = len(members[0].values) if n is None else n  # type: ignore[attr-defined]
    return Ensemble(members, **options).score(numbered(n), [PROMPT] * n)


class TestContract(VerifierContract):
    """A contract but for independence: values compare samples; `how` product needs no comparison."""

    @pytest.fixture
    def verifier(self) -> Ensemble:
        return Ensemble([Table("a", [0.1, 0.5, 0.9]), Table("b", [0.3, 0.2, 0.4])], how="product")

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        return numbered(3)


def test_it_settles_values_of_members() -> None:
    ensemble = Ensemble([Table("a", A), Table("b", B)])
    assert ensemble.settles and ensemble.relative and not ensemble.learns and not ensemble.differentiable
    assert lookup("verifier", "ensemble").target is Ensemble
    assert (ensemble.name, ensemble.accepts) == ("ensemble(a, b)", frozenset({"image"}))
    assert ensemble.score([], []) == [] and ensemble.settle([]) == []


# Rules


def test_ranks_count_who_is_beaten() -> None:
    assert ranks(np.array([3.0, 1.0, 2.0])).tolist() == [1, 0, 0.5]
    # a tie is half: the equal ones beat one of three others, and tie with one
    assert ranks(np.array([1.0, 2.0, 2.0, 3.0])).tolist() == pytest.approx([0, 0.5, 0.5, 1])
    assert ranks(np.array([NAN, 2.0, 1.0])).tolist() == [0.5, 1, 0]
    assert ranks(np.array([7.0])).tolist() == [0.5] and ranks(np.array([NAN, 7.0])).tolist() == [0.5, 0.5]


def test_z_scores_have_no_scale() -> None:
    assert z_scores(np.array([1.0, 3.0])).tolist() == [-1, 1]
    assert z_scores(np.array([10.0, 30.0, NAN])).tolist() == [-1, 1, 0]
    assert z_scores(np.array([5.0, 5.0])).tolist() == [0, 0]
    assert z_scores(np.array([NAN, NAN])).tolist() == [0, 0]


def test_fronts_are_peeled_off() -> None:
    #            undominated, undominated, below the first, equal to it, worst
    a, b = [3.0, 1.0, 2.0, 2.0, 0.0], [1.0, 3.0, 1.0, 1.0, 0.0]
    assert pareto_fronts(np.array([a, b])).tolist() == [0, 0, 1, 1, 2]
    assert pareto_fronts(np.array([[1.0, 1.0]])).tolist() == [0, 0]
    assert pareto_fronts(np.array([[1.0, 2.0, 3.0]])).tolist() == [2, 1, 0]


def test_mean_of_ranks_is_the_default() -> None:
    # ranks by a: 0 1 2 3 4; by b: 0 4 3 2 1
    found = scored(Table("a", A), Table("b", B))
    assert values(found) == pytest.approx([0, 5 / 8, 5 / 8, 5 / 8, 5 / 8])
    assert found[1].parts == {"a": 1, "b": 100, "a/number": 1, "b/number": 1}
    weighted = scored(Table("a", A), Table("b", B), weights=[3.0, 1.0])
    assert values(weighted) == pytest.approx([0, 7 / 16, 9 / 16, 11 / 16, 13 / 16])


def test_the_scale_of_a_member_does_not_matter_to_ranks_and_z_scores() -> None:
    for how in ("rank", "zscore", "minimum", "pareto"):
        plain = scored(Table("a", A), Table("b", B), how=how)
        scaled = scored(Table("a", [1000 * v - 7 for v in A]), Table("b", B), how=how)
        assert values(scaled) == pytest.approx(values(plain))


def test_weighted_z_scores() -> None:
    found = scored(Table("a", [1.0, 3.0]), Table("b", [4.0, 0.0]), how="zscore", weights=[3.0, 1.0])
    assert values(found) == pytest.approx([-0.5, 0.5])


def test_minimum_is_the_least_z_score() -> None:
    found = scored(Table("a", [1.0, 3.0, 2.0]), Table("b", [3.0, 1.0, 2.0]), how="minimum")
    assert values(found) == pytest.approx([-math.sqrt(1.5), -math.sqrt(1.5), 0])


def test_product_is_the_geometric_mean() -> None:
    found = scored(Table("p", [0.5, 0.0, 1.0]), Table("q", [0.5, 1.0, 0.25]), how="product")
    assert values(found) == pytest.approx([0.5, 0, 0.5])
    weighted = scored(Table("p", [0.5, 0.0, 0.0]), Table("q", [0.2, 1.0, 0.5]), how="product", weights=[0, 1])
    assert values(weighted) == pytest.approx([0.2, 1, 0.5]), "a weight of 0 silences a member"


def test_pareto_goes_by_fronts_and_then_by_ranks() -> None:
    found = scored(Table("a", [3.0, 1.0, 2.0, 0.0]), Table("b", [1.0, 3.0, 0.5, 0.0]), how="pareto")
    # mean ranks (1 + 2/3)/2, (1/3 + 1)/2, (2/3 + 1/3)/2, 0 on fronts 0, 0, 1, 2
    assert values(found) == pytest.approx([5 / 6, 2 / 3, 0.5 - 1, -2])
    alone = scored(Table("a", [2.0]), Table("b", [1.0]), how="pareto")
    assert values(alone) == [0.5]


@pytest.mark.parametrize("seed", range(5))
def test_no_sample_is_above_one_on_an_earlier_front(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 4, (2, 12)).astype(float)
    found = values(scored(Table("a", table[0].tolist()), Table("b", table[1].tolist()), how="pareto"))
    fronts = pareto_fronts(table)
    assert all(found[i] > found[j] for i in range(12) for j in range(12) if fronts[i] < fronts[j])


# Members that fail


def test_a_member_that_cannot_score_a_sample_has_no_say_there() -> None:
    a, b = Table("a", [1.0, NAN, 3.0, 2.0]), Table("b", [1.0, 2.0, 3.0, 4.0])
    found = scored(a, b)
    # by a: 0, none, 1, 1/2 among three; by b: 0, 1/3, 2/3, 1
    assert values(found) == pytest.approx([0, (0.5 + 1 / 3) / 2, 5 / 6, 0.75])
    assert found[1].reason == "a: blind to 1" and "a" not in found[1].parts
    assert all(score.reason is None for score in (found[0], *found[2:]))
    z = values(scored(a, b, how="zscore"))
    assert z[1] == pytest.approx((0 + z_scores(np.array([1.0, 2.0, 3.0, 4.0]))[1]) / 2)
    product = values(scored(a, b, how="product"))
    assert product[1] == pytest.approx(math.sqrt(2.0 * 2.0)), "the median of 1, 3 and 2"
    assert filled(np.array([1.0, NAN, 4.0, 5.0])).tolist() == [1, 4, 4, 5]
    assert filled(np.array([NAN, NAN])).tolist() == [1, 1]


@pytest.mark.parametrize("how", ["rank", "zscore", "product", "minimum", "pareto"])
def test_a_sample_that_no_member_scored_is_unscored_and_nobody_else(how: Any) -> None:
    found = scored(Table("a", [1.0, NAN, 3.0]), Table("b", [2.0, NAN, NAN]), how=how)
    assert [math.isnan(value) for value in values(found)] == [False, True, False]
    assert found[1].reason == "a: blind to 1; b: blind to 1" and found[2].reason == "b: blind to 2"
    nothing = scored(Table("a", [NAN, NAN]), Table("b", [NAN, NAN]), how=how)
    assert all(math.isnan(value) for value in values(nothing))


@pytest.mark.parametrize("how", ["rank", "zscore", "product", "minimum", "pareto"])
def test_a_member_that_scores_nothing_changes_no_order(how: Any) -> None:
    blind = Table("blind", [NAN] * 3)
    alone = values(scored(Table("a", [2.0, 1.0, 3.0]), how=how))
    beside = values(scored(Table("a", [2.0, 1.0, 3.0]), blind, how=how))
    if how == "minimum":  # z-scores above the average of a silent member do not count
        assert np.argmin(beside) == np.argmin(alone)
    else:
        assert np.argsort(beside).tolist() == np.argsort(alone).tolist()


def test_a_member_that_raises_costs_only_its_own_say_and_is_charged_for_trying() -> None:
    a, b = Table("a", [1.0, "raise", 3.0]), Table("b", [1.0, 2.0, 3.0])
    charged: list[dict[str, int]] = []
    ensemble = Ensemble([a, b])
    found = safe_scores(ensemble, numbered(3), [PROMPT] * 3, asked=Asked(lambda c: charged.append(dict(c))))
    assert values(found) == pytest.approx([0, 0.5, 1])
    assert found[1].reason == "a: a raised RuntimeError: image 1"
    assert a.seen == [[0, 1, 2], [0], [1], [2]] and b.seen == [[0, 1, 2]]
    assert charged == [{"a": 3, "b": 3}, {"a": 1}, {"a": 1}, {"a": 1}]


def test_values_that_are_not_finite_are_no_values() -> None:
    found = scored(Table("a", [1.0, math.inf, -math.inf]), Table("b", [1.0, 2.0, 3.0]), how="zscore")
    assert all(math.isfinite(value) for value in values(found))
    assert found[1].reason == "a: a returned inf" and found[2].reason == "a: returned -inf"


def test_a_product_of_negative_values_is_told() -> None:
    found = scored(Table("a", [0.5, -0.5]), Table("b", [0.5, 0.5]), how="product")
    assert found[0].value == pytest.approx(0.5) and math.isnan(found[1].value)
    assert found[1].reason == "a product needs members that are never negative but got a -0.5"


def test_a_member_that_breaks_its_contract_is_an_error() -> None:
    class Short(Table):
        def score(
            self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE
        ) -> list[Score]:
            return super().score(media, prompts, asked)[1:]

    with pytest.raises(VerifierError, match="'a' must return one score per sample, 2 here, but returned 1"):
        scored(Short("a", [1.0, 2.0]), Table("b", [1.0, 2.0]))


# What a pool is


@pytest.mark.parametrize("how", ["rank", "zscore", "product", "minimum", "pareto"])
def test_order_and_batches_do_not_matter_to_the_pool(how: Any) -> None:
    rng = np.random.default_rng(0)
    table = rng.random((3, 7))
    table[1, 2] = NAN
    ensemble = Ensemble([Table(str(i), row.tolist()) for i, row in enumerate(table)], how=how)
    media, order = numbered(7), rng.permutation(7).tolist()
    whole = ensemble.score(media, [PROMPT] * 7)
    shuffled = ensemble.score([media[i] for i in order], [PROMPT] * 7)
    assert values(shuffled) == pytest.approx([whole[i].value for i in order])
    batches = [s for a, b in ((0, 3), (3, 4), (4, 7)) for s in ensemble.score(media[a:b], [PROMPT] * (b - a))]
    assert ensemble.settle(batches) == pytest.approx(values(whole))
    assert ensemble.settle(whole) == pytest.approx(values(whole)), "to pool again changes nothing"


def test_samples_of_one_prompt_are_compared_with_each_other() -> None:
    a = Table("a", [1.0, 2.0, 3.0, 4.0])
    found = Ensemble([a]).score(numbered(4), [Prompt("x"), Prompt("y"), Prompt("x"), Prompt("y")])
    assert values(found) == [0, 0, 1, 1]


def test_members_of_one_name_are_told_apart() -> None:
    ensemble = Ensemble([Table("clip", [1.0, 2.0]), Table("clip", [4.0, 3.0])])
    (score, _) = ensemble.score(numbered(2), [PROMPT] * 2)
    assert ensemble.name == "ensemble(clip, clip (2))"
    assert (score.parts["clip"], score.parts["clip (2)"]) == (1, 4)
    assert ensemble.calls(3) == {"clip": 6}


def test_a_pool_may_be_a_member() -> None:
    inner = Ensemble([Table("a", [1.0, 2.0, 3.0]), Table("b", [1.0, 2.0, 0.0])], how="minimum")
    outer = Ensemble([inner, Cascade([Table("c", [3.0, 2.0, 1.0]), Table("d", [0.0, 5.0, 9.0])])])
    media = numbered(3)
    whole = outer.score(media, [PROMPT] * 3)
    # inner: the least z-scores rank 1 above 0 and 2; the cascade has 0 examined, then 1, then 2
    least = [s.value for s in inner.score(media, [PROMPT] * 3)]
    expected = (ranks(np.array(least)) + np.array([1, 0.5, 0])) / 2
    assert values(whole) == pytest.approx(expected.tolist())
    one_by_one = [score for m in media for score in outer.score([m], [PROMPT])]
    pooled = outer.settle(one_by_one)
    # alone, each image is the best of its batch, so the cascade examined it
    assert pooled == pytest.approx(((ranks(np.array(least)) + np.array([0, 0.5, 1])) / 2).tolist())
    assert outer.calls(8) == {"a": 8, "b": 8, "c": 8, "d": 2}


def test_a_member_gets_its_own_score_of_the_best_sample() -> None:
    member, media = Table("b", [3.0, 4.0]), numbered(2)
    ensemble = Ensemble([Table("a", [1.0, 2.0]), member])
    first = ensemble.score(media[:1], [PROMPT])[0]
    safe_scores(ensemble, media[1:], [PROMPT], asked=Asked(best=Best(lambda: media[0], first)))
    best = member.asked[-1].best
    assert best is not None and best.load() is media[0]
    assert best.score == Score(value=3.0, parts={"number": 0.0})


def test_loading_loads_every_member() -> None:
    members = [Table("a", [1.0]), Table("b", [1.0])]
    Ensemble(members).load()
    assert [member.loaded for member in members] == [1, 1]


def test_it_is_made_from_text() -> None:
    plan = find_verifier("ensemble(jpeg_compressibility, jpeg_incompressibility):how=zscore,weights=3,1")
    ensemble = load_verifier(plan)
    assert isinstance(ensemble, Ensemble)
    assert ensemble.how == "zscore" and ensemble.weights.tolist() == [0.75, 0.25]
    assert ensemble.labels == ("jpeg_compressibility", "jpeg_incompressibility")
    listed = plan.text.replace("3,1", "[3,1]")
    nested = load_verifier(find_verifier(f"cascade(jpeg_compressibility, {listed})"))
    assert isinstance(nested, Cascade)
    assert nested.name == f"cascade(jpeg_compressibility, {ensemble.name})"
    assert nested.members[1].weights.tolist() == [0.75, 0.25]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "median"}, "how must be rank, zscore, product, minimum, pareto or sum but got 'median'"),
        ({"weights": [1.0]}, r"one number per member, 2 here, .* but got \[1.0\]"),
        ({"weights": [1.0, -1.0]}, "not negative and not all 0"),
        ({"weights": [0.0, 0.0]}, "not negative and not all 0"),
        ({"weights": [1.0, NAN]}, "not negative and not all 0"),
        ({"how": "sum", "weights": [1.0]}, "one number per member, 2 here and not all 0"),
        ({"how": "sum", "weights": [1.0, math.inf]}, "one number per member, 2 here and not all 0"),
        ({"how": "sum", "weights": [0.0, 0.0]}, "not all 0"),
        (
            {"how": "pareto", "weights": [1.0, 2.0]},
            "weights are for rank, zscore, product, sum .* for pareto",
        ),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ensemble([Table("a", A), Table("b", B)], **options)


def test_members_that_cannot_be_joined_are_told() -> None:
    clips = Table("clips", A, frozenset({"video"}))
    with pytest.raises(ConfigError, match="same kind of samples but got a: image; clips: video; frame_mean"):
        Ensemble([Table("a", A), clips])
    with pytest.raises(ConfigError, match=r"'calibrated\(a\)' learns from a whole search; leave it out"):
        Ensemble([Calibrated([Table("a", A)])])
    both = Table("both", A, frozenset({"image", "video"}))
    assert Ensemble([both, clips]).accepts == {"video"}


# Searches


def pooled(how: Any = "rank") -> Ensemble:
    return Ensemble([TargetReward(), LinearReward()], how=how)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("how", ["rank", "zscore", "minimum", "pareto"])
def test_every_algorithm_searches_by_a_pool(algorithm: str, how: Any) -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), pooled(how), times=8)
    run(lookup("algorithm", algorithm).target, ctx)
    scores = {uid: candidate.score for uid, candidate in ctx.candidates.items()}
    assert len(scores) >= 4
    # as they stand, values are those of all samples pooled at once, and the best is the best of them
    assert values(list(scores.values())) == pytest.approx(pooled(how).settle(list(scores.values())))
    assert ctx.best is not None and ctx.best.score.value == max(values(list(scores.values())))
    calls = ctx.ledger.calls
    assert calls["target_reward"] == calls["linear_reward"] == ctx.ledger.spent.verifier_calls / 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_search_by_a_pool_survives_a_kill_anywhere(algorithm: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"n": 4}
    if algorithm == "evosearch":
        sizes = {"evolution_schedule": [0, 3], "population_schedule": [3, 2, 3], "elites": 1}
    search = partial(lookup("algorithm", algorithm).target, **sizes)
    kill_everywhere(search, lambda: GaussianMixtureSampler(num_steps=6, order=2), pooled(), tmp_path)


# Sums


def test_a_sum_is_weighted_and_each_sample_is_by_itself() -> None:
    a, b = Table("a", [1.0, 2.0, NAN, 4.0]), Table("b", [10.0, 20.0, 30.0, NAN])
    ensemble = Ensemble([a, b], how="sum", weights=[5.0, -0.1])
    assert not (ensemble.settles or ensemble.relative or ensemble.differentiable)
    found = ensemble.score(numbered(4), [PROMPT] * 4)
    assert values(found)[:2] == pytest.approx([4.0, 8.0])
    assert found[0].parts == {"a": 1.0, "a/number": 0.0, "b": 10.0, "b/number": 0.0}
    assert math.isnan(found[2].value) and found[2].reason == "a: blind to 2"
    assert math.isnan(found[3].value) and found[3].reason == "b: blind to 3"
    (alone,) = ensemble.score(numbered(2)[1:], [PROMPT])
    assert alone == found[1]
    assert values(scored(a, b, how="sum")[:2]) == pytest.approx([11.0, 22.0])  # the weights are 1


def test_a_sum_of_what_compares_samples_compares_them_too() -> None:
    ranked = Ensemble([Table("a", [1.0, 2.0, 3.0])])
    outer = Ensemble([ranked, Table("b", [10.0, 20.0, 30.0])], how="sum", weights=[2.0, 1.0])
    assert outer.settles and outer.relative and not outer.differentiable
    assert values(outer.score(numbered(3), [PROMPT] * 3)) == pytest.approx([10, 21, 32])
    one_by_one = [score for image in numbered(3) for score in outer.score([image], [PROMPT])]
    assert outer.settle(one_by_one) == pytest.approx([10, 21, 32])
    member = Table("c", [1.0, 2.0, 3.0])
    member.relative = True
    assert Ensemble([member], how="sum").relative and not Ensemble([member], how="sum").settles


def test_a_sum_can_be_calibrated_and_taken_over_frames() -> None:
    summed = Ensemble([TargetReward(), LinearReward()], how="sum")
    calibrated = Calibrated([summed])
    assert calibrated.differentiable and not calibrated.relative
    assert FrameMean([summed]).differentiable
    pixels = torch.randn(3, 2, 1, 1, dtype=torch.float64)
    assert torch.equal(calibrated.rewards(pixels, [PROMPT] * 3), summed.rewards(pixels, [PROMPT] * 3))
    assert not Calibrated([Table("a", A)]).differentiable
    with pytest.raises(CapabilityError, match="'a' has none"):
        Calibrated([Table("a", A)]).rewards(pixels, [PROMPT] * 3)


def test_only_sums_of_differentiable_members_have_gradients() -> None:
    pixels = torch.zeros(1, 2, 1, 1)
    for members, how in (
        ([TargetReward(), Table("a", A)], "sum"),
        ([TargetReward(), LinearReward()], "rank"),
    ):
        ensemble = Ensemble(members, how=how)  # type: ignore[arg-type]
        assert not ensemble.differentiable
        with pytest.raises(CapabilityError, match=r"'ensemble\(target_reward, .*\)' has none"):
            ensemble.rewards(pixels, [PROMPT])


TARGETS, WEIGHTS = ((1.0, 1.0), (-0.5, 0.0), (0.0, 2.0)), (5.0, 1.0, 0.05)


def four_rewards() -> Ensemble:
    """Four rewards, weighted as ReNO's are; three of them are parabolas."""
    members = [*(TargetReward(target) for target in TARGETS), LinearReward((0.3, -0.2))]
    return Ensemble(members, how="sum", weights=[*WEIGHTS, 0.01])


class Closed(TargetReward):
    """`four_rewards` in closed form: one parabola, around the mean of all, and a constant."""

    name = "closed"

    def __init__(self) -> None:
        weight, slope = sum(WEIGHTS), 0.01 * np.array([0.3, -0.2])
        middle = (np.array(WEIGHTS) @ np.array(TARGETS) + slope / 2) / weight
        super().__init__(middle.tolist())
        squares = sum(w * np.square(t).sum() for w, t in zip(WEIGHTS, TARGETS))
        self.weight, self.constant = weight, float(weight * np.square(middle).sum() - squares)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        found = super().score(media, prompts, asked)
        return [Score(value=self.weight * score.value + self.constant) for score in found]

    def rewards(self, pixels: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        return self.weight * super().rewards(pixels, prompts) + self.constant


def test_the_gradient_of_a_sum_is_that_of_its_closed_form() -> None:
    pixels = torch.randn(4, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    found = four_rewards().rewards(pixels, [PROMPT] * 4)
    expected = Closed().rewards(pixels, [PROMPT] * 4)
    assert torch.allclose(found, expected)
    (slope,), (wanted,) = (torch.autograd.grad(r.sum(), pixels) for r in (found, expected))
    assert torch.allclose(slope, wanted) and float(slope.norm()) > 1


def test_reno_climbs_the_weighted_sum_of_four_rewards() -> None:
    ends = []
    for verifier in (four_rewards(), Closed()):
        ctx = toy_context(GaussianMixtureSampler(num_steps=4, eta=0.0), verifier, seed=0)
        run(lookup("algorithm", "reno").target, ctx, n=2, iterations=40, lr=3.0)
        ends.append([(uid, candidate.score.value) for uid, candidate in ctx.candidates.items()])
        charged = dict(ctx.ledger.calls)
    found, expected = ([value for _, value in end] for end in ends)
    assert found[:40] == pytest.approx(expected[:40], abs=1e-5)  # later ones drift apart by rounding
    assert found[-2] > found[0] + 2 and found[-1] > found[1] + 2
    assert charged == {"closed": 2 * 40 + 2 * 39}  # scores of all samples, rewards of all but the last


def test_a_sum_of_rewards_of_pixels_has_their_gradients() -> None:
    clip = load_verifier(find_verifier("playground_clip"))
    sharp = Smooth()
    ensemble = Ensemble([clip, sharp], how="sum", weights=[5.0, 0.5])
    assert ensemble.differentiable
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    prompts = [Prompt("a red circle"), Prompt("two blue stars")]
    (slope,) = torch.autograd.grad(ensemble.rewards(pixels, prompts).sum(), pixels)
    wanted = [torch.autograd.grad(m.rewards(pixels, prompts).sum(), pixels)[0] for m in (clip, sharp)]
    assert torch.allclose(slope, 5 * wanted[0] + 0.5 * wanted[1], atol=1e-7) and float(slope.norm()) > 0


class Smooth(Verifier):
    """A reward of pixels."""

    name, accepts, differentiable = "smooth", frozenset({"image"}), True

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return [Score(value=0.0)] * len(media)

    def rewards(self, pixels: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        return -pixels.square().flatten(1).mean(1)


# Cost


def test_the_scores_of_a_sample_are_read_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counting(score: Score, label: str) -> Score:
        read.append(label)
        return part_of(score, label)

    monkeypatch.setattr(_members, "part_of", counting)
    for how in ("rank", "zscore", "product", "minimum"):
        ensemble = Ensemble([Table("a", [float(i) for i in range(40)]), Table("b", [1.0] * 40)], how=how)  # type: ignore[arg-type]
        pool: list[Score] = []
        for image in numbered(40):
            pool += ensemble.score([image], [PROMPT])
            pool = [s.model_copy(update={"value": v}) for s, v in zip(pool, ensemble.settle(pool))]
        assert len(read) == 80, "two members of forty samples"
        fresh = Ensemble(ensemble.members, how=how)  # type: ignore[arg-type]
        assert fresh.settle([s.model_copy(deep=True) for s in pool]) == ensemble.settle(pool)
        read.clear()


def test_what_was_read_back_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_members, "READ_BACK", 5)
    ensemble = Ensemble([Table("a", [float(i) for i in range(20)])])
    found = ensemble.score(numbered(20), [PROMPT] * 20)
    assert len(ensemble._read_back) == 5
    assert ensemble.settle(found) == values(found)
