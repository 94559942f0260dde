"""Means over clips, and the result files of the official package."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tts_vision.errors import VerifierError
from tts_vision.eval.evaluator import Judged, weighted_mean
from tts_vision.eval.vbench.dimensions import PROXIES
from tts_vision.eval.vbench.prompts import Suite
from tts_vision.eval.vbench.static_filter import KEPT, first_static

OF_100 = "imaging_quality"
"""The dimension whose values of single clips the official files give out of 100."""
_TRUTHS = frozenset({"dynamic_degree", "human_action"})


class Table:
    """The values of one arm by dimension, ready for many means.

    Args:
        judged: The arm.
        dimensions: Measured ones and proxies.
        filtered: Whether temporal flickering was measured on clips that pass the static filter. Five clips of
            a prompt count: then the first by name, else the first by number.
    """

    def __init__(self, judged: Sequence[Judged], dimensions: Iterable[str], *, filtered: bool) -> None:
        self.judged = judged
        self.rows = {name: _counted(judged, name, filtered=filtered) for name in dimensions}
        self._values = {
            name: np.array([judged[row].verdict.values[name] for row in rows], dtype=float)
            for name, rows in self.rows.items()
        }
        self._frames = {
            name: np.array([weight_of(judged[row].verdict.details, name) for row in rows], dtype=float)
            for name, rows in self.rows.items()
        }

    def mean(self, dimension: str, weights: np.ndarray) -> float:
        """The raw score of a dimension; NaN without a clip.

        Args:
            dimension: Its name.
            weights: ``(N,)`` how often each clip counts.
        """
        chosen = weights[self.rows[dimension]]
        return weighted_mean(self._values[dimension], chosen * self._frames[dimension])


def _counted(judged: Sequence[Judged], dimension: str, *, filtered: bool) -> np.ndarray:
    """The rows that a dimension is the mean of."""
    rows = [row for row, each in enumerate(judged) if dimension in each.verdict.values]
    if dimension == "temporal_flickering":
        by_item: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            sample = judged[row].sample
            by_item.setdefault(sample.item.id, []).append((sample.index, row))
        rows = [
            row
            for clips in by_item.values()
            for row in (first_static(clips) if filtered else [row for _, row in sorted(clips)[:KEPT]])
        ]
    return np.array(sorted(rows), dtype=int)


def weight_of(details: Mapping[str, Any], dimension: str) -> float:
    """Frames or pairs that a clip counts by in the mean of a dimension."""
    return float(details.get(dimension, {}).get("weight", 1))


def write_results(folder: Path, name: str, suite: Suite, table: Table) -> list[Path]:
    """Writes ``{name}_full_info.json`` and ``{name}_eval_results.json``, and proxies to a file of their own.

    Args:
        folder: Where; it is made if need be.
        name: Of the run.
        suite: The prompts.
        table: One arm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ones = np.ones(len(table.judged))
    results = {
        dimension: [table.mean(dimension, ones), [_record(table.judged[row], dimension) for row in rows]]
        for dimension, rows in table.rows.items()
        if len(rows)
    }
    official = {dimension: found for dimension, found in results.items() if dimension not in PROXIES}
    proxies = {dimension: found for dimension, found in results.items() if dimension in PROXIES}
    written = [
        _write(folder / f"{name}_full_info.json", _full_info(suite, table)),
        _write(folder / f"{name}_eval_results.json", official),
    ]
    return [*written, *([_write(folder / f"{name}_proxies.json", proxies)] if proxies else [])]


def read_results(path: Path, dimension: str) -> tuple[float, dict[str, tuple[float, float | None]]]:
    """The score of a dimension in an official file, and the values of clips by the names of their files.

    Returns:
        The score, and by file name the value on the scale of the score, with the number of frames that the
        clip counts by where the file says so.

    Raises:
        VerifierError: If the file is missing or of another form.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[dimension]
        score, records = float(found[0]), found[1]
        scale = 100 if dimension == OF_100 else 1
        clips = {
            Path(record["video_path"]).name: (float(record["video_results"]) / scale, _frames(record))
            for record in records
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise VerifierError(
            f"The official package must write {path.name} with a score and the values of clips for "
            f"{dimension} but: {type(error).__name__}: {error}; use vbench 0.1.5."
        ) from error
    if not all(math.isfinite(value) for value, _ in clips.values()):
        raise VerifierError(
            f"The values that the official package writes for {dimension} must be finite numbers but one is "
            "not; run it by hand on the folder."
        )
    return score, clips


def _frames(record: Mapping[str, Any]) -> float | None:
    for key in ("frame_count", "cnt_per_video"):
        if key in record:
            return float(record[key])
    return float(len(record["frame_results"])) if "frame_results" in record else None


def _record(each: Judged, dimension: str) -> dict[str, Any]:
    value: float | bool = each.verdict.values[dimension]
    if dimension in _TRUTHS:
        value = bool(value)
    elif dimension == OF_100:
        value = 100 * value
    found: dict[str, Any] = {"video_path": str(each.sample.path), "video_results": value}
    weight = each.verdict.details.get(dimension, {}).get("weight")
    return found if weight is None else found | {"frame_count": int(weight)}


def _full_info(suite: Suite, table: Table) -> list[dict[str, Any]]:
    """The entries that one of the dimensions was measured on, with the clips that counted."""
    paths: dict[str, list[str]] = {}
    for row in sorted({int(row) for rows in table.rows.values() for row in rows}):
        sample = table.judged[row].sample
        paths.setdefault(sample.item.prompt.text, []).append(str(sample.path))
    asked = {PROXIES.get(name, name) for name in table.rows}
    entries = []
    for entry in suite.entries:
        names = list(table.rows) if suite.is_custom else entry.dimensions
        if asked & set(names):
            plain = entry.plain() | {"dimension": list(names)}
            entries.append(plain | {"video_list": paths.get(entry.prompt, [])})
    return entries


def _write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
