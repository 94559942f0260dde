"""The command line: flags, exit codes, one clear message for each mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from toy_plugins import MODEL, VERIFIER
from tts_vision.cli import app
from tts_vision.results import load_result

FILE = MODEL.rpartition("@")[0]
TOY = ["--model", MODEL, "--verifier", VERIFIER, "--budget", "4x"]
runner = CliRunner()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ok(*args: str) -> str:
    result = runner.invoke(app, list(args))
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: str) -> str:
    """The message of a command that must fail with exit code 2 and without a traceback."""
    result = runner.invoke(app, list(args))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split())


def test_generate_tells_where_the_best_sample_is() -> None:
    text = ok("generate", "two red circles", *TOY)
    assert "best outputs/two-red-circles-001/best.png" in " ".join(text.split())
    assert "plain sample" in text
    assert "24 of 24 nfe, 4 verifier calls" in text
    assert "outputs/two-red-circles-002" in ok("generate", "two red circles", *TOY)


def test_parameters_of_the_algorithm_are_flags_anywhere() -> None:
    ok("generate", "--n", "2", "a", *TOY, "--output", "x")
    assert len(load_result("x").population) == 2
    ok("generate", "--algorithm=evosearch", "--strict-reference", "a", "--beta-step=0.5", *TOY, "-o", "y")
    params = load_result("y").config.algorithm_params
    assert (params["strict_reference"], params["beta_step"]) == (True, 0.5)
    ok(
        "generate",
        "a",
        "-a",
        "evosearch",
        "--no-strict-reference",
        "--evolution_schedule",
        "0,3",
        *TOY,
        "-o",
        "z",
    )
    params = load_result("z").config.algorithm_params
    assert (params["strict_reference"], list(params["evolution_schedule"])) == (False, [0, 3])


def test_settings_come_from_file_flags_and_overrides() -> None:
    ok("generate", "a", *TOY, "--algorithm", "fk_steering", "--lam", "3", "--seed", "5", "-o", "x")
    ok("generate", "--config", "x/config.yaml", "-o", "same")
    assert Path("same/best.png").read_bytes() == Path("x/best.png").read_bytes()
    ok("generate", "--config", "x/config.yaml", "--set", "algorithm.lam=4", "--set", "seed=6", "-o", "y")
    config = load_result("y").config
    assert (config.algorithm_params["lam"], config.seed, config.prompt) == (4, 6, "a")
    ok("generate", "b", "--config", "x/config.yaml", "--algorithm", "best_of_n", "--n", "2", "-o", "z")
    assert load_result("z").config.algorithm_params == {"n": 2}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([" "], "Error: A prompt must say what to generate but got ' '; write at least one word."),
        ([], "A run needs 'prompt', which was not given"),
        (
            ["a", "--model", "playgrund"],
            "Model must be one of .* but got 'playgrund'; did you mean 'playground'",
        ),
        (["a", "--verifier", "playground_clp"], "got 'playground_clp'; did you mean 'playground_clip'"),
        (["a", "--algorithm", "evosarch"], "got 'evosarch'; did you mean 'evosearch'"),
        (["a", "--nn", "3"], "parameters of algorithm 'best_of_n' .* but got '--nn'; did you mean '--n'"),
        (
            ["a", "--algorithm", "evosearch", "--betta-step", "3"],
            "got '--betta-step'; did you mean '--beta-step'",
        ),
        (["a", "--verifer", "x"], "got '--verifer'; did you mean '--verifier'"),
        (["a", "--n"], "Flag --n needs a value but got none; write '--n VALUE'."),
        (["a", "--n", "many"], "n of algorithm 'best_of_n' must be .* but got 'many'"),
        (["a", "--n", "0"], "n must be at least 1 but got 0; raise it."),
        (["a", "--algorithm", "evosearch", "--evolution-schedule", "4,2"], "evolution_schedule"),
        (["a", "--algorithm", "evosearch", "--evolution-schedule", "0,99"], "evolution_schedule"),
        (
            ["a", "--budget", "0.5x"],
            "A budget must pay for one sample, which costs 6 nfe, but gives 3; raise it",
        ),
        (["a", "--budget", "plenty"], "A budget must be '40x', .* but got 'plenty'"),
        (["a", "--seed", "-1"], "seed of a run must be greater than or equal to 0 but got -1"),
        (
            ["a", "--dtype", "f16"],
            "dtype of the model must be 'float32', 'bfloat16' or 'float16' but got 'f16'",
        ),
        (["a", "--set", "algorithm.m=1"], "Parameters of algorithm 'best_of_n' are n but got 'm'"),
        (["a", "--set", "nonsense"], "An override is written 'key=value'"),
        (["a", "--verifier", "ensemble(a, b"], "Parentheses of a plugin must match but got 'ensemble(a, b'"),
        (
            ["a", "--verifier", "ensemble"],
            "'ensemble' is made of other verifiers but got 'ensemble'",
        ),
        (["a", "--config", "none.yaml"], "A configuration must be a readable file but 'none.yaml'"),
        (
            ["a", "--output", "full"],
            "must be new or empty but 'full' holds 1 entries (mine.txt); choose another",
        ),
        (
            ["a", "--verifier", f"{FILE}@raises"],
            "scored none of 4: raises raised RuntimeError: no such reward",
        ),
        (["a", "--verifier", f"{FILE}@nan"], "scored none of 4: nan returned NaN"),
        (["a", "--verifier", f"{FILE}@too_few"], "must return one score per sample, 4 here, but returned 3"),
        (["a", "--verifier", f"{FILE}@nothing"], "must define or register 'nothing'"),
        (["a", "--model", f"{FILE}@no_pipeline"], "A pipeline must be one that a sampler drives"),
        (["a", "--model", f"{FILE}@broken_model"], "must load but: OSError: invalid header in weights"),
        (
            ["a", "--model", f"{FILE}@deterministic", "-a", "fk_steering"],
            "lacks stochastic; set stochastic=True",
        ),
    ],
)
def test_each_mistake_has_its_message(args: list[str], message: str) -> None:
    import re

    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    found = refused("generate", *TOY, *args)
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    assert re.search(pattern, found), found
    assert Path("full/mine.txt").read_text() == "mine"


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    for args in (["--debug", "generate", " ", *TOY], ["generate", " ", *TOY, "--debug"]):
        result = runner.invoke(app, args)
        assert type(result.exception).__name__ == "ConfigError"


def test_an_unexpected_failure_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision.testing.toys import GaussianMixtureSampler

    def fail(sampler: object, state: object, steps: int) -> None:
        raise RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(GaussianMixtureSampler, "advance", fail)
        message = refused("generate", "a", *TOY, "-o", "x")
    assert "stopped with RuntimeError: device lost. 'tts-vision resume x' goes on" in message
    ok("resume", "x")


def test_a_search_until_a_target_says_whether_it_got_there() -> None:
    text = ok("generate", "a", *TOY, "--until", "-100", "-o", "x")
    assert "target -100.0: satisfied" in " ".join(text.split())
    assert "6 of 24 nfe" in text and len(load_result("x").population) == 1
    text = ok("generate", "a", *TOY, "--until", "100", "-o", "y")
    assert "target 100.0: not satisfied" in " ".join(text.split()) and "24 of 24 nfe" in text
    message = refused("generate", "a", *TOY, "--until", "satisfied", "-o", "z")
    assert "needs a verifier that checks demands but 'target_reward' gives scores alone" in message


def test_more_than_the_budget_pays_for_is_refused() -> None:
    message = refused("generate", "a", *TOY, "--n", "9", "-o", "x")
    assert (
        "must fit its budget of 24 nfe but n=9 costs 54; lower it, leave it out to fill the budget" in message
    )
    assert not Path("x").exists()


def test_a_search_of_an_earlier_version_is_refused_and_left_alone() -> None:
    ok("generate", "a", *TOY, "-o", "x")
    for name in ("result.json", "best.png"):
        Path("x", name).unlink()
    event = {"op": 0, "uids": [0], "kind": "init", "seeds": [0]}
    Path("x/trace.jsonl").write_text(json.dumps(event) + "\n")
    before = {path: path.read_bytes() for path in Path("x").rglob("*") if path.is_file()}
    message = refused("resume", "x")
    assert "was written by an earlier one (event 'init' in line 1); resume it with that version" in message
    after = {path: path.read_bytes() for path in Path("x").rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before


def test_a_failed_verifier_loses_nothing() -> None:
    refused("generate", "a", *TOY, "--verifier", f"{FILE}@raises", "-o", "x")
    assert len(list(Path("x/population").iterdir())) == 4
    assert "no such reward" in Path("x/trace.jsonl").read_text()


def test_interrupting_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision.progress import ProgressReport

    def interrupt(report: ProgressReport, context: object, event: object) -> None:
        raise KeyboardInterrupt

    ok("generate", "a", *TOY, "-o", "whole")
    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "__call__", interrupt)
        result = runner.invoke(app, ["generate", "a", *TOY, "-o", "x"])
    assert result.exit_code == 130
    assert "'tts-vision resume x' goes on from where it stopped." in result.stderr
    assert "best    x/best.png" in ok("resume", "x")
    assert Path("x/best.png").read_bytes() == Path("whole/best.png").read_bytes()


def test_a_holdout_is_told_beside_the_guide() -> None:
    near, far = f"{VERIFIER}:x=1.1", f"{VERIFIER}:x=-4,y=-4"
    text = ok("generate", "a", *TOY, "-b", "12x", "--holdout-verifier", near, "-o", "x")
    assert f"by {near}  (first sample" in text and "rank agreement with the guide" in text
    assert "warning" not in text
    assert load_result("x").config.holdout_verifier == near
    result = runner.invoke(app, ["generate", "a", *TOY, "-b", "12x", "--holdout-verifier", far, "-o", "y"])
    assert result.exit_code == 0
    assert result.stdout.count("which never guided it, fell from") == 1
    assert "Warning" not in result.stderr, "it is told once"
    assert "A holdout must not guide" in refused("generate", "a", *TOY, "--holdout-verifier", VERIFIER)
    assert "got 'clipp'" in refused("generate", "a", *TOY, "--holdout-verifier", "clipp")


def test_a_composed_verifier_tells_what_its_members_said() -> None:
    joined = f"ensemble({VERIFIER}, {FILE}@first_coordinate)"
    text = ok("generate", "a", *TOY, "--verifier", joined, "--set", "verifier.how=zscore", "-o", "x")
    assert load_result("x").config.verifier == f"{joined}:how=zscore"
    parts = load_result("x").best.score.parts
    said = f"target_reward {parts['target_reward']:.4f}, first_coordinate {parts['first_coordinate']:.4f}"
    assert said in text
    assert "8 verifier calls" in text
    again = ok("resume", "x")
    assert said in again


def test_resume_and_replay_refuse_folders_that_hold_no_search() -> None:
    Path("empty").mkdir()
    assert "A result folder must hold config.yaml but 'empty' does not" in refused("resume", "empty")
    assert "A replay needs a finished search but 'empty' holds none" in refused("replay", "empty")


def test_replay_compares_pixels() -> None:
    ok("generate", "a", *TOY, "--algorithm", "evosearch", "-o", "x")
    text = ok("replay", "x")
    assert "same pixels as the best sample" in text
    assert "x/replay.png  (init #" in text


def test_list_shows_kinds_and_parameters() -> None:
    text = ok("list")
    for name in ("playground", "diffusers", "best_of_n", "evosearch", "playground_clip"):
        assert name in text
    assert "evosearch" not in ok("list", "verifiers")
    text = ok("list", "evosearch")
    assert "--evolution-schedule" in text
    assert "paper:" in text
    assert "list[int] | None" in text
    assert "did you mean 'verifiers'" in refused("list", "verifierss")


def test_help_of_an_algorithm_has_its_flags() -> None:
    assert "--tau" in ok("generate", "--algorithm", "zero_order", "--help")
    assert "--tau" not in ok("generate", "--help")


def test_compare_prints_a_table() -> None:
    args = ["compare", "a", "b", "--model", MODEL, "-v", VERIFIER, "-b", "3x", "--seeds", "2", "-o", "x"]
    text = ok(*args, "-a", "best_of_n", "-a", "zero_order:tau=0.5")
    assert "zero_order:tau=0.5" in text
    assert len(json.loads(Path("x/comparison.json").read_text())["cells"]) == 12
    assert "needs at least one prompt but got none" in refused("compare", "--model", MODEL)
    assert "--set of 'compare' takes" in refused("compare", "a", "--set", "seed=3")


def test_a_search_that_is_killed_goes_on_with_the_same_bytes() -> None:
    """A real kill -9 in the middle, in a process of its own."""
    killer = Path("killer.py")
    killer.write_text(
        "import os, signal\n"
        f"import sys; sys.path.insert(0, {str(Path(FILE).parent)!r})\n"
        "from toy_plugins import verifier as toy\n"
        "calls = 0\n"
        "def fatal(images, prompts):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 4 and os.environ.get('KILL'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return [s.value for s in toy().score(images, prompts)]\n"
    )
    args = ["generate", "a", "--model", MODEL, "--verifier", "killer.py@fatal", "--budget", "8x"]
    args += ["--algorithm", "evosearch"]
    command = [sys.executable, "-m", "tts_vision", *args, "--output", "cut"]
    killed = subprocess.run(command, env={**os.environ, "KILL": "1"}, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    ok(*args, "--output", "whole")
    ok("resume", "cut")
    for path in [Path("whole/best.png"), *Path("whole/population").iterdir()]:
        assert (Path("cut") / path.relative_to("whole")).read_bytes() == path.read_bytes()
    reports = [json.loads(Path(name, "result.json").read_text()) for name in ("whole", "cut")]
    for report in reports:
        report.pop("timing")
    assert reports[0] == reports[1]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['tts-vision', '--help']\n"
        "from tts_vision.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
