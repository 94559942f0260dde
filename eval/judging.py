"""Verdicts that are kept: a sample is judged once by a judge, over interruptions and several arms."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tts_vision.eval.evaluator import Evaluator, Item, Judged, Sample, Verdict
from tts_vision.files import append_lines, is_file, read_file, storage
from tts_vision.runs.task import Record, digest_of, path_in, prompt_key, slug

BATCH = 16
"""Samples that are judged, and kept, at once."""
Trail = Mapping[str, list[tuple[float, float, Verdict]]]
"""By search, the samples that were its best for a time: compute and seconds by then, and the verdict."""


class Judgements:
    """The verdicts of an evaluator, kept in a file of the evaluation's folder.

    Args:
        evaluator: The judge.
        root: The folder.
        note: Told what goes on.
    """

    def __init__(self, evaluator: Evaluator, root: Path, note: Callable[[str], None]) -> None:
        self.evaluator, self.note = evaluator, note
        (root / "judged").mkdir(parents=True, exist_ok=True)
        self.path = root / "judged" / f"{slug(evaluator.judge_name)}.jsonl"
        self.root = root
        self._known = dict(self._read())

    def of(self, samples: Sequence[Sample]) -> list[Judged]:
        """The samples with their verdicts, in order."""
        keys = [self._key(sample) for sample in samples]
        todo = [(key, sample) for key, sample in zip(keys, samples) if key and key not in self._known]
        told = time.monotonic()
        size = max(1, len(todo)) if self.evaluator.together else BATCH
        for at in range(0, len(todo), size):
            some = todo[at : at + size]
            verdicts = self.evaluator.judge([sample for _, sample in some])
            self._keep({key: verdict for (key, _), verdict in zip(some, verdicts, strict=True)})
            if time.monotonic() - told >= 10:
                told = time.monotonic()
                self.note(f"judged {min(at + size, len(todo))}/{len(todo)} samples")
        unread = Verdict(reason="the file is missing or cannot be read")
        return [Judged(s, self._known.get(k, unread)) for k, s in zip(keys, samples)]

    def of_bests(self, records: Sequence[Record], items: Mapping[str, Item]) -> Trail:
        """The verdicts of all samples that were the best of their search for a time."""
        if self.evaluator.together:
            return {}
        samples: dict[str, Sample] = {}
        for record in records:
            for best in record.bests:
                if best.file:
                    path = path_in(self.root, best.file)
                    samples[best.file] = Sample(items[record.prompt_id], 0, path)
        judged = dict(zip(samples, self.of(list(samples.values()))))
        return {
            record.name: [
                (best.compute, best.seconds, judged[best.file].verdict)
                for best in record.bests
                if best.file in judged
            ]
            for record in records
        }

    def _key(self, sample: Sample) -> str:
        """Stands for a sample: its prompt and its pixels; empty if there is no file."""
        if not sample.path.is_file():
            return ""
        prompt = hashlib.sha256(prompt_key(sample.item.prompt).encode()).hexdigest()
        return f"{prompt[:12]} {digest_of(sample.path)}"

    def _read(self) -> Iterator[tuple[str, Verdict]]:
        if not is_file(self.path):
            return
        with storage(self.path, "The verdicts"):
            text = read_file(self.path).decode("utf-8", "replace")
        for line in text.split("\n"):
            try:
                entry = json.loads(line)
                yield str(entry.pop("key")), Verdict(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a line that a killed process left half written: it is judged again

    def _keep(self, verdicts: Mapping[str, Verdict]) -> None:
        lines = [
            json.dumps({"key": key, **_plain(verdict)}, ensure_ascii=False)
            for key, verdict in verdicts.items()
        ]
        with storage(self.path, "The verdicts"):
            append_lines(self.path, "\n".join(lines) + "\n")
        self._known |= verdicts


def _plain(verdict: Verdict) -> dict[str, Any]:
    values = {name: value for name, value in verdict.values.items() if value == value}
    return {
        "values": values,
        "correct": verdict.correct,
        "reason": verdict.reason,
        "faults": dict(verdict.faults),
        "details": dict(verdict.details),
    }
