"""Five hundred command lines and configurations, right and wrong: each ends in a result or a clear message.

Seeded and in process, on models that cost nothing. No traceback may come through, and no mistake of the
user may end in the message that is meant for errors nobody thought of.
"""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from toy_plugins import MODEL, VERIFIER
from tts_vision.cli import app
from tts_vision.config import RunConfig
from tts_vision.registry import known_names

FILE = MODEL.rpartition("@")[0]
CATCH_ALLS = ("libraries beneath can take", "must run to its end but stopped", "fault of tts-vision")
COUNT, GROUPS = 500, 10

TEXTS = [
    "two red circles",
    "a",
    "",
    " ",
    "16:9",
    "no",
    "#1 blurry",
    "010",
    "1e1",
    "null",
    "~",
    "ü… 🙂",
    "a\nb",
]
TEXTS += [
    "{x}",
    "[a]",
    "a: b",
    "'",
    '"',
    "=",
    "--",
    "-x",
    "%s",
    "\\",
    "x" * 300,
    "\udcff",
    "../../etc",
    "<x>",
    "@",
]
NUMBERS = [
    "0",
    "1",
    "2",
    "4",
    "7",
    "-1",
    "010",
    "1e0",
    "1e1",
    "0.5",
    ".5",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e999",
]
NUMBERS += [
    "9" * 30,
    "9" * 5000,
    "1_0",
    "0x1",
    "1,2",
    "[1, 2]",
    "[",
    "[[1]]",
    "(1)",
    "{}",
    "true",
    "none",
    "many",
]
BUDGETS = ["1x", "4x", "4 x", "6x", "0.5x", "0x", "-1x", "nanx", "x", "", "1..5x", "nfe=24", "nfe=3", "nfe=0"]
BUDGETS += ["nfe=1e999", "nfe=24 and seconds=30", "seconds=30,nfe=24", "seconds=nan", "verifier_calls=0.5"]
BUDGETS += ["verifier_calls=2", "tokens=10", "macs=10", "4x and 4x", "apples=3", "4", "4x nfe=5", "nfe = 12"]
SPECS = [
    VERIFIER,
    f"{VERIFIER}:x=2",
    f"{VERIFIER}:x=nan",
    f"{VERIFIER}:z=1",
    f"{VERIFIER}:x",
    f"{VERIFIER}:x=a,y=b",
]
SPECS += [
    f"{FILE}@{name}" for name in ("raises", "nan", "too_few", "first_coordinate", "Videos", "nothing", "")
]
SPECS += [
    f"ensemble({VERIFIER}, {FILE}@first_coordinate)",
    "ensemble(",
    "ensemble()",
    "ensemble(a,)",
    "ensemble",
]
SPECS += [
    f"cascade({VERIFIER})",
    f"frame_mean({VERIFIER})",
    f"calibrated({VERIFIER}):least=2",
    "()",
    ":",
    "a:b=c",
]
SPECS += [
    "clip_scor",
    "playground_clip(x)",
    "math:pi",
    "os:getcwd",
    "no.such:thing",
    "none.py@x",
    f"{FILE}@VERIFIER",
]
SPECS += [
    "mine.py@score",
    "mine.py@one_argument",
    "mine.py@no_arguments",
    "mine.py@Half",
    "mine.py@words",
    "bad.py@x",
]
ALGORITHMS = [
    "best_of_n",
    "best_of_n:n=2",
    "best_of_n:n=x",
    "best_of_n:m=1",
    "best_of_n(a)",
    "evosarch",
    "",
    ":n=1",
]
ALGORITHMS += [
    "mine.py@good",
    "mine.py@breaks",
    "mine.py@returns_junk",
    "mine.py@no_context",
    "mine.py@ANSWER",
]
ALGORITHMS += ["mine.py@missing", "bad.py@x", "fails.py@x", "math:sqrt", "math:pi", "mine.py@greedy_asks"]
MODELS = [f"{FILE}@{name}" for name in ("deterministic", "broken_model", "no_pipeline", "nothing")]
MODELS += [
    "playgroud",
    "playground:x",
    "./none",
    "/no/such/folder",
    "a/b/c",
    "",
    "math:pi",
    "bad.py@x",
    "<Pipe>",
]
PATHS = [
    "seed",
    "prompt",
    "budget",
    "target",
    "max_batch",
    "algorithm",
    "verifier",
    "holdout_verifier",
    "model",
]
PATHS += [
    "algorithm.n",
    "algorithm.x",
    "verifier.x",
    "verifier.z",
    "sampler.eta",
    "sampler.sde",
    "sampler.stochastic",
]
PATHS += ["sampler.pipeline_kwargs", "pipeline.height", "pipeline.guidance_scale", "pipeline.negative_prompt"]
PATHS += [
    "pipeline.x",
    "pipeline.num_inference_steps",
    "model.dtype",
    "model.lora",
    "model.compile",
    "model.x",
]
PATHS += [
    "prompt_metadata",
    "prompt_metadata.tag",
    "algorithm_params",
    "sampler_options",
    "model_options.device",
]
PATHS += ["sed", "seed.x", "", ".", "a.b.c", "pipeline.height.x", "algorithm.n.x", "prompt.x"]
FLAGS = {
    "--seed": NUMBERS,
    "--seeds": ["0", "0-1", "0,0", "1-0", "x", "", "-1", "0-", ",", "0-1,x", "9" * 25],
    "--budget": BUDGETS,
    "-b": BUDGETS,
    "--max-batch": NUMBERS,
    "--until": [*NUMBERS, "satisfied", "satisfy"],
    "--eta": NUMBERS,
    "--steps": NUMBERS,
    "--guidance-scale": NUMBERS,
    "--preview-size": NUMBERS,
    "--preview-frames": NUMBERS,
    "--negative-prompt": TEXTS,
    "--dtype": ["float32", "f16", "", "bfloat16"],
    "--device": ["cpu", "gpu0", ""],
    "--offload": ["none", "model", "x"],
    "--scheduler": ["DDIMScheduler", "x", ""],
    "--attention": ["xformers", ""],
    "--prompts": ["p.txt", "p.json", "p.csv", "bytes.txt", "empty.txt", "none.txt", ".", "broken.json"],
    "--config": [
        "good.yaml",
        "bad.yaml",
        "list.yaml",
        "empty.yaml",
        "bytes.txt",
        "none.yaml",
        ".",
        "types.yaml",
    ],
    "--holdout-verifier": SPECS,
    "--output": ["x", "full", "file.txt", "file.txt/x", "\0x", "", "~nobody/x"],
    "--unknown": ["1"],
    "--verifer": ["x"],
    "-z": ["1"],
}
SWITCHES = [
    "--json",
    "--quiet",
    "-q",
    "--stochastic",
    "--no-stochastic",
    "--trust",
    "--debugg",
    "-h",
    "--version",
]
PARAMETERS = [
    "--n",
    "--lam",
    "--tau",
    "--particles",
    "--width",
    "--branch",
    "--scales",
    "--every",
    "--start",
    "--scheme",
]
PARAMETERS += [
    "--potential",
    "--evolution-schedule",
    "--elites",
    "--resample-steps",
    "--no-n",
    "--nn",
    "--n=",
    "--",
]

