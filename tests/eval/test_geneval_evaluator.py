"""GenEval from a folder of images to figures, with a detector that knows what the painter drew."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tts_vision.cli import app
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.evaluation import evaluate_images
from tts_vision.eval.evaluator import Item, Judged, Sample, Verdict
from tts_vision.eval.evaluators.geneval import GenEval
from tts_vision.eval.geneval import self_test
from tts_vision.eval.geneval.prompts import TASKS, as_lines, published_records
from tts_vision.eval.geneval.self_test import photo, spoilt, truth
from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.world import Scene
from tts_vision.registry import lookup
from tts_vision.types import Prompt
from tts_vision.verifiers._colour_namer import ColourNamer
from tts_vision.verifiers._detections import Detection
from tts_vision.verifiers._mask2former import Mask2Former
from tts_vision.verifiers._object_judge import ObjectJudge

sys.path.append(str(Path(__file__).resolve().parents[1] / "verifiers"))
import tiny_detectors
from tiny_backbones import tiny_clip

EACH = 4
"""Prompts of each task, with four images each."""


class Drawn:
    """The scenes of images, for detectors that know them."""

    def __init__(self) -> None:
        self.scenes: dict[bytes, Scene] = {}
        self.asked: list[int] = []

    def draw(self, scene: Scene) -> Image.Image:
        image = Image.fromarray(world.render(scene))
        self.scenes[image.tobytes()] = scene
        return image


class StubDetector:
    """Finds the things that the painter drew, all with about the same confidence."""

    size, batch_size = 800, 4

    def __init__(self, drawn: Drawn, confidence: float = 0.95) -> None:
        self.drawn, self.confidence = drawn, confidence

    def load(self) -> None:
        pass

    def knows(self, noun: str) -> bool:
        return noun in world.SHAPES

    def detect(
        self, images: Sequence[Image.Image], nouns: Sequence[Sequence[str]], thresholds: Sequence[float]
    ) -> list[list[Detection]]:
        self.drawn.asked.append(len(images))
        found = []
        for image, names, threshold in zip(images, nouns, thresholds, strict=True):
            seen = [d for d, _ in truth(self.drawn.scenes[image.tobytes()])]
            sure = [Detection(d.label, self.confidence * d.score, d.box) for d in seen]
            found.append([d for d in sure if d.label in names and d.score > threshold])
        return found


class StubColours:
    """Names the colour in the middle of a crop."""

    def load(self) -> None:
        pass

    def names(self, crops: Sequence[Image.Image], groups: Sequence[Any]) -> list[str]:
        palette = np.array(list(world.COLOURS.values()))
        middles = [np.asarray(c)[c.height // 3 : -c.height // 3, c.width // 3 : -c.width // 3] for c in crops]
        return [
            list(world.COLOURS)[int(np.abs(palette - np.median(m.reshape(-1, 3), 0)).sum(1).argmin())]
            for m in middles
        ]


@pytest.fixture
def drawn() -> Drawn:
    return Drawn()


@pytest.fixture
def evaluator(tmp_path: Path, drawn: Drawn) -> GenEval:
    """GenEval for prompts about plain shapes, with stubs for its models."""
    rng = np.random.default_rng(5)
    records = []
    for task in TASKS:
        found: dict[str, Any] = {}
        while len(found) < EACH:
            spec = world.sample_spec(rng, task)
            if "ring" in {group.shape for group in spec.groups}:
                continue  # it shows the ground in its middle, where the stub looks for colours
            found.setdefault(world.caption(spec), world.metadata(spec))
        records += found.values()
    data = tmp_path / "data.jsonl"
    data.write_text(as_lines(records))
    built = GenEval(data=str(data), device="cpu")
    built._judge_objects.detector = StubDetector(drawn)  # type: ignore[assignment]
    built._judge_objects.colours = StubColours()  # type: ignore[assignment]
    return built


def fill(evaluator: GenEval, folder: Path, drawn: Drawn) -> dict[tuple[str, int], bool]:
    """Draws four images for each prompt in the published layout; which of them are right."""
    rng = np.random.default_rng(6)
    plan = {}
    evaluator.write_layout(folder, evaluator.items())
    for item in evaluator.items():
        spec = world.parse_spec(item.prompt.text)
        for index in range(evaluator.samples_per_item):
            scene = world.sample_scene(rng, spec)
            plan[item.id, index] = bool(rng.random() < 0.6)
            if not plan[item.id, index]:
                scene = spoilt(scene, spec)
            path = folder / f"{evaluator.place(item, index)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn.draw(scene).save(path)
    return plan


def judged(evaluator: GenEval, folder: Path) -> list[Judged]:
    found = evaluator.read_layout(folder)
    return [Judged(s, v) for s, v in zip(found.samples, evaluator.judge(found.samples), strict=True)]


def test_the_known_accuracy_is_recovered(evaluator: GenEval, drawn: Drawn, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    plan = fill(evaluator, folder, drawn)
    found = evaluator.read_layout(folder)
    assert found.complaints == [] and len(found.samples) == len(plan) == 4 * 4 * 6
    results = judged(evaluator, folder)
    assert {(j.sample.item.id, j.sample.index): j.verdict.correct for j in results} == plan
    figures = evaluator.summarise(results, np.ones(len(results)))
    by_task = {
        task: np.mean(
            [plan[item.id, k] for item in evaluator.items() if item.tags == (task,) for k in range(4)]
        )
        for task in TASKS
    }
    assert figures == pytest.approx(
        {
            "overall": np.mean(list(by_task.values())),
            **by_task,
            "image accuracy": np.mean(list(plan.values())),
            "prompt accuracy": np.mean([any(plan[i.id, k] for k in range(4)) for i in evaluator.items()]),
        }
    )
    assert 0.2 < figures["overall"] < 0.8
    for each in results:
        assert bool(each.verdict.reason) != each.verdict.correct
        assert each.verdict.values == {"accuracy": float(bool(each.verdict.correct))}


def test_counting_has_a_threshold_of_its_own(evaluator: GenEval, drawn: Drawn, tmp_path: Path) -> None:
    plan = fill(evaluator, tmp_path / "images", drawn)
    evaluator._judge_objects.detector = StubDetector(drawn, confidence=0.6)  # type: ignore[assignment]
    for each in judged(evaluator, tmp_path / "images"):
        is_right = plan[each.sample.item.id, each.sample.index]
        assert each.verdict.correct == (is_right and each.sample.item.tags != ("counting",))


def test_results_are_written_as_the_official_script_writes_them(
    evaluator: GenEval, drawn: Drawn, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    fill(evaluator, folder, drawn)
    results = judged(evaluator, folder)
    (path,) = evaluator.write_results(folder, results)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.name == "results.jsonl" and len(rows) == len(results)
    assert list(rows[0]) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    for row, each in zip(rows, results, strict=True):
        assert (folder / row["filename"]).is_file() and row["tag"] == each.sample.item.tags[0]
        assert type(row["correct"]) is bool and type(row["reason"]) is str
        assert row["metadata"] == (folder / row["filename"]).parents[1].joinpath("metadata.jsonl").read_text()
        boxes = json.loads(row["details"])
        assert all(len(box) == 5 for some in boxes.values() for box in some)
    # the figures of GenEval's own summary, from these rows alone
    by_task = {task: np.mean([r["correct"] for r in rows if r["tag"] == task]) for task in TASKS}
    by_prompt: dict[str, bool] = {}
    for row in rows:
        by_prompt[row["metadata"]] = by_prompt.get(row["metadata"], False) or row["correct"]
    figures = evaluator.summarise(results, np.ones(len(results)))
    assert figures["overall"] == pytest.approx(np.mean(list(by_task.values())))
    assert figures["prompt accuracy"] == pytest.approx(np.mean(list(by_prompt.values())))
    # one that could not be judged has no row
    unknown = Judged(results[0].sample, Verdict(reason="it cannot be read"))
    (path,) = evaluator.write_results(tmp_path / "other", [unknown, results[1]])
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["filename"] == str(results[1].sample.path)


def test_official_metadata_is_written_byte_for_byte(tmp_path: Path) -> None:
    evaluator = GenEval(device="cpu")
    items = [evaluator.items()[i] for i in (0, 200, 400, 552)]
    written = evaluator.write_layout(tmp_path, items)
    assert [p.relative_to(tmp_path).as_posix() for p in written] == [
        f"{n:05d}/metadata.jsonl" for n in (0, 200, 400, 552)
    ]
    assert [p.read_text() for p in written] == [
        json.dumps(published_records()[n]) for n in (0, 200, 400, 552)
    ]
    assert evaluator.place(items[1], 3) == "00200/samples/00003"


# ------------------------------------------------------------------------------------ folders of others


def test_a_folder_of_somebody_else_is_read(evaluator: GenEval, drawn: Drawn, tmp_path: Path) -> None:
    """Four digits, samples that start anywhere, grids and notes beside them, folders in another order."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    plan = fill(evaluator, ours, drawn)
    items = evaluator.items()
    for number, item in enumerate(reversed(items)):
        target = theirs / f"{number + 7:04d}"
        (target / "samples").mkdir(parents=True)
        record = {"prompt": item.prompt.text, **item.prompt.metadata}  # keys in another order
        (target / "metadata.jsonl").write_text(json.dumps(record, indent=1) + "\n")
        for index in range(4):
            image = (ours / f"{evaluator.place(item, index)}.png").read_bytes()
            (target / "samples" / f"{index + 1:04d}.png").write_bytes(image)
        (target / "grid.png").write_bytes(b"x")
        (target / "samples" / "notes.txt").write_text("x")
    (theirs / "results.jsonl").write_text("x")
    (theirs / "old").mkdir()
    found = evaluator.read_layout(theirs)
    assert found.complaints == []
    verdicts = evaluator.judge(found.samples)
    assert {(s.item.id, s.index - 1): v.correct for s, v in zip(found.samples, verdicts)} == plan


