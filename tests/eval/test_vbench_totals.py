"""VBench's normalisation and totals, and the means over clips."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from tts_vision.errors import VerifierError
from tts_vision.eval.evaluator import Item, Judged, Sample, Verdict
from tts_vision.eval.evaluators.vbench import VBench
from tts_vision.eval.vbench.dimensions import DIMENSIONS, LEFT_OUT, NATIVE, PROXIES, totals
from tts_vision.eval.vbench.prompts import Entry, Suite
from tts_vision.eval.vbench.results import Table, read_results, write_results
from tts_vision.types import Prompt

NAMES = list(DIMENSIONS)


def judged(item: str, index: int, values: dict[str, float], weights: dict[str, int] | None = None) -> Judged:
    sample = Sample(Item(item, Prompt(item), tuple(values)), index, Path(f"{item}-{index}.mp4"))
    details = {name: {"weight": count} for name, count in (weights or {}).items()}
    return Judged(sample, Verdict(values, details=details))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (dict.fromkeys(NAMES, 1.0), (1.0013194, 1.6912551, 1.1393066)),
        (dict.fromkeys(NAMES, 0.5), (0.1433609, 0.8454519, 0.2837791)),
        (dict.fromkeys(NAMES, 0.0), (-0.7145977, -0.0003514, -0.5717485)),
        ({name: 0.50 + 0.03 * i for i, name in enumerate(NAMES)}, (0.2820111, 1.4619301, 0.5179949)),
    ],
)
def test_golden_vectors(raw: dict[str, float], expected: tuple[float, float, float]) -> None:
    found = totals(raw)
    assert (found.quality, found.semantic, found.total) == pytest.approx(expected, abs=1e-7)


def test_a_missing_dimension_makes_totals_absent_unless_strict() -> None:
    raw = dict.fromkeys(NAMES, 1.0)
    without_scene = {name: value for name, value in raw.items() if name != "scene"}
    for missing in (without_scene, raw | {"scene": math.nan}):
        found = totals(missing)
        assert found.quality == pytest.approx(1.0013194, abs=1e-7)
        assert math.isnan(found.semantic) and math.isnan(found.total)
        strict = totals(missing, strict=True)
        assert strict.semantic == pytest.approx(1.6912551 - 1 / 0.8222 / 9, abs=1e-7)
        assert strict.total == pytest.approx((4 * 1.0013194 + strict.semantic) / 5, abs=1e-7)
    # as the official script: nothing at all is worth less than nothing
    assert totals({}, strict=True).total == pytest.approx(-0.5717485, abs=1e-7)


def test_normalisation_is_not_clipped_and_dynamic_degree_counts_half() -> None:
    assert DIMENSIONS["motion_smoothness"].normalised(1.0) == pytest.approx(1.0085763, abs=1e-7)
    assert DIMENSIONS["subject_consistency"].normalised(0.1) < 0
    raw = dict.fromkeys(NAMES, 0.5)
    gain = {
        name: totals(raw | {name: 0.6}).quality - totals(raw).quality
        for name in ("dynamic_degree", "imaging_quality")
    }
    assert gain["imaging_quality"] == pytest.approx(0.1 / 6.5)
    assert gain["dynamic_degree"] == pytest.approx(0.05 / 6.5)


def test_every_dimension_is_native_or_has_a_reason_and_proxies_are_no_dimensions() -> None:
    assert sorted([*NATIVE, *LEFT_OUT]) == sorted(NAMES)
    assert not set(PROXIES) & set(NAMES) and set(PROXIES.values()) < set(NAMES)
    assert sum(each.kind == "quality" for each in DIMENSIONS.values()) == 7


def test_clips_count_by_their_frames_and_by_bootstrap_weights() -> None:
    name = "subject_consistency"
    arm = [judged("a", 0, {name: 0.9}, {name: 15}), judged("b", 0, {name: 0.5}, {name: 5})]
    evaluator = VBench(dimensions=[name])
    assert evaluator.summarise(arm, np.ones(2))[name] == pytest.approx((15 * 0.9 + 5 * 0.5) / 20)
    assert evaluator.summarise(arm, np.array([1, 3]))[name] == pytest.approx(0.7)
    assert evaluator.summarise(arm, np.array([0, 2]))[name] == pytest.approx(0.5)
    assert math.isnan(evaluator.summarise(arm, np.zeros(2))[name])
    assert math.isnan(evaluator.summarise([], np.zeros(0))["total"])
    plain = [judged("a", 0, {"dynamic_degree": 1.0}), judged("b", 0, {"dynamic_degree": 0.0})]
    assert VBench(dimensions=["dynamic_degree"]).summarise(plain, np.ones(2))["dynamic_degree"] == 0.5


def test_summary_has_the_totals_of_what_was_measured(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    raw = {name: 0.50 + 0.03 * i for i, name in enumerate(NAMES)}
    arm = [judged("a", 0, raw), judged("b", 0, {name: value - 0.01 for name, value in raw.items()})]
    everything = VBench(official_python=str(python), device="cpu")
    shown = everything.summarise([arm[0]], np.ones(1))
    assert list(shown)[:3] == ["total", "quality", "semantic"]
    assert shown["total"] == pytest.approx(0.5179949, abs=1e-7)
    both = everything.summarise(arm, np.ones(2))
    assert both["scene"] == pytest.approx(raw["scene"] - 0.005)
    part = VBench(dimensions=["subject_consistency"])
    assert math.isnan(part.summarise(arm, np.ones(2))["total"])
    strict = VBench(dimensions=["subject_consistency"], strict=True).summarise(arm, np.ones(2))
    assert strict["total"] == pytest.approx(totals({"subject_consistency": 0.495}, strict=True).total)


def test_proxies_never_count() -> None:
    raw = dict.fromkeys(PROXIES, 1.0)
    shown = VBench(dimensions=list(PROXIES)).summarise([judged("a", 0, raw)], np.ones(1))
    assert shown["color_proxy"] == 1 and math.isnan(shown["semantic"])
    assert totals(raw, strict=True) == totals({}, strict=True)


def test_five_flickering_clips_of_a_prompt_count() -> None:
    name = "temporal_flickering"
    # indices 2 to 12 pass the filter; by name, the first five are -10, -11, -12, -2, -3
    arm = [judged("a", index, {name: index / 100}) for index in range(2, 13)]
    arm += [judged("b", 0, {name: 0.5}), judged("a", 13, {})]
    weights = np.ones(len(arm))
    filtered = Table(arm, [name], filtered=True).mean(name, weights)
    assert filtered == pytest.approx((0.10 + 0.11 + 0.12 + 0.02 + 0.03 + 0.5) / 6)
    unfiltered = Table(arm, [name], filtered=False).mean(name, weights)
    assert unfiltered == pytest.approx((0.02 + 0.03 + 0.04 + 0.05 + 0.06 + 0.5) / 6)


def test_result_files_are_those_of_the_official_package(tmp_path: Path) -> None:
    suite = Suite(
        [
            Entry("a cat", ("imaging_quality", "overall_consistency")),
            Entry("a cat", ("appearance_style",), {"appearance_style": {"appearance_style": "oil"}}),
            Entry("a car", ("color",), {"color": {"color": "red"}}),
            Entry("a dog", ("dynamic_degree",)),
        ],
        is_custom=False,
        name="test",
    )
    arm = [
        judged("a cat", 0, {"imaging_quality": 0.6, "appearance_style": 0.25}, {"appearance_style": 8}),
        judged("a cat", 1, {"imaging_quality": 0.8, "appearance_style": 0.35}, {"appearance_style": 24}),
        judged("a dog", 0, {"dynamic_degree": 1.0}),
        judged("a car", 0, {"color_proxy": 0.5}),
    ]
    dimensions = ["imaging_quality", "appearance_style", "dynamic_degree", "scene", "color_proxy"]
    table = Table(arm, dimensions, filtered=True)
    files = write_results(tmp_path / "new", "mine", suite, table)
    names = ["mine_full_info.json", "mine_eval_results.json", "mine_proxies.json"]
    assert [file.name for file in files] == names
    info, found, proxies = (json.loads(file.read_text()) for file in files)
    assert [(each["prompt_en"], each["video_list"]) for each in info] == [
        ("a cat", ["a cat-0.mp4", "a cat-1.mp4"]),
        ("a cat", ["a cat-0.mp4", "a cat-1.mp4"]),
        ("a car", ["a car-0.mp4"]),
        ("a dog", ["a dog-0.mp4"]),
    ]
    assert info[1]["auxiliary_info"] == {"appearance_style": {"appearance_style": "oil"}}
    score, clips = found["imaging_quality"]
    assert score == pytest.approx(0.7)
    assert clips[0]["video_results"] == pytest.approx(60) and clips[0]["video_path"] == "a cat-0.mp4"
    assert found["appearance_style"][0] == pytest.approx((8 * 0.25 + 24 * 0.35) / 32)
    assert found["dynamic_degree"] == [1.0, [{"video_path": "a dog-0.mp4", "video_results": True}]]
    assert "scene" not in found and "color_proxy" not in found
    assert proxies["color_proxy"][0] == 0.5
    # and back
    score, values = read_results(files[1], "imaging_quality")
    assert score == pytest.approx(0.7)
    assert values["a cat-1.mp4"] == (pytest.approx(0.8), None)
    assert read_results(files[1], "appearance_style")[1]["a cat-1.mp4"] == (pytest.approx(0.35), 24)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"scene": [1.0]}',
        '{"scene": ["x", []]}',
        '{"scene": [0.5, [{"video_path": "a"}]]}',
        '{"scene": [0.5, ["a"]]}',
        '{"scene": [0.5, [{"video_path": "a", "video_results": NaN}]]}',
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x_eval_results.json"
    with pytest.raises(VerifierError, match="scene"):
        read_results(file, "scene")
    file.write_text(text)
    with pytest.raises(VerifierError, match="scene"):
        read_results(file, "scene")


def test_a_thousand_resamplings_of_all_videos_take_seconds() -> None:
    evaluator = VBench(dimensions=list(NATIVE))
    items = evaluator.items()
    arm = [
        Judged(Sample(item, n, Path("x")), Verdict(dict.fromkeys(item.tags, 0.5 + 0.1 * n)))
        for item in items
        for n in range(5)
    ]
    rng = np.random.default_rng(0)
    began = time.monotonic()
    draws = [evaluator.summarise(arm, rng.integers(0, 3, len(arm)).astype(float)) for _ in range(300)]
    assert time.monotonic() - began < 10
    assert 0.6 < min(draw["overall_consistency"] for draw in draws) < 0.8
    # another arm is not mistaken for this one
    assert evaluator.summarise(arm[:1], np.ones(1))["temporal_flickering"] == 0.5
