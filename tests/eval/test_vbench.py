"""The evaluator of VBench end to end: folders of clips, verdicts, notes, settings, results."""

import json
import math
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vbench import tiny_weights

from samples import clips
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.evaluator import Judged, Sample
from tts_vision.eval.evaluators.vbench import VBench
from tts_vision.eval.vbench.dimensions import LEFT_OUT, NATIVE
from tts_vision.eval.vbench.layout import judged_file
from tts_vision.media import read_media, write_media
from tts_vision.parameters import validate
from tts_vision.registry import lookup
from tts_vision.types import Video
from tts_vision.verifiers.flicker import steadiness

pytest.importorskip("av")
FLICKER = "temporal_flickering"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


def flickering(**settings: Any) -> VBench:
    return VBench(dimensions=[FLICKER], static_filter=False, device="cpu", **settings)


def put(folder: Path, name: str, video: Video | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    write_media(video or clips(1, frames=4)[0], folder / name, {})
    return folder / name


def fill(folder: Path, evaluator: VBench, items: int, count: int = 5) -> None:
    """Writes `count` clips for each of the first prompts."""
    videos = clips(count, frames=4)
    for item in evaluator.items()[:items]:
        for index, video in enumerate(videos):
            put(folder, f"{evaluator.place(item, index)}.mp4", video)


def about(complaints: list[str], words: str) -> list[str]:
    return [line for line in complaints if words in line]


# Settings


def test_is_registered_with_settings_from_a_command_line() -> None:
    entry = lookup("evaluator", "vbench")
    assert entry.target is VBench
    given = {"dimensions": f"[{FLICKER}, dynamic_degree]", "weights": '{"raft": "/r.pth"}', "strict": "true"}
    made = VBench(**validate(VBench, given, "evaluator 'vbench'"))
    assert made.dimensions == (FLICKER, "dynamic_degree") and made.strict
    assert "raft=/r.pth" in made.judge_name
    assert (made.name, made.modality, made.metric, made.together) == ("vbench", "video", "total", False)


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_other_dimensions_are_left_to_the_official_package(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' must be left to the official package because it needs"):
        VBench(dimensions=[name])


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 'beauty'"):
        VBench(dimensions=["beauty"])
    with pytest.raises(ConfigError, match="is empty"):
        VBench(dimensions=[])
    with pytest.raises(ConfigError, match="weights of vbench are dino"):
        VBench(weights={"dinov2": "x"})
    with pytest.raises(ConfigError, match="is no program"):
        VBench(official_python=str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="run_name"):
        VBench(run_name="../x")


def test_defaults_are_all_that_can_be_measured_and_the_notes_say_what_is_missing() -> None:
    made = VBench()
    assert set(made.dimensions) <= set(NATIVE) and len(made.dimensions) >= len(NATIVE) - 1
    notes = " ".join(made.notes)
    for words in ("No total is given", "motion_smoothness", "C_T_V1", "25 samples"):
        assert words in notes
    assert "count as 0 (strict)" in " ".join(VBench(strict=True).notes)
    assert "compare with no leaderboard" in " ".join(VBench(dimensions=["color_proxy"]).notes)
    assert "without the static filter" in " ".join(flickering().notes)


def test_the_judge_is_named_by_all_that_decides() -> None:
    names = {
        VBench(dimensions=[FLICKER]).judge_name,
        VBench(dimensions=[FLICKER], static_filter=False).judge_name,
        VBench(dimensions=[FLICKER], weights={"raft": "x"}).judge_name,
        VBench(dimensions=["dynamic_degree"]).judge_name,
        VBench(dimensions=["dynamic_degree"], strict=True).judge_name,
        VBench(dimensions=["dynamic_degree"], dtype="bfloat16").judge_name,
    }
    assert len(names) == 6


# Folders


def test_a_complete_folder_is_read_without_complaints(tmp_path: Path) -> None:
    evaluator = VBench(dimensions=["subject_consistency"])
    evaluator.items()
    fill(tmp_path, evaluator, 3)
    found = evaluator.read_layout(tmp_path)
    assert [(s.item.id, s.index) for s in found.samples] == [
        (item.id, index) for item in evaluator.items()[:3] for index in range(5)
    ]
    fourth = evaluator.items()[3].prompt.text
    (missing,) = found.complaints
    assert missing.startswith(f"69 of 72 prompts have no clip: {fourth!r}, ") and missing.endswith(", ...")


def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path) -> None:
    evaluator = VBench(dimensions=["subject_consistency"])
    fill(tmp_path, evaluator, 4)
    first, second, third, fourth = (item.prompt.text for item in evaluator.items()[:4])
    (tmp_path / f"{first}-1.mp4").unlink()
    (tmp_path / f"{second}-0.mp4").write_bytes(b"no clip")
    (tmp_path / f"{third}-2.mp4").write_bytes((tmp_path / f"{third}-1.mp4").read_bytes()[:300])
    put(tmp_path, f"{fourth}-5.mp4")
    put(tmp_path, "a stranger-0.mp4")
    put(tmp_path, "In a still frame, a stop sign-0.mp4")  # of another dimension
    (tmp_path / "README.txt").write_text("x")
    found = evaluator.read_layout(tmp_path)
    assert len(found.samples) == 17
    complaints = found.complaints
    assert about(complaints, "68 of 72 prompts have no clip") and len(complaints) == 6
    assert about(complaints, f"no -1 of {first!r}")
    assert about(complaints, f"{second}-0.mp4: cannot be read")
    assert about(complaints, f"{third}-2.mp4: cannot be read")
    assert about(complaints, f"{fourth}-5.mp4: is beyond the 5 samples")
    assert about(complaints, "clips of no prompt: 'a stranger-0.mp4' (1 in all)")
    assert not about(complaints, "stop sign") and not about(complaints, "README")
    assert not about(complaints, "mixed")


def test_mixed_suffixes_are_told_and_lossless_twins_are_not(tmp_path: Path) -> None:
    evaluator = VBench(dimensions=["subject_consistency"])
    fill(tmp_path, evaluator, 1)
    for file in list(tmp_path.iterdir()):
        write_media(read_media(file), file.with_suffix(".mkv"), {})
    found = evaluator.read_layout(tmp_path)
    assert {s.path.suffix for s in found.samples} == {".mp4"} and not about(found.complaints, "mixed")
    text = evaluator.items()[1].prompt.text
    Image.new("RGB", (8, 8)).save(tmp_path / f"{text}-0.gif")
    assert about(evaluator.read_layout(tmp_path).complaints, "mixed suffixes (1 .gif, 5 .mkv, 5 .mp4)")


def test_flickering_prompts_want_25_clips(tmp_path: Path) -> None:
    evaluator = VBench(dimensions=[FLICKER])
    text = evaluator.items()[0].prompt.text
    put(tmp_path, f"{text}-24.mp4")
    put(tmp_path, f"{text}-25.mp4")
    found = evaluator.read_layout(tmp_path)
    assert [s.index for s in found.samples] == [24]
    assert about(found.complaints, "-25.mp4: is beyond the 25") and about(found.complaints, "no -0, -1")


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    evaluator = flickering()
    folder, outside = tmp_path / "clips", put(tmp_path, "secret.mp4")
    first, second = (item.prompt.text for item in evaluator.items()[:2])
    put(folder, f"{first}-0.mp4")
    (folder / f"{second}-0.mp4").symlink_to(outside)
    (folder / f"{first}-0.mkv").symlink_to(outside)
    found = evaluator.read_layout(folder)
    assert [s.path.name for s in found.samples] == [f"{first}-0.mp4"]
    assert len(about(found.complaints, "leads out of the folder")) == 2
    assert judged_file(found.samples[0].path) == found.samples[0].path


def test_names_in_decomposed_unicode_are_found(tmp_path: Path) -> None:
    evaluator = VBench(dimensions=[FLICKER])
    (item,) = [each for each in evaluator.items() if "façades" in each.prompt.text]
    put(tmp_path, unicodedata.normalize("NFD", f"{item.prompt.text}-0") + ".mp4")
    assert [s.item.id for s in evaluator.read_layout(tmp_path).samples] == [item.id]


def test_folders_without_a_clip_are_refused(tmp_path: Path) -> None:
    evaluator = flickering()
    with pytest.raises(ConfigError, match="does not; check the path"):
        evaluator.read_layout(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"stop sign-0\.mp4 but of .* none can be judged"):
        evaluator.read_layout(tmp_path)
    (tmp_path / f"{evaluator.items()[0].prompt.text}-0.mp4").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be read"):
        evaluator.read_layout(tmp_path)


def test_own_prompts_may_have_any_number_of_clips(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    for name in ("a cat-0", "a cat-7", "a dog", "frame-2-0"):
        put(folder, f"{name}.mp4")
    evaluator = VBench(data=str(folder), dimensions=[FLICKER], static_filter=False)
    found = evaluator.read_layout(folder)
    assert [(s.item.prompt.text, s.index) for s in found.samples] == [
        ("a cat", 0),
        ("a cat", 7),
        ("a dog", 0),
        ("frame-2", 0),
    ]
    assert found.complaints == []


# Verdicts


def sample(evaluator: VBench, path: Path, index: int = 0) -> Sample:
    return Sample(evaluator.items()[0], index, path)


def test_lossless_frames_are_judged_where_they_are_there(tmp_path: Path) -> None:
    evaluator = flickering()
    exact = clips(1, frames=4)[0]
    shown = put(tmp_path, "v. 1-0.mp4", exact)
    (lossy,) = evaluator.judge([sample(evaluator, shown)])
    put(tmp_path, "v. 1-0.mkv", exact)
    (judged,) = evaluator.judge([sample(evaluator, shown)])
    assert judged.values[FLICKER] == steadiness(exact.frames) != lossy.values[FLICKER]


def test_unreadable_clips_and_images_are_reported_and_spoil_nothing(tmp_path: Path) -> None:
    evaluator = flickering()
    good = put(tmp_path, "good.mp4")
    paths = [tmp_path / "missing.mp4", tmp_path / "broken.mp4", tmp_path / "image.png", good]
    paths[1].write_bytes(b"\0" * 500)
    Image.new("RGB", (8, 8)).save(paths[2])
    paths.append(put(tmp_path, "one.mkv", Video(clips(1)[0].frames[:1])))
    verdicts = evaluator.judge([sample(evaluator, path) for path in paths])
    assert [bool(verdict.values) for verdict in verdicts] == [False, False, False, True, False]
    for verdict in verdicts[:3]:
        assert "the clip cannot be read" in (verdict.reason or "")
    assert verdicts[3].reason is None and verdicts[3].correct is None
    assert "only one" in (verdicts[4].reason or "")
    arm = [Judged(sample(evaluator, path), verdict) for path, verdict in zip(paths, verdicts, strict=True)]
    assert evaluator.summarise(arm, np.ones(5))[FLICKER] == verdicts[3].values[FLICKER]


def test_every_native_dimension_on_tiny_models(tmp_path: Path, weights: dict[str, str]) -> None:
    """All dimensions of their prompts, one broken measure among them, written and summed up."""
    evaluator = VBench(weights=weights, device="cpu", static_filter=False)
    evaluator._judges.raft.updates = 2
    by_tag = {tag: item for item in reversed(evaluator.items()) for tag in item.tags}
    samples = []
    for number, item in enumerate({item.id: item for item in by_tag.values()}.values()):
        video = clips(1, frames=4, size=(136, 128), seed=number)[0]
        samples.append(Sample(item, 0, put(tmp_path, f"{evaluator.place(item, 0)}.mkv", video)))
    small = put(tmp_path, "small.mkv", clips(1, frames=4)[0])
    samples.append(Sample(by_tag["dynamic_degree"], 1, small))
    verdicts = evaluator.judge(samples)
    for each, verdict in zip(samples[:-1], verdicts, strict=False):
        assert set(verdict.values) == set(each.item.tags) and verdict.reason is None
        assert all(math.isfinite(value) for value in verdict.values.values())
    assert set(verdicts[-1].values) == {"subject_consistency"}
    assert "dynamic_degree: RAFT needs sides" in (verdicts[-1].reason or "")
    arm = [Judged(each, verdict) for each, verdict in zip(samples, verdicts, strict=True)]
    shown = evaluator.summarise(arm, np.ones(len(arm)))
    assert all(math.isfinite(shown[name]) for name in evaluator.dimensions)
    assert math.isnan(shown["total"]) and math.isnan(shown["quality"])
    files = evaluator.write_results(tmp_path / "results", arm)
    assert [file.name for file in files] == ["vbench_full_info.json", "vbench_eval_results.json"]
    found = json.loads(files[1].read_text())
    assert {name: entry[0] for name, entry in found.items()} == pytest.approx(
        {name: shown[name] for name in evaluator.dimensions}
    )


def test_only_the_prompts_of_a_dimension_are_measured(tmp_path: Path) -> None:
    evaluator = flickering()
    other = VBench(dimensions=["subject_consistency"]).items()[0]
    (verdict,) = evaluator.judge([Sample(other, 0, put(tmp_path, "x.mp4"))])
    assert verdict.values == {} and verdict.reason is None


def test_missing_weights_end_the_run_with_the_reason(tmp_path: Path) -> None:
    evaluator = VBench(
        dimensions=["subject_consistency"], weights={"dino": str(tmp_path / "no")}, device="cpu"
    )
    path = put(tmp_path, "x.mp4")
    with pytest.raises(
        VerifierError, match=r"'subject_consistency' of vbench must load its models \(dino\) but"
    ):
        evaluator.judge([sample(evaluator, path)])
    with pytest.raises(
        VerifierError, match=r"'subject_consistency' of vbench must load its models \(dino\) but"
    ):
        evaluator.self_test()


def test_self_test(weights: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["subject_consistency", "background_consistency", FLICKER, "overall_consistency"]
    evaluator = VBench(dimensions=names, weights=weights, static_filter=False, device="cpu")
    told = evaluator.self_test()
    assert "a still clip scores 1" in told and FLICKER in told and "overall_consistency" not in told
    assert VBench(dimensions=["overall_consistency"], weights=weights, device="cpu").self_test() == ""
    monkeypatch.setattr("tts_vision.verifiers.flicker.steadiness", lambda frames: 0.5)
    with pytest.raises(VerifierError, match=f"'{FLICKER}' of vbench must be 1.0 on a still clip"):
        evaluator.self_test()


@pytest.mark.download
def test_a_still_clip_of_published_weights() -> None:
    """Needs the published weights in the folders named by TTS_VISION_VBENCH, a JSON object."""
    given = os.environ.get("TTS_VISION_VBENCH", "")
    if not given:
        pytest.skip("set TTS_VISION_VBENCH")
    evaluator = VBench(weights=json.loads(given))
    assert "subject_consistency" in evaluator.self_test() and torch.is_tensor(clips(1)[0].frames)
