"""The efficiency of workers: searches a minute in one process, on workers of Ray, with judging overlapped.

``python -m tts_vision.eval.workers`` runs the same searches on this machine's cores in one process, on
workers of Ray, and on a worker with its verifier in a process of its own, checks that all workers wrote the
same bytes, and simulates many workers with the measured search times and start-up.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tts_vision.config import RunConfig
from tts_vision.eval.playground import evaluation_prompts
from tts_vision.runs.engine import run_tasks
from tts_vision.runs.executors import Done, Executor
from tts_vision.runs.grid import PLAIN, PLAIN_ALGORITHM, grid
from tts_vision.runs.ray_executor import RayExecutor
from tts_vision.runs.task import Record, Task

SAME = {"best.png", "config.yaml"}
"""Files of a search that hold no times."""


@dataclass(frozen=True)
class Measured:
    """One way to carry out the searches.

    Attributes:
        name: The way.
        start: Seconds until the first search had ended, less its own.
        seconds: Seconds in all.
        busy: Seconds between the ends of the first and the last search.
        times: Seconds of each search.
        digest: Stands for all that was written but for times.
    """

    name: str
    start: float
    seconds: float
    busy: float
    times: list[float]
    digest: str

    @property
    def rate(self) -> float:
        """Searches a minute, the start left out."""
        return 60 * (len(self.times) - 1) / self.busy


def measure(name: str, tasks: Sequence[Task], root: Path, executor: Executor | None) -> Measured:
    """Carries out the searches once."""
    ends: list[float] = []
    times: list[float] = []

    def note(done: int, total: int, search: Done) -> None:
        if not isinstance(search, Record):
            raise search.error
        ends.append(time.monotonic())
        times.append(search.elapsed)

    began = time.monotonic()
    run_tasks(tasks, root, executor=executor, progress=note)
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.name in SAME or path.parent.name == "population":
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return Measured(
        name,
        start=ends[0] - began - times[0],
        seconds=ends[-1] - began,
        busy=ends[-1] - ends[0],
        times=times,
        digest=digest.hexdigest(),
    )


def simulate(
    times: Sequence[float], workers: int, searches: int, start: float, draws: int = 200
) -> tuple[float, float]:
    """Efficiency of many workers that each take the next search when they are free, by simulation.

    Args:
        times: Measured seconds of searches, drawn from with replacement.
        workers: How many, all starting at once.
        searches: Searches of the run.
        start: Seconds that a worker needs before its first search.
        draws: Simulated runs.

    Returns:
        The mean share of the workers' seconds that is spent searching, and the mean share that they wait
        at the end for the last one.
    """
    generator = np.random.default_rng(0)
    busy, waiting = [], []
    for _ in range(draws):
        free = [start] * workers
        drawn = generator.choice(np.asarray(times), size=searches)
        for seconds in drawn:
            heapq.heappush(free, heapq.heappop(free) + float(seconds))
        end = max(free)
        busy.append(drawn.sum() / (workers * end))
        waiting.append(sum(end - each for each in free) / (workers * end))
    return float(np.mean(busy)), float(np.mean(waiting))


def table(found: Sequence[Measured], searches: Sequence[int]) -> str:
    """The measurements and the simulation as Markdown."""
    first = found[0]
    lines = [
        "| way | searches a minute | against one process | start, s | seconds of a search |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {each.name} | {each.rate:.1f} | {each.rate / first.rate:.2f} | {each.start:.1f} | "
        f"{np.mean(each.times):.2f} |"
        for each in found
    ]
    single = next(each for each in found if "workers" in each.name)
    lines += ["", "| searches, on 64 workers | searching, % | waiting for the last one, % |", "|---|--:|--:|"]
    for number in searches:
        busy, waiting = simulate(single.times, 64, number, single.start)
        lines.append(f"| {number} | {100 * busy:.0f} | {100 * waiting:.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/workers"), help="a new folder")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--budget", default="8x")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--verifier", default="playground_clip")
    options = parser.parse_args(arguments)
    tasks = grid(
        RunConfig(prompt="-", budget=options.budget, verifier=options.verifier),
        evaluation_prompts(options.prompts),
        arms={PLAIN: PLAIN_ALGORITHM, "best_of_n": "best_of_n"},
        verifiers=[options.verifier],
        seeds=[0],
    )
    cores = torch.get_num_threads()
    ways: dict[str, Callable[[], Executor | None]] = {
        f"one process, {cores} threads": lambda: None,
        f"{options.workers} workers of Ray, 1 thread each": lambda: RayExecutor(
            workers=options.workers, threads=1
        ),
        "1 worker of Ray, 1 thread": lambda: RayExecutor(workers=1, threads=1),
        "1 worker and its verifier apart, 1 thread each": lambda: RayExecutor(
            workers=1, verifier_actors=1, threads=1
        ),
    }
    found = []
    for i, (name, make) in enumerate(ways.items()):
        found.append(measure(name, tasks, options.output / str(i), make()))
        print(f"{name}: {found[-1].rate:.1f} a minute", flush=True)
    if len({each.digest for each in found[1:]}) > 1:
        raise SystemExit("workers of as many threads wrote other samples than one of them alone")
    text = table(found, [128, 553, 2212])
    (options.output / "table.md").write_text(text + "\n")
    print(text)
    print("the same bytes on all workers")


if __name__ == "__main__":
    main()
