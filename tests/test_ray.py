"""Searches on workers of Ray: the same bytes as in one process, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from test_runs import contents, tasks
from toy_plugins import MODEL
from tts_vision.errors import ConfigError, TTSVisionError
from tts_vision.runs.engine import run_tasks
from tts_vision.runs.executors import Failed
from tts_vision.runs.grid import PLAIN, PLAIN_ALGORITHM, grid
from tts_vision.runs.manifest import MANIFEST
from tts_vision.runs.ray_executor import RayExecutor
from tts_vision.runs.task import Task

ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
FILE = MODEL.rpartition("@")[0]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One Ray for all tests here: it takes seconds to start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # a process for each CPU that none would use
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()
    torch.set_num_threads(threads)


def playground() -> list[Task]:
    from tts_vision.config import RunConfig
    from tts_vision.types import Prompt

    base = RunConfig(prompt="-", budget="2x", verifier="playground_clip")
    return grid(
        base,
        [Prompt("two red circles"), Prompt("a blue star")],
        arms={PLAIN: PLAIN_ALGORITHM, "best": "best_of_n"},
        verifiers=[base.verifier],
        seeds=[0],
    )


def test_workers_with_a_shared_verifier_write_the_same_bytes_as_one_process(tmp_path: Path) -> None:
    """Takes long because three processes load the libraries and the bundled model."""
    run_tasks(playground(), tmp_path / "alone")
    executor = RayExecutor(workers=2, verifier_actors=1, threads=1)
    run = run_tasks(playground(), tmp_path / "ray", executor=executor)
    assert [record.name for record in run.records] == [task.name for task in playground()]
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")


def worker_processes() -> list[int]:
    """The processes of Ray's actors of this module."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "ray::_Actor" in line]


def test_a_worker_that_is_killed_is_replaced_and_its_search_goes_on(tmp_path: Path) -> None:
    """Takes long because each worker, and each in the place of a killed one, loads the libraries."""
    run_tasks(tasks(), tmp_path / "alone")
    killed: list[int] = []

    def kill_one(done: int, total: int, search: object) -> None:
        if done in (3, 8):
            killed.append(worker_processes()[0])
            os.kill(killed[-1], signal.SIGKILL)

    executor = RayExecutor(workers=2, threads=1)
    run = run_tasks(tasks(), tmp_path / "ray", executor=executor, progress=kill_one)
    assert len(killed) == 2
    assert len(run.records) == len(tasks()) and not run.failed
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
    lines = (tmp_path / "ray" / MANIFEST).read_text().splitlines()
    assert len(lines) == len(tasks()), "nothing is made twice"


def test_a_search_that_kills_its_workers_fails_alone(tmp_path: Path) -> None:
    every = tasks()
    config = every[2].config.model_copy(update={"verifier": f"{FILE}@fatal"})
    every[2] = Task("fatal", "fk", "b", config)
    run = run_tasks(every, tmp_path, executor=RayExecutor(workers=2, threads=1))
    assert len(run.records) == len(every) - 1
    assert [each.task.name for each in run.failed] == ["fatal"]
    assert "3 were lost over 'fatal'" in str(run.failed[0].error)


def test_mistakes_of_a_search_come_back_as_they_are(tmp_path: Path) -> None:
    every = tasks()
    config = every[2].config.model_copy(update={"verifier": f"{FILE}@too_few"})
    every[2] = Task("broken", "fk", "b", config)
    run = run_tasks(every, tmp_path, executor=RayExecutor(workers=2, threads=1))
    assert isinstance(run.failed[0], Failed) and isinstance(run.failed[0].error, TTSVisionError)
    assert "one score per sample" in str(run.failed[0].error)


def test_verifiers_that_compare_samples_stay_in_their_worker(tmp_path: Path) -> None:
    every = tasks(verifier=f"ensemble({FILE}@verifier, {FILE}@first_coordinate):how=rank")
    executor = RayExecutor(workers=1, threads=1, verifier_actors=1)
    with pytest.raises(TTSVisionError, match=r"must score each sample by itself .* leave out"):
        run_tasks(every, tmp_path, executor=executor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers of Ray must be at least 1 but got 0"),
        ({"num_gpus": -1}, "num_gpus of Ray must be at least 0"),
        ({"threads": 0}, "threads of Ray must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RayExecutor(**options)


def test_live_objects_are_refused(tmp_path: Path) -> None:
    every = [
        Task(t.name, t.arm, t.prompt_id, t.config.model_copy(update={"model": "<Pipe>"})) for t in tasks()
    ]
    with pytest.raises(ConfigError, match="need model by name but got a Python object"):
        run_tasks(every, tmp_path, executor=RayExecutor())
