"""Rehearsals: a search costs what was rehearsed, and is as large as its budget pays for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from toy_tokens import FEATURES, TokenSampler

from toy_search import events, run, toy_context
from tts_vision import rehearsal
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.algorithms.fk_steering import fk_steering
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.ledger import Budget
from tts_vision.registry import Entry, entries
from tts_vision.rehearsal import EvenDraws, largest_size, rehearse
from tts_vision.resampling import SCHEMES
from tts_vision.runner import conduct
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import FakeClock, SlowReward
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Cost, Media, Prompt, Score, State
from tts_vision.verifier import ALONE, Asked

pytestmark = pytest.mark.filterwarnings("ignore::tts_vision.errors.SearchWarning")
UNITS = ("nfe", "decodes", "verifier_calls", "tokens", "macs")
# of their choices by score, rows that become equal share a forward: how many do, only the search itself shows
SHARE_BY_SCORES = {"evosearch", "fk_steering", "tts_var"}
# searches that may end early by what the verifier says; their own tests compare costs
BY_VERDICTS = {"fusion", "parm", "parm_pp", "raise_search", "reflection_flow"}


def diffusion() -> GaussianMixtureSampler:
    return GaussianMixtureSampler(num_steps=10, guidance=True)


def many_tokens() -> TokenSampler:
    """A token model on which no two particles ever agree by chance."""
    return TokenSampler((20, 24, 28, 32, 36, 40))


# the branches of one beam share its evaluation where samplers share any: more of them cost no more
FREE_ON_TOKENS = {"prm_search"}


def algorithms(make: Callable[[], Sampler]) -> list[Any]:
    """All bundled algorithms that run on a sampler and are sized by the budget alone."""
    ours = [entry for entry in entries("algorithm") if entry.target.__module__.startswith("tts_vision.")]
    sized = [entry for entry in ours if entry.name not in {"draft", "variations"} | BY_VERDICTS]
    able = [entry for entry in sized if not entry.missing(make().capabilities)]
    return [pytest.param(entry, id=entry.name) for entry in able]


def settings(entry: Entry, **sizes: Any) -> dict[str, Any]:
    return {**sizes, **({"features": FEATURES} if entry.name == "tts_var" else {})}


def rehearsed_and_charged(sampler: Sampler, entry: Entry, n: int) -> tuple[Cost, Cost]:
    ctx = toy_context(sampler)
    params = settings(entry, **{entry.size: n})
    price = rehearse(ctx, entry.target, params)
    assert price is not None and not ctx.events and ctx.ledger.spent == Cost()
    entry.target(ctx, **params)
    return price, ctx.ledger.spent


# What a search costs


@pytest.mark.parametrize("n", [3, 7])
@pytest.mark.parametrize("entry", algorithms(diffusion))
def test_a_search_costs_what_was_rehearsed(entry: Entry, n: int) -> None:
    price, spent = rehearsed_and_charged(diffusion(), entry, n)
    assert spent == price


@pytest.mark.parametrize("n", [3, 7])
@pytest.mark.parametrize("entry", algorithms(many_tokens))
def test_equal_rows_share_forwards_in_a_rehearsal_too(entry: Entry, n: int) -> None:
    price, spent = rehearsed_and_charged(many_tokens(), entry, n)
    if entry.name in SHARE_BY_SCORES:
        assert (spent.decodes, spent.verifier_calls) == (price.decodes, price.verifier_calls)
        assert 0.75 * price.macs < spent.macs <= price.macs
    else:
        assert spent == price


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("entry", algorithms(TokenSampler))
def test_rows_that_agree_by_chance_only_make_it_cheaper(entry: Entry, seed: int) -> None:
    for n in (2, 7):
        ctx = toy_context(TokenSampler(), seed=seed)
        params = settings(entry, **{entry.size: n})
        price = rehearse(ctx, entry.target, params)
        entry.target(ctx, **params)
        assert price is not None
        assert all(getattr(ctx.ledger.spent, unit) <= getattr(price, unit) for unit in UNITS)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rehearsed_resampling_copies_as_little_as_it_can(scheme: str) -> None:
    for seed in range(20):
        rng = EvenDraws(np.random.PCG64(seed))
        for n, kept in ((5, 5), (8, 6), (13, 7)):
            assert len(set(SCHEMES[scheme](np.full(n, 1 / n), kept, rng).tolist())) == kept
    ctx = toy_context(many_tokens())
    params = {"n": 7, "scheme": scheme, "ess_threshold": None, "lam": 0.1}
    price = rehearse(ctx, fk_steering, params)
    fk_steering(ctx, **params)
    assert price is not None and ctx.ledger.spent.macs <= price.macs


class Both(TargetReward):
    """Two verifiers in one, of which the second sees half of the samples."""

    name = "both"

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return super().score(media, prompts)

    def calls(self, n: int) -> dict[str, int]:
        return {"all": n, "some": (n + 1) // 2}


@pytest.mark.parametrize("entry", algorithms(diffusion))
def test_the_calls_of_all_members_are_rehearsed(entry: Entry) -> None:
    ctx = toy_context(diffusion(), Both())
    params = settings(entry, **{entry.size: 5})
    price = rehearse(ctx, entry.target, params)
    entry.target(ctx, **params)
    assert price == ctx.ledger.spent
    assert sum(ctx.ledger.calls.values()) == price.verifier_calls > ctx.ledger.calls["all"]


def test_a_rehearsal_computes_nothing_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, reward = diffusion(), TargetReward()
    for name in ("init", "advance", "gradient", "decode", "preview", "apply"):
        monkeypatch.setattr(sampler, name, None)
    monkeypatch.setattr(reward, "score", None)
    monkeypatch.setattr(reward, "rewards", None)
    ctx = toy_context(sampler, reward)
    for param in algorithms(diffusion):
        (entry,) = param.values
        assert rehearse(ctx, entry.target, settings(entry, **{entry.size: 3})) is not None
    assert not ctx.events and ctx.ledger.spent == Cost() and sampler.meter is ctx.ledger


def test_answers_are_expected_and_charged() -> None:
    asked: list[str] = []

    def critic(text: str) -> str:
        asked.append(text)
        return "better"

    def refine(ctx: SearchContext, *, n: int = 2) -> State:
        state = ctx.init(n)
        answer = ctx.ask("critic", critic, "x", cost={"critic": 3}, expected="a guess")
        seen.append(answer)
        ctx.ask("clock", lambda: asked.append("clock"))
        state = ctx.finish(ctx.recondition(state, answer))
        ctx.score(state)
        return state

    seen: list[str] = []
    ctx = toy_context()
    assert rehearse(ctx, refine, {"n": 2}) == Cost(nfe=10, decodes=2, verifier_calls=5)
    assert (asked, seen) == ([], ["a guess"])
    refine(ctx)
    assert (asked, seen) == (["x", "clock"], ["a guess", "better"])
    assert ctx.ledger.spent == Cost(nfe=10, decodes=2, verifier_calls=5)


def test_further_generators_are_rehearsed_and_opened_once() -> None:
    opened: list[str] = []

    def find(name: str) -> Sampler:
        opened.append(name)
        return GaussianMixtureSampler(num_steps=3)

    def draft_and_refine(ctx: SearchContext, *, n: int = 2) -> State:
        cheap, corrector = ctx.using("cheap"), ctx.using(other)
        for each in (cheap, corrector, ctx):
            state = each.finish(each.init(n))
            each.score(state)
        return state

    other = GaussianMixtureSampler(num_steps=2)
    other.name = "corrector"
    ctx = SearchContext(
        GaussianMixtureSampler(num_steps=5), TargetReward(), Prompt("x"), seed=3, open_sampler=find
    )
    for n in (2, 5):
        price = rehearse(ctx, draft_and_refine, {"n": n})
        assert price == Cost(nfe=10 * n, decodes=3 * n, verifier_calls=3 * n)
    draft_and_refine(ctx, n=3)
    assert ctx.ledger.spent == Cost(nfe=30, decodes=9, verifier_calls=9)
    assert opened == ["cheap"]


# The size that a budget pays for


@pytest.mark.parametrize("make", [diffusion, TokenSampler])
@pytest.mark.parametrize("limits", [{"times": 9}, {"verifier_calls": 70}], ids=["times", "calls"])
def test_the_size_is_the_largest_that_fits(make: Callable[[], Sampler], limits: dict[str, Any]) -> None:
    for param in algorithms(make):
        (entry,) = param.values
        ctx = toy_context(make(), **limits)
        params = settings(entry)
        n = largest_size(ctx, entry.target, params, entry.size)
        if entry.name in FREE_ON_TOKENS and make is TokenSampler and "times" in limits:
            assert n is None, "no number of branches passes the budget"
            continue
        assert n is not None, entry.name
        sizes = (n, n + 1) if n else (1,)
        prices = [rehearse(ctx, entry.target, {**params, entry.size: size}) for size in sizes]
        fits = [price is not None and ctx.ledger.affords(price) for price in prices]
        assert fits == ([True, False] if n else [False]), entry.name


@pytest.mark.parametrize("entry", algorithms(diffusion))
@pytest.mark.parametrize("times", [2.5, 9])
def test_what_is_left_does_not_pay_for_one_more_sample(entry: Entry, times: float) -> None:
    ctx = toy_context(diffusion(), times=times)
    state = run(entry.target, ctx, **settings(entry))
    assert 0 <= 20 * times - ctx.ledger.spent.nfe < 20
    assert ctx.best is not None and set(state.uids) <= set(ctx.candidates)


@pytest.mark.parametrize("entry", algorithms(TokenSampler))
@pytest.mark.parametrize("times", [2.5, 9])
def test_what_is_left_on_tokens_does_not_pay_for_one_more_sample(entry: Entry, times: float) -> None:
    ctx = toy_context(TokenSampler(), times=times)
    sample = ctx.cost().macs
    state = run(entry.target, ctx, **settings(entry))
    if entry.name in FREE_ON_TOKENS:
        assert ctx.ledger.spent.macs == sample
    else:
        assert 0 <= times * sample - ctx.ledger.spent.macs < sample
    assert ctx.best is not None and set(state.uids) <= set(ctx.candidates)


@pytest.mark.parametrize(("algorithm", "largest"), [(best_of_n, 3000), (fk_steering, 3000)])
def test_large_sizes_are_predicted(
    algorithm: Callable[..., State], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def spy(ctx: SearchContext, algorithm: Any, params: dict[str, Any]) -> Cost | None:
        tried.append(params["n"])
        return rehearse(ctx, algorithm, params)

    monkeypatch.setattr(rehearsal, "rehearse", spy)
    ctx = toy_context(GaussianMixtureSampler(num_steps=4), times=largest)
    assert largest_size(ctx, algorithm, {}, "n") == largest
    assert len(tried) < 10 and max(tried) <= 1.01 * largest


def test_costs_that_are_not_affine() -> None:
    def squared(ctx: SearchContext, *, n: int = 1) -> State:
        return best_of_n(ctx, n=n * n)

    def in_steps(ctx: SearchContext, *, n: int = 1) -> State:
        return best_of_n(ctx, n=10 * (n // 7 + 1))

    for samples in (1, 3, 50, 401):
        ctx = toy_context(nfe=5 * samples)
        assert largest_size(ctx, squared, {}, "n") == int(samples**0.5)
    assert largest_size(toy_context(nfe=5 * 50), in_steps, {}, "n") == 34
    assert largest_size(toy_context(nfe=5 * 9), in_steps, {}, "n") == 0


def test_a_size_that_decides_nothing_is_left_alone() -> None:
    def ignores(ctx: SearchContext, *, n: int = 3, samples: int = 4) -> State:
        sizes.append(n)
        return best_of_n(ctx, n=samples)

    sizes: list[int] = []
    ctx = toy_context(nfe=5 * 40)
    state = conduct(ctx, ignores, {"samples": 5}, "n")
    assert len(state) == len(ctx.candidates) == 5 and sizes[-1] == 3
    assert [event.value for event in events(ctx, "size")] == [None] and not events(ctx, "top_up")
    with pytest.raises(ConfigError, match="must fit its budget of 20 nfe but it costs 25; lower it"):
        conduct(toy_context(nfe=20), ignores, {"samples": 5}, "n")


def test_a_size_that_other_parameters_decide_is_left_alone() -> None:
    asked = {"evolution_schedule": [2], "population_schedule": [3, 3], "elites": 1}
    ctx = toy_context(nfe=5 * 40)
    run(evosearch, ctx, **asked)
    assert [event.value for event in events(ctx, "size")] == [None] and len(ctx.candidates) == 5
    with pytest.raises(ConfigError, match="must fit its budget of 10 nfe but it costs 21"):
        run(evosearch, toy_context(nfe=10), **asked)


def test_a_size_that_the_budget_does_not_limit_is_left_alone() -> None:
    # all particles of a model of one scale share its only forward
    ctx = toy_context(TokenSampler((4,)), times=4)
    run(evosearch, ctx)
    assert [event.value for event in events(ctx, "size")] == [None]
    assert len(events(ctx, "init")[0].uids) == 42, "as in the paper"


def test_independent_samples_where_the_smallest_size_is_too_much() -> None:
    def needs_four(ctx: SearchContext, *, n: int = 8) -> State:
        state = ctx.finish(ctx.init(n))
        ctx.score(ctx.select(state, range(3, n)))
        return state

    ctx = toy_context(nfe=5 * 3)
    state = conduct(ctx, needs_four, {}, "n")
    assert [event.value for event in events(ctx, "size")] == [0]
    assert len(events(ctx, "top_up")) == 1 and state.uids == (0, 1, 2)
    assert largest_size(toy_context(nfe=5 * 4), needs_four, {}, "n") == 4


# Mistakes


def test_an_algorithm_that_breaks_in_a_rehearsal() -> None:
    def fragile(ctx: SearchContext, *, n: int = 2) -> State:
        state = ctx.finish(ctx.init(n))
        negative = [i for i, score in enumerate(ctx.score(state).tolist()) if score < 0]
        return ctx.select(state, [negative[0]])

    message = (
        "sized by running its algorithm on a stand-in, with equal scores and the `expected` answers, but "
        "that raised IndexError: list index out of range; give the size, or an `expected` answer to each"
    )
    for limits in ({"nfe": 50}, {"seconds": 9}):
        with pytest.raises(ConfigError, match=message):
            conduct(toy_context(**limits), fragile, {}, "n")
    with pytest.raises(ConfigError, match=message):
        conduct(toy_context(nfe=50), fragile, {"n": 2}, "n")
    assert len(conduct(toy_context(), fragile, {"n": 2}, "n")) == 1, "without a budget nothing is rehearsed"


def test_an_answer_without_an_expected_one() -> None:
    def refine(ctx: SearchContext, *, n: int = 2) -> State:
        words = ctx.ask("critic", lambda: "better words")
        state = ctx.finish(ctx.init(n, words.upper()))
        ctx.score(state)
        return state

    with pytest.raises(ConfigError, match=r"raised AttributeError: 'NoneType' .* `expected` answer to each"):
        conduct(toy_context(nfe=50), refine, {}, "n")


def test_an_algorithm_that_finishes_nothing() -> None:
    def halfway(ctx: SearchContext, *, n: int = 2) -> State:
        return ctx.advance(ctx.init(n), 2)

    with pytest.raises(ConfigError, match=r"must finish and score a sample but .* sizes 1 to 64; score the"):
        conduct(toy_context(nfe=50), halfway, {}, "n")


def test_what_is_refused_at_every_size_is_told() -> None:
    with pytest.raises(ConfigError, match="lam must be at least 0 but got -1; raise it"):
        run(fk_steering, toy_context(nfe=50), lam=-1.0)


def test_what_is_refused_at_larger_sizes_is_told() -> None:
    def at_most_four(ctx: SearchContext, *, n: int = 2) -> State:
        if n > 4:
            raise ConfigError(f"n must be at most 4 but got {n}; lower it.")
        return best_of_n(ctx, n=n)

    with pytest.raises(ConfigError, match="n must be at most 4 but got 10; lower it"):
        conduct(toy_context(nfe=50), at_most_four, {}, "n")
    assert len(conduct(toy_context(nfe=50), at_most_four, {"n": 4}, "n")) == 4


# Time, and searches that may end early


def test_speeds_are_measured_on_a_first_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = toy_context(verifier=SlowReward(FakeClock(monkeypatch), 1.0), seconds=20.5)
    run(fk_steering, ctx, resample_steps=[2])
    # 19.5 seconds are left for particles that are scored once on the way and at the end
    assert [event.value for event in events(ctx, "size")] == [9]
    assert [len(event.uids) for event in events(ctx, "init")] == [1, 9, 1]
    assert ctx.ledger.elapsed == 20


def test_samples_come_in_growing_batches_where_a_search_may_end_early() -> None:
    # equal rows share their first forward within a batch, here nearly all of the cost
    assert [len(event.uids) for event in events(sized(None), "init")] == [16, 16]
    early = sized(100.0)
    assert [len(event.uids) for event in events(early, "init")] == [1, 1, 2]
    assert early.satisfied is False


def sized(target: float | None) -> SearchContext:
    """Best of n at the size that is found, which costs what was rehearsed."""
    sampler = TokenSampler((60, 4))
    ctx = SearchContext(sampler, TargetReward(), Prompt("x"), seed=3, target=target)
    ctx.ledger.budget = Budget(times=4).resolve(ctx.cost())
    n = largest_size(ctx, best_of_n, {}, "n")
    price = rehearse(ctx, best_of_n, {"n": n})
    assert n is not None and price is not None and ctx.ledger.affords(price)
    best_of_n(ctx, n=n)
    assert ctx.ledger.spent.macs <= price.macs
    return ctx
