from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tts_vision.errors import VerifierError
from tts_vision.eval.evaluator import Judged
from tts_vision.eval.evaluators import playground as module
from tts_vision.eval.evaluators.playground import Playground, exact_findings
from tts_vision.eval.geneval.self_test import known_scenes, spoilt
from tts_vision.eval.geneval.task import verdict_of
from tts_vision.pipelines.playground import checker, world
from tts_vision.registry import lookup
from tts_vision.verifiers._detections import Findings
from tts_vision.verifiers._predicates import from_record


@pytest.fixture
def evaluator() -> Playground:
    entry = lookup("evaluator", "playground")
    assert entry.target is Playground
    return Playground()


def fill(evaluator: Playground, folder: Path, n: int) -> dict[tuple[str, int], bool]:
    """Four drawn images for each of the first prompts; which of them are right."""
    rng = np.random.default_rng(1)
    items, plan = evaluator.items()[:n], {}
    evaluator.write_layout(folder, items)
    for item in items:
        spec = world.parse_spec(item.prompt.text)
        for index in range(4):
            scene = world.sample_scene(rng, spec)
            plan[item.id, index] = bool(rng.random() < 0.6)
            path = folder / f"{evaluator.place(item, index)}.png"
            path.parent.mkdir(exist_ok=True)
            drawn = scene if plan[item.id, index] else spoilt(scene, spec)
            Image.fromarray(world.render(drawn)).save(path)
    return plan


def test_prompts_are_the_bundled_ones_task_by_task_in_turn(evaluator: Playground) -> None:
    items = evaluator.items()
    bundled = {record["prompt"]: record for record in world.load_prompts()}
    assert {
        item.prompt.text: {**item.prompt.metadata, "prompt": item.prompt.text} for item in items
    } == bundled
    assert len(items) == len(bundled) and [item.id for item in items[:2]] == ["00000", "00001"]
    assert [item.tags for item in items[:6]] == [(task,) for task in world.TASKS]
    assert evaluator.samples_per_item == 4 and evaluator.metric == "accuracy"


def test_the_known_accuracy_is_recovered_from_a_folder(evaluator: Playground, tmp_path: Path) -> None:
    plan = fill(evaluator, tmp_path, 48)
    found = evaluator.read_layout(tmp_path)
    assert len(found.complaints) == len(evaluator.items()) - 48  # the other prompts have no folder
    judged = [Judged(s, v) for s, v in zip(found.samples, evaluator.judge(found.samples), strict=True)]
    assert {(j.sample.item.id, j.sample.index): j.verdict.correct for j in judged} == plan
    figures = evaluator.summarise(judged, np.ones(len(judged)))
    shares = {
        task: np.mean([plan[i.id, k] for i in evaluator.items()[:48] if i.tags == (task,) for k in range(4)])
        for task in world.TASKS
    }
    assert {task: figures[task] for task in world.TASKS} == pytest.approx(shares)
    assert figures["overall"] == pytest.approx(np.mean(list(shares.values())))
    assert figures["image accuracy"] == pytest.approx(np.mean(list(plan.values())))
    (results,) = evaluator.write_results(tmp_path, judged)
    assert len(results.read_text().splitlines()) == len(plan)


def test_verdicts_are_those_of_the_exact_checker() -> None:
    """On right, wrong and noisy images: one scorer for the evaluator, another in the playground."""
    rng = np.random.default_rng(2)
    verdicts = []
    for spec, scene, right in known_scenes(30, seed=9):
        record = world.metadata(spec)
        demands = from_record(record)
        assert demands is not None
        image = world.render(scene)
        noisy = np.clip(image + rng.normal(0, 18, image.shape), 0, 255).astype(np.uint8)
        for pixels in (image, noisy):
            verdict = verdict_of(exact_findings(pixels, demands), demands)
            assert verdict.correct == checker.evaluate(pixels, record).correct
            verdicts.append(verdict.correct)
        assert verdicts[-2] == right
    assert 0.2 < np.mean(verdicts) < 0.8


def test_an_image_of_nothing_is_wrong(evaluator: Playground) -> None:
    for item in evaluator.items()[:6]:
        demands = from_record(item.prompt.metadata)
        assert demands is not None
        for size in ((64, 64), (1, 1), (3, 200)):
            blank = np.full((*size, 3), 128, dtype=np.uint8)
            verdict = verdict_of(exact_findings(blank, demands), demands)
            assert verdict.correct is False and verdict.reason


def test_the_checker_is_tried_on_drawn_scenes(evaluator: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluator.self_test() == "60 drawn scenes of known verdicts were judged as they are."
    assert evaluator.notes and "exact checker" in evaluator.notes[0]
    monkeypatch.setattr(module, "exact_findings", lambda image, demands: Findings({"x": "a fault"}, []))
    with pytest.raises(VerifierError, match="The scorer of playground"):
        evaluator.self_test()