TINY = """
from tiny_pipelines import TINY
from tts_vision.pipelines.loading import prepare

def sd(name, *, options):
    pipe = TINY["stable_diffusion"].build()
    pipe.set_progress_bar_config(disable=True)
    return prepare(pipe, options, options.device or "cpu")

def flux(name, *, options):
    pipe = TINY["flux"].build()
    pipe.set_progress_bar_config(disable=True)
    pipe.tts_vision_defaults = {"height": 16, "width": 16, "max_sequence_length": 16}
    return prepare(pipe, options, options.device or "cpu")
"""
MINE = """
ANSWER = 42
words = "text"

def good(ctx, *, n: int = 2, path: "Missing" = None):
    state = ctx.finish(ctx.init(n))
    ctx.score(state)
    return state

def breaks(ctx, *, n: int = 2):
    return ctx.no_such_operation(n)

def returns_junk(ctx):
    return "junk"

def greedy_asks(ctx):
    while True:
        ctx.score(ctx.finish(ctx.init(1)))

def no_context():
    return None

def score(images, prompts):
    return [float(len(prompt)) for prompt in prompts]

def one_argument(images):
    return [0.0 for _ in images]

def no_arguments():
    return None

class Half:
    name = "half"

    def score(self, media, prompts):
        return []
"""
FILES: dict[str, bytes] = {
    "tiny.py": TINY.encode(),
    "mine.py": MINE.encode(),
    "bad.py": b"def x(:\n",
    "fails.py": b"raise KeyError('x')\n",
    "p.txt": "\ufefftwo red circles\n\na blue star\n".encode(),
    "p.json": b'["a red circle", {"prompt": "a blue star", "tag": 3}]',
    "p.csv": b"prompt,tag\na red circle,x\n",
    "broken.json": b'["a red',
    "bytes.txt": b"\xff\xfe\x00",
    "empty.txt": b"\n",
    "file.txt": b"mine",
    "full/mine.txt": b"mine",
    "good.yaml": f"prompt: no\nmodel: {MODEL}\nverifier: {VERIFIER}\nbudget: 2x\n".encode(),
    "bad.yaml": b"prompt: [a\n",
    "list.yaml": b"- a\n",
    "empty.yaml": b"",
    "types.yaml": b"prompt: {a: b}\nseed: [1]\nalgorithm_params: 3\nmodel_options: x\n",
}