def test_what_is_wrong_with_a_folder_is_said_and_costs_only_itself(
    evaluator: GenEval, drawn: Drawn, tmp_path: Path
) -> None:
    folder, outside = tmp_path / "images", tmp_path / "outside.png"
    plan = fill(evaluator, folder, drawn)
    items = evaluator.items()

    def sample(number: int, index: int) -> Path:
        return folder / f"{evaluator.place(items[number], index)}.png"

    for path in (sample(0, k) for k in range(4)):
        path.unlink()
    (folder / items[1].id).rename(folder / "lost")
    sample(2, 3).unlink()
    sample(3, 1).write_bytes(b"no image")
    sample(4, 0).write_bytes(sample(4, 0).read_bytes()[:-40])
    sample(5, 2).rename(outside)
    os.symlink(outside, sample(5, 2))
    sample(6, 0).unlink()
    sample(6, 0).mkdir()
    sample(7, 0).unlink()
    os.mkfifo(sample(7, 0))
    (folder / items[8].id / "samples" / "3.png").write_bytes(sample(8, 0).read_bytes())
    (folder / items[9].id / "metadata.jsonl").write_text("{")
    (folder / items[10].id / "metadata.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    changed = {**items[11].prompt.metadata, "include": [{"class": "dog"}], "prompt": items[11].prompt.text}
    (folder / items[11].id / "metadata.jsonl").write_text(json.dumps(changed))
    (folder / items[12].id / "metadata.jsonl").write_text(json.dumps({**changed, "prompt": "a dog"}))
    (folder / items[13].id / "metadata.jsonl").unlink()
    again = folder / "90000"
    (again / "samples").mkdir(parents=True)
    (again / "metadata.jsonl").write_bytes((folder / items[14].id / "metadata.jsonl").read_bytes())
    away = tmp_path / "elsewhere.jsonl"
    (folder / items[15].id / "metadata.jsonl").rename(away)
    os.symlink(away, folder / items[15].id / "metadata.jsonl")

    found = evaluator.read_layout(folder)
    said = "\n".join(found.complaints)
    for reason in (
        f"{items[0].id}: 0 samples of {items[0].prompt.text!r} instead of 4",
        f"{items[1].id}: no folder has the prompt {items[1].prompt.text!r}",
        f"{items[2].id}: 3 samples",
        f"{items[3].id}/samples/00001.png: it cannot be read",
        f"{items[4].id}/samples/00000.png: it cannot be read",
        f"{items[5].id}/samples/00002.png: a link that leads out of the folder",
        f"{items[6].id}/samples/00000.png: no file",
        f"{items[7].id}/samples/00000.png: no file",
        f"{items[8].id}/samples/3.png: another file is sample 3 as well",
        f"{items[9].id}: metadata.jsonl must hold the record of a prompt but: Expecting",
        f"{items[10].id}: metadata.jsonl must hold the record of a prompt but: 'utf-8' codec",
        f"{items[11].id}: the record in metadata.jsonl differs from the benchmark's",
        f"{items[12].id}: the record in metadata.jsonl is of another prompt, 'a dog'",
        f"{items[13].id}: metadata.jsonl must hold the record of a prompt but: [Errno 2]",
        f"90000: a folder before it has the same prompt, {items[14].prompt.text!r}",
        f"{items[15].id}: metadata.jsonl leads out of the folder",
    ):
        assert reason in said, said
    bad = {0, 1, 9, 10, 11, 12, 13, 15}
    left = {(i.id, k) for n, i in enumerate(items) if n not in bad for k in range(4)}
    left -= {(items[n].id, k) for n, k in ((2, 3), (3, 1), (4, 0), (5, 2), (6, 0), (7, 0))}
    verdicts = evaluator.judge(found.samples)
    assert {(s.item.id, s.index): v.correct for s, v in zip(found.samples, verdicts)} == {
        key: plan[key] for key in left
    }


def test_a_folder_without_samples_is_refused(evaluator: GenEval, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"such as 00000/samples/00000\.png"):
        evaluator.read_layout(tmp_path / "missing")
    evaluator.write_layout(tmp_path / "empty", evaluator.items())
    with pytest.raises(ConfigError, match=r"none that can be judged; 00000: 0 samples"):
        evaluator.read_layout(tmp_path / "empty")


def test_a_sample_that_cannot_be_judged_says_why(evaluator: GenEval, drawn: Drawn, tmp_path: Path) -> None:
    plan = fill(evaluator, tmp_path, drawn)
    samples = evaluator.read_layout(tmp_path).samples
    samples[1].path.write_bytes(b"no image")
    samples[2].path.unlink()
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(samples[3].path, save_all=True, append_images=frames[1:])
    stranger = Sample(Item("00001", Prompt("a dog")), 0, samples[0].path)
    verdicts = evaluator.judge([*samples[:6], stranger])
    for verdict, reason in zip(
        [*verdicts[1:4], verdicts[6]],
        ["no image that Pillow can read", "No such file", "got a clip", "must have a record of GenEval"],
        strict=True,
    ):
        assert verdict.correct is None and verdict.values == {} and reason in (verdict.reason or "")
    for k in (0, 4, 5):
        assert verdicts[k].correct == plan[samples[k].item.id, samples[k].index]
    figures = evaluator.summarise([Judged(s, v) for s, v in zip(samples[:4], verdicts[:4])], np.ones(4))
    assert figures["image accuracy"] == float(bool(verdicts[0].correct)) and math.isnan(figures["overall"])
    assert evaluator.judge([]) == []


def test_few_images_are_in_memory_at_once(evaluator: GenEval, drawn: Drawn, tmp_path: Path) -> None:
    fill(evaluator, tmp_path, drawn)
    evaluator.judge(evaluator.read_layout(tmp_path).samples)
    assert drawn.asked == [16] * 6 and evaluator.window == 16  # four batches of four


# -------------------------------------------------------------------------------------------- tiny models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("geneval")
    tiny_detectors.mask2former(folder / "mask2former")
    tiny_clip(folder / "clip")
    return folder


def tiny(folder: Path, **settings: Any) -> ObjectJudge:
    settings = {"threshold": 0.0, "counting_threshold": 0.05, "size": 64, "batch_size": 8, **settings}
    checkpoint, colours = str(folder / "mask2former"), str(folder / "clip")
    return ObjectJudge(
        "mask2former", checkpoint=checkpoint, colours=colours, owner="x", device="cpu", **settings
    )


def noise(n: int, size: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(n)
    return [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(n)]


def test_batches_find_what_single_images_give(folder: Path) -> None:
    """Over prompts of different nouns and images of two sizes, with colours."""
    from tts_vision.verifiers._predicates import Demands, Group

    images = [*noise(7, (64, 48)), *noise(4, (40, 72))]
    groups = [
        (Group("circle"), Group("star")),
        (Group("star", 2, 2),),
        (Group("computer mouse", colour="red"),),
    ]
    demands = [Demands(groups[i % 3]) for i in range(len(images))]
    counting = [i % 3 == 1 for i in range(len(images))]
    together = tiny(folder)
    found = together.findings(images, demands, counting, also=["person"])
    alone = tiny(folder, batch_size=1)
    for each, image, wanted, limit in zip(found, images, demands, counting, strict=True):
        (one,) = alone.findings([image], [wanted], [limit], also=["person"])
        assert not isinstance(each, str) and not isinstance(one, str)
        assert each.faults == one.faults
        assert [d.label for d in each.detections] == [d.label for d in one.detections]
        assert [d.box for d in each.detections] == [d.box for d in one.detections]
        assert [d.score for d in each.detections] == pytest.approx(
            [d.score for d in one.detections], abs=1e-5
        )
    assert sum(len(each.detections) for each in found if not isinstance(each, str)) > 50


def test_a_model_is_called_once_for_a_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision.verifiers._predicates import Demands, Group

    judge = tiny(folder)
    judge.load()
    calls: list[int] = []
    forward = judge.detector._model.forward  # type: ignore[attr-defined]

    def counted(pixel_values: Any, **rest: Any) -> Any:
        calls.append(len(pixel_values))
        return forward(pixel_values=pixel_values, **rest)

    monkeypatch.setattr(judge.detector._model, "forward", counted)  # type: ignore[attr-defined]
    named: list[int] = []
    namer = judge.colours
    assert isinstance(namer, ColourNamer)
    names = namer.names
    monkeypatch.setattr(namer, "names", lambda c, g: named.append(len(c)) or names(c, g))
    nouns = ["circle", "star", "person"]
    demands = [Demands((Group(nouns[i % 3], colour="red"),)) for i in range(8)]
    judge.findings(noise(8, (64, 64)), demands, [False] * 8)
    assert calls == [8] and len(named) == 1


def test_masks_are_resized_in_parts_of_bounded_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision.verifiers import _mask2former

    image = noise(1, (64, 48))
    detector = Mask2Former(str(folder / "mask2former"), owner="x", size=64, device="cpu", batch_size=1)
    whole = detector.detect(image, [["circle", "star"]], [0.0])[0]
    sizes: list[int] = []
    resize = _mask2former.F.interpolate

    def watched(pixels: Any, *args: Any, **settings: Any) -> Any:
        sizes.append(pixels.shape[1])
        return resize(pixels, *args, **settings)

    monkeypatch.setattr(_mask2former, "PIXELS_AT_ONCE", {"cpu": 3 * 64 * 96})
    monkeypatch.setattr(_mask2former.F, "interpolate", watched)
    parts = detector.detect(image, [["circle", "star"]], [0.0])[0]
    assert [(d.label, d.score, d.box) for d in parts] == [(d.label, d.score, d.box) for d in whole]
    assert len(parts) > 10 and max(sizes[-8:]) == 3


# ------------------------------------------------------------------------------- settings and self-test


def test_settings_are_refused_at_once() -> None:
    for settings, reason in [
        ({"colours": "none"}, "colours of geneval must be a CLIP"),
        ({"threshold": 1.0}, r"threshold of geneval must be in \[0, 1\)"),
        ({"counting_threshold": -0.1}, "counting_threshold of geneval"),
        ({"max_objects": 0}, "max_objects of geneval"),
        ({"max_overlap": 0.0}, "max_overlap of geneval"),
        ({"size": 8}, "size of geneval"),
        ({"batch_size": 0}, "batch_size of geneval"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            GenEval(device="cpu", **settings)  # type: ignore[arg-type]


def test_notes_say_what_a_reader_must_know(tmp_path: Path, evaluator: GenEval) -> None:
    entry = lookup("evaluator", "geneval")
    assert entry.target is GenEval and "Ghosh et al. 2023" in entry.paper
    plain = " ".join(GenEval(device="cpu").notes)
    assert "GenEval (HF detector)" in plain and "17.7 points" in plain and "arXiv:2512.16853" in plain
    assert "Settings differ" not in plain
    own = GenEval(checkpoint="mmdet", device="cpu").notes
    assert len(own) == 1 and "saturated" in own[0]
    changed = " ".join(GenEval(size=400, threshold=0.4, colours="owner/clip", device="cpu").notes)
    assert "threshold 0.4 instead of 0.3, size 400 instead of 800" in changed and "owner/clip" in changed
    assert "not the published ones" in " ".join(evaluator.notes)
    published = tmp_path / "published.jsonl"
    published.write_text(as_lines(published_records()))
    assert GenEval(data=str(published), device="cpu").notes == GenEval(device="cpu").notes


def test_verdicts_are_of_a_named_judge(tmp_path: Path) -> None:
    name = GenEval(device="cpu").judge_name
    assert name == GenEval(device="cpu", batch_size=2).judge_name
    weights = tmp_path / "x.pth"
    weights.write_bytes(b"1")
    others = {name}
    others.add(GenEval(device="cpu", threshold=0.4).judge_name)
    others.add(GenEval(device="cpu", size=400).judge_name)
    others.add(GenEval(device="cpu", colours="owner/clip").judge_name)
    others.add(GenEval(device="cpu", checkpoint="mmdet").judge_name)
    others.add(GenEval(device="cpu", checkpoint=str(weights)).judge_name)
    weights.write_bytes(b"2")
    others.add(GenEval(device="cpu", checkpoint=str(weights)).judge_name)
    assert len(others) == 7


def test_an_untrained_detector_is_found_out(folder: Path, evaluator: GenEval) -> None:
    """Random weights load key by key; the photograph tells."""
    untrained = Mask2Former(str(folder / "mask2former"), owner="geneval", size=64, device="cpu", batch_size=1)
    evaluator._judge_objects.detector = untrained
    with pytest.raises(VerifierError, match=r"know the classes of all prompts but .* does not know 'cross'"):
        evaluator.self_test()
    evaluator._known = [i for i in evaluator.items() if {"circle", "star"} >= {
        e["class"] for e in i.prompt.metadata["include"]}]  # fmt: skip
    assert evaluator.items() and photo() is not None
    with pytest.raises(
        VerifierError, match=r"must see the person in a portrait photograph .* trained on COCO"
    ):
        evaluator.self_test()


class Trained(StubDetector):
    """Sees the person in the photograph as well."""

    def knows(self, noun: str) -> bool:
        return True

    def detect(self, images: Any, nouns: Any, thresholds: Any) -> list[list[Detection]]:
        if [image.size for image in images] == [(512, 600)]:
            return [[Detection("person", self.confidence, (0, 0, 500, 600))]]
        return super().detect(images, nouns, thresholds)


def test_a_trained_judge_passes(evaluator: GenEval, drawn: Drawn, folder: Path) -> None:
    evaluator._judge_objects.detector = Trained(drawn)  # type: ignore[assignment]
    said = evaluator.self_test()
    assert said == (
        "60 drawn scenes of known verdicts were judged as they are. The detector found the person in a "
        "photograph (confidence 0.95). The CLIP named 10 of 10 plain colours."
    )
    evaluator._judge_objects.colours = ColourNamer(str(folder / "clip"), owner="geneval", device="cpu")
    with pytest.raises(VerifierError, match="must name at least 5 of ten plain colours"):
        evaluator.self_test()
    evaluator._judge_objects.colours = StubColours()  # type: ignore[assignment]
    evaluator._judge_objects.detector = Trained(drawn, confidence=0.4)  # type: ignore[assignment]
    with pytest.raises(VerifierError, match=r"but gives 0\.40"):
        evaluator.self_test()


def test_a_folder_of_somebody_is_evaluated_as_a_whole(
    evaluator: GenEval, drawn: Drawn, tmp_path: Path
) -> None:
    """From ``--images`` to the figures of the report, one file damaged."""
    images = tmp_path / "images"
    plan = fill(evaluator, images, drawn)
    (images / "00003" / "samples" / "00001.png").write_bytes(b"no image")
    del plan["00003", 1]
    evaluator._judge_objects.detector = Trained(drawn)  # type: ignore[assignment]
    evaluation = evaluate_images(evaluator, images, output=tmp_path / "run")
    figures = evaluation.arms[0].figures
    for task in TASKS:
        ids = {item.id for item in evaluator.items() if item.tags == (task,)}
        assert figures[task].value == pytest.approx(np.mean([v for (i, _), v in plan.items() if i in ids]))
    assert figures["overall"].value == pytest.approx(np.mean([figures[task].value for task in TASKS]))
    assert figures["overall"].low < figures["overall"].value < figures["overall"].high
    assert [line for line in evaluation.complaints if "00003/samples/00001.png" in line]
    assert any("17.7 points" in note for note in evaluation.notes)
    (results,) = tmp_path.glob("run/**/results.jsonl")
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert np.mean([row["correct"] for row in rows]) == pytest.approx(figures["image accuracy"].value)
    assert not (images / "results.jsonl").exists()


def test_a_report_says_that_there_was_no_photograph(
    evaluator: GenEval, drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    evaluator._judge_objects.detector = Trained(drawn)  # type: ignore[assignment]
    assert "tried on no photograph" in evaluator.self_test()


def test_a_damaged_scorer_is_found_out(
    evaluator: GenEval, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator._judge_objects.detector = Trained(drawn)  # type: ignore[assignment]
    real = self_test.check
    for faulty in (lambda *a: {}, lambda *a: {**real(*a), "x": "a fault"}):
        monkeypatch.setattr(self_test, "check", faulty)
        with pytest.raises(VerifierError, match=r"must find drawn scenes right or wrong as they are"):
            evaluator.self_test()


def test_openais_clip_with_another_activation_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "openai" / "clip-vit-large-patch14"
    checkpoint.parent.mkdir()
    tiny_clip(checkpoint)
    namer = ColourNamer(str(checkpoint), owner="geneval", device="cpu")
    namer.load()
    config = json.loads((checkpoint / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        changed = json.loads(json.dumps(config))
        changed[part]["hidden_act"] = "gelu"
        (checkpoint / "config.json").write_text(json.dumps(changed))
        with pytest.raises(VerifierError, match="must run with quick_gelu"):
            ColourNamer(str(checkpoint), owner="geneval", device="cpu").load()


def test_the_command_judges_a_folder_of_anybody(tmp_path: Path) -> None:
    """With a detector and a CLIP of random weights, in the layouts of the published ones."""
    for i in range(3):
        folder = tmp_path / "theirs" / f"{i:05d}"
        (folder / "samples").mkdir(parents=True)
        record = published_records()[100 * i]
        (folder / "metadata.jsonl").write_text(json.dumps(record))
        for k in range(4):
            image = Image.fromarray(np.full((64, 64, 3), 40 * k, np.uint8))
            image.save(folder / "samples" / f"{k:05d}.png")
    words = ["eval", "geneval", "--images", str(tmp_path / "theirs"), "--output", str(tmp_path / "out")]
    words += ["--checkpoint", str(tiny_detectors.mask2former(tmp_path / "detector")), "--size", "64"]
    words += ["--colours", str(tiny_clip(tmp_path / "clip"))]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2 and "Traceback" not in refused.stderr
    done = CliRunner().invoke(app, [*words, "--no-self-test"])
    assert done.exit_code == 1, "550 prompts are missing"
    assert "image accuracy" in done.stdout and "The judge was not tested before." in done.stderr
    data = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(data["rows"]) == 12
