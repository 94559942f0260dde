"""The operations of a search: forks, scores, micro-batches, memory, budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_tokens import FEATURES, TokenSampler

from toy_search import Scripted, events, toy_context
from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.errors import (
    BudgetSpent,
    CapabilityError,
    ConfigError,
    ForkError,
    PipelineError,
    StorageError,
    VerifierError,
)
from tts_vision.journal import Journal
from tts_vision.ledger import Budget
from tts_vision.moves import Blend, StepNoise
from tts_vision.rng import row_seed
from tts_vision.testing.contracts import FakeClock, SlowReward, kill_everywhere, results
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, position_of
from tts_vision.types import Cost, Media, Prompt, Score, State
from tts_vision.verifier import ALONE, Asked, FunctionVerifier

NAN = float("nan")


class Watched(GaussianMixtureSampler):
    """Notes how many rows it gets at a time."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.batches: list[int] = []

    def advance(self, state: State, steps: int = 1) -> State:
        self.batches.append(len(state))
        return super().advance(state, steps)

    def decode(self, state: State) -> list[Media]:
        self.batches.append(len(state))
        if self.max_rows is not None and len(state) > self.max_rows:
            raise torch.OutOfMemoryError(f"{len(state)} images")
        return super().decode(state)


# Forks


def test_forks_of_a_deterministic_sampler_are_refused() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5, eta=0.0))
    state = ctx.advance(ctx.init(2), 2)
    with pytest.raises(
        ForkError, match=r"'gaussian_mixture' adds no noise after its start; .*stochastic=True"
    ):
        ctx.select(state, [0, 0])
    assert not ctx.can_fork
    assert ctx.select(state, [1, 0]).uids == (1, 0), "reordering is no fork"


def test_forks_after_the_last_noise_are_refused() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5))
    state = ctx.init(2)
    assert [ctx.can_fork_at(step) for step in range(6)] == [True, True, True, True, False, False]
    ctx.select(ctx.advance(state, 3), [0, 0])
    with pytest.raises(ForkError, match="no step after 3 adds noise and this is step 4"):
        ctx.select(ctx.advance(state, 4), [0, 0])


def test_the_first_copy_keeps_its_identity() -> None:
    ctx = toy_context()
    state = ctx.select(ctx.advance(ctx.init(3)), [2, 0, 2, 2])
    assert state.uids == (2, 0, 3, 4)
    (event,) = events(ctx, "select")
    assert event.parents == (2, 0, 2, 2) and event.uids == state.uids and event.step == 1
    done = ctx.finish(state)
    alone = toy_context()
    same = alone.finish(alone.advance(alone.init(3)))
    assert torch.equal(done.latents[:2], same.latents[[2, 0]])
    assert not torch.equal(done.latents[0], done.latents[2])


# Bad requests


def test_sizes_and_steps_are_checked() -> None:
    ctx = toy_context()
    with pytest.raises(ConfigError, match="at least 1 particle but got 0"):
        ctx.init(0)
    state = ctx.advance(ctx.init(1), 2)
    for steps in (-1, 4):
        with pytest.raises(ConfigError, match=f"advanced by 0 to 3 more steps but got {steps}"):
            ctx.advance(state, steps)
    for step in (-1, 2, 3):
        with pytest.raises(
            ConfigError, match=f"Renoising must go to an earlier step but got {step} from step 2"
        ):
            ctx.renoise(state, step)


class Bare(GaussianMixtureSampler):
    """A sampler that can do nothing special."""

    def __init__(self) -> None:
        super().__init__(num_steps=3, eta=0.0)
        self.capabilities = frozenset()


def test_missing_capabilities_are_named() -> None:
    ctx = toy_context(Bare())
    state = ctx.advance(ctx.init(1))
    with pytest.raises(
        CapabilityError, match=r"Move 'step_noise' needs a sampler with 'step_noise'.*stochastic="
    ):
        ctx.mutate(state, StepNoise(0.1))
    with pytest.raises(CapabilityError, match="Move 'renoise' needs a sampler with 'renoise'"):
        ctx.renoise(state, 0)
    with pytest.raises(CapabilityError, match="Scoring at step 1 of 3 needs a sampler with 'preview'"):
        ctx.score(state)


