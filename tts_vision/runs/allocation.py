"""One budget for many searches with a target: what easy prompts leave goes to the hard ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError
from tts_vision.ledger import Budget
from tts_vision.runs.engine import Progress, Run, run_tasks
from tts_vision.runs.executors import Executor, Failed
from tts_vision.runs.task import Best, Record, Task

ROUNDS = 8
"""Most rounds in which a budget is given out."""


def run_within(
    tasks: Sequence[Task],
    total: str,
    root: Path,
    *,
    stride: int,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Run:
    """Carries out searches that share one budget, in rounds.

    In the first round all searches get an equal part, and each ends as soon as it reaches its target. What
    is left over goes, in equal parts, to new searches, with other seeds, for those that did not; and so on,
    until all reached theirs or no plain sample can be paid for. The outcome depends neither on the executor
    nor on the number of processes, because a round begins when the one before has ended.

    Args:
        tasks: The searches, all with a target; their budgets are replaced.
        total: The budget of all together, in plain samples, such as ``400x``.
        root: The folder of the run.
        stride: What is added to a seed from one round to the next.
        executor: As in `run_tasks`.
        progress: As in `run_tasks`, of each round.

    Returns:
        A record for each task: the best sample of its rounds, and the costs of all of them.

    Raises:
        ConfigError: If the budget has another unit or does not pay for a sample of each, or a search has no
            target.
    """
    times = Budget.parse(total).times
    if times is None or Budget.parse(total) != Budget(times=times):
        raise ConfigError(
            f"A budget for many searches is written in plain samples, such as '400x', but got {total!r}; "
            "write that, or give each search its own by --budget."
        )
    if any(task.config.target is None for task in tasks):
        raise ConfigError(
            "A budget for many searches goes from those that reach their target to the others but they have "
            "none; add --until, or give each search its own budget by --budget."
        )
    if times < len(tasks):
        raise ConfigError(
            f"A budget for many searches must pay for a sample of each, {len(tasks)} here, but got "
            f"{total!r}; raise it, or take fewer prompts by --limit."
        )
    found: dict[str, list[Record]] = {}
    failed: list[Failed] = []
    still = list(tasks)
    left = times
    for number in range(ROUNDS):
        share = max(1.0, left / len(still))
        given = [_in_round(task, number, share, stride) for task in still[: int(left / share)]]
        run = run_tasks(given, root, executor=executor, progress=progress)
        for record in run.records:
            found.setdefault(_name(record.name, number), []).append(record)
            left -= record.compute / record.limit * share
        failed += run.failed
        broken = {_name(each.task.name, number) for each in run.failed}
        reached = {name for name, records in found.items() if any(record.satisfied for record in records)}
        still = [task for task in still if task.name not in reached | broken]
        if not still or left < 1:
            break
    return Run(root, [_together(found[task.name]) for task in tasks if task.name in found], failed)


def _in_round(task: Task, number: int, share: float, stride: int) -> Task:
    settings = {name: getattr(task.config, name) for name in RunConfig.model_fields}
    new = {"budget": f"{math.floor(share * 1000) / 1000:g}x", "seed": task.config.seed + number * stride}
    name = f"{task.name}-r{number}" if number else task.name
    return replace(task, name=name, config=RunConfig(**{**settings, **new}))


def _name(name: str, number: int) -> str:
    return name.removesuffix(f"-r{number}") if number else name


def _together(records: Sequence[Record]) -> Record:
    """The searches of one task as one record."""
    first = records[0]
    best = max(records, key=lambda r: (bool(r.satisfied), -math.inf if math.isnan(r.score) else r.score))
    bests: list[Best] = []
    compute = seconds = 0.0
    for record in records:
        for each in record.bests:
            if not bests or each.score > bests[-1].score:
                moved = replace(each, compute=compute + each.compute, seconds=seconds + each.seconds)
                bests.append(moved)
        compute += record.compute
        seconds += record.elapsed
    if bests and bests[-1].compute < compute:
        bests.append(replace(bests[-1], compute=compute, seconds=seconds))
    spent = sum(record.compute for record in records)
    return replace(
        first,
        file=best.file,
        sha256=best.sha256,
        score=best.score,
        satisfied=best.satisfied,
        holdout=best.holdout,
        nfe=sum(record.nfe for record in records),
        macs=sum(record.macs for record in records),
        decodes=sum(record.decodes for record in records),
        verifier_calls=sum(record.verifier_calls for record in records),
        elapsed=sum(record.elapsed for record in records),
        seconds=_sums([record.seconds for record in records]),
        limit=sum(record.limit for record in records),
        topped_up=sum(record.topped_up * record.compute for record in records) / spent if spent else 0.0,
        bests=tuple(bests),
    )


def _sums(phases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        name: sum(each.get(name, 0.0) for each in phases)
        for name in dict.fromkeys(k for p in phases for k in p)
    }
