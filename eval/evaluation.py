"""Runs a benchmark: searches for every prompt, a plain sample of the same seed beside each, all judged."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Evaluator, Item, Judged, Sample
from tts_vision.eval.judging import Judgements
from tts_vision.eval.statistics import Arm, arm_of, longest
from tts_vision.eval.thumbnails import thumbnail
from tts_vision.files import replace_file
from tts_vision.metadata import version_of
from tts_vision.runs.allocation import run_within
from tts_vision.runs.engine import Progress, Run, run_tasks
from tts_vision.runs.executors import Executor
from tts_vision.runs.grid import PLAIN, PLAIN_ALGORITHM, grid
from tts_vision.runs.manifest import MANIFEST
from tts_vision.runs.task import Record, Task, digest_of, json_value, prompt_key, slug

EVALUATION = "evaluation.json"
IMAGES = "images"
_VERSIONS = ("tts-vision", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Row:
    """A winner of a search, or a sample that somebody brought, with its verdict.

    Attributes:
        arm: What it belongs to.
        item: Id of its prompt.
        prompt: The prompt.
        tags: Those of the prompt.
        index: Which of the prompt's samples it is.
        seed: Root seed of its search; -1 for a sample that somebody brought.
        values: By metric.
        correct: As in `Verdict`.
        reason: As in `Verdict`.
        faults: As in `Verdict`.
        file: The sample, or a small copy of one that somebody brought, inside the folder of the evaluation.
        score: By the verifier that guided the search.
        holdout: By the held-out verifier.
        nfe: Network evaluations.
        seconds: Wall-clock seconds of the search, verifier included.
    """

    arm: str
    item: str
    prompt: str
    tags: tuple[str, ...]
    index: int
    seed: int
    values: Mapping[str, float]
    correct: bool | None
    reason: str | None
    faults: Mapping[str, int]
    file: str
    score: float = math.nan
    holdout: float = math.nan
    nfe: float = math.nan
    seconds: float = math.nan


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a benchmark.

    Attributes:
        evaluator: As it was named.
        metric: The metric of the headline.
        notes: Facts that a reader of the figures must know.
        complaints: What is missing or could not be judged, a line each.
        settings: What was run: model, verifier, budget, and so on.
        command: The words of the command line, if there was one.
        versions: Of the packages that decide the figures, and of the machine.
        arms: The figures of each arm, plain samples first.
        rows: All winners.
        folder: Where it is kept.
        files: Result files in the published formats.
    """

    evaluator: str
    metric: str
    notes: list[str]
    complaints: list[str]
    settings: dict[str, Any]
    command: list[str]
    versions: dict[str, str]
    arms: list[Arm]
    rows: list[Row]
    folder: Path
    files: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every sample was there and could be judged."""
        return not self.complaints

    def save(self) -> None:
        """Writes ``evaluation.json`` and ``table.md``."""
        from tts_vision.eval.tables import markdown

        values = json_value({**asdict(self), "kind": "evaluation", "folder": None})
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        replace_file(self.folder / "table.md", lambda part: part.write_text(markdown(self)), "The table")
        replace_file(self.folder / EVALUATION, lambda part: part.write_text(text), "The evaluation")


def evaluate(
    evaluator: Evaluator,
    base: RunConfig,
    *,
    algorithms: Sequence[str],
    output: Path,
    samples: int | None = None,
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
    total: str | None = None,
    curves: bool = True,
    self_test: bool = True,
    executor: Executor | None = None,
    command: Sequence[str] = (),
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Searches for samples of a benchmark's prompts and judges them.

    Called again with the same `output`, finished searches and verdicts are kept.

    Args:
        evaluator: The benchmark.
        base: Settings of all searches; its seed is that of the first sample of each prompt.
        algorithms: Names, with parameters as ``name:key=value``; plain samples of the same seeds come beside.
        output: Where to keep everything.
        samples: Samples of each prompt; by default as many as the benchmark's protocol asks for.
        limit: Prompts to take, evenly spread over the benchmark; by default all.
        shard: Which part of how many, from (1, 1), to divide a benchmark over machines.
        total: One budget for all searches of an algorithm, as in `run_within`.
        curves: Whether samples that were the best for a time are judged as well, for quality against compute.
        self_test: Whether the judge is tested first, where it has a test; the report says so if not.
        executor: Where searches are carried out.
        command: The words of the command line, for the report.
        progress: Called after each search.
        note: Told what goes on.

    Raises:
        ConfigError: If something cannot be used as given.
        VerifierError: If the judge fails its self-test.
    """
    _check_output(output)
    items = _chosen(evaluator, limit, shard, note)
    asked = {item.id: evaluator.samples_of(item) if samples is None else samples for item in items}
    count = max(asked.values())
    if count < 1 or not algorithms:
        raise ConfigError(
            f"An evaluation needs samples and algorithms but got {count} and {len(algorithms)}; give at "
            "least one of each."
        )
    tested = _tested(evaluator, self_test, note)
    tasks = grid(
        base,
        [item.prompt for item in items],
        arms={PLAIN: PLAIN_ALGORITHM, **{name: name for name in algorithms}},
        verifiers=[base.verifier],
        seeds=range(base.seed, base.seed + count),
        ids=[item.id for item in items],
    )
    tasks = [task for task in tasks if task.config.seed - base.seed < asked[task.prompt_id]]
    run = _run(tasks, output, total, count, executor, progress)
    complaints = [f"{each.task.name}: no sample: {each.error}" for each in run.failed]
    by_id = {item.id: item for item in items}
    judgements = Judgements(evaluator, output, note)
    arms: list[Arm] = []
    rows: list[Row] = []
    files: list[str] = []
    by_arm = {
        name: [record for record in run.records if record.arm == name]
        for name in (PLAIN, *dict.fromkeys(algorithms))
    }
    ends = longest(by_arm.values())
    for name, records in by_arm.items():
        winners, missing = _winners(records, by_id, base.seed, output)
        complaints += missing
        judged = judgements.of([sample for _, sample in winners])
        places = _lay_out(evaluator, judged, output / IMAGES / slug(name))
        files += [str(path.relative_to(output)) for path in places.written]
        rows += [
            _row(name, each, place, record)
            for (record, _), each, place in zip(winners, judged, places.samples, strict=True)
        ]
        complaints += [line for each in judged if (line := _complaint(each))]
        known = any(evaluator.metric in each.verdict.values for each in judged)
        trail = judgements.of_bests(records, by_id) if curves and known else {}
        arms.append(arm_of(name, records, judged, trail, evaluator, ends))
    evaluation = Evaluation(
        evaluator=evaluator.judge_name,
        metric=evaluator.metric,
        notes=[*evaluator.notes, *([] if self_test else ["The judge was not tested before."])],
        complaints=complaints,
        settings={
            "benchmark": evaluator.name,
            "model": base.model,
            "verifier": base.verifier,
            "holdout_verifier": base.holdout_verifier,
            "budget": total or base.budget,
            "until": base.target,
            "samples": samples if samples is not None else count,
            "prompts": len(items),
            "seed": base.seed,
            "shard": f"{shard[0]}/{shard[1]}",
            "self_test": tested,
        },
        command=list(command),
        versions=versions(),
        arms=arms,
        rows=rows,
        folder=output,
        files=files,
    )
    evaluation.save()
    return evaluation