def test_initial_noise_is_mutated_at_step_0_only() -> None:
    ctx = toy_context()
    state = ctx.init(2)
    assert ctx.mutate(state, Blend(0.2), [1, 1, 0]).uids == (2, 3, 4)
    with pytest.raises(ConfigError, match="acts on initial noise, step 0, but the state is at step 1"):
        ctx.mutate(ctx.advance(state), Blend(0.2))


# Scores


def test_finished_particles_are_scored_once() -> None:
    ctx = toy_context()
    state = ctx.finish(ctx.init(3))
    first = ctx.score(state)
    assert torch.equal(ctx.score(state.select([2, 2, 0])), first[[2, 2, 0]])
    assert ctx.ledger.spent == Cost(nfe=15, decodes=3, verifier_calls=3)
    assert ctx.best is not None and ctx.best.score.value == first.max()
    position = torch.from_numpy(position_of(ctx.best.load()))
    assert torch.equal(position.float(), state.latents[int(first.argmax())])


def test_new_particles_among_known_ones() -> None:
    ctx = toy_context()
    state = ctx.finish(ctx.init(4))
    ctx.score(state.select([1]))
    ctx.score(state)
    assert ctx.ledger.spent.verifier_calls == 4
    assert [event.uids for event in events(ctx, "score")] == [(1,), (0, 2, 3)]


def test_previews_are_scored_each_time_and_are_no_results() -> None:
    ctx = toy_context()
    state = ctx.advance(ctx.init(2), 2)
    ctx.score(state)
    ctx.score(state)
    assert ctx.ledger.spent == Cost(nfe=4, decodes=4, verifier_calls=4)
    assert ctx.best is None and not ctx.candidates
    assert ctx.best_preview is not None and ctx.best_preview.step == 2
    assert all(event.preview for event in events(ctx, "score") + events(ctx, "decode"))


def test_nan_is_unscored() -> None:
    ctx = toy_context(verifier=Scripted([NAN, -5.0, NAN]))
    scores = ctx.score(ctx.finish(ctx.init(3)))
    assert scores.isnan().tolist() == [True, False, True]
    assert ctx.best is not None and ctx.best.uid == 1
    (event,) = events(ctx, "score")
    assert [score.reason for score in event.scores] == [
        "scripted returned NaN",
        None,
        "scripted returned NaN",
    ]


def picky(images: list[Media], prompts: list[str]) -> list[float]:
    if any(position_of(image)[0] < 0 for image in images):
        raise RuntimeError("left of centre")
    return [1.0] * len(images)


def test_a_verifier_that_raises_costs_only_the_sample_it_raises_on() -> None:
    ctx = toy_context(verifier=FunctionVerifier(picky))
    state = ctx.finish(ctx.init(8))
    scores = ctx.score(state)
    bad = state.latents[:, 0] < 0
    assert bad.any() and not bad.all()
    assert torch.equal(scores.isnan(), bad)
    (event,) = events(ctx, "score")
    reasons = {score.reason for score in event.scores if score.reason}
    assert reasons == {"picky raised RuntimeError: left of centre"}
    # once together, then one by one
    assert ctx.ledger.spent.verifier_calls == 16


def test_retries_of_a_failing_verifier_stay_within_the_budget() -> None:
    ctx = toy_context(verifier=FunctionVerifier(picky), verifier_calls=11)
    scores = ctx.score(ctx.finish(ctx.init(8)))
    assert ctx.ledger.spent.verifier_calls == 11
    assert scores[3:].isnan().all()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_number_of_scores(count: int) -> None:
    verifier = FunctionVerifier(lambda images, prompts: [0.0] * count)
    ctx = toy_context(verifier=verifier)
    state = ctx.finish(ctx.init(2))
    with pytest.raises(
        VerifierError, match=f"must return one score per sample, 2 here, but returned {count}"
    ):
        ctx.score(state)


def test_a_plain_function_is_a_verifier() -> None:
    def brightness(images: list[Media], prompts: list[str]) -> list[float]:
        assert prompts == ["x"] * len(images)
        return [float(i) for i in range(len(images))]

    ctx = toy_context(verifier=FunctionVerifier(brightness))
    assert ctx.score(ctx.finish(ctx.init(3))).tolist() == [0, 1, 2]


