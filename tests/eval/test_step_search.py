"""The comparison of searches that judge steps: shards, resuming, tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tts_vision.errors import ConfigError, StorageError
from tts_vision.eval import step_search
from tts_vision.eval.playground import evaluation_prompts
from tts_vision.eval.step_search import (
    ARMS,
    COMPUTE,
    PLAIN,
    REFERENCE,
    SECONDS,
    Outcome,
    Settings,
    Shard,
    markdown,
    read_shards,
    rows_of,
)

SETTINGS = Settings(
    tracks=("easy", "hard"),
    limit=4,
    seeds=(0, 1),
    budgets=("2x",),
    arms=(PLAIN, REFERENCE, "PARM"),
    levels=(COMPUTE, SECONDS),
    device="cpu",
    shards=3,
)


def outcome(arm: str, seed: int, right: bool, level: str = COMPUTE, prompt: str = "a red star") -> Outcome:
    times = "1x" if arm == PLAIN else "2x"
    return Outcome("easy", prompt, seed, arm, times, level, right, True, 48.0, 0.25, 3, 1.5)


def test_shards_share_all_searches_among_them() -> None:
    units = [SETTINGS.units(number) for number in (1, 2, 3)]
    every = {(track, prompt.text, seed) for part in units for track, prompt, seed in part}
    assert len(every) == sum(map(len, units)) == 2 * 4 * 2
    assert {text for track, text, _ in every if track == "hard"} == {
        p.text for p in evaluation_prompts(4, "hard")
    }
    assert [seed for _, _, seed in units[0]] == sorted(seed for _, _, seed in units[0]), "seed by seed"
    assert SETTINGS.cells() == [
        (PLAIN, "1x", COMPUTE),
        (REFERENCE, "2x", COMPUTE),
        ("PARM", "2x", COMPUTE),
        (REFERENCE, "2x", SECONDS),
        ("PARM", "2x", SECONDS),
    ]


def test_rows_count_the_prompts_that_all_searches_are_finished_for() -> None:
    outcomes = [outcome(PLAIN, s, False) for s in (0, 1, 2)]
    outcomes += [outcome(REFERENCE, 0, False), outcome(REFERENCE, 1, True), outcome(REFERENCE, 2, True)]
    outcomes += [outcome("PARM", 0, True), outcome("PARM", 1, True)]
    outcomes += [outcome("PARM", 0, False, SECONDS)]
    rows = {row.arm: row for row in rows_of(SETTINGS, outcomes, "2x", COMPUTE)}
    assert list(rows) == [PLAIN, REFERENCE, "PARM"]
    assert rows[PLAIN].right.value == 0 and rows[REFERENCE].right.value == 0.5
    assert rows["PARM"].right.value == 1 and rows["PARM"].difference.value == 0.5
    assert math.isnan(rows[REFERENCE].difference.value) and rows["PARM"].left.value == 0.25
    assert rows_of(SETTINGS, outcomes, "2x", SECONDS) == []


def test_a_shard_goes_on_after_a_half_written_line(tmp_path: Path) -> None:
    path = tmp_path / "shard-1-of-3.jsonl"
    shard = Shard.open(path, SETTINGS)
    shard.set_limits({"2x": 0.5})
    shard.add(outcome(REFERENCE, 0, True))
    shard.add(replace(outcome(REFERENCE, 1, True, SECONDS), left=math.nan))
    with path.open("a") as file:
        file.write('{"track": "easy", "prom')
    again = Shard.open(path, SETTINGS)
    assert again.limits == {"2x": 0.5} and [o.seed for o in again.outcomes] == [0, 1]
    assert math.isnan(again.outcomes[1].left)
    with pytest.raises(ConfigError, match="same settings"):
        Shard.open(path, replace(SETTINGS, limit=5))


def test_tables_join_the_shards_of_one_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds none"):
        read_shards(tmp_path)
    for number in (1, 2):
        shard = Shard.open(tmp_path / f"shard-{number}-of-3.jsonl", SETTINGS)
        shard.set_limits({"2x": float(number)})
        for arm in SETTINGS.arms:
            shard.add(outcome(arm, number, arm != PLAIN))
            if arm != PLAIN:
                shard.add(outcome(arm, number, True, SECONDS))
    text = markdown(read_shards(tmp_path))
    assert "70 searches are missing" in text  # of 16 units with 5 searches each, 10 are there
    assert "Track easy, 2x at equal compute" in text and "Track hard" not in text
    assert "in the seconds that ORM takes for 2x, 1.5 on the mean" in text
    assert "| PARM | 100.0 | +0.0 | 100.0 | 48 | 25.0 | 3.0 | 1.50 |" in text
    Shard.open(tmp_path / "shard-3-of-3.jsonl", replace(SETTINGS, seeds=(5,)))
    with pytest.raises(ConfigError, match="same settings"):
        read_shards(tmp_path)
    (tmp_path / "shard-3-of-3.jsonl").write_text("[]\n")
    with pytest.raises(StorageError, match="cannot be read"):
        read_shards(tmp_path)


@pytest.mark.parametrize("wrong", ["0/3", "4/3", "2", "a/b"])
def test_a_shard_is_one_of_so_many(wrong: str) -> None:
    with pytest.raises(SystemExit):
        step_search.main(["--shard", wrong])


def test_arms_are_searches_of_the_step_verifier_and_one_of_the_judge() -> None:
    assert {arm.verifier for arm in ARMS.values()} == {"playground_parm", "playground_judge"}
    with pytest.raises(ConfigError, match="plain samples"):
        replace(SETTINGS, budgets=("nfe=3",))


def test_the_command_runs_shards_side_by_side_once_and_joins_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Takes long because each shard is a process that loads the libraries."""
    results = tmp_path / "table.md"
    command = ["--track", "easy", "--limit", "2", "--seeds", "0", "--budgets", "2x", "--arms", PLAIN]
    command += [REFERENCE, "PARM without refilling", "--levels", COMPUTE, "--output", str(tmp_path / "run")]
    command += ["--results", str(results), "--processes", "2"]
    step_search.main(command)
    table = results.read_text()
    assert "2 processes" in table and "missing" not in table
    files = sorted((tmp_path / "run").iterdir())
    assert [file.name for file in files] == ["shard-1-of-2.jsonl", "shard-2-of-2.jsonl"]
    texts = [file.read_text() for file in files]
    for text in texts:
        plain, reference, parm = map(json.loads, text.splitlines()[1:])
        assert plain["nfe"] == 24 and reference["nfe"] <= 48 and 0 <= parm["left"] < 1
    step_search.main(command)
    assert [file.read_text() for file in files] == texts, "nothing is computed twice"
    results.unlink()
    step_search.main(["--tables", "--output", str(tmp_path / "run"), "--results", str(results)])
    assert results.read_text() == table and "Track easy" in capsys.readouterr().out