def evaluate_images(
    evaluator: Evaluator,
    images: Path,
    *,
    output: Path,
    self_test: bool = True,
    command: Sequence[str] = (),
    note: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Judges a folder of samples in a benchmark's published layout, made by anybody.

    Args:
        evaluator: The benchmark.
        images: The folder; nothing in it is changed.
        output: Where verdicts and report are kept.
        self_test: As in `evaluate`.
        command: As in `evaluate`.
        note: As in `evaluate`.

    Raises:
        ConfigError: If the folder holds no such samples.
        VerifierError: If the judge fails its self-test.
    """
    _check_output(output)
    if not images.is_dir():
        raise ConfigError(f"--images takes a folder but {str(images)!r} is none; check the path.")
    found = evaluator.read_layout(images)
    tested = _tested(evaluator, self_test, note)
    output.mkdir(parents=True, exist_ok=True)
    judged = Judgements(evaluator, output, note).of(found.samples)
    name = images.name or str(images)
    written = evaluator.write_results(_made(output / "results"), judged)
    evaluation = Evaluation(
        evaluator=evaluator.judge_name,
        metric=evaluator.metric,
        notes=[*evaluator.notes, *([] if self_test else ["The judge was not tested before."])],
        complaints=[*found.complaints, *(line for each in judged if (line := _complaint(each)))],
        settings={"benchmark": evaluator.name, "images": str(images), "self_test": tested},
        command=list(command),
        versions=versions(),
        arms=[arm_of(name, [], judged, {}, evaluator, (0.0, 0.0))],
        rows=[_row(name, each, _small(each, output), None) for each in judged],
        folder=output,
        files=[str(path.relative_to(output)) for path in written],
    )
    evaluation.save()
    return evaluation


def _tested(evaluator: Evaluator, self_test: bool, note: Callable[[str], None]) -> str:
    """Tests the judge; what was tested."""
    tested = evaluator.self_test() if self_test else ""
    if tested:
        note(f"self-test: {tested}")
    return tested


def versions() -> dict[str, str]:
    """Versions of the packages that decide figures, and of the machine."""
    import torch

    found = {name: version_of(name) or "unknown" for name in _VERSIONS}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {**found, "python": platform.python_version(), "device": device}


@dataclass(frozen=True)
class _Places:
    """Where the samples of an arm are in the published layout, and the files written beside them."""

    samples: list[str]
    written: list[Path]


def _run(
    tasks: Sequence[Task],
    output: Path,
    total: str | None,
    samples: int,
    executor: Executor | None,
    progress: Progress | None,
) -> Run:
    plain = [task for task in tasks if task.arm == PLAIN]
    if total is None:
        # plain samples meet no target but end anyway
        return run_tasks(tasks, output, executor=executor, progress=progress)
    runs = [run_tasks(plain, output, executor=executor, progress=progress)]
    for arm in dict.fromkeys(task.arm for task in tasks if task.arm != PLAIN):
        own = [task for task in tasks if task.arm == arm]
        run = run_within(own, total, output, stride=samples, executor=executor, progress=progress)
        runs.append(run)
    return Run(
        output, [record for run in runs for record in run.records], [f for run in runs for f in run.failed]
    )


def _chosen(
    evaluator: Evaluator, limit: int | None, shard: tuple[int, int], note: Callable[[str], None]
) -> list[Item]:
    """The prompts to take, each once."""
    part, parts = shard
    if not 1 <= part <= parts:
        raise ConfigError(f"--shard is written part/parts, such as 2/4, but got {part}/{parts}; change it.")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1 but got {limit}; raise it.")
    every = evaluator.items()
    distinct: dict[str, Item] = {}
    for item in every:
        distinct.setdefault(prompt_key(item.prompt), item)
    if len(distinct) < len(every):
        note(f"{len(every) - len(distinct)} prompts come twice and count once")
    items = list(distinct.values())
    if limit is not None and limit < len(items):
        items = spread(items, limit)
    return items[part - 1 :: parts]


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """`limit` of the prompts in their order: of each tag one at least, where they fit, and by its size."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.tags, []).append(i)
    quotas = dict.fromkeys(groups, int(limit >= len(groups)))
    for _ in range(
        limit - sum(quotas.values())
    ):  # to the group that is furthest behind; the smaller one of equals
        behind = min(groups, key=lambda tags: ((quotas[tags] + 0.5) / len(groups[tags]), len(groups[tags])))
        quotas[behind] += 1
    chosen = [
        group[k * len(group) // quotas[tags]] for tags, group in groups.items() for k in range(quotas[tags])
    ]
    return [items[i] for i in sorted(chosen)]


def _winners(
    records: Sequence[Record], items: Mapping[str, Item], seed: int, root: Path
) -> tuple[list[tuple[Record, Sample]], list[str]]:
    """The best sample of each search that has one and whose file is as the manifest says."""
    winners, complaints = [], []
    for record in records:
        path = record.path(root)
        if path is None:
            complaints.append(f"{record.name}: no sample could be scored")
        elif not path.is_file() or digest_of(path) != record.sha256:
            complaints.append(f"{record.file}: not the file that the search wrote")
        else:
            winners.append((record, Sample(items[record.prompt_id], record.seed - seed, path)))
    return winners, complaints


def _lay_out(evaluator: Evaluator, judged: Sequence[Judged], folder: Path) -> _Places:
    """Copies samples into the published layout and writes what belongs beside them."""
    _made(folder)
    items = list({each.sample.item.id: each.sample.item for each in judged}.values())
    written = evaluator.write_layout(folder, items)
    places, moved = [], []
    for each in judged:
        sample = each.sample
        playable = sample.path.with_suffix(".mp4")  # of a clip, which published tools read
        path = playable if playable.is_file() else sample.path
        place = folder / f"{evaluator.place(sample.item, sample.index)}{path.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, partial(shutil.copyfile, path), "A sample")
        places.append(str(place.relative_to(folder.parent.parent)))
        moved.append(Judged(replace(sample, path=place), each.verdict))
    return _Places(places, [*written, *evaluator.write_results(folder, moved)])


def _row(arm: str, judged: Judged, file: str, record: Record | None) -> Row:
    sample, verdict = judged.sample, judged.verdict
    own = Row(
        arm=arm,
        item=sample.item.id,
        prompt=sample.item.prompt.text,
        tags=sample.item.tags,
        index=sample.index,
        seed=-1 if record is None else record.seed,
        values=dict(verdict.values),
        correct=verdict.correct,
        reason=verdict.reason,
        faults=dict(verdict.faults),
        file=file,
    )
    if record is None:
        return own
    return replace(own, score=record.score, holdout=record.holdout, nfe=record.nfe, seconds=record.elapsed)


def _small(judged: Judged, root: Path) -> str:
    """Keeps a small copy of a sample that somebody brought, for the report; empty if it cannot be read."""
    path = root / "thumbnails" / f"{judged.sample.item.id}-{judged.sample.index}.webp"
    try:
        data, _, _ = thumbnail(judged.sample.path)
    except (OSError, ValueError):
        return ""
    _made(path.parent)
    replace_file(path, partial(Path.write_bytes, data=data), "A small image")
    return str(path.relative_to(root))


def _complaint(judged: Judged) -> str:
    if judged.verdict.values:
        return ""
    return f"{judged.sample.path.name}: not judged: {judged.verdict.reason or 'no reason was given'}"


def _check_output(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise ConfigError(f"An output must be a folder but {str(root)!r} is a file; choose another.")
    held = sorted(os.listdir(root)) if root.exists() else []
    if held and not {MANIFEST, EVALUATION, "judged"} & set(held):
        raise ConfigError(
            f"The folder of an evaluation must be new, empty or that of one before but {str(root)!r} holds "
            f"{', '.join(held[:3])}; choose another --output."
        )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
