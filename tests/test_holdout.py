"""The holdout: it scores after the search, never guides it, and warns when the guide was fooled."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from toy_plugins import MODEL, VERIFIER
from tts_vision import RunConfig, search
from tts_vision.errors import ConfigError, HoldoutWarning
from tts_vision.figures import Point
from tts_vision.holdout import held_out, holdout_report
from tts_vision.journal import Journal
from tts_vision.results import load_result
from tts_vision.runner import resume, run
from tts_vision.testing.toys import GaussianMixtureSampler, LinearReward, TargetReward
from tts_vision.trace import Answer, Event, answers, read_trace
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import ALONE, Asked

FILE = MODEL.rpartition("@")[0]
FIRST = f"{FILE}@first_coordinate"
AGAINST = f"{VERIFIER}:x=-4,y=-4"  # falls where VERIFIER rises
ALGORITHMS = ("best_of_n", "zero_order", "search_over_paths", "evosearch", "fk_steering")
NAN = float("nan")


def config(**settings: Any) -> RunConfig:
    return RunConfig(**{"prompt": "a", "model": MODEL, "verifier": VERIFIER, "budget": "5x", **settings})


def what_happened(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The events without times, and without what is recorded after the end."""
    kept = [event.model_dump(exclude={"spent": {"seconds", "elapsed", "peak_memory"}}) for event in events]
    return [event for event in kept if event["kind"] != "began" and event.get("what") != "heldout"]


def heldout(*values: float, uids: Sequence[int] = (0, 1)) -> Answer:
    """The record of a holdout's scores."""
    scores = tuple(Score(value=value) for value in values)
    return Answer(op=1, what="heldout", uids=tuple(uids), scores=scores, value={"seconds": 0.5})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.filterwarnings("ignore::tts_vision.errors.HoldoutWarning")
def test_it_never_guides_the_search(algorithm: str) -> None:
    alone = run(config(algorithm=algorithm))
    watched = run(config(algorithm=algorithm, holdout_verifier=FIRST))
    assert repr(what_happened(watched.trace)) == repr(what_happened(alone.trace))
    assert watched.spent.calls == alone.spent.calls and watched.spent.nfe == alone.spent.nfe
    assert watched.best.uid == alone.best.uid
    assert alone.holdout is None and watched.holdout is not None


def test_it_is_called_after_the_last_event_with_every_sample() -> None:
    seen: list[tuple[int, int]] = []
    happened: list[str] = []

    def watching(images: list[Media], prompts: list[str]) -> list[float]:
        assert prompts == ["a"] * len(images)
        seen.append((len(happened), len(images)))
        return [float(i) for i in range(len(images))]

    result = search(
        GaussianMixtureSampler(num_steps=4),
        "a",
        verifier=TargetReward(),
        holdout_verifier=watching,
        budget="6x",
        progress=lambda context, event: happened.append(event.what),
    )
    assert happened[-1] == "done"
    assert seen == [(len(happened), 6)]
    assert held_out(result.trace) == {uid: float(uid) for uid in range(6)}
    assert result.config.holdout_verifier == "<" + watching.__qualname__ + ">"


def test_the_report_is_of_the_first_sample_and_the_winner() -> None:
    curve = [Point(1, 1, 4, 0.1, 4, 0.1), Point(2, 2, 7, 0.9, 7, 0.9), Point(3, 3, 9, 0.5, 7, 0.9)]
    events: list[Event] = [heldout(3.0, 1.0, NAN, 2.0, uids=(4, 7, 8, 9))]
    report = holdout_report(events, curve)
    assert report is not None
    assert (report.first, report.best, report.guide_gain) == (3.0, 1.0, pytest.approx(0.8))
    assert (report.spearman, report.unscored, report.calls, report.seconds) == (-1.0, 1, 4, 0.5)
    assert report.fell
    assert report.warning("clip", "hps") == (
        "clip rose by 0.8 from the first sample to the best one, but hps, which never guided it, fell from 3 "
        "to 1: the search may have fitted the verifier rather than the prompt; look at the samples, or guide "
        "by an ensemble."
    )
    assert holdout_report([], curve) is None
    assert holdout_report(events, []) is None


@pytest.mark.parametrize(
    ("values", "fell"), [((3.0, 4.0), False), ((3.0, 3.0), False), ((3.0, 2.9), True), ((NAN, 2.0), False)]
)
def test_it_falls_only_if_the_winner_is_worse_than_the_first(values: tuple[float, float], fell: bool) -> None:
    curve = [Point(1, 1, 0, 0.1, 0, 0.1), Point(2, 2, 1, 0.9, 1, 0.9)]
    report = holdout_report([heldout(*values)], curve)
    assert report is not None and report.fell is fell
    # nothing rose: the first sample is the winner
    flat = holdout_report([heldout(*values)], [curve[0], Point(2, 2, 1, 0, 0, 0.1)])
    assert flat is not None and not flat.fell


def test_a_fooled_guide_is_told() -> None:
    with pytest.warns(HoldoutWarning, match="rose by .* which never guided it, fell from") as caught:
        result = run(config(verifier=VERIFIER, holdout_verifier=AGAINST, budget="12x"))
    assert result.holdout is not None and result.holdout.fell
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agrees = run(config(holdout_verifier=f"{VERIFIER}:x=1.1", budget="12x"))
    assert agrees.holdout is not None and not agrees.holdout.fell
    assert agrees.holdout.spearman is not None and agrees.holdout.spearman > 0.9


