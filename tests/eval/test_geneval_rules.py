"""GenEval's rules and figures: properties, a second implementation, degenerate detections."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from tts_vision.eval.geneval.prompts import CLASSES, TASKS, published_records
from tts_vision.eval.geneval.summary import summary
from tts_vision.eval.geneval.task import verdict_of
from tts_vision.verifiers._detections import (
    Detection,
    Findings,
    check,
    coloured,
    direction,
    lies,
    overlap,
    strongest,
)
from tts_vision.verifiers._predicates import COLOURS, Demands, Group, from_record

RELATIONS = ("left of", "right of", "above", "below")


def boxes(n: int, seed: int) -> list[tuple[float, float, float, float]]:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 400, (n, 2))
    sides = rng.integers(1, 200, (n, 2))
    return [(float(x), float(y), float(x + w), float(y + h)) for (x, y), (w, h) in zip(corners, sides)]


def test_overlap_by_counting_pixels() -> None:
    """The far edges count, so that a box has (width + 1) x (height + 1) pixels."""
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(200):
        a, b = (tuple(float(v) for v in (x, y, x + w, y + h)) for x, y, w, h in rng.integers(0, 14, (2, 4)))
        drawn = []
        for x0, y0, x1, y1 in (a, b):
            canvas = np.zeros((40, 40), dtype=bool)
            canvas[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
            drawn.append(canvas)
        expected = (drawn[0] & drawn[1]).sum() / (drawn[0] | drawn[1]).sum()
        seen.append(overlap(a, b))
        assert seen[-1] == pytest.approx(expected)
    assert 0 < min(v for v in seen if v) < 0.2 and max(seen) > 0.6 and 0 in seen


def test_properties_of_overlap() -> None:
    for a, b in itertools.pairwise(boxes(200, 1)):
        assert overlap(a, a) == 1 and 0 <= overlap(a, b) <= 1
        assert overlap(a, b) == pytest.approx(overlap(b, a))
        moved = [tuple(v + 17 for v in box) for box in (a, b)]
        assert overlap(moved[0], moved[1]) == pytest.approx(overlap(a, b))


def test_properties_of_relations() -> None:
    opposite = {"left of": "right of", "above": "below"}
    found = dict.fromkeys((*RELATIONS, "none", "two"), 0)
    for a, b in itertools.pairwise(boxes(2000, 2)):
        held = [words for words in RELATIONS if lies(a, words, b)]
        for one, other in opposite.items():
            assert lies(a, one, b) == lies(b, other, a)
            assert not {one, other} <= set(held)
        moved = [tuple(v + 100 for v in box) for box in (a, b)]
        doubled = [tuple(2 * v for v in box) for box in (a, b)]
        assert direction(moved[0], moved[1]) == pytest.approx(direction(a, b))
        assert direction(doubled[0], doubled[1]) == pytest.approx(direction(a, b))
        assert math.hypot(*direction(a, b)) <= 1 + 1e-9
        flipped = [(-x1, y0, -x0, y1) for x0, y0, x1, y1 in (a, b)]
        assert lies(flipped[0], "left of", flipped[1]) == lies(a, "right of", b)
        for words in held:
            found[words] += 1
        found["none"] += not held
        found["two"] += len(held) == 2
    assert min(found.values()) > 20  # each case occurs, diagonal ones among them


def test_relations_at_their_limits() -> None:
    """Sides of 10 leave a dead band of 2 on each axis; the offset before it is the length."""
    base = (0.0, 0.0, 10.0, 10.0)

    def at(x: float, y: float) -> tuple[float, float, float, float]:
        return (x, y, x + 10, y + 10)

    assert not lies(at(-4.0, 0), "left of", base)  # (4 - 2) / 4 is not more than 0.5
    assert lies(at(-4.01, 0), "left of", base)
    assert direction(at(2.0, -2.0), base) == (0, 0)
    assert direction(at(2.0005, 0), base) == (0, 0)  # less than a thousandth beyond the band
    assert direction(at(30.0, 40.0), base) == pytest.approx((28 / 50, 38 / 50))


# ------------------------------------------------------------------------------- a second implementation


def second_opinion(found: list[Detection], record: dict[str, Any], colour: dict[int, str]) -> bool:
    """The verdict of GenEval, written for this test from the description of its rules."""
    groups: list[list[Detection] | None] = []
    right = True
    for entry in record["include"]:
        top = [d for d in found if d.label == entry["class"]][: entry["count"]]
        good = len(top) == entry["count"]
        if good and "color" in entry:
            good = all(colour[id(d)] == entry["color"] for d in top)
        if good and "position" in entry:
            words, reference = entry["position"]
            others = groups[reference]
            good = others is not None and all(side(a, b, words) for a in top for b in others)
        groups.append(top if good else None)
        right &= good
    for entry in record.get("exclude", []):
        right &= sum(d.label == entry["class"] for d in found) < entry["count"]
    return right


def side(a: Detection, b: Detection, words: str) -> bool:
    centre = [((d.box[0] + d.box[2]) / 2, (d.box[1] + d.box[3]) / 2) for d in (a, b)]
    size = [(d.box[2] - d.box[0], d.box[3] - d.box[1]) for d in (a, b)]
    offset = [centre[0][k] - centre[1][k] for k in (0, 1)]
    rest = [
        math.copysign(max(abs(offset[k]) - 0.1 * (size[0][k] + size[1][k]), 0), offset[k]) for k in (0, 1)
    ]
    if max(map(abs, rest)) < 1e-3:
        return False
    x, y = (r / math.hypot(*offset) for r in rest)
    return {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}[words]


def test_verdicts_agree_with_a_second_implementation() -> None:
    """On detections around the demands of every published prompt."""
    rng = np.random.default_rng(3)
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for record in published_records():
        demands = from_record(record)
        assert demands is not None
        for _ in range(6):
            found: list[Detection] = []
            colour: dict[int, str] = {}
            for entry in record["include"]:
                for _ in range(max(0, entry["count"] + int(rng.choice([-1, 0, 0, 0, 0, 1])))):
                    x, y = rng.integers(0, 400, 2)
                    w, h = rng.integers(20, 120, 2)
                    box = (float(x), float(y), float(x + w), float(y + h))
                    found.append(Detection(entry["class"], float(rng.random()), box))
                    asked = entry.get("color")
                    colour[id(found[-1])] = (
                        asked if asked and rng.random() < 0.8 else str(rng.choice(COLOURS))
                    )
            found.append(Detection(str(rng.choice(CLASSES)), float(rng.random()), (0.0, 0.0, 9.0, 9.0)))
            colour[id(found[-1])] = "red"
            best = strongest(found)
            faults = check(demands, best, lambda d, group, colour=colour: colour[id(d)])
            verdict = verdict_of(Findings(faults, best), demands)
            assert verdict.correct == second_opinion(best, record, colour), (record, best)
            assert verdict.values == {"accuracy": float(bool(verdict.correct))}
            verdicts[record["tag"]].append(bool(verdict.correct))
    for task in TASKS:
        assert 0.05 < np.mean(verdicts[task]) < 0.95, task


def test_colours_are_asked_for_just_where_they_decide() -> None:
    for record in [*published_records()[250:280], *published_records()[-30:]]:
        demands = from_record(record)
        assert demands is not None
        nouns = [group.noun for group in demands.groups] * 3
        found = [Detection(noun, 0.9 - 0.01 * i, (0, 0, 9, 9)) for i, noun in enumerate(nouns)]
        asked: list[tuple[int, Group]] = []

        def colour_of(detection: Detection, group: Group, asked: Any = asked) -> str:
            asked.append((id(detection), group))
            return "red"

        check(demands, found, colour_of)
        assert set(asked) == {(id(d), group) for d, group in coloured(demands, found)}


ODD_BOXES = [
    (0.0, 0.0, 0.0, 0.0),
    (5.0, 5.0, 5.0, 5.0),
    (5.0, 5.0, 5.0, 30.0),
    (-10.0, -10.0, -5.0, -5.0),
    (9.0, 9.0, 2.0, 2.0),  # its far corner comes first
    (9.0, 9.0, 8.0, 8.0),
    (1e7, 1e7, 1e7, 1e7),
]


def test_degenerate_boxes_have_a_verdict() -> None:
    for a, b in itertools.product(ODD_BOXES, repeat=2):
        assert 0 <= overlap(a, b) <= 1
        assert all(math.isfinite(v) for v in direction(a, b))
        assert all(lies(a, words, b) in (True, False) for words in RELATIONS)
    for record in published_records()[::9]:
        demands = from_record(record)
        assert demands is not None
        nothing = verdict_of(Findings(check(demands, [], lambda d, g: "red"), []), demands)
        assert nothing.correct is False and nothing.reason
        for noun_boxes in (ODD_BOXES, ODD_BOXES[:1]):
            found = [Detection(group.noun, 0.5, box) for group in demands.groups for box in noun_boxes]
            best = strongest(found, max_overlap=0.5)
            verdict = verdict_of(Findings(check(demands, best, lambda d, g: "red"), best), demands)
            assert verdict.correct in (True, False)


def test_faults_are_counted_by_kind() -> None:
    record = {
        "include": [
            {"class": "dog", "count": 2, "color": "red"},
            {"class": "cat", "count": 1, "color": "blue", "position": ["above", 0]},
        ]
    }
    demands = from_record(record)
    assert demands is not None
    found = [Detection("dog", 0.9, (0, 0, 9, 9)), Detection("cat", 0.8, (0, 50, 9, 59))]
    verdict = verdict_of(Findings(check(demands, found, lambda d, g: "green"), found), demands)
    assert verdict.faults == {"count": 1, "colour": 2, "position": 1} and verdict.correct is False
    assert verdict.reason is not None and len(verdict.reason.split("; ")) == 4


def test_an_image_is_not_right_before_all_was_checked() -> None:
    demands = Demands((Group("dog", colour="red"),))
    found = [Detection("dog", 0.9, (0, 0, 9, 9))]
    verdict = verdict_of(Findings(check(demands, found, None), found), demands)
    assert (verdict.correct, verdict.values, verdict.reason) == (None, {}, "not checked: dog is red")
    assert verdict.details == {"dog": [[0, 0, 9, 9, 0.9]]}


# ----------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("overall", "tasks"),
    [
        (0.43, (0.97, 0.38, 0.35, 0.76, 0.04, 0.06)),
        (0.50, (0.98, 0.51, 0.44, 0.85, 0.07, 0.17)),
        (0.55, (0.98, 0.74, 0.39, 0.85, 0.15, 0.23)),
        (0.61, (0.97, 0.74, 0.66, 0.81, 0.13, 0.35)),
    ],
)
def test_overall_is_the_mean_of_the_tasks_as_published(overall: float, tasks: tuple[float, ...]) -> None:
    """Rows of GenEval's table (SD 1.5, SD 2.1, SDXL, IF-XL): tasks of unequal size weigh the same."""
    sizes = (800, 100, 200, 100, 300, 100)
    correct = np.concatenate([np.arange(n) < round(n * share) for n, share in zip(sizes, tasks)]).astype(
        float
    )
    names = [task for task, n in zip(TASKS, sizes) for _ in range(n)]
    ids = [str(i) for i in range(len(names))]
    found = summary(correct, names, ids, np.ones(len(names)), expected=TASKS)
    assert [found[task] for task in TASKS] == pytest.approx(tasks)
    assert found["overall"] == pytest.approx(overall, abs=0.007)
    assert found["image accuracy"] == found["prompt accuracy"] == pytest.approx(correct.mean())


