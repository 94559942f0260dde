"""Compares searches that judge steps: ``python -m tts_vision.eval.step_search``.

On `playground-masked`: a plain sample, the best of n by `playground_judge` and by the final question of the
step verifier `playground_parm` (ORM), PRM, PARM with and without refilling, and PARM++ with two correctors;
at equal compute, and in as many seconds as ORM takes for it. The exact checker, which no search sees, says
whether winners are right. Each shard writes its own file, measures its own seconds, and goes on where it was
stopped; the tables join all of them. With ``--processes`` one command carries out all shards side by side.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import numpy as np

from tts_vision.config import ModelOptions, RunConfig
from tts_vision.errors import ConfigError, SearchWarning, StorageError, TTSVisionError
from tts_vision.eval.playground import Track, evaluation_prompts
from tts_vision.eval.playground.plan import COMPUTE, SECONDS, samples_of
from tts_vision.eval.playground.table import Unit, by_prompt, paired
from tts_vision.eval.statistics import mean
from tts_vision.files import append_lines, is_file, read_file, replace_file
from tts_vision.hub import asked_once
from tts_vision.intervals import Figure
from tts_vision.loaded import Models
from tts_vision.pipelines.playground import checker, world
from tts_vision.results import Result
from tts_vision.runner import run
from tts_vision.runs.task import json_value
from tts_vision.types import Prompt

MODEL = "playground-masked"
RESULT = Path(__file__).with_name("results") / "step_search.md"
_CALIBRATED = 5
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)\.jsonl")


@dataclass(frozen=True)
class Arm:
    """A search and its guide.

    Attributes:
        algorithm: With parameters as ``name:key=value``.
        verifier: What guides.
    """

    algorithm: str
    verifier: str = "playground_parm"


PLAIN, REFERENCE = "plain", "ORM"
ARMS: dict[str, Arm] = {
    PLAIN: Arm("best_of_n"),
    "best of n": Arm("best_of_n", "playground_judge"),
    REFERENCE: Arm("best_of_n"),
    "PRM": Arm("prm_search"),
    "PARM": Arm("parm"),
    "PARM without refilling": Arm("parm:refill=false"),
    "PARM++, remask": Arm("parm_pp:corrector=remask,max_reflections=1"),
    "PARM++, prompt": Arm("parm_pp:corrector=prompt,max_reflections=1"),
}


@dataclass(frozen=True)
class Settings:
    """What is compared; the same for all shards.

    Attributes:
        tracks: Of the playground's prompts.
        limit: Most prompts of a track.
        seeds: Root seeds.
        budgets: In plain samples, such as ``8x``.
        arms: Some of `ARMS`.
        levels: ``compute``, ``seconds`` or both.
        device: Where models run.
        shards: How many there are.
        dtype: Precision of the generator; its own by default.

    Raises:
        ConfigError: If one cannot be.
    """

    tracks: tuple[str, ...]
    limit: int
    seeds: tuple[int, ...]
    budgets: tuple[str, ...]
    arms: tuple[str, ...]
    levels: tuple[str, ...]
    device: str
    shards: int
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def __post_init__(self) -> None:
        for budget in self.budgets:
            samples_of(budget)
        if self.limit < 1:
            raise ConfigError(f"--limit must be at least 1 but got {self.limit}; raise it.")

    def units(self, shard: int) -> list[tuple[Track, Prompt, int]]:
        """The tracks, prompts and seeds of a shard, from 1 on; each seed goes through all prompts first."""
        prompts = [(track, p) for track in self.tracks for p in evaluation_prompts(self.limit, track)]  # type: ignore[arg-type]
        every = [(track, prompt, seed) for seed in self.seeds for track, prompt in prompts]
        return every[shard - 1 :: self.shards]  # type: ignore[return-value]

    def cells(self) -> list[tuple[str, str, str]]:
        """The arm, budget and level of each search of a unit."""
        several = [arm for arm in self.arms if arm != PLAIN]
        own = [(arm, budget, level) for budget in self.budgets for level in self.levels for arm in several]
        return [(PLAIN, "1x", COMPUTE)] * (PLAIN in self.arms) + own


@dataclass(frozen=True)
class Outcome:
    """A finished search.

    Attributes:
        track: Of its prompt.
        prompt: The prompt.
        seed: Root seed.
        arm: One of `ARMS`.
        budget: In plain samples.
        level: ``compute`` or ``seconds``.
        right: Whether the winner is right by the exact checker; a search without one is not.
        found: Whether any finished sample is.
        nfe: Network evaluations.
        left: Share of the compute that the budget allowed and the search left; NaN where it limits seconds.
        verifier_calls: Samples and previews judged.
        seconds: Wall-clock seconds.
    """

    track: str
    prompt: str
    seed: int
    arm: str
    budget: str
    level: str
    right: bool
    found: bool
    nfe: float
    left: float
    verifier_calls: int
    seconds: float

    @property
    def unit(self) -> Unit:
        """What searches are paired by."""
        return self.prompt, self.seed


@dataclass
class Shard:
    """The file of one shard: its settings, the seconds of its budgets, and its outcomes, a line each.

    Attributes:
        path: The file.
        settings: Of the run.
        limits: The seconds of a budget: what the reference took.
        outcomes: Those that are finished.
    """

    path: Path
    settings: Settings
    limits: dict[str, float] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Shard:
        """What a file holds; a line that a killed process left half written is not there.

        Raises:
            StorageError: If it is no file of a shard.
        """
        try:
            head, *lines = read_file(path).decode("utf-8", "replace").split("\n")
            begun: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in json.loads(head).items()
            }
            shard = cls(path, Settings(**begun))
        except (ValueError, TypeError, AttributeError) as error:
            raise StorageError(
                f"{str(path)!r} must be what a shard wrote but cannot be read ({error}); choose another "
                "--output."
            ) from error
        for line in lines:
            try:
                values = json.loads(line)
                if "limits" in values:
                    shard.limits = values["limits"]
                else:
                    left = math.nan if values["left"] is None else values["left"]
                    shard.outcomes.append(Outcome(**{**values, "left": left}))
            except (ValueError, TypeError, KeyError):
                continue
        return shard

    @classmethod
    def open(cls, path: Path, settings: Settings) -> Shard:
        """The shard of a file, begun if there is none.

        Raises:
            ConfigError: If it was begun with other settings.
        """
        if not is_file(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(asdict(settings)) + "\n"
            replace_file(path, lambda part: part.write_text(text), "The shard")
        shard = cls.read(path)
        if shard.settings != settings:
            raise ConfigError(
                f"All parts of a run must have the same settings but {str(path)!r} was begun with "
                f"{shard.settings} and {settings} were given; give the same, or choose another --output."
            )
        return shard

    def set_limits(self, limits: dict[str, float]) -> None:
        """Notes the seconds of the budgets."""
        self.limits = limits
        append_lines(self.path, json.dumps({"limits": limits}) + "\n")

    def add(self, outcome: Outcome) -> None:
        """Notes a finished search."""
        self.outcomes.append(outcome)
        append_lines(self.path, json.dumps(json_value(asdict(outcome))) + "\n")


def carry_out(shard: Shard, number: int) -> None:
    """Carries out all searches of a shard that are not finished.

    Args:
        shard: Its file.
        number: Of the shard, from 1 on.
    """
    settings, models = shard.settings, Models(keep=2)
    units = settings.units(number)

    def searched(track: str, prompt: Prompt, seed: int, cell: tuple[str, str, str]) -> Outcome:
        arm, budget, level = cell
        allowed = f"seconds={shard.limits[budget]!r}" if level == SECONDS else budget
        result = _search(models, settings, ARMS[arm], prompt, seed, allowed)
        spec = world.metadata(world.parse_spec(prompt.text))
        finished = [c for c in result.population if not c.preview]
        right = {c.uid: checker.evaluate(np.asarray(c.load()), spec).correct for c in finished}
        return Outcome(
            track=track,
            prompt=prompt.text,
            seed=seed,
            arm=arm,
            budget=budget,
            level=level,
            right=result.winner is not None and right.get(result.winner.uid, False),
            found=any(right.values()),
            nfe=result.spent.nfe,
            left=_left(result),
            verifier_calls=result.spent.verifier_calls,
            seconds=result.spent.elapsed,
        )

    if SECONDS in settings.levels and not shard.limits:
        some = units[:_CALIBRATED]
        searched(*some[0], (PLAIN, "1x", COMPUTE))  # the first search of a process is slow
        took = {
            budget: [searched(*unit, (REFERENCE, budget, COMPUTE)).seconds for unit in some]
            for budget in settings.budgets
        }
        shard.set_limits({budget: float(f"{median(values):.3g}") for budget, values in took.items()})
    done = {(o.track, *o.unit, o.arm, o.budget, o.level) for o in shard.outcomes}
    began = time.monotonic()
    for i, (track, prompt, seed) in enumerate(units, start=1):
        for cell in settings.cells():
            if (track, prompt.text, seed, *cell) not in done:
                shard.add(searched(track, prompt, seed, cell))
        minutes = (time.monotonic() - began) / 60
        _note(f"shard {number} of {settings.shards}: {i} of {len(units)} prompts, {minutes:.1f} min")


def _search(models: Models, settings: Settings, arm: Arm, prompt: Prompt, seed: int, budget: str) -> Result:
    config = RunConfig(
        prompt=prompt.text,
        prompt_metadata=dict(prompt.metadata),
        model=MODEL,
        model_options=ModelOptions(device=settings.device, dtype=settings.dtype),
        algorithm=arm.algorithm,
        verifier=f"{arm.verifier}:device={settings.device}",
        budget=budget,
        seed=seed,
    )
    return run(config, models.live(config))


def _left(result: Result) -> float:
    """The share of the allowed compute that a search left; NaN where a budget limits something else."""
    spent, budget = result.spent, result.budget
    used, allowed = (spent.macs, budget.macs) if budget.macs else (spent.nfe, budget.nfe)
    return 1 - used / allowed if allowed else math.nan


# ----------------------------------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Row:
    """A search at a budget, averaged over prompts and seeds.

    Attributes:
        arm: One of `ARMS`.
        right: Share of right winners.
        difference: That, less the share of the reference, paired by prompt and seed.
        found: Share of searches with a right sample among all that they finished.
        nfe: Network evaluations.
        left: Share of the compute that the budget allowed and the search left; NaN in equal seconds.
        verifier_calls: Samples and previews judged.
        seconds: Wall-clock seconds.
    """

    arm: str
    right: Figure
    difference: Figure
    found: float
    nfe: float
    left: Figure
    verifier_calls: float
    seconds: float


def rows_of(settings: Settings, outcomes: Sequence[Outcome], budget: str, level: str) -> list[Row]:
    """The rows of a track at a budget, of the prompts and seeds that all its searches are finished for."""
    plain = [o for o in outcomes if o.arm == PLAIN]
    several = [o for o in outcomes if (o.budget, o.level) == (budget, level) and o.arm != PLAIN]
    groups = {
        arm: {o.unit: o for o in (plain if arm == PLAIN else several) if o.arm == arm}
        for arm in settings.arms
    }
    common = set.intersection(*(set(group) for group in groups.values()))
    base = {unit: float(o.right) for unit, o in groups.get(REFERENCE, {}).items()}
    rows = []
    for arm, group in groups.items():
        kept = {unit: o for unit, o in group.items() if unit in common}
        right = {unit: float(o.right) for unit, o in kept.items()}
        if not kept:
            continue
        rows.append(
            Row(
                arm=arm,
                right=by_prompt(right),
                difference=Figure(math.nan) if arm == REFERENCE else paired(right, base),
                found=mean([float(o.found) for o in kept.values()]),
                nfe=mean([o.nfe for o in kept.values()]),
                left=by_prompt({unit: o.left for unit, o in kept.items()}),
                verifier_calls=mean([float(o.verifier_calls) for o in kept.values()]),
                seconds=mean([o.seconds for o in kept.values()]),
            )
        )
    return rows


def markdown(shards: Sequence[Shard]) -> str:
    """All tables of a run."""
    settings = shards[0].settings
    outcomes = [outcome for shard in shards for outcome in shard.outcomes]
    expected = sum(len(settings.units(n + 1)) for n in range(settings.shards)) * len(settings.cells())
    kind = f" in {settings.dtype}" if settings.dtype else ""
    lines = [
        f"`{MODEL}` on {settings.device}{kind}, {len(settings.seeds)} seeds, {settings.shards} processes "
        "side by side; right by the exact checker, 95 % intervals over prompts.",
        "",
    ]
    if len(outcomes) < expected:
        lines += [
            f"{expected - len(outcomes)} searches are missing: these are the figures of the others.",
            "",
        ]
    for track in settings.tracks:
        own = [o for o in outcomes if o.track == track]
        for budget in settings.budgets:
            for level in settings.levels:
                rows = rows_of(settings, own, budget, level)
                if rows:
                    prompts = len({o.prompt for o in own})
                    lines += [f"Track {track}, {_title(shards, budget, level)}, {prompts} prompts:", ""]
                    lines += [*_table(rows, level), ""]
    return "\n".join(lines).rstrip() + "\n"


def _title(shards: Sequence[Shard], budget: str, level: str) -> str:
    if level == COMPUTE:
        return f"{budget} at equal compute"
    seconds = mean([shard.limits[budget] for shard in shards if budget in shard.limits])
    return f"in the seconds that {REFERENCE} takes for {budget}, {seconds:.2g} on the mean"


def _table(rows: Sequence[Row], level: str) -> Iterator[str]:
    saves = level == COMPUTE
    heads = ["search", "right, %", f"less {REFERENCE}", "found, %", "nfe"]
    heads += ["compute left, %"] if saves else []
    yield "| " + " | ".join([*heads, "judged", "seconds"]) + " |"
    yield "|---|" + "--:|" * (len(heads) + 1)
    for row in rows:
        cells = [row.arm, row.right.percent, row.difference.written(100, "+.1f"), f"{100 * row.found:.1f}"]
        cells += [f"{row.nfe:.0f}"]
        cells += [row.left.percent] if saves else []
        yield "| " + " | ".join([*cells, f"{row.verifier_calls:.1f}", f"{row.seconds:.2f}"]) + " |"


def read_shards(output: Path) -> list[Shard]:
    """The shards of a run, in order.

    Raises:
        ConfigError: If there is none, or they are of several runs.
    """
    found = {
        int(m[1]): Shard.read(p) for p in output.glob("shard-*.jsonl") if (m := _SHARD.fullmatch(p.name))
    }
    shards = [found[number] for number in sorted(found)]
    if not shards:
        raise ConfigError(
            f"--tables joins the files of shards but {str(output)!r} holds none; run some, or give the "
            "folder by --output."
        )
    for shard in shards:
        if shard.settings != shards[0].settings:
            raise ConfigError(
                f"All parts of a run must have the same settings but {str(shards[0].path)!r} has "
                f"{shards[0].settings} and {str(shard.path)!r} has {shard.settings}; keep those of one run."
            )
    return shards


# ---------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> None:
    """Carries out a shard, or all of them side by side, or prints the tables.

    Args:
        arguments: Command line, that of the process by default.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    try:
        with asked_once(), warnings.catch_warnings():
            warnings.simplefilter("ignore", SearchWarning)  # of single searches
            _go(options, given)
    except TTSVisionError as error:
        raise SystemExit(f"Error: {error}") from error