def generate(rng: random.Random) -> list[str]:
    """A command line of ``generate`` with some mistakes, or none."""
    args = [rng.choice(TEXTS) for _ in range(rng.choice([0, 1, 1, 1, 1, 2]))]
    args += ["--model", MODEL if rng.random() < 0.9 else rng.choice(MODELS)]
    args += ["--verifier", VERIFIER if rng.random() < 0.6 else rng.choice(SPECS)]
    if rng.random() < 0.5:
        algorithms = [*known_names("algorithm"), *ALGORITHMS]
        args += ["--algorithm", rng.choice(algorithms)]
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        kind = rng.random()
        if kind < 0.35:
            flag = rng.choice(list(FLAGS))
            args += [flag, rng.choice(FLAGS[flag])]
        elif kind < 0.6:
            args += ["--set", f"{rng.choice(PATHS)}={rng.choice([*TEXTS, *NUMBERS, *BUDGETS[:3]])}"]
        elif kind < 0.8:
            args += [rng.choice(PARAMETERS), rng.choice([*NUMBERS, *TEXTS[:4]])]
        elif kind < 0.9:
            args.append(rng.choice(SWITCHES))
        else:
            rng.shuffle(args)
    if not any(flag in args for flag in ("-b", "--budget")):
        args += ["-b", rng.choice(["1x", "3x", "5x"])]
    return ["generate", *args]


ARGUMENTS = [
    "height",
    "width",
    "guidance_scale",
    "negative_prompt",
    "num_inference_steps",
    "eta",
    "clip_skip",
]
ARGUMENTS += [
    "guidance_rescale",
    "timesteps",
    "sigmas",
    "callback_on_step_end",
    "prompt_2",
    "latents",
    "generator",
]
ARGUMENTS += ["cross_attention_kwargs", "ip_adapter_image", "prompt_embeds", "output_type", "heigth", "joint"]
ARGUMENTS += ["negative_prompt_embeds", "max_sequence_length", "true_cfg_scale", "num_images_per_prompt"]
SCHEDULERS = [
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "UniPCMultistepScheduler",
]
SCHEDULERS += [
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
    "EDMEulerScheduler",
    "LCMScheduler",
    "DDPMScheduler",
]


def pipeline(rng: random.Random) -> list[str]:
    """``generate`` on a tiny diffusers pipeline, with arguments of its call at random."""
    args = ["generate", "a red circle", "--model", rng.choice(["tiny.py@sd", "tiny.py@sd", "tiny.py@flux"])]
    args += [
        "-v",
        "mine.py@score",
        "-b",
        rng.choice(["1x", "2x"]),
        "--steps",
        rng.choice(["2", "2", "2", "1", "3"]),
    ]
    for _ in range(rng.choice([1, 1, 2])):
        kind = rng.random()
        if kind < 0.7:
            values = [*NUMBERS, *TEXTS[:8], "63", "16", "64", "5000", "[2, 1]", "cpu", "False"]
            args += ["--set", f"pipeline.{rng.choice(ARGUMENTS)}={rng.choice(values)}"]
        elif kind < 0.8:
            args += ["--scheduler", rng.choice(SCHEDULERS)]
        elif kind < 0.9:
            args += rng.choice(
                [["--eta", "0.5"], ["--stochastic"], ["-a", "fk_steering"], ["-a", "zero_order"]]
            )
        else:
            args += [
                "--set",
                rng.choice(["sampler.sde=euler", "sampler.diffusion=x", "sampler.interpolant=vp"]),
            ]
    return args