# Verifiers that compare samples, and verifiers made of others


class Places(Scripted):
    """A verifier that settles: minus the number of samples that are better; NaN where it has no part."""

    name = "places"
    relative = settles = True

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        said = super().score(media, prompts)
        found = [Score(value=NAN, parts={} if s.value != s.value else {"said": s.value}) for s in said]
        return [s.model_copy(update={"value": v}) for s, v in zip(found, self.settle(found))]

    def settle(self, scores: Sequence[Score]) -> list[float]:
        said = [score.parts.get("said") for score in scores]
        return [NAN if s is None else -float(sum(o is not None and o > s for o in said)) for s in said]


def test_values_settle_anew_as_other_samples_come() -> None:
    ctx = toy_context(verifier=Places([2, 1, 9, NAN, 0, 5]))
    first, second = ctx.finish(ctx.init(2)), ctx.finish(ctx.init(4))
    assert ctx.score(first).tolist() == [0, -1]
    assert ctx.best is not None and ctx.best.uid == 0
    assert ctx.score(second).tolist() == [0, pytest.approx(NAN, nan_ok=True), -4, -1]
    assert ctx.current_scores(first).tolist() == [-2, -3]
    assert ctx.score(first).tolist() == [-2, -3], "they are not scored again but compared anew"
    assert ctx.best.uid == 2 and ctx.best.score.parts == {"said": 9}
    assert next(event.values for event in events(ctx, "score")) == (0, -1), (
        "the trace keeps what was said then"
    )
    assert ctx.ledger.spent.verifier_calls == 6


def test_current_scores_cost_nothing_and_record_nothing() -> None:
    ctx = toy_context(verifier=Places([1, 2]))
    state = ctx.finish(ctx.init(2))
    ctx.score(state)
    before = (len(ctx.events), ctx.op, ctx.ledger.spent)
    assert ctx.current_scores(state.select([1, 1, 0])).tolist() == [0, 0, -1]
    assert (len(ctx.events), ctx.op, ctx.ledger.spent) == before


def test_a_settling_verifier_without_any_score_has_no_best() -> None:
    ctx = toy_context(verifier=Places([NAN, NAN]))
    assert ctx.score(ctx.finish(ctx.init(2))).isnan().all()
    assert ctx.best is None


class Beside(TargetReward):
    """A verifier that looks at the best sample so far."""

    def __init__(self) -> None:
        super().__init__()
        self.beside: list[float | None] = []
        self.steps: list[int | None] = []

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        self.beside.append(None if asked.best is None else asked.best.score.value)
        self.steps.append(asked.step)
        if asked.best is not None:
            assert super().score([asked.best.load()], prompts[:1])[0] == asked.best.score
        return super().score(media, prompts)


def test_the_best_so_far_is_shown_to_a_verifier_that_compares_by_looking() -> None:
    verifier = Beside()
    ctx = toy_context(verifier=verifier)
    first = ctx.score(ctx.finish(ctx.init(3)))
    half = ctx.advance(ctx.init(2), 2)
    ctx.score(half)
    ctx.score(ctx.finish(half))
    # previews are no match for a finished sample
    assert verifier.beside == [None, None, float(first.max())]
    assert verifier.steps == [None, 2, None]


