"""The command line: flags, exit codes, one clear message for each mistake."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

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


def test_a_failure_of_the_machine_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision.testing.toys import GaussianMixtureSampler

    with monkeypatch.context() as patch:
        patch.setattr(GaussianMixtureSampler, "advance", Mock(side_effect=RuntimeError("device lost")))
        message = refused("generate", "a", *TOY, "-o", "x")
    assert (
        "stopped in unittest (" in message and "with RuntimeError: device lost. Free what it lacks" in message
    )
    assert "'tts-vision resume x' goes on" in message
    ok("resume", "x")


def test_a_failure_of_the_settings_says_that_it_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision.testing.toys import GaussianMixtureSampler

    with monkeypatch.context() as patch:
        patch.setattr(
            GaussianMixtureSampler, "advance", Mock(side_effect=IndexError("list index out of range"))
        )
        message = refused("generate", "a", *TOY, "-o", "x")
    assert "can take, but IndexError: list index out of range was raised in unittest (" in message
    assert "Until then that repeats the error" in message


MINE = """
import sys

def breaks(ctx, *, n: int = 1):
    state = ctx.finish(ctx.init(n))
    ctx.score(state)
    return deeper(state)

def deeper(state):
    return 1 / 0

def leaves(ctx):
    sys.exit(3)

def no_context(*, n: int = 1): ...

def two_contexts(ctx, other): ...

class Judge:
    name, accepts = "judge", frozenset({"image"})

    def __init__(self, *, how: str = "well"):
        self.how = how

    def score(self, media, prompts):
        raise KeyError(self.how)

def model(name, *, options=None):
    from tts_vision.testing.toys import GaussianMixtureSampler

    class Broken(GaussianMixtureSampler):
        def advance(self, state, steps=1):
            return state.no_such_thing

    return Broken(num_steps=6)