def test_the_warning_points_at_the_caller() -> None:
    with pytest.warns(HoldoutWarning) as caught:
        search(MODEL, "a", verifier=VERIFIER, holdout_verifier=AGAINST, budget="12x")
    assert caught[0].filename == __file__


@pytest.mark.draws
@pytest.mark.filterwarnings("ignore::tts_vision.errors.HoldoutWarning")
def test_the_folder_has_its_verdicts_and_its_curve(tmp_path: Path) -> None:
    run(config(budget="12x"), output=tmp_path / "alone")
    result = run(config(holdout_verifier=AGAINST, budget="12x"), output=tmp_path / "watched")
    report = json.loads((tmp_path / "watched" / "result.json").read_text())
    assert report["holdout"] == result.holdout.as_json()  # type: ignore[union-attr]
    assert report["holdout"]["fell"] is True and report["holdout"]["calls"] == 12
    assert json.loads((tmp_path / "alone" / "result.json").read_text())["holdout"] is None
    again = load_result(tmp_path / "watched")
    assert again.holdout == result.holdout
    # the curve of the holdout is drawn beside that of the guide, for the best sample so far
    alone, watched = (load_result(tmp_path / name).plot() for name in ("alone", "watched"))
    assert (len(alone.axes), len(watched.axes)) == (2, 4)
    drawn = watched.axes[-1].lines[0].get_ydata()
    verdicts = held_out(again.trace)
    assert list(drawn) == [verdicts[point.best_uid] for point in again.curve()]
    assert AGAINST[:20] in watched.axes[-1].get_ylabel()
    with Image.open(tmp_path / "watched" / "scaling.png") as image:
        assert image.width > 500
    assert (tmp_path / "watched" / "scaling.png").read_bytes() != (
        tmp_path / "alone" / "scaling.png"
    ).read_bytes()


@pytest.mark.filterwarnings("ignore::tts_vision.errors.HoldoutWarning")
def test_a_kill_before_or_after_the_verdicts_changes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    whole = tmp_path / "whole"
    append = Journal.append

    def copying(journal: Journal, event: Event) -> None:
        if event.what == "heldout":
            shutil.copytree(whole, tmp_path / "before")
        append(journal, event)
        if event.what == "heldout":
            shutil.copytree(whole, tmp_path / "after")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", copying)
        run(config(holdout_verifier=AGAINST, algorithm="evosearch"), output=whole, figures=False)
    for name in ("before", "after"):
        assert not (tmp_path / name / "result.json").exists()
        resume(tmp_path / name, trust=True)
        reports = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("whole", name)]
        assert {**reports[0], "timing": None} == {**reports[1], "timing": None}
        events = read_trace(tmp_path / name / "trace.jsonl")
        assert len(list(answers(events, "heldout"))) == 1


def fails(images: list[Media], prompts: list[str]) -> list[float]:
    raise RuntimeError("no such judge")


def breaks(images: list[Media], prompts: list[str]) -> list[float]:
    return [0.0]


@pytest.mark.parametrize(
    ("holdout", "reason"), [(fails, "no such judge"), (breaks, "must return one score per sample, 3 here")]
)
def test_a_holdout_that_fails_costs_nothing_but_its_verdict(holdout: Any, reason: str) -> None:
    result = search(
        GaussianMixtureSampler(num_steps=4),
        "a",
        verifier=TargetReward(),
        holdout_verifier=holdout,
        budget="3x",
    )
    assert result.best.score.value > -100
    assert result.holdout is not None and result.holdout.unscored == 3 and not result.holdout.fell
    assert result.holdout.as_json()["first"] is None
    (event,) = answers(result.trace, "heldout")
    assert all(reason in (score.reason or "") for score in event.scores)


class Counting(LinearReward):
    """Counts the samples of each call."""

    name = "counting"

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        self.sizes.append(len(media))
        return super().score(media, prompts)


@pytest.mark.parametrize("flag", ["relative", "settles", None])
def test_samples_are_compared_all_together_by_a_verifier_that_compares(
    flag: str | None, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tts_vision.holdout._BATCH", 4)
    judge = Counting()
    if flag:
        setattr(judge, flag, True)
    search(
        GaussianMixtureSampler(num_steps=4),
        "a",
        verifier=TargetReward(),
        holdout_verifier=judge,
        budget="10x",
    )
    assert judge.sizes == ([10] if flag else [4, 4, 2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"holdout_verifier": "clipp"}, "got 'clipp'"),
        ({"holdout_verifier": f"{FILE}@Videos"}, "'videos' scores video but 'gaussian_mixture' makes image"),
        ({"holdout_verifier": VERIFIER}, "A holdout must not guide the search but .* is the verifier"),
        (
            {"verifier": f"ensemble({FIRST}, cascade({VERIFIER}, {FIRST}))", "holdout_verifier": VERIFIER},
            "or a member of it; name another one",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(
    settings: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(config(**settings), output=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_guide_with_other_parameters_may_be_held_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HoldoutWarning)
        result = run(config(verifier=f"ensemble({VERIFIER}, {FIRST})", holdout_verifier=f"{VERIFIER}:x=2"))
    assert result.holdout is not None


def test_the_same_object_may_not_guide_and_judge() -> None:
    judge = TargetReward()
    with pytest.raises(ConfigError, match="A holdout must not guide the search"):
        search(GaussianMixtureSampler(num_steps=4), "a", verifier=judge, holdout_verifier=judge, budget="2x")
