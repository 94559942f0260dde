"""A result folder: one writer, one configuration, damage told or made good, and data that is only data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from toy_tokens import FEATURES, TokenSampler

import tts_vision
from toy_plugins import MODEL, VERIFIER, first_coordinate
from tts_vision import Result, RunConfig, search
from tts_vision.condition import Asset
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError, StorageError
from tts_vision.folders import read_config
from tts_vision.journal import Journal, read_asset
from tts_vision.locks import EXPIRES, LOCK, Owner, check_free, one_writer
from tts_vision.replays import replay
from tts_vision.results import load_result
from tts_vision.runner import run
from tts_vision.sampler import Sampler
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Event
from tts_vision.types import State

pytestmark = pytest.mark.filterwarnings("ignore::tts_vision.errors.SearchWarning")


def config(**changes: Any) -> RunConfig:
    return RunConfig(**{"prompt": "a", "model": MODEL, "verifier": VERIFIER, "budget": "4x", **changes})


class Stopped(Exception):
    """Ends a search in a test."""


def stopped(folder: Path, begin: RunConfig | Callable[..., Result], at: int) -> Path:
    """A folder as a kill leaves it right after so many events.

    Args:
        folder: Where the search runs; removed again.
        begin: The search.
        at: How many events.
    """
    killed = folder.with_name(f"{folder.name}-{at}")
    seen = 0

    def observe(context: SearchContext, event: Event) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            shutil.copytree(folder, killed)
            raise Stopped

    with pytest.raises(Stopped):
        if isinstance(begin, RunConfig):
            run(begin, output=folder, progress=observe, figures=False)
        else:
            begin(folder, progress=observe)
    shutil.rmtree(folder)
    (killed / LOCK).unlink()
    return killed


def resumed(folder: Path, **changes: Any) -> Any:
    return run(read_config(folder), output=folder, resume=True, figures=False, **changes)


def content(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """All that identical searches share."""
    files: dict[str, Any] = {p.name: p.read_bytes() for p in sorted((folder / "population").iterdir())}
    files |= {p.name: p.read_bytes() for p in folder.glob("best.*")}
    result = json.loads((folder / "result.json").read_text())
    return files | {"result": {k: v for k, v in result.items() if k not in ("timing", *without)}}


def spread(first: int, last: int, most: int = 6) -> list[int]:
    """Up to so many events, evenly from the first to the last."""
    return sorted({round(first + i * (last - first) / (most - 1)) for i in range(most)})


# Damage

ALGORITHMS = [
    "best_of_n",
    "zero_order",
    "evosearch",
    "fk_steering:resample_steps=[2,4],ess_threshold=none",
    "das:alpha=0.5",
    "reno:iterations=3",
    "gradient_guidance:repeats=2",
    "beam_search:branch=2",
    "prompt_search",
    "search_over_paths",
]


@pytest.mark.parametrize(
    ("algorithm", "damage"),
    [*((each, "removed") for each in ALGORITHMS), ("best_of_n", "cut"), ("evosearch", "changed")],
)
def test_lost_checkpoints_are_computed_again(algorithm: str, damage: str, tmp_path: Path) -> None:
    settings = config(algorithm=algorithm, budget="6x", max_batch=2)
    whole = run(settings, output=tmp_path / "whole", figures=False)
    told = 0
    for at in spread(3, len(whole.trace) - 1):
        folder = stopped(tmp_path / "cut", settings, at)
        for path in (folder / "state").iterdir():
            data = bytearray(path.read_bytes())
            if damage == "removed":
                path.unlink()
                continue
            data[-2] ^= 0xFF
            path.write_bytes(data if damage == "changed" else data[:-3])
        result = resumed(folder)
        lost = [event for event in result.trace if event.kind == "recovered"]
        told += len(lost)
        assert content(folder, without=("spent", "warnings")) == content(
            tmp_path / "whole", without=("spent", "warnings")
        )
        extra = sum(event.cost.nfe for event in lost)
        assert result.spent.nfe == whole.spent.nfe + extra
        assert [event.message for event in lost] == [w for w in result.warnings if w not in whole.warnings]
    assert told


def features_of_tokens(ctx: SearchContext) -> State:
    """A search over tokens that embeds previews and finished samples."""
    extractor = ctx.extractor(FEATURES)
    state = ctx.advance(ctx.init(4), 2)
    ctx.score(state)
    ahead = ctx.advance(ctx.select(state, [1, 1, 3]), 1)
    kept = int(ctx.features(ahead, extractor)[:, 0].argmax())
    ctx.score(ahead)
    state = ctx.finish(ctx.select(ahead, [kept]))
    ctx.features(state, extractor)
    ctx.score(state)
    return state


def two_models(ctx: SearchContext) -> State:
    """A search whose particles come from a generator beside the search's own, for conditions of their own."""
    other = ctx.using(OTHER)
    drafts = other.advance(other.init(3, ["one", "two", "two"]), 3)
    other.score(other.finish(other.recondition(drafts, "three", [0, 2])))
    state = ctx.finish(ctx.init(2))
    ctx.score(state)
    return state


