"""Contracts of plugins as inheritable pytest classes.

Inherit one, supply the fixtures it names, and pytest checks your plugin against the invariants that
searches rely on::

    class TestMySampler(SamplerContract):
        @pytest.fixture
        def sampler(self):
            return MySampler(...)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.errors import BudgetSpent, ConfigError
from tts_vision.journal import Journal
from tts_vision.ledger import Budget, Ledger
from tts_vision.moves import STEP_NOISE, STEP_NOISE_STD, StepNoise
from tts_vision.registry import entry_of
from tts_vision.rehearsal import rehearse
from tts_vision.runner import conduct
from tts_vision.sampler import Sampler
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Event
from tts_vision.types import Media, Prompt, Rows, Score, State
from tts_vision.verifier import ALONE, Asked, Verifier, as_verifier

SEED = 7


class SamplerContract:
    """What a `Sampler` must do. Fixtures: `sampler`; `condition` and `tolerance` have defaults."""

    @pytest.fixture
    def sampler(self) -> Sampler:
        """The sampler under test, fresh for each test."""
        raise NotImplementedError("A SamplerContract needs a fixture 'sampler'.")

    @pytest.fixture
    def condition(self) -> Condition:
        """The condition of all particles."""
        return Condition("two red circles")

    @pytest.fixture
    def tolerance(self) -> float:
        """Largest relative difference that batch size alone may make."""
        return 1e-5

    @pytest.fixture
    def ledger(self, sampler: Sampler) -> Ledger:
        """The ledger that the sampler reports to."""
        ledger = Ledger()
        sampler.bind(ledger)
        return ledger

    def test_is_a_sampler(self, sampler: Sampler) -> None:
        assert isinstance(sampler, Sampler)
        assert sampler.num_steps >= 1
        assert -1 <= sampler.last_noisy_step < sampler.num_steps
        assert ("stochastic" in sampler.capabilities) == (sampler.last_noisy_step >= 0)
        moves = any(sampler.move(step, 0.5) for step in range(sampler.num_steps))
        assert ("moves" in sampler.capabilities) == moves

    def test_initial_state(self, sampler: Sampler, ledger: Ledger, condition: Condition) -> None:
        state = sampler.init(condition, (4, 9), seed=SEED)
        assert (state.step, state.uids, state.seed) == (0, (4, 9), SEED)
        assert state.conditions == (condition, condition)
        assert len(state.latents) == 2
        assert torch.equal(state.latents, sampler.init(condition, (4, 9), seed=SEED).latents)
        assert torch.equal(state.latents[1:], sampler.init(condition, (9,), seed=SEED).latents)

    def test_steps_compose(
        self, sampler: Sampler, ledger: Ledger, condition: Condition, tolerance: float
    ) -> None:
        start = sampler.init(condition, (0, 1), seed=SEED)
        one_by_one = start
        for _ in range(sampler.num_steps):
            one_by_one = sampler.advance(one_by_one, 1)
        at_once = sampler.advance(start, sampler.num_steps)
        assert at_once.step == one_by_one.step == sampler.num_steps
        assert close(at_once.latents, one_by_one.latents, tolerance)

    def test_leaves_its_input_alone(self, sampler: Sampler, ledger: Ledger, condition: Condition) -> None:
        state = halfway(sampler, condition)
        latents, carry = state.latents.clone(), {k: copy(v) for k, v in state.carry.items()}
        sampler.advance(state, 1)
        sampler.advance(state, sampler.num_steps - state.step)
        assert torch.equal(state.latents, latents)
        assert set(carry) == set(state.carry) and all(same(state.carry[k], v) for k, v in carry.items())

    def test_rows_are_independent(
        self, sampler: Sampler, ledger: Ledger, condition: Condition, tolerance: float
    ) -> None:
        together = sampler.advance(sampler.init(condition, (0, 1, 2), seed=SEED), sampler.num_steps)
        backwards = sampler.advance(sampler.init(condition, (2, 1, 0), seed=SEED), sampler.num_steps)
        assert close(together.latents.flip(0), backwards.latents, tolerance)
        for row, uid in enumerate(together.uids):
            alone = sampler.advance(sampler.init(condition, (uid,), seed=SEED), sampler.num_steps)
            assert close(alone.latents, together.latents[row : row + 1], tolerance)

    def test_reindexing_commutes_with_steps(
        self, sampler: Sampler, ledger: Ledger, condition: Condition, tolerance: float
    ) -> None:
        state, rest = halfway(sampler, condition), sampler.num_steps - sampler.num_steps // 2
        index = [2, 0, 0]
        before = sampler.advance(state.select(index), rest)
        after = sampler.advance(state, rest).select(index)
        assert before.uids == after.uids
        assert close(before.latents, after.latents, tolerance)

    def test_forks_differ_while_noise_is_left(
        self, sampler: Sampler, ledger: Ledger, condition: Condition
    ) -> None:
        state = sampler.init(condition, (0,), seed=SEED)
        for step in range(1, sampler.num_steps):
            state = sampler.advance(state)
            forks = state.select([0, 0], uids=(0, 1))
            first, second = sampler.advance(forks, sampler.num_steps - step).latents
            assert torch.equal(first, second) == (step > sampler.last_noisy_step)

    def test_charges_what_it_says(self, sampler: Sampler, ledger: Ledger, condition: Condition) -> None:
        state = sampler.init(condition, (0, 1, 2), seed=SEED)
        assert ledger.spent.nfe == 0
        sampler.advance(state.select([1]), sampler.num_steps)
        # what a step costs may be known only after it ran once
        cost = sampler.cost(condition, 0, sampler.num_steps)
        assert ledger.spent == cost and cost.nfe > 0
        sampler.advance(state, sampler.num_steps)
        # rows that do not differ yet may share the work
        assert 0 < ledger.spent.nfe - cost.nfe <= cost.nfe * 3
        assert cost.decodes == cost.verifier_calls == 0
        parts = [sampler.cost(condition, step, 1).nfe for step in range(sampler.num_steps)]
        assert sum(parts) == pytest.approx(cost.nfe)

    def test_stops_before_the_budget_is_passed(self, sampler: Sampler, condition: Condition) -> None:
        sampler.bind(Ledger())
        state = sampler.init(condition, (0,), seed=SEED)
        sampler.advance(state, sampler.num_steps)
        limit = sampler.cost(condition, 0, sampler.num_steps).nfe - 1 or 0.5
        ledger = Ledger(Budget(nfe=limit))
        sampler.bind(ledger)
        with pytest.raises(BudgetSpent):
            sampler.advance(sampler.init(condition, (0,), seed=SEED), sampler.num_steps)
        assert ledger.spent.nfe <= limit

    def test_can_be_stored(
        self, sampler: Sampler, ledger: Ledger, condition: Condition, tmp_path: Path
    ) -> None:
        state = halfway(sampler, condition)
        plain = {k: v for k, v in state.shared.items() if not isinstance(v, Tensor)}
        assert json.loads(json.dumps(plain)) == plain
        journal = Journal(tmp_path)
        kept, name = journal.save(state.to("cpu"), 0, 0)
        loaded = journal.load(name, state, state.uids, state.step)
        rest = sampler.num_steps - state.step
        assert torch.equal(sampler.advance(loaded, rest).latents, sampler.advance(kept, rest).latents)

    def test_decodes_each_row(self, sampler: Sampler, ledger: Ledger, condition: Condition) -> None:
        state = sampler.advance(sampler.init(condition, (0, 1), seed=SEED), sampler.num_steps)
        assert len(sampler.decode(state)) == 2
        if "preview" in sampler.capabilities:
            state = sampler.init(condition, (0, 1), seed=SEED)
            for _ in range(1, sampler.num_steps):
                state = sampler.advance(state)
                assert len(sampler.preview(state)) == 2

    def test_step_noise_is_part_of_the_latents(
        self, sampler: Sampler, ledger: Ledger, condition: Condition, tolerance: float
    ) -> None:
        if "step_noise" not in sampler.capabilities:
            pytest.skip("the sampler carries no step noise")
        first, second = sampler.init(condition, (0, 1), seed=SEED), sampler.init(condition, (0, 1), seed=SEED)
        states = [sampler.advance(first), sampler.advance(second.select([0, 1], uids=(5, 6)))]
        means = []
        for state in states:
            noise, std = state.carry[STEP_NOISE], state.carry[STEP_NOISE_STD]
            assert isinstance(noise, Tensor) and isinstance(std, Tensor)
            assert noise.shape == state.latents.shape and std.shape == (2,)
            means.append(state.latents - noise)
            unchanged = StepNoise(0).apply(sampler, state, torch.ones_like(noise))
            assert close(unchanged.latents, state.latents, tolerance)
        assert not torch.equal(states[0].latents, states[1].latents)
        assert close(means[0], means[1], max(tolerance, 1e-4))

    def test_gradient_is_the_slope(
        self, sampler: Sampler, ledger: Ledger, condition: Condition, tolerance: float
    ) -> None:
        if "differentiable" not in sampler.capabilities:
            pytest.skip("gradients do not go back through the sampler")

        def reward(pixels: Tensor) -> Tensor:
            weights = torch.linspace(0.5, 1.5, pixels[0].numel(), dtype=pixels.dtype, device=pixels.device)
            return pixels.flatten(1) @ weights / pixels[0].numel()

        # a first step with as much noise as the sample itself leaves nothing of where it started
        first = min(sampler.last_noisy_step + 1, 1)
        start = sampler.init(condition, (0, 1, 2), seed=SEED)
        start = sampler.advance(start, first) if first else start
        starts = [(start, sampler.num_steps - first)]
        if "preview" in sampler.capabilities and sampler.num_steps > 1:
            starts.append((halfway(sampler, condition), 1))
        for state, steps in starts:
            before = ledger.spent.nfe
            ahead = sampler.gradient(state, steps, reward)
            assert ledger.spent.nfe - before == sampler.gradient_cost(condition, state.step, steps).nfe * 3
            assert close(ahead.latents, sampler.advance(state, steps).latents, tolerance)
            assert not ahead.latents.requires_grad
            gradient = ahead.carry["gradient"]
            assert isinstance(gradient, Tensor) and gradient.shape == state.latents.shape
            alone = sampler.gradient(state.select([1]), steps, reward).carry["gradient"]
            assert isinstance(alone, Tensor) and close(alone, gradient[1:2], max(tolerance, 1e-3))
            norm = gradient.flatten(1).norm(dim=1)
            assert (norm > 0).all()
            # along the gradient the reward rises by its norm; in the middle of two points, to second order
            h = 0.02 * state.latents.flatten(1).norm(dim=1)
            shift = gradient * (h / norm).view(-1, *(1,) * (gradient.ndim - 1))
            up, down = (
                sampler.gradient(replace(state, latents=state.latents + sign * shift), steps, reward)
                for sign in (1.0, -1.0)
            )
            above, below = up.carry["reward"], down.carry["reward"]
            assert isinstance(above, Tensor) and isinstance(below, Tensor)
            assert (above - below).tolist() == pytest.approx((2 * h * norm).tolist(), rel=0.1)

    def test_moves_redo_randomness(
        self, sampler: Sampler, ledger: Ledger, condition: Condition, tolerance: float
    ) -> None:
        if "moves" not in sampler.capabilities:
            pytest.skip("the sampler has no move")
        moving = [s for s in range(sampler.num_steps) if sampler.move(s, 0.0) and sampler.move(s, 1.0)]
        to_the_end = {moving[0], moving[len(moving) // 2], moving[-1]}
        differs = False
        state = sampler.init(condition, (0,), seed=SEED)
        for step in moving:
            nothing, all_of_it = sampler.move(step, 0.0), sampler.move(step, 1.0)
            assert nothing is not None and all_of_it is not None
            state = sampler.advance(state, step - state.step) if step > state.step else state
            spent = ledger.spent
            same = sampler.apply(nothing, state.select([0, 0], uids=(10, 11)))
            fresh = sampler.apply(all_of_it, state.select([0, 0], uids=(10, 11)))
            swapped = sampler.apply(all_of_it, state.select([0, 0], uids=(11, 10)))
            for child in (same, fresh, swapped):
                assert (child.step, ledger.spent) == (all_of_it.target(step), spent)
            # the noise of a child belongs to its uid
            assert fresh.uids == (10, 11) and close(fresh.latents.flip(0), swapped.latents, tolerance)
            if step in to_the_end:
                end, kept = (sampler.advance(x, sampler.num_steps - x.step) for x in (fresh, same))
                assert end.step == sampler.num_steps
                differs |= not torch.equal(end.latents, kept.latents)
        assert differs, "at strength 1 nothing differs from strength 0 at the first, middle and last step"

    def test_rows_may_differ_in_conditions(
        self, sampler: Sampler, ledger: Ledger, condition: Condition, tolerance: float
    ) -> None:
        other = condition.with_text(condition.text + " and a blue star")
        try:
            parts = [
                sampler.init(c, (uid,), seed=SEED) for uid, c in enumerate((condition, other, condition))
            ]
        except ConfigError:
            pytest.skip("the sampler takes no other text")
        mixed = sampler.advance(State.cat(parts), sampler.num_steps)
        assert mixed.conditions == (condition, other, condition)
        for row, part in enumerate(parts):
            alone = sampler.advance(part, sampler.num_steps)
            assert close(mixed.latents[row : row + 1], alone.latents, max(tolerance, 1e-5))
        assert len(sampler.decode(mixed)) == 3

    def test_goes_back(self, sampler: Sampler, ledger: Ledger, condition: Condition) -> None:
        if "renoise" not in sampler.capabilities:
            pytest.skip("the sampler cannot go back")
        state = halfway(sampler, condition)
        spent = ledger.spent
        back = sampler.renoise(state.select([0, 0], uids=(10, 11)), 0)
        assert (back.step, back.uids, ledger.spent) == (0, (10, 11), spent)
        again = sampler.renoise(state.select([0], uids=(11,)), 0)
        assert torch.equal(back.latents[1:], again.latents)
        end = sampler.advance(back, sampler.num_steps)
        assert end.step == sampler.num_steps
        assert not torch.equal(end.latents[0], end.latents[1])


class VerifierContract:
    """What a `Verifier` must do. Fixtures: `verifier`, `media` (three or more samples), `prompt`."""

    @pytest.fixture
    def verifier(self) -> Verifier:
        """The verifier under test."""
        raise NotImplementedError("A VerifierContract needs a fixture 'verifier'.")

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        """At least three samples of a modality that it accepts."""
        raise NotImplementedError("A VerifierContract needs a fixture 'media'.")

    @pytest.fixture
    def prompt(self) -> Prompt:
        """What they were generated for."""
        return Prompt("two red circles")

    def test_is_a_verifier(self, verifier: Verifier) -> None:
        assert isinstance(as_verifier(verifier), Verifier)
        assert verifier.name and verifier.accepts <= {"image", "video"} and verifier.accepts

    def test_one_score_each(self, verifier: Verifier, media: Sequence[Media], prompt: Prompt) -> None:
        scores = verifier.score(media, [prompt] * len(media))
        assert len(scores) == len(media)
        assert all(isinstance(score, Score) for score in scores)
        assert all(score.reason for score in scores if math.isnan(score.value))
        assert not any(math.isinf(score.value) for score in scores)

    def test_is_repeatable(self, verifier: Verifier, media: Sequence[Media], prompt: Prompt) -> None:
        first, second = (verifier.score(media, [prompt] * len(media)) for _ in range(2))
        assert values(first) == pytest.approx(values(second), nan_ok=True)

    def test_samples_are_independent(
        self, verifier: Verifier, media: Sequence[Media], prompt: Prompt
    ) -> None:
        together = values(verifier.score(media, [prompt] * len(media)))
        backwards = values(verifier.score(list(reversed(media)), [prompt] * len(media)))
        alone = [value for m in media for value in values(verifier.score([m], [prompt]))]
        assert alone == pytest.approx(together, nan_ok=True, rel=1e-3, abs=1e-4)
        assert backwards[::-1] == pytest.approx(together, nan_ok=True, rel=1e-3, abs=1e-4)

    def test_tells_samples_apart(self, verifier: Verifier, media: Sequence[Media], prompt: Prompt) -> None:
        assert len(set(values(verifier.score(media, [prompt] * len(media))))) > 1


class DifferentiableVerifierContract(VerifierContract):
    """What a `Verifier` with gradients must do besides; `media` are images of one size."""

    @pytest.fixture
    def resize_tolerance(self) -> float:
        """Largest difference to `score` that another way of resizing may make."""
        return 1e-2

    @pytest.fixture
    def pixels(self, media: Sequence[Media]) -> Tensor:
        """The samples as ``(B, 3, H, W)`` in [0, 1]."""
        arrays = [np.asarray(m.convert("RGB"), dtype=np.float32) for m in media if isinstance(m, Image.Image)]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255

    def test_rewards_are_its_scores(
        self,
        verifier: Verifier,
        media: Sequence[Media],
        pixels: Tensor,
        prompt: Prompt,
        resize_tolerance: float,
    ) -> None:
        assert as_verifier(verifier).differentiable
        rewards = verifier.rewards(pixels, [prompt] * len(media))
        assert rewards.shape == (len(media),)
        expected = values(verifier.score(media, [prompt] * len(media)))
        assert rewards.tolist() == pytest.approx(expected, abs=resize_tolerance)

    def test_gradient_is_the_slope(self, verifier: Verifier, pixels: Tensor, prompt: Prompt) -> None:
        x = pixels.clamp(0.1, 0.9).requires_grad_()
        prompts = [prompt] * len(x)
        (gradient,) = torch.autograd.grad(verifier.rewards(x, prompts).sum(), x)
        assert gradient.isfinite().all() and all(row.abs().max() > 0 for row in gradient)
        direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        with torch.no_grad():
            # long enough to rise above the rounding of float32, short enough to be straight
            h = 0.05
            rise = verifier.rewards(x + h * direction, prompts) - verifier.rewards(x - h * direction, prompts)
        slope = gradient.flatten(1).norm(dim=1) * 2 * h
        assert rise.tolist() == pytest.approx(slope.tolist(), rel=0.1, abs=1e-5)

    def test_rows_do_not_mix(self, verifier: Verifier, pixels: Tensor, prompt: Prompt) -> None:
        x = pixels.clone().requires_grad_()
        rewards = verifier.rewards(x, [prompt] * len(x))
        (gradient,) = torch.autograd.grad(rewards[0], x)
        assert gradient[0].abs().max() > 0 and not gradient[1:].any()


class AlgorithmContract:
    """What a search algorithm must do. Fixtures: `algorithm`; the others have defaults."""

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        """The function under test."""
        raise NotImplementedError("An AlgorithmContract needs a fixture 'algorithm'.")

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        """Parameters that size a small search without a budget."""
        return {"n": 4}

    @pytest.fixture
    def size(self, algorithm: Callable[..., State], sizes: dict[str, Any]) -> str:
        """The parameter that sizes a search: the registered one, or the first of `sizes`."""
        return entry_of("algorithm", algorithm).size or next(iter(sizes))

    @pytest.fixture
    def params(self) -> dict[str, Any]:
        """Parameters of every search, its size apart."""
        return {}

    @pytest.fixture
    def kills(self) -> int | None:
        """After how many of its events, spread evenly, a search is killed; None for each of them."""
        return 12

    @pytest.fixture
    def make_sampler(self) -> Callable[[], Sampler]:
        """A sampler that the algorithm runs on; it should carry solver history."""
        return partial(GaussianMixtureSampler, num_steps=6, order=2)

    @pytest.fixture
    def verifier(self) -> Verifier:
        """The verifier that guides the search."""
        return TargetReward()

    @pytest.fixture
    def search(
        self,
        algorithm: Callable[..., State],
        make_sampler: Callable[[], Sampler],
        verifier: Verifier,
        size: str,
        params: dict[str, Any],
    ) -> Callable[..., tuple[SearchContext, State]]:
        """Runs the algorithm at the size that a budget pays for."""

        def run(**limits: float) -> tuple[SearchContext, State]:
            context = SearchContext(make_sampler(), verifier, Prompt("x"), seed=SEED)
            context.ledger.budget = Budget(**limits).resolve(context.cost())  # type: ignore[arg-type]
            return context, conduct(context, algorithm, params, size)

        return run

    @pytest.mark.parametrize("times", [1, 2.5, 4, 9])
    def test_fits_every_budget(
        self, search: Callable[..., tuple[SearchContext, State]], times: float
    ) -> None:
        context, state = search(times=times)
        sample = context.cost().compute
        assert context.ledger.spent.compute <= times * sample * (1 + 1e-9)
        # less than one sample is left over
        assert times * sample - context.ledger.spent.compute < sample
        check_result(context, state)

    def test_costs_no_more_than_rehearsed(
        self,
        algorithm: Callable[..., State],
        make_sampler: Callable[[], Sampler],
        verifier: Verifier,
        sizes: dict[str, Any],
    ) -> None:
        context = SearchContext(make_sampler(), verifier, Prompt("x"), seed=SEED)
        price = rehearse(context, algorithm, sizes)
        algorithm(context, **sizes)
        spent = context.ledger.spent
        assert price is not None
        for unit in ("nfe", "decodes", "verifier_calls", "tokens", "macs"):
            assert getattr(spent, unit) <= getattr(price, unit) * (1 + 1e-9)

    @pytest.mark.parametrize("calls", [1, 2, 20])
    def test_fits_every_number_of_verifier_calls(
        self, search: Callable[..., tuple[SearchContext, State]], calls: int
    ) -> None:
        context, state = search(verifier_calls=calls)
        assert context.ledger.spent.verifier_calls <= calls
        check_result(context, state)

    @pytest.mark.parametrize("seconds", [1.5, 7.5])
    def test_fits_every_time(
        self,
        algorithm: Callable[..., State],
        make_sampler: Callable[[], Sampler],
        size: str,
        params: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
        seconds: float,
    ) -> None:
        clock = FakeClock(monkeypatch)
        context = SearchContext(make_sampler(), SlowReward(clock, 1.0), Prompt("x"), seed=SEED)
        context.ledger.budget = Budget(seconds=seconds)
        # a forecast may be wrong, so a search may also be stopped here
        with suppress(BudgetSpent):
            check_result(context, conduct(context, algorithm, params, size))
        assert context.best is not None
        assert seconds / 3 < clock.now <= seconds

    def test_compared_siblings_differ(
        self, algorithm: Callable[..., State], verifier: Verifier, sizes: dict[str, Any]
    ) -> None:
        seen = Seen(verifier)
        sampler = GaussianMixtureSampler(num_steps=20)
        algorithm(SearchContext(sampler, seen, Prompt("x"), seed=SEED), **sizes)
        for images in seen.calls_seen:
            assert len(set(images)) == len(images), "samples that are scored together must differ"

    def test_without_limits(
        self,
        algorithm: Callable[..., State],
        make_sampler: Callable[[], Sampler],
        verifier: Verifier,
        sizes: dict[str, Any],
    ) -> None:
        context = SearchContext(make_sampler(), verifier, Prompt("x"), seed=SEED)
        check_result(context, algorithm(context, **sizes))

    @pytest.mark.parametrize("max_batch", [1, 3])
    def test_micro_batches_change_nothing(
        self,
        algorithm: Callable[..., State],
        make_sampler: Callable[[], Sampler],
        verifier: Verifier,
        sizes: dict[str, Any],
        max_batch: int,
    ) -> None:
        whole = SearchContext(make_sampler(), verifier, Prompt("x"), seed=SEED)
        algorithm(whole, **sizes)
        parts = SearchContext(make_sampler(), verifier, Prompt("x"), seed=SEED, max_batch=max_batch)
        algorithm(parts, **sizes)
        assert results(parts) == pytest.approx(results(whole))
        assert parts.ledger.spent == whole.ledger.spent

    def test_lives_with_samples_that_cannot_be_scored(
        self, algorithm: Callable[..., State], make_sampler: Callable[[], Sampler], sizes: dict[str, Any]
    ) -> None:
        context = SearchContext(make_sampler(), HalfBlind(), Prompt("x"), seed=SEED)
        algorithm(context, **sizes)
        assert context.best is not None and not math.isnan(context.best.score.value)
        nothing = SearchContext(make_sampler(), HalfBlind(blind_to=1), Prompt("x"), seed=SEED)
        state = algorithm(nothing, **sizes)
        assert nothing.best is None and state.step == nothing.num_steps

    def test_searches_by_a_verifier_that_compares_samples(
        self,
        algorithm: Callable[..., State],
        make_sampler: Callable[[], Sampler],
        verifier: Verifier,
        sizes: dict[str, Any],
    ) -> None:
        ranked = Ranked(verifier)
        context = SearchContext(make_sampler(), ranked, Prompt("x"), seed=SEED)
        check_result(context, algorithm(context, **sizes))
        scores = [candidate.score for candidate in context.candidates.values()]
        assert values(scores) == ranked.settle(scores)

    def test_survives_a_kill_anywhere(
        self,
        algorithm: Callable[..., State],
        make_sampler: Callable[[], Sampler],
        verifier: Verifier,
        sizes: dict[str, Any],
        kills: int | None,
        tmp_path: Path,
    ) -> None:
        kill_everywhere(partial(algorithm, **sizes), make_sampler, verifier, tmp_path, most=kills)

    def test_survives_a_kill_at_the_size_of_a_budget(
        self,
        algorithm: Callable[..., State],
        make_sampler: Callable[[], Sampler],
        verifier: Verifier,
        size: str,
        params: dict[str, Any],
        tmp_path: Path,
    ) -> None:
        def search(context: SearchContext) -> State:
            state: State = conduct(context, algorithm, params, size)
            return state

        sample = SearchContext(make_sampler(), verifier, Prompt("x"), seed=SEED).cost()
        budget = Budget(times=4).resolve(sample)
        kill_everywhere(search, make_sampler, verifier, tmp_path, budget=budget, most=4)


class Killed(Exception):
    """A simulated kill."""


class FakeClock:
    """Stands in for the wall clock of all ledgers made after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("tts_vision.ledger.time.perf_counter", lambda: self.now)