def test_figures_by_hand_and_by_weights() -> None:
    """Two tasks, three prompts of two images; the last image cannot be judged."""
    correct = np.array([1, 0, 0, 0, 1, np.nan])
    tasks, ids = ["a", "a", "a", "a", "b", "b"], ["0", "0", "1", "1", "2", "2"]
    plain = summary(correct, tasks, ids, np.ones(6), expected=["a", "b"])
    assert plain == {
        "overall": 0.625,
        "a": 0.25,
        "b": 1.0,
        "image accuracy": 0.4,
        "prompt accuracy": pytest.approx(2 / 3),
    }
    twice = summary(correct, tasks, ids, np.array([2, 2, 0, 0, 1, 1]), expected=["a", "b"])
    assert (twice["a"], twice["prompt accuracy"], twice["image accuracy"]) == (0.5, 1.0, pytest.approx(3 / 5))
    # by weights as by repeated images
    rng = np.random.default_rng(0)
    correct = rng.integers(0, 2, 120).astype(float)
    ids = [str(i // 4) for i in range(120)]
    tasks = [TASKS[i // 20] for i in range(120)]
    counts = rng.integers(0, 4, 30).repeat(4)
    rows = [(i, copy) for i in range(120) for copy in range(counts[i])]
    repeated = summary(
        correct[[i for i, _ in rows]],
        [tasks[i] for i, _ in rows],
        [f"{ids[i]}.{copy}" for i, copy in rows],
        np.ones(len(rows)),
        expected=TASKS,
    )
    assert summary(correct, tasks, ids, counts, expected=TASKS) == pytest.approx(repeated)


def test_a_task_without_images_leaves_no_overall_figure() -> None:
    found = summary(np.ones(2), ["a", "a"], ["0", "1"], np.ones(2), expected=["a", "b"])
    assert math.isnan(found["overall"]) and math.isnan(found["b"]) and found["a"] == 1
    empty = summary(np.zeros(0), [], [], np.zeros(0), expected=["a"])
    assert all(math.isnan(value) for value in empty.values())
