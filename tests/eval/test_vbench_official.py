"""The official package in an interpreter of its own, by a stand-in that follows its published interface."""

import json
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samples import clips
from tts_vision.errors import ConfigError, SearchWarning, VerifierError
from tts_vision.eval.evaluator import Judged, Sample
from tts_vision.eval.evaluators.vbench import VBench
from tts_vision.eval.vbench.dimensions import DIMENSIONS
from tts_vision.media import write_media
from tts_vision.trust import allowing
from tts_vision.types import Video

pytest.importorskip("av")

INTERPRETER = """#!{python}
import runpy, sys
sys.path.insert(0, {folder!r})
if sys.argv[1] == "-c":
    exec(sys.argv[2])
else:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""

# what the package does with a folder, as its documentation and its result files show
PACKAGE = """
import json, os, subprocess, sys, time, zlib

HERE = os.path.dirname(os.path.abspath(__file__))

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info, self.output = device, full_info_dir, output_path

    def evaluate(self, videos_path, name, prompt_list, dimension_list, mode):
        (dimension,) = dimension_list
        names = sorted(os.listdir(videos_path))
        assert all(each.endswith(".mp4") for each in names), names
        entries = json.load(open(self.full_info, encoding="utf-8"))
        assert mode == "custom_input" or len(entries) == 946
        if mode == "custom_input":
            assert set(prompt_list) == set(names)
            videos = names
        else:
            assert prompt_list == [] and mode == "vbench_standard"
            videos = [
                f"{entry['prompt_en']}-{i}.mp4"
                for entry in entries if dimension in entry["dimension"] for i in range(5)
            ]
            videos = [each for each in videos if each in names]
            assert sorted(videos) == names
        with open(os.path.join(HERE, "calls.jsonl"), "a") as log:
            found = dict(
                dimension=dimension, names=names, prompts=prompt_list, device=self.device, mode=mode,
                stdin=sys.stdin.read(),
                polluted=[key for key in os.environ if key in ("PYTHONPATH", "VIRTUAL_ENV")],
            )
            log.write(json.dumps(found) + "\\n")
        plan = json.load(open(os.path.join(HERE, "plan.json"))).get(dimension, "")
        if plan == "fail":
            raise RuntimeError("no detectron2 here")
        if plan == "hang":
            child = subprocess.Popen(["sleep", "60"])
            open(os.path.join(HERE, "child"), "w").write(str(child.pid))
            time.sleep(60)
        records = []
        for each in videos:
            path = os.path.join(videos_path, each)
            value = zlib.crc32(os.path.realpath(path).encode()) / 2**32
            value = 100 * value if dimension == "imaging_quality" else value
            record = {"video_path": path, "video_results": value}
            if dimension == "scene":
                record["frame_count"] = 16
            records.append(record)
        if plan == "drop":
            records = records[1:]
        if plan == "stranger":
            records[0]["video_path"] = "/elsewhere/x-0.mp4"
        score = sum(record["video_results"] for record in records) / len(records)
        score = score / 100 if dimension == "imaging_quality" else score
        if plan != "silent":
            with open(os.path.join(self.output, name + "_eval_results.json"), "w") as file:
                json.dump({dimension: [score, records]}, file)
"""


class StandIn:
    """An interpreter with a package ``vbench`` that behaves by plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "vbench.py").write_text(PACKAGE)
        (folder / "torch.py").write_text("def device(name):\n    return name\n")
        self.python = folder / "python"
        self.python.write_text(INTERPRETER.format(python=sys.executable, folder=str(folder)))
        self.python.chmod(0o755)
        self.plan({})

    def plan(self, plan: dict[str, str]) -> None:
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def calls(self) -> list[dict[str, Any]]:
        log = self.folder / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def evaluator(self, dimensions: list[str] | None = None, **settings: Any) -> VBench:
        settings = {"device": "cpu", "static_filter": False} | settings
        return VBench(official_python=str(self.python), dimensions=dimensions, **settings)


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "stand in")


def put(path: Path, frames: int = 4) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    write_media(clips(1, frames=frames)[0], path, {})
    return path


def value_of(path: Path) -> float:
    """The value that the stand-in gives a linked clip."""
    return zlib.crc32(os.path.realpath(path).encode()) / 2**32


