"""Benchmarks: winners, verdicts, figures, curves and pages, with a judge whose verdicts are known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from toy_plugins import MODEL, VERIFIER
from tts_vision.cli import app
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.evaluation import Evaluation, evaluate, evaluate_images, spread
from tts_vision.eval.evaluator import Evaluator, Item, Judged, Sample, Verdict
from tts_vision.eval.judging import Judgements
from tts_vision.eval.report import write_report
from tts_vision.eval.statistics import arm_of, figures_of
from tts_vision.eval.tables import markdown, terminal
from tts_vision.runs.task import Best, Record
from tts_vision.testing.toys import TargetReward
from tts_vision.types import Prompt

TRUE = TargetReward()


class Toy(Evaluator):
    """Judges toy images by how near they are to the target; right within half of it."""

    name = "toy"
    metric = "accuracy"
    samples_per_item = 2
    calls: int = 0

    def __init__(self, *, prompts: int = 6, broken: bool = False) -> None:
        self.prompts, self.broken = prompts, broken

    def items(self) -> list[Item]:
        return [
            Item(f"{i:03d}", Prompt(f"prompt {i}"), ("even" if i % 2 == 0 else "odd",))
            for i in range(self.prompts)
        ]

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        type(self).calls += len(samples)
        found = []
        for sample in samples:
            score = TRUE.score([sample.load()], [sample.item.prompt])[0].value
            right = score > -0.5
            found.append(
                Verdict(
                    {"accuracy": float(right)},
                    right,
                    None if right else "far off",
                    faults={} if right else {"far": 1},
                )
            )
        return found

    def self_test(self) -> str:
        if self.broken:
            raise VerifierError("the judge is broken")
        return "the target itself was judged right"


@pytest.fixture(autouse=True)
def _counted() -> None:
    Toy.calls = 0


def config(**settings: Any) -> RunConfig:
    return RunConfig(**({"prompt": "-", "model": MODEL, "verifier": VERIFIER, "budget": "4x"} | settings))


def run(output: Path, evaluator: Evaluator | None = None, **changes: Any) -> Evaluation:
    settings = changes.pop("settings", {})
    arguments: dict[str, Any] = {"algorithms": ["best_of_n"], "output": output}
    return evaluate(evaluator or Toy(), config(**settings), **(arguments | changes))


def test_the_known_accuracy_is_recovered(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert [arm.name for arm in found.arms] == ["plain", "best_of_n"]
    assert len(found.rows) == 2 * 6 * 2 and found.is_complete
    for arm in found.arms:
        rows = [row for row in found.rows if row.arm == arm.name]
        # by the search's own numbers: the verifier that guides is the one that judges here
        share = np.mean([row.score > -0.5 for row in rows])
        assert arm.figures["accuracy"].value == pytest.approx(share)
        assert arm.figures["even"].value == pytest.approx(
            np.mean([row.score > -0.5 for row in rows if "even" in row.tags])
        )
        assert arm.rejected == pytest.approx(1 - share)
        assert arm.samples == 12 and arm.prompts == 6
    plain, best = found.arms
    assert plain.nfe == 6 and best.nfe == 24
    assert best.figures["accuracy"].value > plain.figures["accuracy"].value
    assert {row.seed for row in found.rows} == {0, 1}
    for row in found.rows:
        assert (tmp_path / row.file).is_file()


def test_plain_samples_are_those_of_the_same_seeds(tmp_path: Path) -> None:
    found = run(tmp_path, settings={"seed": 7})
    from tts_vision import search

    row = next(row for row in found.rows if row.arm == "plain" and row.index == 1)
    alone = search(MODEL, row.prompt, verifier=VERIFIER, algorithm="best_of_n:n=1", budget="1x", seed=8)
    assert row.seed == 8 and row.score == pytest.approx(alone.best.score.value)


def test_nothing_is_made_or_judged_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path)
    judged = Toy.calls
    assert judged >= 24
    from tts_vision.testing.toys import GaussianMixtureSampler

    monkeypatch.setattr(GaussianMixtureSampler, "advance", None)
    again = run(tmp_path)
    assert Toy.calls == judged
    assert repr(again.rows) == repr(first.rows) and repr(again.arms) == repr(first.arms)


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")

    def stop(done: int, total: int, search: object) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", progress=stop)
    parts = run(tmp_path / "parts")
    for ours, theirs in zip(whole.arms, parts.arms):
        assert ours.figures == theirs.figures
    kept = next((tmp_path / "parts" / "judged").iterdir())
    lines = kept.read_text()
    kept.write_text(lines[: len(lines) // 2])  # torn in the middle of a line
    again = run(tmp_path / "parts")
    assert [arm.figures for arm in again.arms] == [arm.figures for arm in whole.arms]


def test_a_changed_or_missing_winner_is_reported_and_not_judged(tmp_path: Path) -> None:
    first = run(tmp_path)
    winners = sorted(tmp_path.glob("*/plain/*/best.png"))
    winners[0].write_bytes(winners[1].read_bytes())
    found = run(tmp_path)
    assert len(found.rows) == len(first.rows) - 1
    assert [line for line in found.complaints if "not the file that the search wrote" in line]
    assert found.arms[0].samples == 11


def test_the_judge_is_tried_before_the_first_search(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match="the judge is broken"):
        run(tmp_path, Toy(broken=True))
    assert not (tmp_path / "manifest.jsonl").exists()


def test_shards_are_disjoint_and_whole() -> None:
    items = Toy(prompts=7).items()
    assert [item.id for item in spread(items, 7)] == [item.id for item in items]
    for limit in range(1, 8):
        chosen = spread(items, limit)
        assert len(chosen) == len({item.id for item in chosen}) == limit
        if limit >= 2:
            assert {item.tags for item in chosen} == {("even",), ("odd",)}


def test_shards_together_are_the_whole(tmp_path: Path) -> None:
    parts = [run(tmp_path / str(i), shard=(i, 3), algorithms=["best_of_n"]) for i in (1, 2, 3)]
    ids = [row.item for part in parts for row in part.rows if row.arm == "plain" and row.index == 0]
    assert sorted(ids) == [item.id for item in Toy().items()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard": (3, 2)}, "--shard is written part/parts"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"samples": 0}, "needs samples and algorithms but got 0 and 1"),
        ({"algorithms": ["none"]}, "got 'none'"),
        ({"total": "100x"}, "they have none; add --until"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "out", **changes)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"must be new, empty or that of one before but .* holds thesis"):
        run(tmp_path)


def test_a_total_is_kept_and_goes_to_the_hard(tmp_path: Path) -> None:
    found = run(tmp_path, total="60x", settings={"target": -1.2})
    assert found.arms[0].nfe == 6
    spent = sum(row.nfe for row in found.rows if row.arm == "best_of_n")
    assert spent <= 60 * 6
    assert len({row.nfe for row in found.rows if row.arm == "best_of_n"}) > 1


class Flaky(Toy):
    """Cannot judge every third prompt."""

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts = super().judge(samples)
        return [
            Verdict(reason="too dark") if int(s.item.id) % 3 == 0 else v for s, v in zip(samples, verdicts)
        ]


def test_samples_that_cannot_be_judged_are_counted_apart(tmp_path: Path) -> None:
    found = run(tmp_path, Flaky())
    assert len([line for line in found.complaints if "not judged: too dark" in line]) == 2 * 2 * 2
    known = [row for row in found.rows if row.arm == "plain" and row.values]
    assert found.arms[0].figures["accuracy"].value == pytest.approx(np.mean([row.correct for row in known]))


def record(name: str, bests: Sequence[tuple[float, float]], elapsed: float) -> Record:
    return Record(
        name=name,
        arm="a",
        prompt_id=name,
        prompt=name,
        seed=0,
        hash="",
        file="",
        sha256="",
        score=0.0,
        satisfied=None,
        nfe=100.0,
        macs=0.0,
        decodes=0,
        verifier_calls=0,
        elapsed=elapsed,
        seconds={},
        limit=100.0,
        topped_up=0.0,
        holdout=math.nan,
        bests=tuple(Best(100 * at / elapsed, at, score) for at, score in bests),
    )


def test_curves_and_areas_by_hand() -> None:
    right, wrong = Verdict({"accuracy": 1.0}, True), Verdict({"accuracy": 0.0}, False)
    records = [record("x", [(2.0, 0.1), (6.0, 0.2)], 10.0), record("y", [(4.0, 0.3)], 10.0)]
    trail = {"x": [(20.0, 2.0, wrong), (60.0, 6.0, right)], "y": [(40.0, 4.0, right)]}
    arm = arm_of("a", records, [], trail, Toy(), (200.0, 20.0))
    curve = arm.by_seconds
    assert curve is not None
    assert curve.spent[-1] == 20.0
    quality = dict(zip(np.round(curve.spent, 6), curve.quality))
    assert [quality[s] for s in (1.5, 3.0, 5.0, 7.0, 20.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    rejected = dict(zip(np.round(curve.spent, 6), curve.rejected))
    assert math.isnan(rejected[1.5])
    assert [rejected[s] for s in (3.0, 5.0, 7.0)] == [1.0, 0.5, 0.0]
    exact = (0.5 * (6 - 4) + 1.0 * (20 - 6)) / 20
    assert curve.area == pytest.approx(exact)


def test_intervals_resample_prompts_within_tags() -> None:
    items = [Item(str(i), Prompt(str(i)), ("a" if i < 10 else "b",)) for i in range(20)]
    judged = [
        Judged(Sample(item, k, Path("x")), Verdict({"accuracy": float(int(item.id) % 2)}))
        for item in items
        for k in range(3)
    ]
    figures = figures_of(Toy(), judged)
    assert figures["accuracy"].value == 0.5
    # samples of a prompt are no independent evidence: the interval is that of 20 prompts, not of 60 samples
    half = (figures["accuracy"].high - figures["accuracy"].low) / 2
    assert half == pytest.approx(1.96 * 0.5 / math.sqrt(20), rel=0.2)
    assert figures["a"].low <= 0.5 <= figures["a"].high
    alone = [Judged(Sample(Item("x", Prompt("x"), ("c",)), 0, Path("x")), Verdict({"accuracy": 1.0}))]
    with_one = figures_of(Toy(), judged + alone)
    assert math.isnan(with_one["c"].low) and with_one["c"].value == 1.0, "one prompt says nothing of others"
    assert with_one["a"].low < with_one["a"].value < with_one["a"].high
    few = figures_of(Toy(), judged[:12])
    assert math.isnan(few["accuracy"].low)


def test_images_of_others_are_judged(tmp_path: Path) -> None:
    ours = run(tmp_path / "run")
    folder = tmp_path / "run" / "images" / "best-of-n"
    found = evaluate_images(Toy(), folder, output=tmp_path / "judged")
    assert found.arms[0].figures == ours.arms[1].figures
    (folder / "002" / "00001.png").write_bytes(b"no image")
    for path in (folder / "003").iterdir():
        path.unlink()
    broken = evaluate_images(Unreadable(), folder, output=tmp_path / "broken")
    assert len(broken.rows) == 12 - 2
    assert any("003: no sample" in line for line in broken.complaints)
    assert any("00001.png: not judged" in line for line in broken.complaints)
    with pytest.raises(ConfigError, match="--images takes a folder"):
        evaluate_images(Toy(), tmp_path / "none", output=tmp_path / "x")
    with pytest.raises(ConfigError, match="holds samples such as 000/00000"):
        evaluate_images(Toy(), tmp_path, output=tmp_path / "x")


class Unreadable(Toy):
    """Says which files it cannot read."""

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        found = []
        for sample in samples:
            try:
                found += super().judge([sample])
            except OSError as error:
                found.append(Verdict(reason=str(error)))
        return found


def test_verdicts_of_another_judge_are_not_taken_over(tmp_path: Path) -> None:
    class Other(Toy):
        @property
        def judge_name(self) -> str:
            return "toy, another one"

    run(tmp_path)
    before = Toy.calls
    run(tmp_path, Other())
    assert Other.calls >= 24 and Toy.calls == before
    assert len(list((tmp_path / "judged").iterdir())) == 2


def test_missing_files_have_no_verdict(tmp_path: Path) -> None:
    sample = Sample(Toy().items()[0], 0, tmp_path / "none.png")
    assert (
        Judgements(Toy(), tmp_path, print).of([sample])[0].verdict.reason
        == "the file is missing or cannot be read"
    )


def test_the_tables_hold_the_figures(tmp_path: Path) -> None:
    found = run(tmp_path)
    text = markdown(found)
    value = found.arms[1].figures["accuracy"].value
    assert f"| accuracy | {found.arms[0].figures['accuracy'].value:.3f}" in text and f"{value:.3f}" in text
    assert (tmp_path / "table.md").read_text() == text
    assert terminal(found).row_count > 5
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["arms"][1]["figures"]["accuracy"]["value"] == value
    assert saved["settings"]["self_test"] == "the target itself was judged right"


def test_the_page_is_whole_and_safe(tmp_path: Path) -> None:
    found = run(tmp_path / "run")
    data = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    data["rows"][0]["prompt"] = "<script>alert(1)</script>"
    outside = tmp_path / "outside.png"
    outside.write_bytes((tmp_path / "run" / data["rows"][1]["file"]).read_bytes())
    data["rows"][1]["file"] = "../outside.png"
    data["rows"][2]["file"] = str(outside)
    data["notes"] = ["<b>note</b>"]
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(data))
    page = write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>note</b>" not in page
    for word in ('src="http', 'href="http', "url(http", "@import", "<link", "<iframe"):
        assert word not in page
    assert page.count("data:image/webp;base64,") == len(found.rows) - 2
    assert f"{found.arms[1].figures['accuracy'].value:.3f}" in page
    assert "rejected winners" in page and "Quality against spending" in page and "far" in page


def test_a_page_of_a_comparison(tmp_path: Path) -> None:
    from tts_vision import compare

    compare(
        MODEL, ["a", "b"], algorithms=["best_of_n"], verifiers=[VERIFIER], budget="2x", output=tmp_path / "c"
    )
    page = write_report([tmp_path / "c"], tmp_path / "page.html").read_text()
    assert "comparison: c" in page and page.count("data:image/webp;base64,") == 4


def test_folders_without_a_report_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds neither evaluation"):
        write_report([tmp_path], tmp_path / "page.html")
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        write_report([tmp_path], tmp_path / "page.html")


def cli(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.stderr


def test_the_commands_end_to_end(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    code, told, errors = cli(
        *(
            "eval",
            "playground",
            "--algorithm",
            "best_of_n",
            "--budget",
            "2x",
            "--limit",
            "2",
            "--samples",
            "1",
        ),
        *("--steps", "4", "--output", out),
    )
    assert code == 0, errors
    assert "overall" in told and "best_of_n" in told and "image accuracy" in told
    code, told, errors = cli(
        "eval", "playground", "--images", f"{out}/images/best-of-n", "--output", str(tmp_path / "j")
    )
    assert code == 1, "121 prompts of 123 are missing"
    assert "00" in errors
    code, told, _ = cli("report", out, str(tmp_path / "j"), "-o", str(tmp_path / "page.html"))
    assert code == 0 and (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "nothing"], "Evaluator must be one of"),
        (["eval", "playground", "--datta", "x"], "parameters of evaluator 'playground'"),
        (["eval", "playground", "--workers", "2"], "--workers is for many workers but --executor is local"),
        (["eval", "playground", "--executor", "slurm"], "--executor must be local or ray"),
        (["eval", "playground", "--shard", "2"], "--shard is written part/parts"),
        (["eval", "playground", "--set", "algorithm.n=3"], "--set of 'eval' takes model.KEY"),
        (["eval", "playground", "--budget", "much"], "A budget must be"),
        (["eval", "playground(a, b)"], "An evaluator has no members"),
        (["eval", "playground", "--images", "/none"], "--images takes a folder"),
        (["report", "/none"], "holds neither"),
    ],
)
def test_mistakes_on_a_command_line(words: list[str], message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = cli(*words)
    assert code == 2 and message in errors
    assert "Traceback" not in errors


def test_the_help_of_an_evaluator_shows_its_parameters() -> None:
    code, told, _ = cli("eval", "geneval", "--help")
    assert code == 0 and "--checkpoint" in told and "--data" in told