class Both(TargetReward):
    """Two verifiers in one, of which the second sees half of the samples and fails on its first call."""

    name = "both"

    def calls(self, n: int) -> dict[str, int]:
        return {"all": n, "some": (n + 1) // 2}

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        asked.charge({"some": 1})
        return super().score(media, prompts)


def test_calls_are_charged_to_the_verifier_that_makes_them() -> None:
    ctx = toy_context(verifier=Both())
    assert ctx.score_cost == Cost(decodes=1, verifier_calls=2)
    assert ctx.cost() == Cost(nfe=5, decodes=1, verifier_calls=2)
    ctx.score(ctx.finish(ctx.init(6)))
    assert ctx.ledger.calls == {"all": 6, "some": 4}
    assert ctx.ledger.spent == Cost(nfe=30, decodes=6, verifier_calls=10)
    (event,) = events(ctx, "score")
    assert event.spent.calls == {"all": 6, "some": 4}
    plain = toy_context()
    plain.score(plain.finish(plain.init(2)))
    assert plain.ledger.calls == {"target_reward": 2}


def test_planning_counts_the_calls_of_all_members() -> None:
    ctx = toy_context(verifier=Both(), verifier_calls=7)
    assert ctx.affordable(ctx.cost()) == 3
    # together, four take six calls and the one that fails; five would take eight
    state = ctx.finish(ctx.init(5))
    with pytest.raises(BudgetSpent):
        ctx.score(state)
    assert len(ctx.candidates) == 4 and ctx.ledger.calls == {"all": 4, "some": 3}


class Duck:
    """Scores without the base class, and has a number under a name of verifiers."""

    name, accepts = "duck", frozenset({"image"})
    calls = 0

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        self.calls += 1
        return [Score(value=float(i)) for i, _ in enumerate(media)]


def test_any_object_that_scores_is_a_verifier() -> None:
    duck = Duck()
    ctx = toy_context(verifier=duck)
    assert ctx.score(ctx.finish(ctx.init(2))).tolist() == [0, 1]
    assert duck.calls == 1 and ctx.ledger.calls == {"duck": 2}


# Scores by other prompts


class ByLength(TargetReward):
    """Scores a sample by the length of its prompt."""

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return [Score(value=float(len(prompt.text))) for prompt in prompts]


@pytest.mark.parametrize("steps", [2, 5])
def test_scores_by_other_prompts_guide_and_make_no_candidates(steps: int) -> None:
    ctx = toy_context(verifier=ByLength())
    state = ctx.advance(ctx.init(2), steps)
    assert ctx.score(state, "abc").tolist() == [3, 3]
    assert ctx.score(state, [Prompt("a"), Prompt("ab")]).tolist() == [1, 2]
    assert not ctx.candidates and ctx.best is None and ctx.best_preview is None
    assert [event.value for event in events(ctx, "stage_score")] == [["abc", "abc"], ["a", "ab"]]
    assert all(event.preview == (steps < 5) for event in events(ctx, "stage_score"))
    assert ctx.ledger.spent == Cost(nfe=2 * steps, decodes=4, verifier_calls=4)
    ctx.score(ctx.finish(state))
    assert results(ctx) == {0: 1.0, 1: 1.0}


def test_scores_by_other_prompts_are_paid_for_in_full_or_not_at_all() -> None:
    ctx = toy_context(verifier=ByLength(), verifier_calls=2)
    state = ctx.finish(ctx.init(3))
    with pytest.raises(BudgetSpent):
        ctx.score(state, "abc")
    assert ctx.ledger.spent.verifier_calls == 0 and not events(ctx, "stage_score")


def test_scores_by_other_prompts_survive_a_kill(tmp_path: Path) -> None:
    def algorithm(ctx: SearchContext) -> State:
        state = ctx.advance(ctx.init(4), 2)
        order = ctx.score(state, [Prompt("x" * i) for i in (3, 1, 4, 1)]).argsort(descending=True)
        state = ctx.finish(ctx.select(state, order[:2].tolist()))
        ctx.score(state, "y")
        ctx.score(state)
        return state

    kill_everywhere(algorithm, lambda: GaussianMixtureSampler(num_steps=5), ByLength(), tmp_path)


def test_a_resumed_search_asks_by_the_same_prompts(tmp_path: Path) -> None:
    ctx = toy_context(verifier=ByLength(), journal=Journal(tmp_path))
    ctx.score(ctx.finish(ctx.init(2)), "abc")
    ctx.interrupted("killed")
    again = toy_context(verifier=ByLength(), journal=Journal(tmp_path))
    with pytest.raises(StorageError, match="must repeat itself"):
        again.score(again.finish(again.init(2)), "abcd")


# Conditions


def test_a_string_is_a_prompt_and_a_list_has_one_for_each() -> None:
    ctx = toy_context()
    own, other = Condition("x"), Condition("y", overrides={"guidance_scale": 3.0})
    assert ctx.init(2).conditions == (own, own)
    assert ctx.init(2, "z").conditions == (Condition("z"),) * 2
    assert ctx.init(3, [other, "z", own]).conditions == (other, Condition("z"), own)
    with pytest.raises(ConfigError, match="one condition for each of 3 particles but got 2; give one, or"):
        ctx.init(3, [own, other])
    first, second, third = events(ctx, "init")
    assert first.conditions == () and first.defined == {}
    assert second.conditions == (Condition("z").digest,) * 2
    # what was defined before is not defined again
    assert third.conditions == (other.digest, Condition("z").digest, own.digest)
    assert third.defined == {other.digest: other.describe(), own.digest: own.describe()}


def test_children_may_have_other_conditions() -> None:
    ctx = toy_context()
    state = ctx.advance(ctx.init(2), 2)
    children = ctx.recondition(state, ["one", "two", "two"], [0, 1, 1])
    assert children.uids == (2, 3, 4) and children.step == 2
    assert children.conditions == (Condition("one"), Condition("two"), Condition("two"))
    assert torch.equal(children.latents, state.latents[[0, 1, 1]])
    (event,) = events(ctx, "recondition")
    assert event.parents == (0, 1, 1) and event.conditions == tuple(c.digest for c in children.conditions)
    assert ctx.select(children, [1]).conditions == (Condition("two"),)
    assert ctx.recondition(state, "three").conditions == (Condition("three"),) * 2


# Other generators


def test_another_generator_shares_all_but_the_states() -> None:
    editor = GaussianMixtureSampler(num_steps=3)
    editor.name = "editor"
    ctx = toy_context()
    other = ctx.using(editor)
    assert (other.num_steps, ctx.num_steps) == (3, 5) and other.sampler is editor
    first, second = ctx.finish(ctx.init(2)), other.finish(other.init(2))
    assert (first.uids, second.uids) == ((0, 1), (2, 3))
    other.score(second)
    ctx.score(first)
    assert ctx.candidates is other.candidates and list(ctx.candidates) == [2, 3, 0, 1]
    assert ctx.ledger.spent == other.ledger.spent == Cost(nfe=16, decodes=4, verifier_calls=4)
    assert [event.sampler for event in events(ctx, "init")] == ["", "editor"]
    assert ctx.using(editor).op == ctx.op == other.op
    with pytest.raises(ConfigError, match="names of their own but two are 'editor'"):
        twin = GaussianMixtureSampler(num_steps=3)
        twin.name = "editor"
        ctx.using(twin)


def test_a_generator_is_opened_by_name_once() -> None:
    opened: list[str] = []

    def find(name: str) -> GaussianMixtureSampler:
        opened.append(name)
        return GaussianMixtureSampler(num_steps=3)

    ctx = SearchContext(
        GaussianMixtureSampler(num_steps=5), TargetReward(), Prompt("x"), seed=3, open_sampler=find
    )
    assert ctx.using("cheap").sampler is ctx.using("cheap").sampler
    assert opened == ["cheap"]
    with pytest.raises(ConfigError, match="must be a Sampler but got 'cheap'; load it before"):
        toy_context().using("cheap")


# Micro-batches and memory


@pytest.mark.parametrize("max_batch", [1, 2, 3, 100])
def test_micro_batches(max_batch: int) -> None:
    whole = toy_context()
    expected = whole.finish(whole.init(7))
    sampler = Watched(num_steps=5)
    ctx = toy_context(sampler, max_batch=max_batch)
    state = ctx.finish(ctx.init(7))
    ctx.score(state)
    assert torch.allclose(state.latents, expected.latents, atol=1e-6) and state.uids == expected.uids
    assert max(sampler.batches) == min(max_batch, 7)
    assert ctx.ledger.spent == Cost(nfe=35, decodes=7, verifier_calls=7)


@pytest.mark.parametrize(("max_rows", "batch"), [(1, 1), (3, 3), (5, 3)])
def test_out_of_memory_halves_the_batch(max_rows: int, batch: int) -> None:
    plain = toy_context()
    expected = plain.finish(plain.init(12))
    plain.score(expected)
    sampler = Watched(num_steps=5, max_rows=max_rows)
    ctx = toy_context(sampler, nfe=60)
    state = ctx.finish(ctx.init(12))
    ctx.score(state)
    assert torch.allclose(state.latents, expected.latents, atol=1e-6)
    assert results(ctx) == pytest.approx(results(plain))
    assert ctx.max_batch == batch
    # exactly the budget: what failed is not charged twice
    assert ctx.ledger.spent == plain.ledger.spent == Cost(nfe=60, decodes=12, verifier_calls=12)
    failed = [rows for rows in sampler.batches if rows > max_rows]
    assert len(failed) == len(set(failed)), "a size that failed is not tried again"


def test_out_of_memory_while_decoding_only() -> None:
    class Narrow(Watched):
        def advance(self, state: State, steps: int = 1) -> State:
            self.max_rows, limit = None, self.max_rows
            try:
                return super().advance(state, steps)
            finally:
                self.max_rows = limit

    ctx = toy_context(Narrow(num_steps=5, max_rows=2))
    ctx.score(ctx.finish(ctx.init(8)))
    assert len(ctx.candidates) == 8 and ctx.ledger.spent.decodes == 8 and ctx.max_batch == 2


def test_one_sample_that_does_not_fit() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5, max_rows=0))
    with pytest.raises(PipelineError, match=r"One sample at a time must fit into memory.*half precision"):
        ctx.advance(ctx.init(4))