def test_all_dimensions_are_measured_on_the_clips_of_their_prompts(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("VIRTUAL_ENV", "/ours")
    evaluator = stand_in.evaluator()
    assert evaluator.together and evaluator.dimensions == tuple(DIMENSIONS)
    assert "official package" in evaluator.judge_name
    wanted: dict[str, Any] = {}
    for item in evaluator.items():
        if any(tag not in wanted for tag in item.tags):
            wanted |= {tag: item for tag in item.tags if tag not in wanted}
    chosen = list({item.id: item for item in wanted.values()}.values())
    samples = [
        Sample(item, index, put(tmp_path / "clips" / f"{evaluator.place(item, index)}.mp4"))
        for item in chosen
        for index in range(2)
    ]
    verdicts = evaluator.judge(samples)
    for sample, verdict in zip(samples, verdicts, strict=True):
        assert verdict.reason is None and set(verdict.values) == set(sample.item.tags)
        for value in verdict.values.values():
            assert value == pytest.approx(value_of(sample.path))
    calls = stand_in.calls()
    assert [call["dimension"] for call in calls] == list(DIMENSIONS)
    assert {(call["device"], call["mode"], call["stdin"]) for call in calls} == {
        ("cpu", "vbench_standard", "")
    }
    assert all(call["polluted"] == [] for call in calls)
    details = dict(zip((s.path.name for s in samples), (v.details for v in verdicts)))
    assert details[f"{wanted['subject_consistency'].prompt.text}-0.mp4"]["subject_consistency"]["weight"] == 3
    assert details[f"{wanted['scene'].prompt.text}-0.mp4"]["scene"]["weight"] == 16
    arm = [Judged(sample, verdict) for sample, verdict in zip(samples, verdicts, strict=True)]
    shown = evaluator.summarise(arm, np.ones(len(arm)))
    assert np.isfinite(list(shown.values())).all()
    written = json.loads(evaluator.write_results(tmp_path / "results", arm)[1].read_text())
    assert set(written) == set(DIMENSIONS)


def test_more_than_five_clips_of_a_prompt_go_to_further_folders(stand_in: StandIn, tmp_path: Path) -> None:
    evaluator = stand_in.evaluator(["imaging_quality"])
    first, second = evaluator.items()[:2]
    # two arms with the same indices, and seven clips of the first prompt in all
    samples = [Sample(first, n % 4, put(tmp_path / f"arm{n // 4}" / f"x-{n}.mp4")) for n in range(7)]
    samples.append(Sample(second, 3, put(tmp_path / "arm0" / "y-3.mp4")))
    verdicts = evaluator.judge(samples)
    assert [verdict.values["imaging_quality"] for verdict in verdicts] == pytest.approx(
        [value_of(sample.path) for sample in samples]
    )
    names = [call["names"] for call in stand_in.calls()]
    text = first.prompt.text
    assert names == [
        sorted([*(f"{text}-{n}.mp4" for n in range(5)), f"{second.prompt.text}-0.mp4"]),
        [f"{text}-0.mp4", f"{text}-1.mp4"],
    ]


def test_a_dimension_that_fails_is_told_and_the_others_stand(stand_in: StandIn, tmp_path: Path) -> None:
    evaluator = stand_in.evaluator(["aesthetic_quality", "imaging_quality"])
    sample = Sample(evaluator.items()[0], 0, put(tmp_path / "x-0.mp4"))
    stand_in.plan({"imaging_quality": "fail"})
    (verdict,) = evaluator.judge([sample])
    assert set(verdict.values) == {"aesthetic_quality"}
    reason = verdict.reason or ""
    assert "imaging_quality" in reason and "ended with 1" in reason
    assert "evaluate" in reason and "RuntimeError: no detectron2 here" in reason
    stand_in.plan({"imaging_quality": "fail", "aesthetic_quality": "fail"})
    with pytest.raises(VerifierError, match=r"must measure aesthetic_quality but .* no detectron2 here"):
        evaluator.judge([sample])


@pytest.mark.parametrize(
    ("plan", "words"), [("silent", "must write scene_eval_results"), ("stranger", "name 'x-0.mp4'")]
)
def test_other_results_are_refused(stand_in: StandIn, tmp_path: Path, plan: str, words: str) -> None:
    evaluator = stand_in.evaluator(["scene"])
    stand_in.plan({"scene": plan})
    with pytest.raises(VerifierError, match=words):
        evaluator.judge([Sample(evaluator.items()[0], 0, put(tmp_path / "z-0.mp4"))])


def test_clips_that_the_package_drops_have_no_value(stand_in: StandIn, tmp_path: Path) -> None:
    evaluator = stand_in.evaluator(["color"])
    stand_in.plan({"color": "drop"})
    samples = [Sample(evaluator.items()[0], n, put(tmp_path / f"z-{n}.mp4")) for n in range(2)]
    dropped, kept = evaluator.judge(samples)
    assert dropped.values == {} and "leaves the clip out" in (dropped.reason or "")
    assert kept.values["color"] == pytest.approx(value_of(samples[1].path))


def test_a_package_that_hangs_is_ended_with_what_it_started(stand_in: StandIn, tmp_path: Path) -> None:
    evaluator = stand_in.evaluator(["scene"], official_timeout=3.0)
    stand_in.plan({"scene": "hang"})
    began = time.monotonic()
    with pytest.raises(VerifierError, match="took more than 3 s"):
        evaluator.judge([Sample(evaluator.items()[0], 0, put(tmp_path / "z-0.mp4"))])
    assert time.monotonic() - began < 30
    child = int((stand_in.folder / "child").read_text())
    for _ in range(50):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the program that the package started is still there")


def test_unreadable_clips_are_told_and_lossless_ones_are_encoded(stand_in: StandIn, tmp_path: Path) -> None:
    evaluator = stand_in.evaluator(["scene"])
    item = evaluator.items()[0]
    broken = tmp_path / "b-0.mp4"
    broken.write_bytes(b"no clip")
    twin = put(tmp_path / "t. 1-0.mkv")
    put(twin.with_suffix(".mp4"))
    paths = [broken, tmp_path / "missing.mp4", put(tmp_path / "lossless-0.mkv"), twin]
    verdicts = evaluator.judge([Sample(item, n, path) for n, path in enumerate(paths)])
    assert [bool(verdict.values) for verdict in verdicts] == [False, False, True, True]
    assert all("cannot be read" in (verdict.reason or "") for verdict in verdicts[:2])
    assert verdicts[3].values["scene"] == pytest.approx(value_of(twin.with_suffix(".mp4")))
    (call,) = stand_in.calls()
    assert call["names"] == [f"{item.prompt.text}-0.mp4", f"{item.prompt.text}-1.mp4"]


def test_own_prompts_are_given_with_the_clips(stand_in: StandIn, tmp_path: Path) -> None:
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a cat / a dog\na person is dancing\n")
    evaluator = stand_in.evaluator(["human_action"], data=str(prompts))
    samples = [Sample(item, 0, put(tmp_path / f"{item.id}.mp4")) for item in evaluator.items()]
    assert all(verdict.values for verdict in evaluator.judge(samples))
    (call,) = stand_in.calls()
    assert call["mode"] == "custom_input"
    assert call["prompts"] == {
        "a cat _ a dog-0.mp4": "a cat / a dog",
        "a person is dancing-0.mp4": "a person is dancing",
    }
    assert "scene" not in stand_in.evaluator(data=str(prompts)).dimensions


def test_the_static_filter_comes_first(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_vision.eval.vbench import measures

    def lengths(raft: object, video: Video) -> tuple[list[float], list[float]]:
        count = len(video.frames)
        return [100.0 if count > 4 else 0.0] * (count - 1), [0.0, 0.0]

    monkeypatch.setattr(measures, "lengths", lengths)
    monkeypatch.setattr(measures, "comparable", lambda video, name: video)
    evaluator = stand_in.evaluator(["temporal_flickering"], static_filter=True)
    item = evaluator.items()[0]
    samples = [Sample(item, n, put(tmp_path / f"s-{n}.mp4", frames=4 if n % 2 else 9)) for n in range(4)]
    verdicts = evaluator.judge(samples)
    assert [bool(verdict.values) for verdict in verdicts] == [False, True, False, True]
    assert "static filter leaves it out" in (verdicts[0].reason or "")
    (call,) = stand_in.calls()
    assert call["names"] == [f"{item.prompt.text}-0.mp4", f"{item.prompt.text}-1.mp4"]
    assert verdicts[3].values["temporal_flickering"] == pytest.approx(value_of(samples[3].path))


def test_a_score_of_another_version_is_noticed(stand_in: StandIn, tmp_path: Path) -> None:
    """The stand-in weights clips of 3 and 8 pairs alike, which VBench does not."""
    evaluator = stand_in.evaluator(["subject_consistency"])
    item = evaluator.items()[0]
    samples = [Sample(item, n, put(tmp_path / f"s-{n}.mp4", frames=frames)) for n, frames in ((0, 4), (1, 9))]
    with pytest.warns(SearchWarning, match="may be another version"):
        verdicts = evaluator.judge(samples)
    arm = [Judged(sample, verdict) for sample, verdict in zip(samples, verdicts, strict=True)]
    first, second = (value_of(sample.path) for sample in samples)
    shown = evaluator.summarise(arm, np.ones(2))["subject_consistency"]
    assert shown == pytest.approx((3 * first + 8 * second) / 11)


def test_proxies_are_measured_here(stand_in: StandIn) -> None:
    evaluator = stand_in.evaluator(["color", "color_proxy"])
    assert evaluator._natively.dimensions == ("color_proxy",) and "detector=" in evaluator.judge_name


def test_the_self_test_imports_the_package(stand_in: StandIn) -> None:
    evaluator = stand_in.evaluator(["scene"])
    assert evaluator.self_test() == "the official package can be imported"
    (stand_in.folder / "vbench.py").write_text("import decord_is_not_here\n")
    with pytest.raises(VerifierError, match=r"must be imported but .*No module named 'decord_is_not_here'"):
        evaluator.self_test()


def test_nothing_is_run_for_a_configuration_that_is_not_trusted(stand_in: StandIn, tmp_path: Path) -> None:
    evaluator = stand_in.evaluator(["scene"])
    sample = Sample(evaluator.items()[0], 0, put(tmp_path / "z-0.mp4"))
    with allowing(()), pytest.raises(ConfigError, match="runs"):
        evaluator.judge([sample])
    assert stand_in.calls() == []
    with allowing({str(stand_in.python)}):
        assert evaluator.judge([sample])[0].values


def test_settings_of_the_package_are_checked(stand_in: StandIn) -> None:
    with pytest.raises(ConfigError, match="official_timeout must be positive"):
        stand_in.evaluator(["scene"], official_timeout=0.0)
    stand_in.python.chmod(0o644)
    with pytest.raises(ConfigError, match="is no program"):
        stand_in.evaluator(["scene"])