class SlowReward(TargetReward):
    """A verifier that takes time on a fake clock, for each sample."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        self.clock.now += self.seconds * len(media)
        return super().score(media, prompts, asked)

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.clock.now += self.seconds * len(pixels)
        return super().rewards(pixels, prompts)


class HalfBlind(Verifier):
    """A verifier that cannot score every `blind_to`-th sample it sees."""

    name = "half_blind"
    accepts = TargetReward.accepts
    differentiable = True

    def __init__(self, blind_to: int = 2) -> None:
        self.blind_to, self.seen = blind_to, 0

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        scores = TargetReward().score(media, prompts)
        for i in range(len(media)):
            self.seen += 1
            if self.seen % self.blind_to == 0:
                scores[i] = Score.unscored("blind")
        return scores

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        rewards, seen = TargetReward().rewards(pixels, prompts), []
        for _ in pixels:
            self.seen += 1
            seen.append(self.seen % self.blind_to != 0)
        return torch.where(torch.tensor(seen), rewards, torch.nan)


class Seen(Verifier):
    """Another verifier, and the samples that it scored together."""

    name = "seen"

    def __init__(self, verifier: Verifier) -> None:
        self.verifier, self.accepts = verifier, verifier.accepts
        self.differentiable = verifier.differentiable
        self.questions, self.checks_demands = verifier.questions, verifier.checks_demands
        self.calls_seen: list[list[bytes]] = []

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        if asked.step != 1:  # from pure noise, the toy's x0 estimate is the same for all
            self.calls_seen.append([m.tobytes() for m in media if isinstance(m, Image.Image)])
        return self.verifier.score(media, prompts, asked)

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self.verifier.rewards(pixels, prompts)

    def answer(self, question: str, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        return self.verifier.answer(question, media, prompts)


class Ranked(Verifier):
    """A verifier by the rank that another one gives a sample, from 0 to 1: values settle anew."""

    name = "ranked"
    relative = settles = True

    def __init__(self, verifier: Verifier) -> None:
        self.verifier, self.accepts = verifier, verifier.accepts
        self.differentiable = verifier.differentiable
        self.questions, self.checks_demands = verifier.questions, verifier.checks_demands

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        said = [{"said": score.value} for score in self.verifier.score(media, prompts)]
        scores = [Score(value=math.nan, parts=parts) for parts in said]
        pooled = zip(scores, self.settle(scores), strict=True)
        return [score.model_copy(update={"value": value}) for score, value in pooled]

    def settle(self, scores: Sequence[Score]) -> list[float]:
        said = [score.parts["said"] for score in scores]
        return [sum(other < mine for other in said) / max(1, len(said) - 1) for mine in said]

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The gradient is that of the other verifier, for algorithms that ask for it."""
        return self.verifier.rewards(pixels, prompts)

    def answer(self, question: str, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        return self.verifier.answer(question, media, prompts)


def kill_everywhere(
    algorithm: Callable[[SearchContext], State],
    make_sampler: Callable[[], Sampler],
    verifier: Verifier,
    folder: Path,
    *,
    budget: Budget | None = None,
    max_batch: int | None = 2,
    most: int | None = None,
) -> None:
    """Kills a search after its events in turn, resumes it, and checks that nothing differs.

    Args:
        algorithm: The search.
        make_sampler: Makes its sampler.
        verifier: Guides it.
        folder: Empty; gets a folder for each kill.
        budget: Its limits.
        max_batch: Rows computed at once.
        most: Kills at most, at events that are spread evenly; after each event by default.
    """

    def search(path: Path, die_after: int | None = None) -> tuple[SearchContext, list[str]]:
        new: list[str] = []

        def observe(context: SearchContext, event: Event) -> None:
            new.append(event.what)
            if len(new) == die_after:
                raise Killed

        context = SearchContext(
            make_sampler(),
            verifier,
            Prompt("x"),
            seed=SEED,
            ledger=Ledger(budget or Budget()),
            journal=Journal(path),
            max_batch=max_batch,
            observer=observe,
        )
        try:
            algorithm(context)
        except Killed:
            context.interrupted("killed")
        return context, new

    whole, events = search(folder / "whole")
    assert len(events) > 2
    for count in kills(len(events), most):
        path = folder / f"killed-{count}"
        search(path, die_after=count)
        resumed, _ = search(path)
        # as text, where NaN equals NaN
        assert repr(results(resumed)) == repr(results(whole)), f"killed after {count}, {events[count - 1]}"
        assert resumed.ledger.spent == whole.ledger.spent, f"killed after event {count}, {events[count - 1]}"


def kills(events: int, most: int | None) -> list[int]:
    """The events to kill a search after: all, or at most `most` that are spread evenly."""
    if most is None or events <= most:
        return list(range(1, events + 1))
    return sorted({round(1 + i * (events - 1) / (most - 1)) for i in range(most)})


def results(context: SearchContext) -> dict[int, float]:
    """The scores of all finished samples by uid."""
    return {uid: candidate.score.value for uid, candidate in context.candidates.items()}


def check_result(context: SearchContext, state: State) -> None:
    """Checks that a search ended with finished and scored particles and kept the best."""
    assert state.step == context.num_steps and len(state) >= 1
    assert set(state.uids) <= set(context.candidates)
    assert context.best is not None
    assert context.best.score.value == max(results(context).values())


def halfway(sampler: Sampler, condition: Condition) -> State:
    """Three particles in the middle of their trajectories."""
    return sampler.advance(sampler.init(condition, (0, 1, 2), seed=SEED), sampler.num_steps // 2)


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by no more than `tolerance`, relative to the norm of the second."""
    return a.shape == b.shape and bool((a.double() - b.double()).norm() <= tolerance * b.double().norm())


def copy(value: Tensor | Rows) -> Tensor | Rows:
    """A value that later changes of the original do not reach."""
    return value.clone() if isinstance(value, Tensor) else value


def same(a: Tensor | Rows, b: Tensor | Rows) -> bool:
    """Whether two carried entries are equal."""
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def values(scores: Sequence[Score]) -> list[float]:
    """The numbers of scores."""
    return [score.value for score in scores]