def test_other_errors_of_the_sampler_pass() -> None:
    class Broken(GaussianMixtureSampler):
        def advance(self, state: State, steps: int = 1) -> State:
            raise RuntimeError("shapes do not match")

    ctx = toy_context(Broken(num_steps=5))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        ctx.advance(ctx.init(4))
    assert ctx.max_batch is None


# Budgets


def test_steps_that_cannot_be_paid_for_are_not_begun() -> None:
    ctx = toy_context(nfe=17)
    state = ctx.init(3)
    with pytest.raises(BudgetSpent):
        ctx.finish(state.select([0, 1, 2, 2]))
    assert ctx.ledger.spent.nfe == 0
    ctx.finish(state)
    assert ctx.ledger.spent.nfe == 15


def test_a_budget_that_ends_scoring_keeps_the_best_so_far() -> None:
    ctx = toy_context(verifier=Scripted([0.1, 0.7, 0.9]), verifier_calls=2)
    state = ctx.finish(ctx.init(3))
    with pytest.raises(BudgetSpent):
        ctx.score(state)
    assert results(ctx) == {0: 0.1, 1: 0.7}
    assert ctx.best is not None and ctx.best.uid == 1
    assert ctx.ledger.spent.verifier_calls == 2


def test_a_time_limit_ends_scoring_with_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)

    class Slow(GaussianMixtureSampler):
        def decode(self, state: State) -> list[Media]:
            with self.meter.phase("decode"):
                clock.now += len(state)
            return super().decode(state)

    ctx = toy_context(Slow(num_steps=5), seconds=6.5, max_batch=2)
    state = ctx.finish(ctx.init(10))
    with pytest.raises(BudgetSpent):
        ctx.score(state)
    assert len(ctx.candidates) == 6 and ctx.best is not None
    assert ctx.ledger.elapsed <= 6.5