def _go(options: argparse.Namespace, given: Sequence[str]) -> None:
    if options.processes:
        _side_by_side(options, given)
    elif not options.tables:
        number, shards = options.shard
        settings = Settings(
            tracks=tuple(dict.fromkeys(options.track)),
            limit=options.limit,
            seeds=tuple(dict.fromkeys(options.seeds)),
            budgets=tuple(dict.fromkeys(options.budgets)),
            arms=tuple(arm for arm in ARMS if arm in options.arms),
            levels=tuple(dict.fromkeys(options.levels)),
            device=options.device,
            shards=shards,
            dtype=options.dtype,
        )
        carry_out(Shard.open(options.output / f"shard-{number}-of-{shards}.jsonl", settings), number)
        if shards > 1:
            return
    text = markdown(read_shards(options.output))
    print(text)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    replace_file(options.results, lambda part: part.write_text(text), "The tables")


def _side_by_side(options: argparse.Namespace, given: Sequence[str]) -> None:
    """Runs every shard in a process of its own, with one thread."""
    n = options.processes
    at = given.index("--processes")
    rest = [*given[:at], *given[at + 2 :]]
    command = [sys.executable, "-m", "tts_vision.eval.step_search", *rest]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*command, "--shard", f"{i + 1}/{n}"], env=environment) for i in range(n)]
    failed = [i + 1 for i, process in enumerate(running) if process.wait()]
    if failed:
        raise ConfigError(
            f"All shards must end well but {', '.join(map(str, failed))} of {n} did not; see above, and "
            "start the same command again, which goes on."
        )


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"must be i/n with i from 1 to n, such as 3/16, but got {text!r}")
    return int(found[1]), int(found[2])


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tts_vision.eval.step_search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--track", nargs="+", choices=get_args(Track), default=list(get_args(Track)))
    parser.add_argument("--limit", type=int, default=100, help="prompts of each track (default: 100)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", default=["8x"], metavar="TIMES")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--levels", nargs="+", choices=(COMPUTE, SECONDS), default=[COMPUTE, SECONDS])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="precision of the model")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="of the searches")
    parser.add_argument("--processes", type=int, default=0, help="run so many shards side by side")
    parser.add_argument("--output", type=Path, default=Path("runs/step-search"), help="keeps all outcomes")
    parser.add_argument("--results", type=Path, default=RESULT, help="of the tables")
    parser.add_argument("--tables", action="store_true", help="join the shards of --output and run nothing")
    return parser


if __name__ == "__main__":
    main()
