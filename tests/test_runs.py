"""Runs: each search once, over interruptions, processes, executors and damaged files."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toy_plugins import MODEL, VERIFIER
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError, StorageError, TTSVisionError
from tts_vision.locks import LOCK
from tts_vision.runs.allocation import run_within
from tts_vision.runs.engine import run_tasks
from tts_vision.runs.executors import Failed
from tts_vision.runs.grid import PLAIN, PLAIN_ALGORITHM, grid
from tts_vision.runs.manifest import MANIFEST, Manifest
from tts_vision.runs.progress import RunReport
from tts_vision.runs.task import Record, Task, path_in
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import Prompt

FILE = MODEL.rpartition("@")[0]
NOT_THE_SAME = {MANIFEST, "trace.jsonl", "result.json", LOCK}
"""Files that hold wall-clock times, and the lock of a process that was killed after it had finished."""


def tasks(**settings: Any) -> list[Task]:
    base = RunConfig(**({"prompt": "-", "model": MODEL, "verifier": VERIFIER, "budget": "4x"} | settings))
    return grid(
        base,
        [Prompt("a"), Prompt("b", {"tag": "x"}), Prompt("c")],
        arms={PLAIN: PLAIN_ALGORITHM, "fk": "fk_steering:lam=5", "best": "best_of_n"},
        verifiers=[base.verifier],
        seeds=[0, 1],
    )


def contents(root: Path) -> dict[str, str]:
    """Digests of all files that two runs have in common."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in NOT_THE_SAME
    }


def steps(root: Path) -> int:
    """Steps that were computed in all searches of a run, as their traces have them."""
    lines = [line for path in root.rglob("trace.jsonl") for line in path.read_text().splitlines()]
    return sum(json.loads(line)["kind"] == "computed" for line in lines)


def test_a_run_has_a_record_for_each_search(tmp_path: Path) -> None:
    run = run_tasks(tasks(), tmp_path)
    assert [record.name for record in run.records] == [task.name for task in tasks()]
    assert not run.failed
    for record, task in zip(run.records, tasks()):
        assert record.hash == task.config.hash and record.seed == task.config.seed
        path = record.path(tmp_path)
        assert path is not None and hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256
        assert record.bests[-1].score == record.score and record.bests[-1].compute == record.nfe
        scores = [best.score for best in record.bests[:-1]]
        assert scores == sorted(set(scores))
    lines = (tmp_path / MANIFEST).read_text().splitlines()
    assert [Record.load(line) for line in lines] == run.records


def test_finished_searches_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_tasks(tasks(), tmp_path)
    monkeypatch.setattr(GaussianMixtureSampler, "advance", None)  # nothing may be computed
    again = run_tasks(tasks(), tmp_path)
    assert again.records == first.records
    (tmp_path / MANIFEST).unlink()
    from_folders = run_tasks(tasks(), tmp_path)
    assert [r.sha256 for r in from_folders.records] == [r.sha256 for r in first.records]


@pytest.mark.parametrize("damage", ["torn", "nonsense", "twice"])
def test_a_damaged_manifest_is_made_good_from_the_folders(damage: str, tmp_path: Path) -> None:
    first = run_tasks(tasks(), tmp_path)
    path = tmp_path / MANIFEST
    text = path.read_text()
    path.write_text(
        {"torn": text[:-20], "nonsense": "{}\n[1]\nno json\n" + text, "twice": text + text}[damage]
    )
    assert run_tasks(tasks(), tmp_path).records == first.records
    found = Manifest(tmp_path).read()
    assert [found[task.name] for task in tasks()] == first.records


def test_a_manifest_is_read_as_it_grows_whatever_a_prompt_holds(tmp_path: Path) -> None:
    record = run_tasks(tasks()[:1], tmp_path / "run").records[0]
    odd = [
        replace(record, name=f"n{i}", prompt=text) for i, text in enumerate(["a\u2028b", "c\x85d", "e\nf"])
    ]
    ours, theirs = Manifest(tmp_path), Manifest(tmp_path)
    for i, each in enumerate(odd):
        ours.add(each)
        assert list(theirs.read().values()) == odd[: i + 1]
    theirs.add(odd[0])
    assert len((tmp_path / MANIFEST).read_text().split("\n")) == len(odd) + 1, "each is there once"


def test_a_manifest_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    (run / "link").symlink_to(tmp_path)
    for name in ("../secret", "/etc/passwd", "link/secret", "a/../../secret", "", ".hidden"):
        with pytest.raises(StorageError, match=r"names files of its own run|must hold folders of its own"):
            path_in(run, name)


def test_a_search_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    told: list[Any] = []
    every = tasks()
    bad = [Task(t.name, t.arm, t.prompt_id, t.config) for t in every]
    config = every[2].config.model_copy(update={"verifier": f"{FILE}@too_few"})
    bad[2] = Task("broken", "fk", "b", config)
    run = run_tasks(bad, tmp_path, progress=lambda done, total, search: told.append((done, total, search)))
    assert len(run.records) == len(bad) - 1
    assert [each.task.name for each in run.failed] == ["broken"]
    assert "one score per sample" in str(run.failed[0].error)
    assert [(done, total) for done, total, _ in told] == [(i + 1, len(bad)) for i in range(len(bad))]
    assert isinstance(told[2][2], Failed)


