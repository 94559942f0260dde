"""Searches until a target: they end at the first sample that reaches it, and go on to the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from toy_plugins import MODEL, VERIFIER, first_coordinate
from tts_vision import RunConfig, search
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError, TargetReached
from tts_vision.results import read_config
from tts_vision.runner import run
from tts_vision.testing.contracts import Ranked
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, position_of
from tts_vision.trace import Event, answers
from tts_vision.types import Media, Prompt, Score, State
from tts_vision.verifier import ALONE, Asked, Verifier

pytestmark = pytest.mark.filterwarnings("ignore::tts_vision.errors.SearchWarning")
ALGORITHMS = [
    "best_of_n",
    "zero_order",
    "search_over_paths",
    "evosearch",
    "fk_steering",
    "beam_search",
    "reno",
]


class Demanding(Verifier):
    """Scores by the first coordinate; all demands are met where the second one is above 0.6."""

    name = "demanding"
    accepts = TargetReward.accepts
    checks_demands = True

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        points = [position_of(image) for image in media]
        return [Score(value=float(x), satisfied=bool(y > 0.6)) for x, y in points]


def toy() -> GaussianMixtureSampler:
    return GaussianMixtureSampler(num_steps=6)


def scores(result: Any) -> list[float]:
    """Of finished samples, in the order they were made."""
    return [v for event in answers(result.trace, "score") if not event.preview for v in event.values]


def test_a_search_ends_at_the_first_sample_that_is_good_enough() -> None:
    settings: dict[str, Any] = {"verifier": TargetReward(), "seed": 1}
    whole = search(toy(), "a", budget="16x", **settings)
    made = [candidate.score.value for candidate in sorted(whole.population, key=lambda c: c.uid)]
    target = sorted(made)[-3]
    first = next(i for i, value in enumerate(made) if value >= target)
    assert 2 < first < 8
    result = search(toy(), "a", budget="16x", target=target, **settings)
    # batches grow as samples come in: 1, 1, 2, 4, 8
    assert len(result.population) in {1, 2, 4, 8} and first < len(result.population) <= 2 * first
    assert result.satisfied is True and result.best.score.value >= target
    assert scores(result) == pytest.approx(made[: len(result.population)]), "the samples are the same"
    assert result.spent.nfe == 6 * len(result.population) and not result.budget_spent
    done = result.trace[-1]
    assert done.kind == "done" and done.satisfied is True and done.best == result.best.uid
    assert "satisfied" in repr(result) and result.topped_up.samples == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_search_ends_early(algorithm: str) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "verifier": TargetReward(), "budget": "9x"}
    whole = search(toy(), "a", **settings)
    assert whole.satisfied is None
    reached = search(toy(), "a", target=-100.0, **settings)
    assert reached.satisfied is True and reached.spent.nfe <= whole.spent.nfe
    assert len(list(answers(reached.trace, "score"))) >= 1 and reached.trace[-1].kind == "done"
    last = reached.trace[-2]
    assert last.kind == "answer" and last.what == "score" and not last.preview, "nothing came after it"
    never = search(toy(), "a", target=100.0, **settings)
    assert never.satisfied is False and "not satisfied" in repr(never)
    assert 0 <= 54 - never.spent.nfe < 6, "the budget is spent as without a target"


def test_previews_do_not_reach_a_target() -> None:
    ctx = SearchContext(toy(), TargetReward(), Prompt("x"), seed=0, target=-100.0)
    state = ctx.advance(ctx.init(2), 3)
    assert len(ctx.score(state)) == 2 and ctx.satisfied is False
    ctx.score(ctx.finish(state), "other words")
    assert ctx.satisfied is False, "nor do scores by other prompts"
    with pytest.raises(TargetReached):
        ctx.score(ctx.finish(state))
    assert ctx.satisfied is True and len(ctx.candidates) == 2


def test_a_search_until_all_demands_are_met() -> None:
    result = search(toy(), "a", verifier=Demanding(), target="satisfied", budget="32x", seed=1)
    assert result.satisfied is True and result.best.score.satisfied is True
    assert len(result.population) < 32
    others = [c for c in result.population if not c.score.satisfied]
    # what meets the demands wins over what scores higher
    assert max(c.score.value for c in others) > result.best.score.value
    met = [c.score.value for c in result.population if c.score.satisfied]
    assert result.best.score.value == max(met)
    plain = search(toy(), "a", verifier=Demanding(), budget="32x", seed=1)
    assert plain.best.score.value == max(c.score.value for c in plain.population)


def test_a_search_whose_demands_are_never_met() -> None:
    class Never(Demanding):
        def score(
            self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE
        ) -> list[Score]:
            found = super().score(media, prompts)
            return [score.model_copy(update={"satisfied": False}) for score in found]

    result = search(toy(), "a", verifier=Never(), target="satisfied", budget="5x")
    assert result.satisfied is False and len(result.population) == 5
    assert result.best.score.value == max(c.score.value for c in result.population)


def test_samples_that_cannot_be_scored_do_not_reach_a_target() -> None:
    def blind(images: list[Media], prompts: list[str]) -> list[float]:
        return [float("nan") if position_of(image)[0] > -1 else 0.5 for image in images]

    result = search(toy(), "a", verifier=blind, target=0.5, budget="32x", seed=2)
    assert result.satisfied is True and result.best.score.value == 0.5
    assert scores(result)[0] != scores(result)[0]


def test_the_holdout_judges_what_was_made() -> None:
    result = search(
        toy(), "a", verifier=TargetReward(), holdout_verifier=first_coordinate, target=-100.0, budget="9x"
    )
    assert len(result.population) == 1 and result.holdout is not None
    assert [event.uids for event in answers(result.trace, "heldout")] == [(0,)]


@pytest.mark.parametrize("algorithm", ["best_of_n", "fk_steering", "evosearch"])
def test_a_search_killed_at_any_event_ends_with_the_same(algorithm: str, tmp_path: Path) -> None:
    plain = search(MODEL, "a", algorithm=algorithm, verifier=VERIFIER, budget="8x", seed=5)
    target = sorted(scores(plain))[-2]
    config = RunConfig(
        prompt="a", model=MODEL, verifier=VERIFIER, algorithm=algorithm, budget="8x", target=target, seed=5
    )
    snapshots: list[Path] = []

    def copy(context: SearchContext, event: Event) -> None:
        snapshots.append(tmp_path / "snaps" / f"{len(snapshots):03d}")
        shutil.copytree(tmp_path / "whole", snapshots[-1])

    whole = run(config, output=tmp_path / "whole", progress=copy, figures=False)
    assert whole.satisfied is True and len(snapshots) > 3
    for folder in snapshots:
        again = run(read_config(folder), output=folder, resume=True, figures=False)
        assert again.satisfied is True
        assert (folder / "best.png").read_bytes() == (tmp_path / "whole" / "best.png").read_bytes()
        reports = [json.loads((each / "result.json").read_text()) for each in (folder, tmp_path / "whole")]
        assert [report.pop("timing") and report for report in reports] == [reports[0]] * 2, folder.name


@pytest.mark.parametrize(
    ("verifier", "target", "message"),
    [
        (
            TargetReward(),
            "satisfied",
            "a verifier that checks demands but 'target_reward' gives scores alone",
        ),
        (Ranked(TargetReward()), 0.5, r"but those of 'ranked' compare .* leave out target=0.5"),
        (f"ensemble({VERIFIER}, {MODEL.rpartition('@')[0]}@first_coordinate)", 0.5, "compare samples"),
        (TargetReward(), float("nan"), "must be a finite score or 'satisfied' but got nan"),
        (TargetReward(), "good", "must be a finite score or 'satisfied' but got 'good'"),
    ],
)
def test_targets_that_cannot_be_reached_are_refused(
    verifier: Any, target: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        search(toy(), "a", verifier=verifier, target=target, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_algorithms_need_not_know() -> None:
    made: list[int] = []

    def forever(ctx: SearchContext, *, n: int = 1) -> State:
        while True:
            state = ctx.finish(ctx.init(n))
            made.extend(state.uids)
            ctx.score(state)

    result = search(toy(), "a", algorithm=forever, verifier=TargetReward(), target=-0.2, budget="1000x")
    assert result.satisfied is True and result.best.uid == made[-1] == len(made) - 1