def configuration(rng: random.Random) -> list[str]:
    """``generate --config`` of a file whose settings were changed at random."""
    values: dict[str, Any] = RunConfig(prompt="a", model=MODEL, verifier=VERIFIER, budget="3x").plain()
    junk: list[Any] = [
        *TEXTS[:-4],
        *NUMBERS[:14],
        None,
        True,
        0,
        -1,
        2**70,
        1e300,
        float("inf"),
        float("nan"),
        [],
        {},
    ]
    junk += [
        [1],
        {"a": 1},
        {1: 2},
        [None],
        "4x",
        VERIFIER,
        MODEL,
        "best_of_n",
        {"n": 2},
        {"n": "x"},
        {"n": float("nan")},
    ]
    for _ in range(rng.choice([1, 1, 2, 3])):
        target, key = values, rng.choice([*values, "unknown"])
        while isinstance(target.get(key), dict) and target[key] and rng.random() < 0.8:
            target = target[key]
            key = rng.choice([*target, "unknown"])
        if rng.random() < 0.1:
            target.pop(key, None)
        else:
            target[key] = rng.choice(junk)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=rng.random() < 0.5)
    for _ in range(rng.choice([0, 0, 0, 1, 3])):  # and as text
        at = rng.randrange(len(text))
        text = (
            text[:at]
            + rng.choice([":", "\t", "- ", "&a", "*a", "!!x ", "'", "{", "\n", "%", "#"])
            + text[at:]
        )
    Path("c.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    extra = rng.choice([[], [], ["--n", "2"], ["a prompt"], ["--set", "seed=3"], ["-a", "best_of_n"]])
    return ["generate", "--config", "c.yaml", "--trust", *extra]


def other(rng: random.Random) -> list[str]:
    """A command line of another command."""
    names = [
        *known_names("verifier"),
        "verifiers",
        "models",
        "nothing",
        "",
        "mine.py@good",
        "math:pi",
        "bad.py@x",
    ]
    folder = rng.choice(["full", "none", "file.txt", "", ".", "good.yaml"])
    some = [rng.choice(["a", "b", *TEXTS]) for _ in range(rng.choice([0, 1, 2]))]
    arms = [
        part for _ in range(rng.choice([0, 1, 2])) for part in ("-a", rng.choice(["best_of_n", *ALGORITHMS]))
    ]
    flags = [
        "--seeds",
        rng.choice(["1", "0", "0-1", "x", "-1"]),
        "-b",
        rng.choice(["1x", "2x", *BUDGETS[5:9]]),
    ]
    judged = rng.choice(["x.png", "file.txt", "none.png", "", "."])
    return rng.choice(
        [
            ["list", rng.choice(names), *rng.choice([[], ["--json"]])],
            ["resume", folder],
            ["replay", folder],
            ["compare", *some, "--model", MODEL, "-v", rng.choice([VERIFIER, *SPECS]), *arms, *flags],
            [
                "compare",
                "a",
                "--set",
                f"{rng.choice(PATHS)}={rng.choice(NUMBERS)}",
                "--model",
                MODEL,
                "-v",
                VERIFIER,
            ],
            ["score", judged, "-p", rng.choice(TEXTS), "-v", rng.choice(SPECS)],
            ["verifier-bench", "-v", rng.choice(["none", "ensemble(", ":"]), "--images", rng.choice(NUMBERS)],
            [rng.choice(["generat", "--version", "--debugg", "", "-h"])],
        ]
    )


KINDS: list[Callable[[random.Random], list[str]]] = [*[generate] * 4, *[configuration] * 2, pipeline, other]


def cases(group: int) -> Iterator[list[str]]:
    """The command lines of a group, which may write files that they name."""
    for number in range(group, COUNT, GROUPS):
        rng = random.Random(number)
        yield KINDS[number % len(KINDS)](rng)


@pytest.fixture
def _a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    # nothing real is loaded, and plots would take longer than the searches
    monkeypatch.setattr("tts_vision.pipelines.DEFAULT_MODEL", MODEL)
    monkeypatch.setattr("tts_vision.results._draw", lambda *args: None)
    # libraries hold on to the standard error of the command line before
    monkeypatch.setattr(logging, "raiseExceptions", False)


def complaint(args: list[str]) -> str:
    """What is wrong with how a command line ended; empty if nothing is."""
    done = CliRunner().invoke(app, args)
    said = done.output
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"{type(done.exception).__name__}: {done.exception}"
    if "Traceback (most recent" in said:
        return "a traceback"
    if any(text in said for text in CATCH_ALLS):
        return next(line for line in said.splitlines() if any(text in line for text in CATCH_ALLS))
    if done.exit_code not in (0, 1, 2):
        return f"exit code {done.exit_code}"
    if done.exit_code == 2 and not re.search(r"Error: \S|Error ─|Usage: ", done.stderr):
        return f"no message: {said!r}"
    return ""


@pytest.mark.usefixtures("_a_folder")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", range(GROUPS))
def test_every_command_line_ends_in_a_result_or_in_a_clear_message(group: int) -> None:
    wrong = []
    for args in cases(group):
        if problem := complaint(args):
            shown = [arg if len(arg) < 80 else f"{arg[:40]}..." for arg in args]
            config = Path("c.yaml").read_text() if "c.yaml" in args else ""
            wrong.append(f"{shown}\n    {problem[:600]}\n{config}")
    assert not wrong, "\n".join(wrong)
    assert Path("full/mine.txt").read_text() == "mine" and Path("file.txt").read_text() == "mine"


def test_the_command_lines_are_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [args for group in range(GROUPS) for args in cases(group)]
    assert len(made) == COUNT
    counts = Counter(args[0] for args in made)
    assert counts["generate"] > 400 and len(counts) > 6