class Drafts(GaussianMixtureSampler):
    """Another generator."""

    name = "drafts"


OTHER = Drafts(num_steps=5, order=2)


@pytest.mark.parametrize(
    ("algorithm", "sampler"), [(features_of_tokens, TokenSampler), (two_models, GaussianMixtureSampler)]
)
def test_lost_files_of_any_search_are_made_again(
    algorithm: Callable[[SearchContext], State], sampler: type[Sampler], tmp_path: Path
) -> None:
    def begin(output: Path, **options: Any) -> Result:
        arguments: dict[str, Any] = {
            "algorithm": algorithm,
            "verifier": TargetReward(),
            "budget": "9x",
            "max_batch": 3,
        }
        return search(sampler(), "a", output=output, **arguments, **options)

    whole = begin(tmp_path / "whole")
    told = 0
    for at in spread(2, len(whole.trace) - 2):
        folder = stopped(tmp_path / "cut", begin, at)
        for path in (folder / "state").iterdir():
            path.unlink()
        result = begin(folder, resume=True)
        told += len(result.warnings)
        same = content(tmp_path / "whole", without=("spent", "warnings"))
        assert content(folder, without=("spent", "warnings")) == same, f"event {at}"
    assert told


@pytest.mark.parametrize("damage", ["removed", "cut", "empty"])
def test_lost_samples_are_made_again(damage: str, tmp_path: Path) -> None:
    settings = config(algorithm="evosearch", budget="6x")
    whole = run(settings, output=tmp_path / "whole", figures=False)
    folder = stopped(tmp_path / "cut", settings, len(whole.trace) - 3)
    samples = sorted((folder / "population").iterdir())
    assert len(samples) > 2
    for path in samples[1:]:
        data = path.read_bytes()
        path.unlink() if damage == "removed" else path.write_bytes(data[:-20] if damage == "cut" else b"")
    result = resumed(folder)
    without = ("spent", "warnings")
    assert content(folder, without=without) == content(tmp_path / "whole", without=without)
    assert any(samples[1].name in message and "beyond the budget" in message for message in result.warnings)
    assert result.spent.decodes == whole.spent.decodes + len(samples) - 1


def test_what_cannot_be_made_again_is_told(tmp_path: Path) -> None:
    def begin(output: Path, **options: Any) -> Result:
        arguments: dict[str, Any] = {"algorithm": two_models, "verifier": TargetReward(), **options}
        return search(GaussianMixtureSampler(num_steps=6), "a", output=output, **arguments)

    whole = begin(tmp_path / "whole")
    folder = stopped(tmp_path / "cut", begin, len(whole.trace) - 3)
    first = min((folder / "population").iterdir())
    data = first.read_bytes()
    first.unlink()
    before = tree(folder)
    # at the start of a session, the other generator is not known yet
    with pytest.raises(
        StorageError, match=rf"{first.name} of particle .* cannot be made again: .*Restore them"
    ):
        begin(folder, resume=True)
    assert tree(folder) == before
    first.write_bytes(data)
    begin(folder, resume=True)
    assert content(folder) == content(tmp_path / "whole")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# One writer


