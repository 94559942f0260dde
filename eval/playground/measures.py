"""The verdicts on the samples of a run, and the diversity of its populations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tts_vision.errors import StorageError
from tts_vision.eval.evaluator import Evaluator, Item, Sample
from tts_vision.eval.judging import Judgements, Trail
from tts_vision.eval.playground import WorldTrack
from tts_vision.features import load_extractor
from tts_vision.files import RESULT, append_lines, is_file, read_file, storage
from tts_vision.media import open_media
from tts_vision.runs.task import Record, digest_of, json_value, path_in
from tts_vision.types import FeatureExtractor

POPULATIONS = "populations.jsonl"
FEATURES = "playground_features"


@dataclass(frozen=True)
class Population:
    """The finished samples of a search.

    Attributes:
        right: How many the checker calls right, independent samples for the rest of a budget included.
        diversity: Mean cosine distance between the features of those that the algorithm itself made; NaN
            for fewer than two.
    """

    right: int
    diversity: float


class Measures:
    """The verdicts on the samples of a run and the diversity of its populations, kept in its folder.

    Args:
        root: The folder of the run.
        evaluators: The checker of each track.
        note: Told what goes on.
    """

    def __init__(
        self, root: Path, evaluators: Mapping[WorldTrack, Evaluator], note: Callable[[str], None]
    ) -> None:
        self.root, self.evaluators = root, evaluators
        self.judgements = {track: Judgements(each, root, note) for track, each in evaluators.items()}
        self.items: dict[WorldTrack, dict[str, Item]] = {
            track: {item.id: item for item in each.items()} for track, each in evaluators.items()
        }
        self._populations = dict(self._read())

    def right(self, track: WorldTrack, record: Record) -> bool:
        """Whether the winner of a search is right; a search without one is not.

        Raises:
            StorageError: If it is not the file that the search wrote.
        """
        path = record.path(self.root)
        if path is None:
            return False
        if not is_file(path) or digest_of(path) != record.sha256:
            raise StorageError(
                f"The winner of a search must be the file that it wrote but {str(path)!r} is not; delete "
                f"{str(self.root / record.name)!r} and start the same command again."
            )
        sample = Sample(self.items[track][record.prompt_id], 0, path)
        (judged,) = self.judgements[track].of([sample])
        return bool(judged.verdict.correct)

    def look_at(self, records: Sequence[Record], track: WorldTrack) -> None:
        """Measures finished searches of a track."""
        self.trail(track, records)
        for record in records:
            self.right(track, record)
            self.population(track, record)

    def trail(self, track: WorldTrack, records: Sequence[Record]) -> Trail:
        """The verdicts on the samples that were the best of their search for a time."""
        return self.judgements[track].of_bests(records, self.items[track])

    def population(self, track: WorldTrack, record: Record) -> Population:
        """The finished samples of a search."""
        if record.name not in self._populations:
            self._populations[record.name] = found = self._look(track, record)
            line = json.dumps(json_value({"name": record.name, **asdict(found)}))
            with storage(self.root / POPULATIONS, "The populations"):
                append_lines(self.root / POPULATIONS, line + "\n")
        return self._populations[record.name]

    def _look(self, track: WorldTrack, record: Record) -> Population:
        result = json.loads(read_file(path_in(self.root, f"{record.name}/{RESULT}")))
        item = self.items[track][record.prompt_id]
        finished = [e for e in result["population"] if e["file"] and not e["preview"]]
        # samples for the rest of the budget are the youngest
        finished.sort(key=lambda entry: entry["uid"])
        paths = [path_in(self.root, f"{record.name}/{entry['file']}") for entry in finished]
        judged = self.judgements[track].of([Sample(item, 0, path) for path in paths])
        own = paths[: len(paths) - result["topped_up"]["samples"]]
        return Population(
            right=sum(bool(each.verdict.correct) for each in judged),
            diversity=diversity(load_extractor(FEATURES), own),
        )

    def _read(self) -> Iterator[tuple[str, Population]]:
        path = self.root / POPULATIONS
        if not is_file(path):
            return
        for line in read_file(path).decode("utf-8", "replace").split("\n"):
            try:
                entry = json.loads(line)
                distance = math.nan if entry["diversity"] is None else float(entry["diversity"])
                yield str(entry["name"]), Population(int(entry["right"]), distance)
            except (ValueError, TypeError, KeyError):
                continue  # a line that a killed process left half written: it is measured again


def diversity(extractor: FeatureExtractor, paths: Sequence[Path]) -> float:
    """The mean cosine distance between the features of images; NaN for fewer than two."""
    if len(paths) < 2:
        return math.nan
    rows = extractor.features([open_media(path) for path in paths]).double().numpy()
    return mean_distance(rows)


def mean_distance(rows: np.ndarray) -> float:
    """The mean cosine distance between two different rows.

    Args:
        rows: ``(n, d)``, n at least 2.
    """
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n = len(unit)
    return float(1 - (np.square(unit.sum(0)).sum() - n) / (n * (n - 1)))
