"""The searches of a run, and the records of those that are finished."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tts_vision.config import RunConfig, plain
from tts_vision.errors import StorageError
from tts_vision.files import best_of, is_file, is_folder, is_plain
from tts_vision.results import Result
from tts_vision.types import Prompt

SLUG = 48
_DIGITS = 6


@dataclass(frozen=True)
class Task:
    """One search of a run.

    Attributes:
        name: Its folder inside that of the run, such as ``plain/two-red-circles-1f2e3d-s0``.
        arm: What it belongs to, such as its algorithm.
        prompt_id: Names its prompt among those of the run.
        config: Its settings.
    """

    name: str
    arm: str
    prompt_id: str
    config: RunConfig


@dataclass(frozen=True)
class Best:
    """A sample that was the best so far when its score was known.

    Attributes:
        compute: The compute that was spent by then.
        seconds: The seconds that were spent by then.
        score: Its score by the verifier that guided the search.
        file: The sample, inside the folder of the run; empty where it was not kept.
    """

    compute: float
    seconds: float
    score: float
    file: str = ""


@dataclass(frozen=True)
class Record:
    """A finished search, as the manifest of a run has it.

    Attributes:
        name: As in `Task`.
        arm: As in `Task`.
        prompt_id: As in `Task`.
        prompt: The prompt.
        seed: Root seed.
        hash: Stands for the settings of the search.
        file: The best sample, inside the folder of the run; empty if nothing could be scored.
        sha256: Of that file.
        score: Its score; NaN if nothing could be scored.
        satisfied: Whether the target was reached; None without one.
        nfe: Network evaluations.
        macs: Multiply-accumulates, where they are counted.
        decodes: Samples and previews decoded.
        verifier_calls: Samples scored.
        elapsed: Wall-clock seconds.
        seconds: The same by phase.
        limit: Compute that the budget allowed; NaN where it limits something else.
        topped_up: Share of the compute that went to independent samples, because the algorithm left it.
        holdout: The held-out verifier's score of the best sample; NaN without one.
        bests: How the best score grew; the last one has the compute of the whole search.
    """

    name: str
    arm: str
    prompt_id: str
    prompt: str
    seed: int
    hash: str
    file: str
    sha256: str
    score: float
    satisfied: bool | None
    nfe: float
    macs: float
    decodes: int
    verifier_calls: int
    elapsed: float
    seconds: Mapping[str, float]
    limit: float
    topped_up: float
    holdout: float
    bests: tuple[Best, ...] = field(default_factory=tuple)

    @property
    def compute(self) -> float:
        """The generator's compute, in the unit that compares: macs where they are counted, else nfe."""
        return self.macs or self.nfe

    def dump(self) -> str:
        """One line of JSON."""
        return json.dumps(json_value(asdict(self)), ensure_ascii=False)

    @classmethod
    def load(cls, line: str) -> Record:
        """Reads what `dump` writes.

        Raises:
            ValueError: If it is something else.
        """
        try:
            values = json.loads(line)
            numbers = {
                k: math.nan if values[k] is None else float(values[k]) for k in ("score", "limit", "holdout")
            }
            bests = tuple(Best(**each) for each in values["bests"])
            return cls(**{**values, **numbers, "bests": bests})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no record of a search: {error}") from error

    def path(self, root: Path) -> Path | None:
        """The best sample in the folder of the run; None without one.

        Raises:
            StorageError: If the record names something that is not a file of the run.
        """
        return path_in(root, self.file) if self.file else None


def path_in(root: Path, file: str) -> Path:
    """A file that a manifest names, inside the folder of its run.

    Raises:
        StorageError: If the name leads elsewhere.
    """
    folder, names = root, file.split("/")
    if not all(map(is_plain, names)) or not all(
        is_folder(folder := folder / name) or not folder.exists() for name in names[:-1]
    ):
        raise StorageError(
            f"A manifest names files of its own run but that of {str(root)!r} names {file!r}; the folder was "
            "changed by somebody: do not use it."
        )
    is_file(root / file)
    return root / file


def record_of(task: Task, result: Result, root: Path) -> Record:
    """The record of a search that is finished in its folder."""
    assert result.folder is not None
    folder = root / task.name
    winner, spent, budget = result.winner, result.spent, result.budget
    files = {c.uid: c.path for c in result.population}
    best = best_of(folder) if winner is not None else None
    bests: list[Best] = []
    curve = result.curve()
    for point, last in zip(curve, [*([False] * (len(curve) - 1)), True]):
        if last or not bests or point.best > bests[-1].score:
            path = files.get(point.best_uid)
            file = "" if path is None else f"{task.name}/{path.relative_to(folder).as_posix()}"
            bests.append(Best(point.compute, point.seconds, point.best, file))
    return Record(
        name=task.name,
        arm=task.arm,
        prompt_id=task.prompt_id,
        prompt=task.config.prompt,
        seed=task.config.seed,
        hash=task.config.hash,
        file="" if best is None else f"{task.name}/{best.name}",
        sha256="" if best is None else digest_of(best),
        score=math.nan if winner is None else winner.score.value,
        satisfied=result.satisfied,
        nfe=spent.nfe,
        macs=spent.macs,
        decodes=spent.decodes,
        verifier_calls=spent.verifier_calls,
        elapsed=spent.elapsed,
        seconds=dict(spent.seconds),
        limit=(budget.macs if spent.macs else budget.nfe) or math.nan,
        topped_up=result.topped_up.share_of(spent),
        holdout=math.nan if result.holdout is None else result.holdout.best,
        bests=tuple(bests),
    )


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def json_value(value: Any) -> Any:
    """The value as JSON has it: null for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    return [json_value(item) for item in value] if isinstance(value, list | tuple) else value


def prompt_key(prompt: Prompt) -> str:
    """Stands for a prompt with the facts that verifiers know of it."""
    return json.dumps([prompt.text, plain(prompt.metadata)], sort_keys=True)


def search_name(parts: Sequence[str], prompt: Prompt, seed: int) -> str:
    """The folder of a search inside that of its run."""
    last = f"{slug(prompt.text)}-{_short_digest(prompt_key(prompt))}-s{seed}"
    return "/".join([*map(slug, parts), last])


def slug(text: str) -> str:
    """The text as part of a file name."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
    return words if len(words) <= SLUG else f"{words[:40].rstrip('-')}-{_short_digest(text)}"


def distinct(prompts: Iterable[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Each prompt once, in order; and those that came more than once."""
    counts: dict[str, int] = {}
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        key = prompt_key(prompt)
        found.setdefault(key, prompt)
        counts[key] = counts.get(key, 0) + 1
    return list(found.values()), [found[key] for key, count in counts.items() if count > 1]


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