def test_time_stops_a_trajectory(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)

    class Slow(GaussianMixtureSampler):
        def _step(self, state: State) -> State:
            clock.now += 1
            return super()._step(state)

    ctx = toy_context(Slow(num_steps=5), seconds=3)
    with pytest.raises(BudgetSpent):
        ctx.finish(ctx.init(1))
    assert ctx.ledger.elapsed == 3


def test_plans_under_a_time_limit_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = toy_context(verifier=SlowReward(FakeClock(monkeypatch), 2.0), seconds=9)
    assert ctx.affordable(ctx.cost()) == 1
    ctx.score(ctx.finish(ctx.init(1)))
    assert ctx.affordable(ctx.cost()) == 3
    assert [event.value["seconds"] for event in events(ctx, "remaining")] == [9, 7]
    ctx = toy_context(nfe=5)
    assert ctx.affordable(ctx.cost()) == 1
    assert not ctx.events


def test_every_event_has_the_cost_so_far() -> None:
    ctx = toy_context(max_batch=2)
    state = ctx.advance(ctx.init(3), 2)
    ctx.score(state)
    ctx.score(ctx.finish(state))
    spent = [(e.what, e.spent.nfe, e.spent.decodes, e.spent.verifier_calls) for e in ctx.events]
    assert spent == [
        ("init", 0, 0, 0),
        ("advance", 4, 0, 0),
        ("advance", 6, 0, 0),
        ("decode", 6, 2, 0),
        ("decode", 6, 3, 0),
        ("score", 6, 3, 3),
        ("advance", 12, 3, 3),
        ("advance", 15, 3, 3),
        ("decode", 15, 5, 3),
        ("decode", 15, 6, 3),
        ("score", 15, 6, 6),
    ]