SLOW = """
import sys, time
from toy_plugins import verifier as toy
def slow(images, prompts):
    print("scoring", flush=True)
    time.sleep(600)
    return [score.value for score in toy().score(images, prompts)]
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A search in another process that does not end, and its folder."""
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "tts_vision", "generate", "a", "--model", MODEL, "--budget", "4x"]
    command += ["--verifier", f"{tmp_path / 'slow.py'}@slow", "-o", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "scoring\n"
        yield tmp_path / "out", process
        process.kill()


def test_a_running_search_keeps_others_out(running: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = running
    before = tree(folder)
    who = (
        f"A folder has one writer at a time but '{folder}' is written by process {process.pid} on .* since 2"
    )
    for resume in (True, False):
        with pytest.raises(StorageError, match=who):
            run(read_config(folder), output=folder, resume=resume)
    assert tree(folder) == before
    process.kill()
    process.wait()
    assert (folder / LOCK).exists(), "nobody was left to remove it"
    (folder.parent / "slow.py").write_text(SLOW.replace("600", "0"))
    run(read_config(folder), output=folder, resume=True)
    assert not (folder / LOCK).exists()


def test_another_search_of_this_process_is_kept_out(tmp_path: Path) -> None:
    told: list[str] = []

    def observe(context: SearchContext, event: Event) -> None:
        if not told:
            with pytest.raises(StorageError) as error:
                run(config(), output=tmp_path / "out", resume=True)
            told.append(str(error.value))

    run(config(), output=tmp_path / "out", progress=observe)
    assert f"is written by this process {os.getpid()} on" in told[0]
    assert "is written by this process" not in repr(run(config(), output=tmp_path / "out", resume=True))


def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    start, entered, refused = threading.Barrier(8), [0], [0]

    def enter() -> None:
        start.wait()
        try:
            with one_writer(tmp_path / "a" / "out"):
                entered[0] += 1
                until = time.monotonic() + 30
                while refused[0] < 7 and time.monotonic() < until:
                    time.sleep(0.01)
        except StorageError:
            refused[0] += 1

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (entered, refused) == ([1], [7])


def lock_of(folder: Path, **changes: Any) -> Path:
    """The lock file of a process that is not there."""
    folder.mkdir(exist_ok=True)
    owner = {**vars(Owner.this()), "pid": 2**22 + 1, **changes}
    (folder / LOCK).write_text(json.dumps(owner))
    return folder


def test_locks_of_processes_that_are_gone_do_not_count(tmp_path: Path) -> None:
    for number, content in enumerate(["", "{", json.dumps({"pid": 1})]):
        folder = lock_of(tmp_path / f"unfinished-{number}")
        (folder / LOCK).write_text(content)
        run(config(), output=folder)
    run(config(), output=lock_of(tmp_path / "dead"))
    # numbers of processes are used again
    run(config(), output=lock_of(tmp_path / "other", pid=os.getppid(), started=1.0))
    # a container that was restarted has another name, and the same kernel
    run(config(), output=lock_of(tmp_path / "container", host="3f2a"))
    check_free(lock_of(tmp_path / "free"))


def test_the_lock_of_another_machine_counts_until_it_is_deleted_or_expires(tmp_path: Path) -> None:
    folder = lock_of(tmp_path / "far", host="node-7", boot="another", since="2026-01-02 03:04:05+00:00")
    message = (
        rf"process {2**22 + 1} on node-7 since 2026-01-02 03:04:05\+00:00, another machine; .*"
        rf"If it runs no more, .* or when you delete '{folder / LOCK}'"
    )
    with pytest.raises(StorageError, match=message):
        run(config(), output=folder)
    assert [path.name for path in folder.iterdir()] == [LOCK]
    long_ago = time.time() - EXPIRES - 1
    os.utime(folder / LOCK, (long_ago, long_ago))
    check_free(folder)
    assert not (folder / LOCK).exists()
    run(config(), output=folder)


def test_the_owner_of_a_lock_renews_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tts_vision.locks.BEAT", 0.01)
    with one_writer(tmp_path):
        owner = (tmp_path / LOCK).read_bytes()
        os.utime(tmp_path / LOCK, (0, 0))
        until = time.monotonic() + 30
        while not (tmp_path / LOCK).stat().st_mtime and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - (tmp_path / LOCK).stat().st_mtime < 60
        assert (tmp_path / LOCK).read_bytes() == owner


def test_without_locks_of_the_system_the_named_process_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tts_vision.locks.fcntl", None)
    alive = Owner.this()
    with pytest.raises(StorageError, match=f"is written by this process {alive.pid} on"):
        run(config(), output=lock_of(tmp_path / "a", pid=alive.pid))
    run(config(), output=lock_of(tmp_path / "a", pid=alive.pid, started=alive.started - 7))
    run(config(), output=lock_of(tmp_path / "b"))
    with one_writer(tmp_path / "c"), pytest.raises(StorageError, match="one writer"):
        check_free(tmp_path / "c")


@pytest.mark.parametrize("left", [[], ["population/"], ["population/", ".config.part.yaml"]], ids=str)
def test_a_search_that_was_killed_while_its_folder_was_made_begins_again(
    left: list[str], tmp_path: Path
) -> None:
    folder = lock_of(tmp_path / "out")
    for name in left:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("prompt: tw")
    for resume in (False, True):
        run(config(), output=folder, resume=resume)
    (tmp_path / "files" / "population").mkdir(parents=True)
    (tmp_path / "files" / "population" / "of-the-user.png").write_text("x")
    with pytest.raises(ConfigError, match=r"must be new or empty but .* holds 1 entries \(population\)"):
        run(config(), output=tmp_path / "files")


def test_a_lock_ends_with_the_search(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run(config(algorithm="best_of_n", algorithm_params={"n": 0}), output=tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    settings = config(verifier=f"{MODEL.rpartition('@')[0]}@too_few")
    with pytest.raises(Exception, match="one score per sample"):
        run(settings, output=tmp_path / "c")
    assert not (tmp_path / "c" / LOCK).exists() and (tmp_path / "c" / "trace.jsonl").exists()


def test_a_replay_waits_for_the_writer(tmp_path: Path) -> None:
    run(config(), output=tmp_path / "out")
    with one_writer(tmp_path / "out"):
        before = tree(tmp_path / "out")
        with pytest.raises(StorageError, match="one writer at a time"):
            replay(tmp_path / "out")
        assert tree(tmp_path / "out") == before
        assert load_result(tmp_path / "out").best.uid >= 0, "reading needs no lock"
    assert replay(tmp_path / "out").max_difference == 0


# One configuration


def edit(folder: Path, **changes: Any) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 9}, "seed is 9 and '.*trace.jsonl' has 0"),
        (
            {"prompt": "b", "budget": "8x"},
            "prompt is 'b' and .* has 'a', budget is '8x' and .* has '4x'; restore",
        ),
        ({"verifier": f"{VERIFIER}:x=3"}, "verifier is '.*:x=3' and"),
        ({"algorithm_params": {"n": 2}}, "algorithm_params.n is 2 and .* has None"),
        (
            {"sampler_options": {"pipeline_kwargs": {"guidance_scale": 7.5}}},
            "sampler_options.pipeline_kwargs.guidance_scale is 7.5 and .* has None",
        ),
    ],
)
def test_an_edited_configuration_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = stopped(tmp_path / "cut", config(), 4)
    run(config(), output=tmp_path / "whole", figures=False)
    for each, act in (
        (folder, lambda: tts_vision.resume(folder)),
        (tmp_path / "whole", lambda: tts_vision.resume(tmp_path / "whole")),
        (tmp_path / "whole", lambda: replay(tmp_path / "whole")),
        (tmp_path / "whole", lambda: load_result(tmp_path / "whole")),
    ):
        kept = (each / "config.yaml").read_text()
        edit(each, **changes)
        before = tree(each)
        with pytest.raises(ConfigError, match=message):
            act()
        assert tree(each) == before
        (each / "config.yaml").write_text(kept)
    resumed(folder)
    assert content(folder) == content(tmp_path / "whole")