def test_a_run_whose_first_search_fails_ends_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(TTSVisionError, match="one score per sample"):
        run_tasks(tasks(verifier=f"{FILE}@too_few"), tmp_path)


def test_names_are_used_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need names of their own but two are called"):
        run_tasks(tasks() + tasks()[:1], tmp_path)


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_runs import tasks
from tts_vision.runs.engine import run_tasks
def slowly(done, total, search):
    print(search.name, flush=True)
run_tasks(tasks(), Path(sys.argv[1]), progress=slowly)
"""


def start(root: Path) -> subprocess.Popen[str]:
    code = textwrap.dedent(CHILD).format(tests=str(Path(__file__).parent))
    return subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_run(tmp_path: Path) -> None:
    run_tasks(tasks(), tmp_path / "alone")
    pair = [start(tmp_path / "shared") for _ in range(2)]
    names = [process.communicate(timeout=120)[0].split() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert set(names[0]) | set(names[1]) == {task.name for task in tasks()}
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert steps(tmp_path / "shared") == steps(tmp_path / "alone"), "nothing is made twice"
    found = Manifest(tmp_path / "shared").read()
    lines = (tmp_path / "shared" / MANIFEST).read_text().splitlines()
    assert set(found) == {task.name for task in tasks()} and len(lines) >= len(found)


def work_until_killed(root: Path) -> None:
    run_tasks(tasks(), root)


def test_a_run_that_is_killed_at_random_moments_ends_the_same(tmp_path: Path) -> None:
    """20 kills; forks of this process, so that a start takes no imports."""
    run_tasks(tasks(), tmp_path / "alone")
    draw = random.Random(0)
    fork = multiprocessing.get_context("fork")
    killed = 0
    for _ in range(20):
        process = fork.Process(target=work_until_killed, args=(tmp_path / "killed",))
        process.start()
        time.sleep(draw.uniform(0.0, 0.12))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed >= 5
    run = run_tasks(tasks(), tmp_path / "killed")
    assert len(run.records) == len(tasks()) and not run.failed
    assert contents(tmp_path / "killed") == contents(tmp_path / "alone")


def hard(target: float) -> list[Task]:
    return [task for task in tasks(target=target) if task.arm == "best"]


def test_what_easy_prompts_leave_goes_to_the_hard_ones(tmp_path: Path) -> None:
    target = -0.275
    run = run_within(hard(target), "60x", tmp_path, stride=2)
    spent = sum(record.nfe for record in run.records)
    assert spent <= 60 * 6, "a plain sample of the toy costs 6"
    rounds = list(Manifest(tmp_path).read().values())
    first = [record for record in rounds if not record.name.split("/")[-1].endswith(("-r1", "-r2"))]
    assert {record.limit for record in first[: len(hard(target))]} == {60.0}
    later = [record for record in rounds if "-r1" in record.name]
    open_ones = [record for record in first if not record.satisfied]
    assert len(later) == len(open_ones) > 0
    left = 60 * 6 - sum(record.nfe for record in first)
    assert later[0].limit == pytest.approx(left / len(open_ones), abs=0.01)
    assert {record.seed for record in later} <= {2, 3}
    for task, record in zip(hard(target), run.records):
        own = [r for r in rounds if r.name == task.name or r.name.startswith(f"{task.name}-r")]
        assert record.nfe == sum(r.nfe for r in own)
        assert record.score == max(r.score for r in own)
        assert [b.compute for b in record.bests] == sorted(b.compute for b in record.bests)
    again = run_within(hard(target), "60x", tmp_path, stride=2)
    assert [r.dump() for r in again.records] == [r.dump() for r in run.records]


@pytest.mark.parametrize(
    ("total", "target", "message"),
    [
        ("nfe=400", 0.0, "written in plain samples, such as '400x', but got 'nfe=400'"),
        ("40x", None, "goes from those that reach their target to the others"),
        ("4x", 0.0, "must pay for a sample of each, 6 here"),
    ],
)
def test_a_total_that_cannot_be_shared_is_refused(
    total: str, target: float | None, message: str, tmp_path: Path
) -> None:
    every = [task for task in tasks(target=target) if task.arm == "best"]
    with pytest.raises(ConfigError, match=message):
        run_within(every, total, tmp_path, stride=2)


def test_progress_has_a_rate_and_the_time_left(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream, RunReport(stream) as report:
        run_tasks(tasks(), tmp_path / "run", progress=report)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0].startswith("1/18 searches, ") and lines[0].endswith(" left")
    assert lines[-1].startswith("18/18 searches, ") and "left" not in lines[-1]