def test_costs_of_a_plan() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5, guidance=True))
    assert ctx.cost() == Cost(nfe=10, decodes=1, verifier_calls=1)
    assert ctx.cost(2, scored=False) == Cost(nfe=4)
    assert ctx.cost(step=3) == Cost(nfe=4, decodes=1, verifier_calls=1)


# Randomness


def test_row_seeds_are_recorded() -> None:
    ctx = toy_context(seed=42)
    ctx.init(3)
    (event,) = events(ctx, "init")
    assert event.seeds == (42, row_seed(42, 1), row_seed(42, 2))


def test_choices_are_fixed_by_seed_and_operation() -> None:
    first, second, other = toy_context(seed=1), toy_context(seed=1), toy_context(seed=2)
    draws = [ctx.rng().random() for ctx in (first, second, other)]
    assert draws[0] == draws[1] != draws[2]
    first.init(1)
    assert first.rng().random() != draws[0]


def test_results_do_not_depend_on_who_else_is_there() -> None:
    class Off(TargetReward):
        def score(
            self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE
        ) -> list[Score]:
            return [Score(value=s.value + 1) for s in super().score(media, prompts)]

    def final(ctx: SearchContext) -> State:
        state = ctx.advance(ctx.init(6), 2)
        return ctx.finish(ctx.select(state, [5, 1]))

    many, few = toy_context(), toy_context(verifier=Off(), max_batch=1)
    assert torch.allclose(final(many).latents, final(few).latents, atol=1e-6)


# Features


def embedded(**settings: Any) -> tuple[SearchContext, State, Any]:
    """A context on tokens, a state in the middle, and an extractor of positions."""
    ctx = toy_context(TokenSampler(), **settings)
    extractor = ctx.extractor(FEATURES)
    return ctx, ctx.advance(ctx.init(5), 3), extractor


def test_features_are_one_row_each_and_cost_a_decode() -> None:
    ctx, state, extractor = embedded()
    rows = ctx.features(state, extractor)
    assert torch.allclose(rows.double(), ctx.sampler.positions(state.latents), atol=1e-6)  # type: ignore[attr-defined]
    assert (ctx.ledger.spent.decodes, ctx.ledger.spent.verifier_calls) == (5, 0)
    event = events(ctx, "features")[0]
    assert (event.value, event.uids, event.step, event.preview) == (
        "position_features",
        state.uids,
        3,
        True,
    )
    finished = ctx.finish(state)
    assert ctx.features(finished, extractor).shape == (5, 2)
    assert not events(ctx, "features")[1].preview


@pytest.mark.parametrize("max_batch", [None, 2])
@pytest.mark.parametrize("first", ["features", "score"])
def test_a_sample_is_decoded_once_to_be_embedded_and_scored(first: str, max_batch: int | None) -> None:
    ctx, state, extractor = embedded(max_batch=max_batch)
    alone = toy_context(TokenSampler(), max_batch=max_batch)
    expected = alone.score(alone.advance(alone.init(5), 3))
    if first == "features":
        rows, scores = ctx.features(state, extractor), ctx.score(state)
    else:
        scores, rows = ctx.score(state), ctx.features(state, extractor)
    assert ctx.ledger.spent.decodes == 5 and torch.equal(scores, expected)
    # part of the same particles costs nothing, others at this step only themselves
    some = ctx.select(state, [4, 1])
    assert torch.equal(ctx.features(some, extractor), rows[[4, 1]])
    ctx.score(ctx.select(state, [0, 0]))
    assert ctx.ledger.spent.decodes == 6
    # at another step all is new
    ctx.features(ctx.advance(state, 1), extractor)
    assert ctx.ledger.spent.decodes == 11


