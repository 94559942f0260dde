"""The plot of the best score: whose score it is, and when it was known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from toy_plugins import MODEL, VERIFIER
from tts_vision import search
from tts_vision.figures import Point, known_at, scaling

CURVE = [
    Point(6.0, 0.5, uid=0, value=1.0, best_uid=0, best=1.0),
    Point(12.0, 1.0, uid=1, value=3.0, best_uid=1, best=3.0),
    Point(24.0, 3.0, uid=2, value=2.0, best_uid=1, best=3.0),
]
KNOWN = {0: (12.0, 1.0), 1: (12.0, 1.0), 2: (24.0, 3.0)}


def lines(axis) -> list[tuple[str, list[list[float]]]]:
    return [(line.get_linestyle(), np.asarray(line.get_xydata()).tolist()) for line in axis.get_lines()]


def test_the_curve_begins_at_what_the_first_batch_cost() -> None:
    figure = scaling(CURVE, known=KNOWN, verifier="hpsv2.1", title="two red circles")
    compute, seconds = figure.axes
    assert lines(compute) == [
        ("-", [[12.0, 3.0], [24.0, 3.0]]),
        ("None", [[12.0, 3.0], [24.0, 3.0]]),
        (":", [[6.0, 1.0], [12.0, 3.0], [24.0, 3.0]]),
    ]
    assert lines(seconds)[0] == ("-", [[1.0, 3.0], [3.0, 3.0]])
    assert compute.get_xlim()[0] == 0 and compute.get_ylabel() == "best score so far by hpsv2.1"


def test_the_holdout_is_drawn_where_it_is_known() -> None:
    figure = scaling(CURVE, known=KNOWN, held_out={0: 9.0, 1: 7.0, 2: 8.0}, holdout="pickscore")
    assert lines(figure.axes[2]) == [("--", [[12.0, 9.0], [12.0, 7.0], [24.0, 7.0]])]


def test_without_batches_each_sample_counts() -> None:
    figure = scaling(CURVE)
    assert lines(figure.axes[0]) == [("-", [[6.0, 1.0], [12.0, 3.0], [24.0, 3.0]])]
    assert figure.axes[0].get_ylabel() == "best score so far"
    assert lines(scaling([]).axes[0]) == [("-", [])]


def test_a_search_knows_its_batches(tmp_path: Path) -> None:
    result = search(MODEL, "a", verifier=VERIFIER, budget="6x", max_batch=4)
    known = known_at(result.trace)
    assert set(known) == {candidate.uid for candidate in result.population}
    figure = result.plot()
    first = min(spent for spent, _ in known.values())
    assert lines(figure.axes[0])[0][1][0][0] == first > 6, "one sample costs 6"
    assert (
        VERIFIER[-20:] in figure.axes[0].get_ylabel() or "best score so far by" in figure.axes[0].get_ylabel()
    )
