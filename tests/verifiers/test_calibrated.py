"""Calibrated previews: closed-form fits, forecasts by step, refits, and resumed searches."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_members import NAN, PROMPT, Table, numbered

from toy_plugins import MODEL, VERIFIER
from toy_search import events, run, toy_context
from tts_vision import search
from tts_vision.calibration import RAW, History, preview_pairs, spearman
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.ranking import top_k
from tts_vision.registry import lookup
from tts_vision.results import load_result
from tts_vision.scoring import safe_scores
from tts_vision.testing.contracts import VerifierContract, kill_everywhere, results
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Media, Score, State
from tts_vision.verifier import Asked
from tts_vision.verifiers.calibrated import Calibrated, isotonic, linear
from tts_vision.verifiers.ensemble import Ensemble

LINE = [(float(x), 2.0 * x + 1.0) for x in range(5)]


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self) -> Calibrated:
        return Calibrated([Table("a", [0.1, 0.5, NAN, 0.9])])

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        return numbered(4)


def test_it_scores_as_its_member_does() -> None:
    member = Table("a", [0.1, NAN, "raise"])
    verifier = Calibrated([member])
    assert verifier.learns and not verifier.settles and not verifier.relative
    assert lookup("verifier", "calibrated").target is Calibrated
    assert (verifier.name, verifier.accepts, verifier.calls(3)) == ("calibrated(a)", member.accepts, {"a": 3})
    charged: list[dict[str, int]] = []
    found = safe_scores(verifier, numbered(3), [PROMPT] * 3, asked=Asked(lambda c: charged.append(dict(c))))
    assert found[0] == Score(value=0.1, parts={"number": 0.0})
    assert [score.reason for score in found[1:]] == ["blind to 1", "a raised RuntimeError: image 2"]
    assert charged == [{"a": 3}, {"a": 1}, {"a": 1}, {"a": 1}]
    verifier.load()
    assert member.loaded == 1


# Fits


def test_a_line() -> None:
    forecast = linear(LINE)
    assert [forecast(x) for x in (-1.0, 0.5, 10.0)] == pytest.approx([-1, 2, 21])
    noisy = linear([(0.0, 0.0), (1.0, 2.0), (2.0, 1.0)])
    # slope 1/2 through (1, 1)
    assert noisy(3.0) == pytest.approx(2.0)


def test_a_line_never_falls() -> None:
    forecast = linear([(0.0, 3.0), (1.0, 2.0), (2.0, 1.0)])
    assert [forecast(x) for x in (-5.0, 0.0, 9.0)] == pytest.approx([2, 2, 2])
    assert linear([(1.0, 3.0), (1.0, 5.0)])(7.0) == 4, "equal previews say nothing"


def test_a_rising_curve() -> None:
    pairs = [(0.0, 0.0), (1.0, 3.0), (2.0, 1.0), (3.0, 6.0)]
    forecast = isotonic(pairs)
    # the two in the middle are pooled to 2, at their centre 1.5
    assert [forecast(x) for x in (0.0, 1.5, 3.0)] == pytest.approx([0, 2, 6])
    assert [forecast(x) for x in (0.75, 2.25)] == pytest.approx([1, 4])
    assert [forecast(x) for x in (-9.0, 9.0)] == pytest.approx([0, 6]), "level outside what is known"
    assert isotonic([(0.0, 3.0), (1.0, 2.0), (2.0, 1.0)])(5.0) == pytest.approx(2)
    assert isotonic([(1.0, 3.0), (1.0, 5.0)])(7.0) == pytest.approx(4)


@pytest.mark.parametrize("rule", [linear, isotonic])
@pytest.mark.parametrize("seed", range(3))
def test_a_better_preview_is_never_ranked_lower(rule: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=30)
    forecast = rule(list(zip(x, 0.3 * x + rng.normal(size=30))))
    grid = [forecast(value) for value in np.linspace(-4, 4, 200)]
    assert all(b >= a - 1e-12 for a, b in pairwise(grid))


def test_isotonic_bends_where_a_line_cannot() -> None:
    x = np.linspace(0, 1, 40)
    pairs = list(zip(x.tolist(), np.exp(5 * x).tolist()))
    error = {rule: np.mean([(rule(pairs)(a) - b) ** 2 for a, b in pairs]) for rule in (linear, isotonic)}
    assert error[isotonic] < 0.01 * error[linear]


@pytest.mark.parametrize("seed", range(6))
def test_a_rising_curve_is_that_of_scikit_learn(seed: int) -> None:
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(seed)
    x = rng.normal(size=40) if seed % 2 else rng.integers(0, 9, 40) / 3  # equal previews too
    y = 0.5 * x + rng.normal(size=40)
    levels = IsotonicRegression().fit_transform(x, y)
    forecast = isotonic(list(zip(x.tolist(), y.tolist())))
    for height in np.unique(levels):
        assert forecast(float(x[levels == height].mean())) == pytest.approx(height)


@pytest.mark.parametrize("algorithm", ["greedy", "beam_search", "fk_steering"])
def test_pairs_that_are_kept_while_events_come_in_are_those_of_the_whole_trace(algorithm: str) -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=6), Calibrated([TargetReward()]), times=10)
    run(lookup("algorithm", algorithm).target, ctx)
    history = History()
    for event in ctx.events:
        history.add(event)
        for step in history.steps:
            assert history.pairs(step) == history.pairs(step, {})
    assert any(history.pairs(step) for step in history.steps)


# Forecasts


class Known(History):
    """A history with the given pairs, by step."""

    def __init__(self, known: dict[int, list[tuple[float, float]]]) -> None:
        super().__init__()
        self.known = known

    def pairs(self, step: int, final: Any = None) -> list[tuple[float, float]]:
        return self.known.get(step, [])


def forecast(
    verifier: Calibrated, step: int | None, known: dict[int, list[tuple[float, float]]], n: int = 1
) -> list[Score]:
    """Scores of the first `n` images as previews at a step."""
    return verifier.score(numbered(n), [PROMPT] * n, Asked(step=step, history=Known(known)))


def test_each_step_has_its_own_forecast() -> None:
    verifier = Calibrated([Table("a", [3.0], satisfied=True)], how="linear")
    known = {2: LINE, 4: [(x, x) for x, _ in LINE]}
    (found,) = forecast(verifier, 2, known)
    assert found.value == pytest.approx(7) and found.satisfied and verifier.checks_demands
    assert found.parts == pytest.approx({"number": 0, RAW: 3, "pairs": 5, "trust": 1})
    assert forecast(verifier, 4, known)[0].value == 3.0
    (finished,) = forecast(verifier, None, known)
    assert finished == Score(value=3.0, parts={"number": 0.0}, satisfied=True)


def test_before_enough_is_known_a_preview_keeps_its_score() -> None:
    verifier = Calibrated([Table("a", [3.0])], least=4, how="linear")
    for step in (2, 3):
        (found,) = forecast(verifier, step, {2: LINE[:3]})
        assert found == Score(value=3.0, parts={"number": 0.0, RAW: 3.0})
    assert forecast(verifier, 2, {2: LINE[:4]})[0].value == 7.0
    assert forecast(verifier, 2, {})[0].value == 3.0, "another search has a history of its own"


def test_forecasts_are_fitted_again_only_when_pairs_change(monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision.verifiers import calibrated

    fits: list[int] = []
    monkeypatch.setattr(calibrated, "linear", lambda pairs: fits.append(len(pairs)) or linear(pairs))
    verifier = Calibrated([Table("a", [3.0])], least=3, how="linear")
    for known in ({2: LINE, 3: LINE}, {2: [*LINE], 3: LINE[:4]}, {2: [(0.0, 9.0), *LINE[1:]]}):
        for step in (2, 2, 3):
            forecast(verifier, step, known)
    assert fits == [5, 5, 4, 5]


def test_unscored_previews_stay_unscored() -> None:
    (found,) = forecast(Calibrated([Table("a", [NAN])]), 2, {2: LINE})
    assert math.isnan(found.value) and found.reason == "blind to 0" and RAW not in found.parts


def test_uninformative_previews_are_forecast_as_the_mean() -> None:
    verifier = Calibrated([Table("a", [0.0, 3.0])], how="linear")
    known = {2: [(0.0, 1.0), (1.0, 5.0), (2.0, 5.0), (3.0, 1.0), (1.5, 3.0)]}
    found = forecast(verifier, 2, known, n=2)
    assert [score.value for score in found] == pytest.approx([3, 3])
    assert found[0].parts["trust"] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "cubic"}, "how must be isotonic or linear but got 'cubic'"),
        ({"least": 1}, "least must be at least 2 but got 1"),
        ({"searches": ["nowhere"]}, "searches must be result folders but 'nowhere' has no trace.jsonl"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Calibrated([Table("a", [])], **options)


def test_members_that_cannot_be_calibrated_are_told() -> None:
    a = Table("a", [])
    with pytest.raises(ConfigError, match="calibrated is made of one verifier but got a, a; name one"):
        Calibrated([a, a])
    for member in (Ensemble([a]), Calibrated([a])):
        with pytest.raises(ConfigError, match=r"must score each sample by itself but .*\(a\)' does not"):
            Calibrated([member])


# Searches


def rounds(ctx: SearchContext) -> State:
    """Three rounds that finish the better half of the previews."""
    done = []
    for _ in range(3):
        half = ctx.advance(ctx.init(6), 3)
        done.append(ctx.finish(ctx.select(half, top_k(ctx.score(half), 3))))
        ctx.score(done[-1])
    return State.cat(done)


def test_a_search_learns_as_it_goes() -> None:
    verifier = Calibrated([TargetReward()], how="linear", least=3)
    ctx = toy_context(GaussianMixtureSampler(num_steps=5), verifier)
    rounds(ctx)
    first, second, third = [event for event in events(ctx, "score") if event.preview]
    assert first.values == tuple(score.parts[RAW] for score in first.scores)
    assert not any("trust" in score.parts for score in first.scores)
    for event, known in ((second, 3), (third, 6)):
        pairs = preview_pairs([e for e in ctx.events if e.op < event.op])[3]
        assert len(pairs) == known == event.scores[0].parts["pairs"]
        rule = linear(pairs)
        assert event.values == pytest.approx([rule(score.parts[RAW]) for score in event.scores])
        assert event.scores[0].parts["trust"] == spearman(pairs)
    assert ctx.ledger.calls == {"target_reward": 27}


class Washed(GaussianMixtureSampler):
    """Previews that are far from what comes of them, though in the same order."""

    def preview(self, state: State) -> list[Media]:
        preview = state.carry["preview"]
        assert isinstance(preview, torch.Tensor)
        return self._images(preview * 0.3 - 3)


@pytest.mark.parametrize("how", ["linear", "isotonic"])
def test_forecasts_are_closer_to_the_finished_samples_than_previews_are(how: Any) -> None:
    ctx = toy_context(Washed(num_steps=5), Calibrated([TargetReward()], how=how))
    for _ in range(4):
        half = ctx.advance(ctx.init(12), 3)
        ctx.score(half)
        ctx.score(ctx.finish(half))
    last = [event for event in events(ctx, "score") if event.preview][-1]
    finals = np.array([ctx.candidates[uid].score.value for uid in last.uids])
    raw = np.array([score.parts[RAW] for score in last.scores])
    assert np.abs(np.array(last.values) - finals).mean() < 0.2 * np.abs(raw - finals).mean()


@pytest.mark.parametrize("how", ["linear", "isotonic"])
def test_a_search_that_learns_survives_a_kill_anywhere(how: Any, tmp_path: Path) -> None:
    verifier = Calibrated([TargetReward()], how=how, least=3)
    kill_everywhere(rounds, lambda: GaussianMixtureSampler(num_steps=6, order=2), verifier, tmp_path)


def test_micro_batches_change_nothing() -> None:
    whole, parts = (
        toy_context(
            GaussianMixtureSampler(num_steps=5), Calibrated([TargetReward()], least=3), max_batch=size
        )
        for size in (None, 2)
    )
    rounds(whole)
    rounds(parts)
    assert results(parts) == pytest.approx(results(whole))


def test_it_learns_from_earlier_searches(tmp_path: Path) -> None:
    algorithm = {"algorithm": "fk_steering", "algorithm_params": {"lam": 1.0}}
    arguments: dict[str, Any] = {**algorithm, "budget": "12x", "seed": 1}
    search(MODEL, "a", verifier=VERIFIER, output=tmp_path / "earlier", **arguments)
    earlier = load_result(tmp_path / "earlier")
    learnt = f"calibrated({VERIFIER}):least=3,searches=[{tmp_path / 'earlier'}]"
    result = search(MODEL, "a", verifier=learnt, output=tmp_path / "later", **{**arguments, "seed": 2})
    known = preview_pairs(earlier.trace)
    steps = {step for step, pairs in known.items() if len(pairs) >= 3}
    assert steps
    for event in result.trace:
        if event.kind == "answer" and event.what == "score" and event.preview:
            fit = isotonic(known[event.step]) if event.step in steps else lambda value: value
            assert event.values == pytest.approx([fit(score.parts[RAW]) for score in event.scores])
    report = json.loads((tmp_path / "later" / "result.json").read_text())
    assert [row["step"] for row in report["preview_trust"]] == [row.step for row in result.preview_trust]