def test_pixels_are_kept_only_where_features_are_in_use() -> None:
    ctx = toy_context(TokenSampler())
    state = ctx.advance(ctx.init(2), 3)
    ctx.score(state)
    ctx.score(state)
    assert ctx.ledger.spent.decodes == 4 and not ctx._judging._decoded


def test_features_of_a_resumed_search(tmp_path: Path) -> None:
    def algorithm(ctx: SearchContext) -> State:
        extractor = ctx.extractor(FEATURES)
        state = ctx.advance(ctx.init(4), 2)
        ctx.score(state)
        ahead = ctx.advance(ctx.select(state, [1, 3]), 1)
        kept = int(ctx.features(ahead, extractor)[:, 0].argmax())
        ctx.score(ahead)
        state = ctx.finish(ctx.select(ahead, [kept]))
        ctx.features(state, extractor)
        ctx.score(state)
        return state

    kill_everywhere(algorithm, TokenSampler, TargetReward(), tmp_path)


def test_a_resumed_search_does_not_embed_again(tmp_path: Path) -> None:
    def run(journal: Journal) -> tuple[torch.Tensor, list[int]]:
        ctx, state, extractor = embedded(journal=journal)
        before = len(extractor.seen)
        rows = ctx.features(state, extractor)
        ctx.interrupted("killed")
        return rows, extractor.seen[before:]

    (first, asked), (second, again) = run(Journal(tmp_path)), run(Journal(tmp_path))
    assert torch.equal(first, second) and (asked, again) == ([5], [])


def test_a_resumed_search_asks_for_the_same_features(tmp_path: Path) -> None:
    ctx, state, extractor = embedded(journal=Journal(tmp_path))
    ctx.features(state, extractor)
    ctx.interrupted("killed")
    ctx, state, extractor = embedded(journal=Journal(tmp_path))
    extractor.name = "another"
    try:
        with pytest.raises(StorageError, match="must repeat itself"):
            ctx.features(state, extractor)
    finally:
        extractor.name = "position_features"  # it is kept for all searches


def test_features_need_previews_and_the_right_modality() -> None:
    sampler = TokenSampler()
    sampler.capabilities = frozenset({"stochastic"})  # type: ignore[misc]
    ctx = toy_context(sampler)
    extractor = ctx.extractor(FEATURES)
    with pytest.raises(CapabilityError, match="Features at step 3 of 6 needs a sampler with 'preview'"):
        ctx.features(ctx.advance(ctx.init(2), 3), extractor)
    with pytest.raises(ConfigError, match="'clips_only' are of video but 'toy_tokens' makes image"):
        ctx.extractor(FEATURES.replace("positions", "ClipsOnly"))


def test_extractors_are_loaded_once_for_all_searches() -> None:
    assert toy_context().extractor(FEATURES) is toy_context().extractor(FEATURES)
    assert toy_context().extractor(f"{FEATURES}:scale=2") is not toy_context().extractor(FEATURES)


def test_an_extractor_that_cannot_be_made() -> None:
    with pytest.raises(VerifierError, match="must load but: RuntimeError: no weights"):
        toy_context().extractor(FEATURES.replace("positions", "broken"))
    with pytest.raises(ConfigError, match="name, accepts and features"):
        toy_context().extractor(FEATURES.replace("positions", "nothing"))


# Tokens


def test_equal_particles_are_paid_for_once() -> None:
    ctx = toy_context(TokenSampler())
    price = ctx.cost(scored=False).compute
    ctx.ledger.budget = Budget(macs=price + 3 * ctx.cost(1, step=5, scored=False).compute)
    one = ctx.advance(ctx.init(1), 5)
    # a plan that counts the shared forward once is not refused
    forks = ctx.advance(ctx.select(one, [0] * 4), 1)
    assert ctx.ledger.spent.compute == price and len(forks) == 4
    with pytest.raises(BudgetSpent):
        ctx.advance(ctx.init(6), 6)
