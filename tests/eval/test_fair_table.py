"""The fair table: who takes part, what is run in which order, the figures by hand, a run from end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawn_clips import MODEL as CLIPS
from PIL import Image
from untrained_var import MODEL

from tts_vision.config import Spec
from tts_vision.errors import ConfigError, StorageError
from tts_vision.eval.evaluator import Verdict
from tts_vision.eval.evaluators.playground import Playground
from tts_vision.eval.playground import Track, WorldTrack, evaluation_prompts, tracks_of
from tts_vision.eval.playground.__main__ import main
from tts_vision.eval.playground.measures import Measures, Population, mean_distance
from tts_vision.eval.playground.plan import (
    OF_CLIPS,
    Cell,
    Contender,
    Estimate,
    Level,
    Plan,
    Settings,
    Stage,
    Tasks,
    bundled_models,
    contenders,
    estimated,
    prepared,
    unsized,
)
from tts_vision.eval.playground.report import markdown
from tts_vision.eval.playground.table import FairTable, right_by
from tts_vision.files import append_lines
from tts_vision.parameters import validate
from tts_vision.pipelines.playground import motion, motion_checker
from tts_vision.registry import entries, entry_of, lookup
from tts_vision.results import load_result
from tts_vision.runs.manifest import MANIFEST, Manifest
from tts_vision.runs.task import Record, Task, digest_of
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import Video

NAN = math.nan
TTS_VAR = "tts_var:features=playground_features"


def settings(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "tracks": ("hard",),
        "models": ("playground",),
        "algorithms": ("best_of_n", "evosearch"),
        "previews": (),
        "budgets": ("4x",),
        "verifier": "playground_judge",
        "seeds": (0, 1),
        "limit": 3,
    }
    return Settings(**(given | changes))


def items(*tracks: Track) -> dict[Track, Any]:
    return {track: Playground(track=track).items() for track in tracks}


# ------------------------------------------------------------------------------------------------ the plan


def test_everything_that_is_registered_takes_part() -> None:
    every = contenders(settings(tracks=("hard", "motion"), algorithms=(), models=tuple(bundled_models())))
    own = {e.name for e in entries("algorithm") if e.target.__module__.startswith("tts_vision.")}
    for model in ("playground", "playground-var"):
        named = {each.algorithm for each in every if each.model == model}
        assert named == own | {"tts_var:clustering=false"}
    assert {"playground", "playground-var"} <= set(bundled_models())
    models = {e.name for e in entries("model") if e.target.__module__.startswith("tts_vision.")}
    assert set(bundled_models()) <= models
    assert every[0] == Contender("playground", "best_of_n")


def test_models_take_part_in_the_tracks_that_they_are_made_for() -> None:
    assert tracks_of("playground") == tracks_of("playground-var") == ("easy", "hard")
    assert tracks_of("playground-video") == ("motion",)
    assert tracks_of("mine.py@model") == ("easy", "hard", "motion")
    models = ("playground", "playground-video")
    own = settings(tracks=("hard", "motion"), models=models, verifier="", algorithms=())
    assert [own.tracks_of(model) for model in models] == [("hard",), ("motion",)]
    assert [own.guide(track) for track in own.tracks] == ["playground_judge", "playground_motion_judge"]
    assert settings().guide("motion") == "playground_judge", "that is asked for"
    variants = {c.algorithm for c in contenders(own) if c.model == "playground-video"}
    variants -= {c.algorithm for c in contenders(own) if c.model == "playground"}
    assert variants == {f"tree_of_frames:{one}" for one in OF_CLIPS["tree_of_frames"]}
    for name in variants:
        entry = entry_of("algorithm", lookup("algorithm", "tree_of_frames").target)
        validate(entry.target, Spec.parse(name).params, name)
    # by default the models of the chosen tracks take part, so that any track can be named alone
    for track in ("easy", "hard", "motion"):
        chosen = bundled_models((track,))
        assert chosen == [name for name in bundled_models() if track in tracks_of(name)]
        assert settings(tracks=(track,), models=tuple(chosen)).tracks_of(chosen[0]) == (track,)
    assert "playground-video" not in bundled_models(("easy", "hard"))
    with pytest.raises(ConfigError, match="'playground' is for easy and hard, and the tracks are motion"):
        settings(tracks=("motion",), models=("playground",))


def test_searches_of_a_track_are_of_its_models_and_by_its_guide() -> None:
    own = plan(tracks=("hard", "motion"), models=("playground", "playground-video"), verifier="")
    both = {"hard": items("hard")["hard"], "motion": items("hard")["hard"]}
    tasks = Tasks(own, both)
    found = {(tasks.cells[t.name].track, t.config.model, t.config.verifier) for t in tasks.all()}
    assert found == {
        ("hard", "playground", "playground_judge"),
        ("motion", "playground-video", "playground_motion_judge"),
    }


def test_searches_are_compared_at_one_level_or_at_both() -> None:
    who = Contender("playground", "evosearch")
    computed, timed = [Level("4x")], [Level("4x", timed=True)]
    assert settings(levels=("compute",)).levels_of(who) == computed
    assert settings(levels=("seconds",)).levels_of(who) == timed
    assert set(settings().levels_of(who)) == {*computed, *timed}


def test_modes_of_previews_are_arms_of_searches_that_choose_by_previews() -> None:
    chosen = ("best_of_n", "fk_steering:lam=5", "gradient_guidance", "evosearch")
    found = [c.name for c in contenders(settings(algorithms=chosen, previews=("expected", "complete")))]
    assert found == [
        "best_of_n",
        "fk_steering:lam=5",
        "fk_steering:lam=5 with expected previews",
        "fk_steering:lam=5 with complete previews",
        "gradient_guidance",
        "evosearch",
    ]


def test_searches_that_no_budget_sizes_are_told_apart() -> None:
    assert "a person" in str(unsized("draft"))
    assert unsized("best_of_n") is None and unsized("tts_var:clustering=false") is None


def test_budgets_are_those_of_the_reference() -> None:
    own = settings(budgets=("4x", "16x"))
    assert own.yardstick == Level("64x")
    several = [Level("4x"), Level("4x", True), Level("16x"), Level("16x", True)]
    assert own.levels_of(Contender("playground", "evosearch")) == several
    assert own.levels_of(Contender("playground", "best_of_n")) == [Level("1x"), *several, Level("64x")]
    with pytest.raises(ConfigError, match="in plain samples, such as 4x, but got 'nfe=20'"):
        settings(budgets=("nfe=20",))


def plan(**changes: Any) -> Plan:
    own = settings(**changes)
    return Plan(own, limits={model: dict.fromkeys(own.budgets, 0.87) for model in own.models})


def test_a_part_of_a_run_is_a_smaller_run() -> None:
    own = plan(tracks=("easy", "hard"), models=("playground", "playground-var"), limit=4)
    tasks = Tasks(own, items("easy", "hard"))
    every = tasks.all()
    cells = [tasks.cells[task.name] for task in every]
    each = len(set(cells))
    assert each == 2 * 2 * (4 + 2) and len(every) == each * 4 * 2
    for start in range(0, len(every), each):
        part = every[start : start + each]
        assert len({tasks.cells[task.name] for task in part}) == each, "a search of each cell"
        assert len({(task.prompt_id, task.config.seed) for task in part}) == 1
    assert [task.config.seed for task in every] == sorted(task.config.seed for task in every)
    texts = [task.config.prompt for task in every if tasks.cells[task.name].track == "hard"]
    assert list(dict.fromkeys(texts)) == [prompt.text for prompt in evaluation_prompts(4, "hard")]


def test_searches_have_the_budgets_of_their_cells() -> None:
    tasks = Tasks(plan(), items("hard"))
    contender = Contender("playground-var", "fk_steering", "complete")
    own = replace(tasks.plan, limits={"playground-var": {"4x": 0.87}})
    tasks = Tasks(own, tasks.items)
    (even, *_), (timed, *_) = (tasks.of(Cell("hard", contender, Level("4x", t))) for t in (False, True))
    assert even.config.budget == "4x" and timed.config.budget == "seconds=0.87"
    assert even.config.sampler_options.preview == timed.config.sampler_options.preview == "complete"
    assert even.name != timed.name and even.config.verifier == "playground_judge"


def test_an_estimate_is_the_sum_of_its_parts() -> None:
    estimate = Estimate({"a": 30.0, "b": 6.0}, {"easy": 10, "hard": 15}, searches=1000, workers=2)
    assert estimate.total == 25 * 36 / 2
    # 36 s for a prompt of each of two tracks, twice as fast on two workers
    assert estimate.fitting(hours=1) == 100
    assert estimate.fitting(hours=1e-6) == 1
    assert str(estimate) == ("1000 searches for 10 easy, 15 hard prompts: about 7:30 (a 6:15, b 1:15)")


def test_a_model_takes_the_time_of_its_own_tracks() -> None:
    estimate = Estimate(
        {"a": 30.0, "b": 6.0}, {"easy": 10, "motion": 15}, 1000, 2, {"a": ("easy",), "b": ("motion",)}
    )
    assert estimate.total == (10 * 30 + 15 * 6) / 2
    assert estimate.fitting(hours=1) == 200, "36 s for a prompt of each, twice as fast"


def test_a_plan_is_kept(tmp_path: Path) -> None:
    own = plan(dtype="bfloat16")
    own.refuse(Contender("playground", "draft"), "a person")
    own.save(tmp_path)
    assert Plan.load(tmp_path) == own and Plan.load(tmp_path / "none") is None
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(StorageError, match="must be what the benchmark wrote"):
        Plan.load(tmp_path)


# ---------------------------------------------------------------------------------------------- the figures


class Known:
    """Verdicts that are given, in place of `Measures`."""

    def __init__(self, root: Path, right: set[str], missed: set[str]) -> None:
        self.root, self._right, self._missed = root, right, missed
        self.evaluators = {"hard": SimpleNamespace(metric="accuracy")}

    def right(self, track: Track, record: Record) -> bool:
        return record.name in self._right

    def population(self, track: Track, record: Record) -> Population:
        found = record.name in self._right | self._missed
        return Population(right=int(found), diversity=0.5 if record.seed else 0.1)

    def trail(self, track: Track, records: Sequence[Record]) -> dict[str, Any]:
        def verdict(right: bool) -> Verdict:
            return Verdict({"accuracy": float(right)}, right)

        return {r.name: [(1.0, r.elapsed / 2, verdict(self.right(track, r)))] for r in records}


def record_of(task: Task, elapsed: float, topped_up: float = 0.0) -> Record:
    return Record(
        name=task.name,
        arm=task.arm,
        prompt_id=task.prompt_id,
        prompt=task.config.prompt,
        seed=task.config.seed,
        hash=task.config.hash,
        file="",
        sha256="",
        score=0.5,
        satisfied=None,
        nfe=104.0,
        macs=0.0,
        decodes=4,
        verifier_calls=4,
        elapsed=elapsed,
        seconds={},
        limit=NAN,
        topped_up=topped_up,
        holdout=NAN,
    )


def test_the_figures_are_those_by_hand(tmp_path: Path) -> None:
    own = plan(limit=6)
    tasks = Tasks(own, items("hard"))
    right: set[str] = set()
    missed: set[str] = set()
    dropped = ""
    for task in tasks.all():
        cell = tasks.cells[task.name]
        search = cell.contender.algorithm == "evosearch"
        number = int(task.prompt_id)
        # best of n is right for prompts 0 and 1; evosearch for 0 to 3, with seed 1 for 4 as well
        if number < (4 if search else 2) or (search and number == 4 and task.config.seed):
            right.add(task.name)
        elif number == 5:
            missed.add(task.name)
        if cell == Cell("hard", Contender("playground", "evosearch"), Level("4x")) and number == 3:
            dropped = dropped or task.name
        if task.name != dropped:
            elapsed = 4.0 if cell.level == own.settings.yardstick else 2.0 if search else 1.0
            Manifest(tmp_path).add(record_of(task, elapsed, 0.25 if search else 0.0))
    table = FairTable.of(own, tasks.items, Known(tmp_path, right, missed))  # type: ignore[arg-type]
    assert table.left == 1
    by_place = {(row.search, row.budget, row.limit): row for row in table.rows}
    assert list(by_place) == [
        ("best_of_n", "1x", None),
        ("best_of_n", "4x", None),
        ("evosearch", "4x", None),
        ("best_of_n", "4x", 0.87),
        ("evosearch", "4x", 0.87),
        ("best_of_n", "16x", None),
    ]
    # a search is missing for prompt 3 and seed 0, so best of n is not counted there either
    even, search = by_place["best_of_n", "4x", None], by_place["evosearch", "4x", None]
    assert (even.searches, search.searches, search.prompts) == (11, 11, 6)
    assert even.right.value == pytest.approx(4 / 11) and search.right.value == pytest.approx(8 / 11)
    assert search.difference.value == pytest.approx(4 / 11)
    assert 0 <= search.difference.low < 4 / 11 < search.difference.high < 1
    assert math.isnan(even.difference.value) and search.yardstick is None
    assert search.rejected == pytest.approx(3 / 11)
    # rejected: prompt 4 with seed 0, and prompt 5 twice, where the population has a right one
    assert search.missed == pytest.approx(2 / 3) and even.missed == pytest.approx(2 / 7)
    assert search.own == pytest.approx(0.75) and even.own == 1 and search.seconds == 2
    assert search.diversity == pytest.approx((5 * 0.1 + 6 * 0.5) / 11)
    # known after half of the time; the slowest takes 2 s
    assert even.area == pytest.approx(4 / 11 * 0.75) and search.area == pytest.approx(8 / 11 * 0.5)
    timed = by_place["evosearch", "4x", 0.87]
    assert timed.right.value == pytest.approx(9 / 12) and timed.yardstick is not None
    assert timed.yardstick.value == pytest.approx(5 / 12), "less best of n at 16x, right for 2 of 6"
    (yardstick,) = table.yardsticks
    assert yardstick.budget == "16x" and yardstick.seconds == 4
    assert yardstick.right.value == pytest.approx(1 / 3)
    assert yardstick.in_a_quarter.value == 0, "nothing is known before half of the time"
    text = markdown(table)
    assert "1 searches are missing" in text
    assert (
        "| evosearch | 72.7 [" in text
        and "As often as at 16x in a quarter of its seconds: `evosearch`." in text
    )


def test_the_best_sample_by_a_time_counts() -> None:
    points = [(1.0, 0.5, Verdict(correct=False)), (2.0, 1.5, Verdict(correct=True))]
    assert [right_by(points, at) for at in (0.4, 0.5, 1.4, 1.5, 9)] == [False, False, False, True, True]
    assert not right_by([], 1)


def test_diversity_is_the_mean_distance_of_all_pairs() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 5))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(7) for j in range(i)]
    assert mean_distance(rows) == pytest.approx(np.mean(pairs))
    assert mean_distance(np.ones((3, 2))) == pytest.approx(0)


# ---------------------------------------------------------------------------------------------------- a run


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    chosen = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--model", MODEL]
    chosen += ["--track", "hard", "--budgets", "2x", "--limit", "2", "--seeds", "0"]
    return [*chosen, "--algorithms", TTS_VAR, "tts_var:clustering=false", "zero_order", "draft"]


@pytest.mark.draws
def test_a_run_makes_the_table_and_goes_on(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main([*arguments, "--previews", "complete"])
    told = capsys.readouterr()
    text = (tmp_path / "results" / "playground.md").read_text()
    assert text in told.out and "searches for 2 hard prompts: about" in told.err
    data = json.loads((tmp_path / "results" / "playground.json").read_text())
    searches = [TTS_VAR, "tts_var:clustering=false"]
    arms = ["best_of_n", *(n for s in searches for n in (s, f"{s} with complete previews"))]
    found = [(row["search"], row["budget"], row["limit"] is None) for row in data["rows"]]
    assert found == [
        ("best_of_n", "1x", True),
        *((name, "2x", even) for even in (True, False) for name in arms),
        ("best_of_n", "8x", True),
    ]
    assert all(row["searches"] == 2 and row["prompts"] == 2 for row in data["rows"])
    one = data["rows"][0]["macs"]
    assert all(row["macs"] <= 2 * one * (1 + 1e-9) for row in data["rows"][1:6])
    assert 7.5 * one < data["rows"][-1]["macs"] <= 8 * one, "fresh particles share their first pass"
    refused = data["plan"]["refused"][MODEL]
    assert set(refused) == {"zero_order", "draft"} and "lacks noise" in refused["zero_order"]
    assert "### Does not apply, or failed" in text and "lacks noise" in text
    assert (tmp_path / "results" / "playground.png").stat().st_size > 1000
    # a table of the figures as they are, and nothing is computed a second time
    monkeypatch.setattr("tts_vision.runner._search", None)
    main(["--tables", "--output", str(tmp_path / "runs")])
    assert text in capsys.readouterr().out
    main([*arguments, "--previews", "complete"])
    assert (tmp_path / "results" / "playground.md").read_text() == text
    with pytest.raises(SystemExit, match="must have the same verifier but"):
        main([*arguments, "--verifier", "playground_clip"])


def test_a_table_of_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searches = ["tree_of_frames", "tree_of_frames:backtrack=true,prune=threshold,threshold=1"]
    chosen = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--model", CLIPS]
    chosen += ["--track", "motion", "--verifier", "playground_motion", "--budgets", "2x", "--limit", "1"]
    main([*chosen, "--seeds", "0", "--algorithms", *searches])
    text = capsys.readouterr().out
    assert f"### motion, {CLIPS}" in text and "Guided by `playground_motion`" in text
    data = json.loads((tmp_path / "results" / "playground.json").read_text())
    rows = {(row["search"], row["budget"], row["limit"] is None): row for row in data["rows"]}
    assert set(rows) == {
        ("best_of_n", "1x", True),
        *((name, "2x", even) for even in (True, False) for name in ("best_of_n", *searches)),
        ("best_of_n", "8x", True),
    }
    assert all(row["searches"] == row["prompts"] == 1 for row in rows.values())
    assert all(row["nfe"] <= 8 for (_, budget, even), row in rows.items() if budget == "2x" and even)
    # by the checker itself, on the lossless clips that were kept
    (prompt,) = evaluation_prompts(1, "motion")
    right: dict[str, bool] = {}
    for record in Manifest(tmp_path / "runs").read().values():
        clip = load_result(tmp_path / "runs" / record.name).best.load()
        assert isinstance(clip, Video)
        verdict = motion_checker.evaluate(clip.frames.numpy(), motion.spec_of(prompt.metadata))
        right[record.name.split("/")[2] + " " + record.arm] = verdict.correct
    assert all(
        row["right"]["value"] == right[f"2x {name}"]
        for (name, budget, even), row in rows.items()
        if even and budget == "2x"
    )


def test_a_run_can_be_planned_first_and_carried_out_by_several_processes(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [a for a in arguments if a not in ("tts_var:clustering=false", "zero_order", "draft")]
    main([*chosen, "--stop-after", "plan"])
    found = Plan.load(tmp_path / "runs")
    assert found is not None and found.limits[MODEL]["2x"] > 0
    told = capsys.readouterr()
    assert "about" in told.err and not told.out and not (tmp_path / "results").exists()
    main([*chosen, "--stop-after", "searches"])
    finished = (tmp_path / "runs" / MANIFEST).read_text()
    assert not (tmp_path / "results").exists()
    main(chosen)
    assert (tmp_path / "runs" / MANIFEST).read_text() == finished, "nothing is left to do but the table"
    assert (tmp_path / "results" / "playground.md").exists()


def test_an_interrupted_run_shows_what_it_has(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [a for a in arguments if a not in ("tts_var:clustering=false", "zero_order", "draft")]
    main(chosen)
    whole = (tmp_path / "results" / "playground.md").read_text()
    capsys.readouterr()
    path = tmp_path / "runs" / MANIFEST
    lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    append_lines(path, "".join(lines[:-1]))
    main(["--tables", "--output", str(tmp_path / "runs")])
    assert "1 searches are missing" in capsys.readouterr().out
    main(chosen)
    assert (tmp_path / "results" / "playground.md").read_text() == whole


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budgets", "seconds=3"], "in plain samples, such as 4x, but got 'seconds=3'"),
        (["--hours", "0"], "--hours must be positive"),
        (["--limit", "0"], "--limit at least 1"),
        (["--workers", "2"], "add --executor ray"),
        (["--algorithms", "evosearh"], "did you mean 'evosearch'"),
        (["--verifier", "none"], "Verifier must be one of"),
        (["--tables"], "holds none; leave it out"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(
    more: list[str], message: str, arguments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        main([*arguments, *more])
    assert not (tmp_path / "runs" / MANIFEST).exists()


def test_the_measures_of_a_folder_are_taken_once_and_not_of_changed_files(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "population"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    entries_ = [{"uid": uid, "file": f"population/{uid}.png", "preview": False} for uid in (2, 0, 1)]
    result = {"population": entries_, "topped_up": {"samples": 1}}
    (tmp_path / "a" / "result.json").write_text(json.dumps(result))
    task = Tasks(plan(), items("hard")).all()[0]
    best = folder / "0.png"
    record = replace(record_of(task, 1.0), name="a", file="a/population/0.png", sha256=digest_of(best))
    notes: list[str] = []
    measures = Measures(tmp_path, {"hard": Playground(track="hard")}, notes.append)
    assert measures.right("hard", record) is False
    found = measures.population("hard", record)
    assert found.right == 0 and 0 < found.diversity < 2
    # of the algorithm's own two, the youngest being for the rest of the budget
    own = {"population": entries_[1:], "topped_up": {"samples": 0}}
    (tmp_path / "a" / "result.json").write_text(json.dumps(own))
    assert Measures(tmp_path, measures.evaluators, notes.append).population("hard", record) == found
    (tmp_path / "populations.jsonl").unlink()
    again = Measures(tmp_path, measures.evaluators, notes.append).population("hard", record)
    assert again.diversity == pytest.approx(found.diversity)
    best.write_bytes(b"x")
    with pytest.raises(StorageError, match="must be the file that it wrote"):
        measures.right("hard", record)


def toys(**changes: Any) -> Settings:
    """A sampler and a verifier that cost nothing."""
    file = Path(__file__).parents[1] / "toy_plugins.py"
    return settings(**{"models": (f"{file}@model",), "verifier": f"{file}@verifier", "limit": 6} | changes)


def test_budgets_in_seconds_are_what_the_reference_took_and_stay_so(tmp_path: Path) -> None:
    own = toys(algorithms=("evosearch", "fk_steering"), budgets=("2x", "4x"))
    (model,) = own.models
    stage = Stage(tmp_path, items("hard"))
    measured: list[Record] = []

    def note_of(track: WorldTrack, records: Sequence[Record]) -> None:
        assert track == "hard"
        measured.extend(records)

    found = prepared(own, stage, note_of)
    records = Manifest(tmp_path).read()
    tasks = Tasks(found, stage.items)
    for times in own.budgets:
        cell = Cell("hard", Contender(model, "best_of_n"), Level(times))
        took = sorted(records[task.name].elapsed for task in tasks.of(cell)[::2] if task.name in records)
        assert len(took) == 5 and found.limits[model][times] == float(f"{took[2]:.2g}")
    # one of each search at each compute; for best of n one sample of five prompts, two budgets of these, 16x
    assert len(records) == 2 * 2 + 5 * 3 + 1 and len(measured) == 2 * 2 + 1
    assert found.overhead >= 0 and not found.refused
    estimate = estimated(found, stage)
    tried = [
        records[task.name].elapsed
        for who in ("best_of_n", "evosearch", "fk_steering")
        for level in own.levels_of(Contender(model, who))
        if not level.timed
        for task in tasks.of(Cell("hard", Contender(model, who), level))[:1]
    ]
    timed = 3 * sum(found.limits[model].values())
    assert len(tried) == 8 and estimate.searches == 14 * 6 * 2
    assert estimate.seconds[model] == pytest.approx(2 * (sum(tried) + timed + 14 * found.overhead))
    again = prepared(own, stage, note_of)
    assert again == found and len(measured) == 5, "nothing is tried twice"
    more = prepared(replace(own, budgets=("2x", "4x", "8x")), stage, note_of)
    assert {times: more.limits[model][times] for times in own.budgets} == found.limits[model]


def test_a_search_that_fails_when_it_is_tried_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(GaussianMixtureSampler, "apply", fail)
    notes: list[str] = []
    own = toys(algorithms=("zero_order:starts=1", "prompt_search", "variations"), limit=1)
    (model,) = own.models
    stage = Stage(tmp_path, items("hard"), note=notes.append)
    found = prepared(own, stage, lambda track, records: None)
    assert {"zero_order:starts=1", "variations"} <= set(found.refused[model])
    assert "a mistake" in found.refused[model]["zero_order:starts=1"]
    assert any("zero_order:starts=1 failed" in note and "takes no part" in note for note in notes)
    assert found.takes_part(Contender(model, "prompt_search")), found.refused
    cells = {tasks.contender.name for tasks in Tasks(found, stage.items).cells_of("hard")}
    assert cells.isdisjoint(found.refused[model]) and {"best_of_n", "prompt_search"} <= cells