ANSWER = 42
"""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["-a", "mine.py@breaks"],
            "Your 'mine.py@breaks' must run to its end but mine.py:10, in deeper raised ",
        ),
        (
            ["-a", "mine.py@breaks", "--n", "2"],
            "raised ZeroDivisionError: division by zero; repair it there.",
        ),
        (["-a", "mine.py@leaves"], "mine.py:13, in leaves raised SystemExit: 3; repair it there."),
        (["-a", "mine.py@no_context"], "'mine.py@no_context' must take the arguments of its kind"),
        (["-a", "mine.py@two_contexts"], "'mine.py@two_contexts' must take the arguments of its kind"),
        (["-a", "mine.py@ANSWER"], "A plugin must be a function or a class but got 42"),
        (["--model", "mine.py@model"], "Your 'mine.py@model' must run to its end but mine.py:33, in advance"),
        (["-v", "mine.py@Judge"], "scored none of 4: judge raised KeyError"),
    ],
)
def test_a_mistake_in_code_of_the_users_own_is_told_by_its_place(args: list[str], message: str) -> None:
    Path("mine.py").write_text(MINE)
    found = refused("generate", "a", *TOY, *args, "-o", "x")
    assert message in found, found
    if "must run to its end" in found:
        assert (
            "'tts-vision resume x' goes on from where it stopped. Until then that repeats the error" in found
        )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "x = 1 / 0",
            "must be a Python file that can be run but mine.py:1, in <module> raised ZeroDivisionError",
        ),
        (
            "def f(:",
            "must be a Python file that can be run but line 1 of mine.py is no Python (invalid syntax)",
        ),
        ("import no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(0)", "raised SystemExit: 0; repair it"),
    ],
)
def test_a_file_that_cannot_be_run_is_told_by_its_line(source: str, message: str) -> None:
    Path("mine.py").write_text(source)
    for flag in ("-a", "-v", "--model"):
        assert message in refused("generate", "a", *TOY, flag, "mine.py@f")


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


def test_several_prompts_and_seeds_are_searches_of_their_own() -> None:
    Path("p.txt").write_text("b c\nd e\n")
    done = runner.invoke(app, ["generate", "a b", "--prompts", "p.txt", "--seeds", "0-1,7", *TOY, "-o", "x"])
    assert done.exit_code == 0, done.output
    folders = sorted(path.name for path in Path("x").iterdir())
    assert len(folders) == 9 and done.stdout.count("best    x/") == 9
    assert [name.rpartition("-")[2] for name in folders] == ["s0", "s1", "s7"] * 3
    assert done.stderr.count("loading ") == 1, "the model is loaded once"
    ok("generate", "b c", "--seed", "7", *TOY, "-o", "alone")
    twin = next(path for path in Path("x").glob("b-c-*-s7"))
    assert (twin / "best.png").read_bytes() == Path("alone/best.png").read_bytes()
    assert "same pixels" in ok("replay", str(twin))
    # the same command goes on: nothing is computed again
    stamps = {path: path.stat().st_mtime_ns for path in Path("x").glob("*/trace.jsonl")}
    ok("generate", "a b", "--prompts", "p.txt", "--seeds", "0-1,7", *TOY, "-o", "x")
    assert {path: path.stat().st_mtime_ns for path in Path("x").glob("*/trace.jsonl")} == stamps


def test_several_searches_without_an_output_have_folders_of_their_own() -> None:
    done = runner.invoke(app, ["generate", "a b", "c d", "a b", *TOY])
    assert done.exit_code == 0
    assert {path.name for path in Path("outputs").iterdir()} == {"a-b-001", "c-d-001"}
    assert "note    1 searches were asked for twice and count once" in done.stderr


def test_metadata_comes_with_the_prompt_of_a_file() -> None:
    Path("p.json").write_text('[{"prompt": "a b", "tag": "x"}]')
    ok("generate", "--prompts", "p.json", *TOY, "-o", "x")
    assert load_result("x").config.prompt_metadata == {"tag": "x"}
    ok("generate", "--config", "x/config.yaml", "-o", "y")
    assert load_result("y").config.prompt_metadata == {"tag": "x"}
    ok("generate", "another", "--config", "x/config.yaml", "-o", "z")
    assert load_result("z").config.prompt_metadata == {}


def test_words_that_look_like_one_prompt_without_quotes_are_pointed_out() -> None:
    done = runner.invoke(app, ["generate", "two", "red", "circles", *TOY])
    assert "note    3 prompts of one word each; quotes make one prompt" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--seed", "1", "--seeds", "2"],
            "Seeds must be given once but got --seed 1 and --seeds 2; keep one.",
        ),
        (
            ["--seeds", "3-1"],
            "Seeds must be numbers and ranges such as '0-3,7', .* but got '3-1'; change '3-1'",
        ),
        (["--seeds", "0,x"], "but got '0,x'; change 'x'"),
        (["--seeds", ""], "Seeds must be numbers and ranges"),
        (["--seeds", "0-99999999"], "at most 100000 in each"),
        (["--seeds", "9223372036854775808"], "seed of a run must be less than 9223372036854775808"),
        (["--seed", "99999999999999999999"], "seed of a run must be less than"),
        (["--prompts", "none.txt"], "Prompts must be a readable text file in UTF-8 but 'none.txt'"),
        (["b c", "--set", "prompt=d"], "A prompt must be given once but got 'a b' and '--set prompt=...'"),
        (["b c", " "], "A prompt must say what to generate but got ' '"),
        (["b c", "--holdout-verifier", VERIFIER], "A holdout must not guide the search"),
        (["b c", "--n", "0"], "n must be at least 1 but got 0"),
    ],
)
def test_mistakes_in_what_to_search_for_are_told(args: list[str], message: str) -> None:
    found = refused("generate", "a b", *TOY, *args)
    assert re.search(message, found), found
    assert not list(Path().rglob("trace.jsonl"))


def test_a_search_that_fails_among_others_is_told_and_the_rest_go_on() -> None:
    Path("mine.py").write_text(
        "from toy_plugins import verifier as toy\n"
        "def picky(images, prompts):\n"
        "    if prompts[0] == 'bad one': raise ValueError('no such prompt')\n"
        "    return [s.value for s in toy().score(images, prompts)]\n"
    )
    args = ["generate", "a b", "bad one", "c d", *TOY, "-v", "mine.py@picky", "-o", "x"]
    done = runner.invoke(app, [*args, "--json"])
    assert done.exit_code == 1
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["prompt"] for record in records] == ["a b", "bad one", "c d"]
    assert "no such prompt" in records[1]["error"] and "error" not in records[2]
    assert "Error: 2/3  'bad one', seed 0: " in done.stderr
    bad_first = ["generate", "bad one", "a b", *TOY, "-v", "mine.py@picky", "-o", "y"]
    assert runner.invoke(app, bad_first).exit_code == 2
    assert len(list(Path("y").iterdir())) == 1, "the first failure is told before more is spent"


def test_json_is_all_that_is_on_standard_output() -> None:
    near = f"{VERIFIER}:x=1.1"
    args = ["generate", "a b", *TOY, "-b", "12x", "--holdout-verifier", near, "-o", "x", "--json"]
    done = runner.invoke(app, args)
    assert done.exit_code == 0 and done.stdout.count("\n") == 1
    record = json.loads(done.stdout)
    result = load_result("x")
    assert record["best"] == "x/best.png" and record["score"] == result.best.score.value
    assert record["plain_score"] == result.plain.score.value and record["samples"] == 12
    assert record["spent"]["nfe"] == 72 and record["holdout"]["verifier"] == near
    assert record["prompt"] == "a b" and record["seed"] == 0 and record["warnings"] == []
    assert "into x" in done.stderr, "progress is on standard error"


def test_quiet_tells_the_path_alone() -> None:
    done = runner.invoke(app, ["generate", "a b", *TOY, "-o", "x", "--quiet"])
    assert (done.stdout, done.stderr) == ("x/best.png\n", "")
    assert "but got 'many'" in refused("generate", "a b", *TOY, "--quiet", "--n", "many")


def test_values_on_the_command_line_mean_what_they_say() -> None:
    sets = ["prompt_metadata.tag=no", "prompt_metadata.number=010"]
    args = [part for text in sets for part in ("--set", text)]
    ok("generate", "16:9", *TOY, *args, "--set", "verifier.x=1e0", "-o", "x")
    config = load_result("x").config
    assert (config.prompt, config.prompt_metadata) == ("16:9", {"tag": "no", "number": "010"})
    assert load_result("x").config.verifier == f"{VERIFIER}:x=1e0"
    ok("generate", "--config", "x/config.yaml", "--set", "prompt=no", "-o", "y")
    assert load_result("y").config.prompt == "no"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--guidance-scale", "nan"], "guidance_scale of the pipeline must be finite but got nan; change it"),
        (["--eta", "inf"], "eta of the sampler must be a finite number but got inf"),
        (["--set", "pipeline.height=0"], "height of the pipeline must be a whole number from 1 to 32768"),
        (
            ["--steps", "100000000"],
            "num_inference_steps of the pipeline must be a whole number from 1 to 10000",
        ),
        (["-a", "fk_steering", "--lam", "nan"], "lam of algorithm 'fk_steering' must be a finite number"),
        (["--model", "playground:foo"], "A bundled model is named without more but got 'playground:foo'"),
        (
            ["--model", "playground", "--scheduler", "DDIMScheduler"],
            "scheduler must fit a model that predicts a flow",
        ),
        (["--model", "playground", "--set", "pipeline.height=63"], "takes but: .* divisible by"),
        (["--model", "playground", "--device", "gpu0"], "device must be a device that torch has here"),
    ],
)
def test_values_that_make_no_sense_are_refused_before_anything_is_spent(
    args: list[str], message: str
) -> None:
    found = refused("generate", "a", *TOY, *args, "-o", "x")
    assert re.search(message, found), found
    assert not Path("x").exists()


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    ok("generate", "a b", *TOY, "--output=~/x")
    ok("generate", "--config=~/x/config.yaml", "-o", "~/y")
    assert Path("home/x/best.png").exists() and Path("home/y/best.png").exists()
    assert not Path("~").exists()


def test_help_has_a_short_flag() -> None:
    assert "--budget" in ok("generate", "-h") and "generate" in ok("-h")
    assert "--tau" in ok("generate", "-h", "-a", "zero_order")


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
    assert "--n" in ok("list", "tts_vision.algorithms.best_of_n:best_of_n")


def test_list_as_json_has_all_facts() -> None:
    listed = json.loads(ok("list", "--json"))
    assert {entry["kind"] for entry in listed} == {
        *("model", "sampler", "algorithm", "verifier", "rewriter", "corrector", "evaluator")
    }
    (found,) = json.loads(ok("list", "zero_order", "--json"))
    assert found["needs"] == ["noise"] and found["size"] == "n" and "Ma et al. 2025" in found["summary"]
    settings = {setting["name"]: setting for setting in found["parameters"]}
    assert settings["tau"]["type"] == "float" and settings["tau"]["help"]
    assert {entry["kind"] for entry in json.loads(ok("list", "verifiers", "--json"))} == {"verifier"}


def test_help_of_an_algorithm_has_its_flags() -> None:
    assert "--tau" in ok("generate", "--algorithm", "zero_order", "--help")
    assert "--tau" not in ok("generate", "--help")


def test_compare_prints_a_table() -> None:
    args = ["compare", "a", "b", "--model", MODEL, "-v", VERIFIER, "-b", "3x", "--seeds", "2", "-o", "x"]
    text = ok(*args, "-a", "best_of_n", "-a", "zero_order:tau=0.5")
    assert "zero_order:tau=0.5" in text
    assert "[n/a]" in text and "a 95 % interval needs at least 5 prompts" in " ".join(text.split())
    assert len(json.loads(Path("x/comparison.json").read_text())["cells"]) == 12
    assert "needs at least one prompt but got none" in refused("compare", "--model", MODEL)
    assert "--set of 'compare' takes" in refused("compare", "a", "--set", "seed=3")
    few = ["compare", "a", "a", "--model", MODEL, "-v", VERIFIER, "-b", "1x", "-a", "best_of_n"]
    done = runner.invoke(app, [*few, "--seeds", "5,8", "-o", "y"])
    assert done.exit_code == 0
    cells = json.loads(Path("y/comparison.json").read_text())["cells"]
    assert [cell["seed"] for cell in cells] == [5, 8] * 2
    assert "warning 'a' was given more than once and counts once" in done.stderr
    assert "comparing best_of_n on 2 prompts, into y" in done.stderr
    assert "got 2, 1 and 0" in refused(*few, "--seeds", "0")
    assert "seed of a run must be" in refused(*few, "--seed", "-1")


def test_a_mistake_in_a_comparison_is_told_by_its_place() -> None:
    Path("mine.py").write_text(MINE)
    args = ["compare", "a", "--model", MODEL, "-v", VERIFIER, "-b", "1x", "-a", "mine.py@breaks", "-o", "x"]
    found = refused(*args)
    assert "Your 'mine.py@breaks' must run to its end but mine.py:10, in deeper raised" in found
    assert "The same command with '--output x' goes on. Until then that repeats the error" in found


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


def test_sigterm_says_what_sigint_says() -> None:
    Path("slow.py").write_text(
        "import time\ndef slow(images, prompts):\n    time.sleep(0.2)\n    return [0.0] * len(images)\n"
    )
    for sent, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        folder = Path(f"x{code}")
        args = ["generate", "a", "--model", MODEL, "-v", "slow.py@slow", "-b", "999x", "--max-batch", "1"]
        command = [sys.executable, "-m", "tts_vision", *args, "-o", str(folder)]
        # a shell starts background processes with SIGINT ignored, which Python then keeps
        ready = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=ready)
        assert process.stderr is not None
        first = process.stderr.readline()
        assert first.startswith("'a' (best_of_n, 999x,"), "something is said before anything heavy is loaded"
        deadline = time.monotonic() + 60
        while not list(folder.glob("population/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(sent)
        said = process.stderr.read()
        assert process.wait() == code
        assert f"Interrupted. 'tts-vision resume {folder}' goes on from where it stopped." in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("generate --algorithm ev", {"evosearch"}),
        ("generate -v playground_c", {"playground_clip"}),
        (
            "generate --model playground-",
            {"playground-discrete-flow", "playground-masked", "playground-var", "playground-video"},
        ),
        ("generate -a evosearch --beta-s", {"--beta-step"}),
        ("compare -a fk", {"fk_steering"}),
        ("ver", {"verifier-bench"}),
    ],
)
def test_the_shell_completes_names_and_flags(line: str, expected: set[str]) -> None:
    words = f"tts-vision {line}"
    code = (
        "import sys; sys.argv = ['tts-vision']\n"
        "from tts_vision.cli import app\n"
        "try:\n    app(prog_name='tts-vision')\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
    )
    asked = {
        "_TTS_VISION_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == expected, done.stderr


def test_listing_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['tts-vision', *sys.argv[1:]]\n"
        "from tts_vision.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    for args in (["list"], ["list", "evosearch"], ["list", "--json"], ["generate", "-h", "-a", "evosearch"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *args], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "evosearch" in done.stdout


def test_garbage_is_collected_as_always_once_a_search_begins() -> None:
    try:
        gc.disable()
        ok("list")
        assert not gc.isenabled()
        ok("generate", "a", *TOY, "-o", "x")
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


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