@pytest.mark.parametrize(("before", "after"), [(None, 1), (2, None), (2, 3)])
def test_max_batch_is_no_part_of_it(before: int | None, after: int | None, tmp_path: Path) -> None:
    settings = config(budget="7x", max_batch=before)
    folder = stopped(tmp_path / "cut", settings, 4)
    edit(folder, max_batch=after)
    run(settings, output=tmp_path / "whole", figures=False)
    resumed(folder)
    assert content(folder) == content(tmp_path / "whole")


def test_a_trace_begins_with_its_configuration(tmp_path: Path) -> None:
    result = run(config(seed=5), output=tmp_path, figures=False)
    first = json.loads((tmp_path / "trace.jsonl").read_text().split("\n")[0])
    assert (first["kind"], first["hash"], first["config"]["seed"]) == ("began", result.config.hash, 5)


# Damage that is told


def test_a_missing_trace_is_told(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run(config(), output=whole, figures=False)
    folder = stopped(tmp_path / "cut", config(), 4)
    for each, held in ((whole, "population"), (folder, "state")):
        kept = (each / "trace.jsonl").read_bytes()
        for left in (None, b"", b'{"op": 0, "kind": "be'):
            (each / "trace.jsonl").unlink(missing_ok=True)
            if left is not None:
                (each / "trace.jsonl").write_bytes(left)
            before = tree(each)
            with pytest.raises(
                StorageError, match=f"has {held} and no event in trace.jsonl; restore that file"
            ):
                resumed(each)
            assert tree(each) == before
        with pytest.raises((StorageError, ConfigError), match=r"no event in trace.jsonl|has no result.json"):
            load_result(each)
        (each / "trace.jsonl").write_bytes(kept)
        resumed(each)
    # a search that recorded nothing yet begins anew
    for name in ("trace.jsonl", "result.json", "best.png"):
        (whole / name).unlink()
    shutil.rmtree(whole / "population")
    resumed(whole)
    assert content(whole) == content(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{garbage", "line 3 of .* is damaged; restore the file"),
        (b'{"op": 1, "kind": "vision", "clarity": 3}', "may be of a newer version: update tts-vision"),
        (b'{"op": 1, "kind": "answer", "what": "x", "soul": 1}', "may be of a newer version"),
        (b'{"op": 0, "kind": "init", "seeds": [1]}', "was written by an earlier one"),
    ],
)
def test_damaged_lines_are_told_and_left(line: bytes, message: str, tmp_path: Path) -> None:
    folder = stopped(tmp_path / "cut", config(), 4)
    lines = (folder / "trace.jsonl").read_bytes().split(b"\n")
    (folder / "trace.jsonl").write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))
    before = tree(folder)
    with pytest.raises(StorageError, match=message):
        resumed(folder)
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("birth", {"move": {"beta": 1}}, "its move has no name"),
        ("birth", {"seeds": [1]}, "seeds are not one for each particle"),
        ("birth", {"parents": [7, 8, 9, 10]}, "no line before it made 7"),
        ("birth", {"conditions": ["x", "x", "x", "x"]}, "no line before it made x"),
        ("computed", {"uids": [0, 99]}, "no line before it made 99"),
        ("computed", {"first": -1}, "are counted from 0"),
        ("computed", {"what": "gradient"}, "it has no rewards"),
        ("score", {"files": ["00000_0.1000.png"]}, "files are not one for each particle"),
        ("score", {"scores": []}, "scores are not one for each particle"),
        ("score", {"uids": [5, 6, 7, 8]}, "no line before it made 5"),
    ],
)
def test_events_that_no_search_wrote_are_told(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    whole = run(config(), output=tmp_path / "whole", figures=False)
    folder = stopped(tmp_path / "cut", config(), len(whole.trace) - 2)

    def damage(event: dict[str, Any]) -> None:
        if kind in (event["kind"], event.get("what")):
            event |= change

    rewritten(folder, damage)
    before = tree(folder)
    with pytest.raises(StorageError, match=message):
        resumed(folder)
    assert {k: v for k, v in tree(folder).items() if k != "trace.jsonl"} == {
        k: v for k, v in before.items() if k != "trace.jsonl"
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("population", 3), ("population", [{"uid": {}}]), ("best", {"file": 3}), ("spent", "much")],
)
def test_a_damaged_result_is_told(key: str, value: Any, tmp_path: Path) -> None:
    run(config(), output=tmp_path, figures=False)
    result = json.loads((tmp_path / "result.json").read_text())
    changed = {**result[key], **value} if key == "best" else value
    (tmp_path / "result.json").write_text(json.dumps({**result, key: changed}))
    with pytest.raises(StorageError, match=r"must be what a search wrote|must be of files in it"):
        load_result(tmp_path)
    (tmp_path / "result.json").unlink()
    resumed(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["best"] == result["best"]


def test_a_trace_without_its_beginning_is_of_an_earlier_version(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "cut", config(), 4)
    lines = (folder / "trace.jsonl").read_bytes().split(b"\n")
    (folder / "trace.jsonl").write_bytes(b"\n".join(lines[1:]))
    with pytest.raises(StorageError, match=r"was written by an earlier one \(event 'answer' in line 1\)"):
        resumed(folder)
    began = json.loads(lines[0])
    began["config"]["style"] = "cubist"
    (folder / "trace.jsonl").write_bytes(b"\n".join([json.dumps(began).encode(), *lines[1:]]))
    with pytest.raises(StorageError, match=r"of another one .*got 'style'"):
        resumed(folder)


# A folder is data


SECRET = b"a secret of the user\n"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's that no search may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("secret", "00000_0.1000.png", "000001-00000.safetensors"):
        (folder / name).write_bytes(SECRET)
    return folder


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes each event of a trace."""
    lines = []
    for line in (folder / "trace.jsonl").read_text().splitlines():
        event = json.loads(line)
        change(event)
        lines.append(json.dumps(event) + "\n")
    (folder / "trace.jsonl").write_text("".join(lines))


NAMES = [
    "../outside/secret",
    "/etc/passwd",
    "..",
    ".",
    "a/b",
    "..\\x",
    "population/../../outside/secret",
    ".x",
]
NAMES += ["population//etc/passwd", "state/x", "a\0b", "-", " "]


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished search, and the same one as a kill leaves it shortly before its end; tests take copies."""
    settings = config(algorithm="evosearch", budget="6x")
    root = tmp_path_factory.mktemp("evolved")
    result = run(settings, output=root / "whole", figures=False)
    return root / "whole", stopped(root / "cut", settings, len(result.trace) - 3)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_record_stay_inside(
    name: str, tmp_path: Path, outside: Path, evolved: tuple[Path, Path]
) -> None:
    whole = shutil.copytree(evolved[0], tmp_path / "whole")
    before, user = tree(whole), tree(outside)

    def blob(event: dict[str, Any]) -> None:
        if event.get("blob"):
            event["blob"] = name

    def files(event: dict[str, Any]) -> None:
        if event.get("files"):
            event["files"] = [name for _ in event["files"]]

    for change in (blob, files):
        folder = shutil.copytree(evolved[1], tmp_path / "cut")
        rewritten(folder, change)
        kept = tree(folder)
        with pytest.raises(StorageError, match="must be of files in its folder but line"):
            resumed(folder)
        assert tree(folder) == kept
        shutil.rmtree(folder)
    report = json.loads((whole / "result.json").read_text())
    for key in ("best", "population"):
        changed = json.loads(json.dumps(report))
        for entry in changed["population"] if key == "population" else [changed["best"]]:
            entry["file"] = name
        (whole / "result.json").write_text(json.dumps(changed))
        for act in (load_result, partial(replay, trust=True), partial(tts_vision.resume, trust=True)):
            with pytest.raises(StorageError, match="must be of files in it but"):
                act(whole)
    assert tree(outside) == user
    assert {k: v for k, v in tree(whole).items() if k != "result.json"} == {
        k: v for k, v in before.items() if k != "result.json"
    }


@pytest.mark.parametrize("name", ["../outside/secret", "/etc/passwd", "..", "linked.png"])
def test_names_of_conditions_stay_inside(name: str, tmp_path: Path, outside: Path) -> None:
    (tmp_path / "conditions").mkdir()
    (tmp_path / "conditions" / "linked.png").symlink_to(outside / "secret")
    with pytest.raises(StorageError, match=r"is not in the folder of the search|is a symlink"):
        read_asset(tmp_path, name)
    shutil.rmtree(tmp_path / "conditions")
    (tmp_path / "conditions").symlink_to(outside)
    with pytest.raises(StorageError, match=r"is not in the folder of the search|is a symlink"):
        read_asset(tmp_path, name)
    asset = Asset.of(Image.new("RGB", (4, 4)))
    with pytest.raises(StorageError, match="is a symlink"):
        Journal(tmp_path).keep(asset)


LINKS = ["trace.jsonl", "config.yaml", "result.json", "population", "state", "best.png", "replay.png"]
LINKS += [".best.part.png", ".result.part.json", ".replay.part.png", ".config.part.yaml", LOCK]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("finished", [False, True])
def test_symlinks_are_not_followed(
    name: str, finished: bool, tmp_path: Path, outside: Path, evolved: tuple[Path, Path]
) -> None:
    folder = shutil.copytree(evolved[0 if finished else 1], tmp_path / "folder")
    link = folder / name
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
        link.symlink_to(outside, target_is_directory=True)
    else:
        link.unlink(missing_ok=True)
        link.symlink_to(outside / "secret")
    user = tree(outside)
    for act in (partial(tts_vision.resume, trust=True), partial(replay, trust=True), load_result):
        with suppress(StorageError, ConfigError):
            act(folder)
    assert tree(outside) == user
    assert all(path.is_symlink() == (path == link) for path in folder.rglob("*") if path.exists()) or (
        not link.is_symlink()
    )


@pytest.mark.parametrize("where", ["population", "state", "conditions", "."])
def test_files_in_the_place_of_samples_and_tensors_are_not_followed(
    where: str, tmp_path: Path, outside: Path, evolved: tuple[Path, Path]
) -> None:
    folder = shutil.copytree(evolved[1], tmp_path / "cut")
    (folder / "conditions").mkdir()
    for path in (folder / where).iterdir():
        if path.is_file() and path.name != "config.yaml":
            path.unlink()
            path.symlink_to(outside / "secret")
    user = tree(outside)
    with suppress(StorageError):
        resumed(folder)
    assert tree(outside) == user


def test_special_files_do_not_hang(tmp_path: Path) -> None:
    for name in ("trace.jsonl", "config.yaml", "result.json", LOCK):
        folder = stopped(tmp_path / "cut", config(), 4)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        with pytest.raises((StorageError, ConfigError), match=r"special file|regular"):
            tts_vision.resume(folder, trust=True)
        shutil.rmtree(folder)


def test_files_of_the_user_survive(tmp_path: Path) -> None:
    settings = config(algorithm="evosearch", budget="6x")
    whole = run(settings, output=tmp_path / "whole", figures=False)
    names = [
        "population/mine.png",
        "population/00000_mine.png",
        "population/99999_0.5000.png",
        "state/mine.txt",
    ]
    names += ["state/mine.safetensors", "mine.txt", "population/.mine.part.png", "conditions/mine.png"]
    folder = stopped(tmp_path / "cut", settings, len(whole.trace) - 3)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(SECRET)
    (folder / "population" / "sub").mkdir()
    (folder / "population" / ".00003_0.1000.part.png").write_bytes(b"half")
    (folder / "state" / "000099-00000.safetensors").write_bytes(b"left by a kill")
    resumed(folder)
    replay(folder)
    assert all((folder / name).read_bytes() == SECRET for name in names)
    assert not (folder / "population" / ".00003_0.1000.part.png").exists()
    assert [path.name for path in sorted((folder / "state").iterdir())] == ["mine.safetensors", "mine.txt"]
    assert load_result(folder).best.score == whole.best.score


def test_what_an_algorithm_refuses_leaves_files_of_the_user(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def refuse(ctx: SearchContext) -> None:
        (folder / "population" / "mine.png").write_bytes(SECRET)
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        search(GaussianMixtureSampler(), "a", algorithm=refuse, verifier=first_coordinate, output=folder)
    assert tree(folder) == {"population/mine.png": SECRET}


def test_a_kill_between_files_and_record_leaves_nothing_half(tmp_path: Path) -> None:
    """A sample of a session that was killed before it was recorded stays beside the recorded ones."""
    whole = run(config(), output=tmp_path / "whole", figures=False)
    folder = stopped(tmp_path / "cut", config(), len(whole.trace) - 3)
    stray = folder / "population" / "00000_9.0000.png"
    stray.write_bytes((tmp_path / "whole" / "best.png").read_bytes())
    resumed(folder)
    assert stray.exists() and stray not in [candidate.path for candidate in load_result(folder).population]
