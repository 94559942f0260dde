"""The searches of the fair table: who takes part, at which budgets, and how many prompts fit the time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from inspect import Parameter
from pathlib import Path
from statistics import median
from typing import Any

from tts_vision.config import ModelOptions, RunConfig, SamplerOptions, Spec
from tts_vision.errors import CapabilityError, ConfigError, StorageError
from tts_vision.eval.evaluator import Item
from tts_vision.eval.playground import GUIDES, WorldTrack, tracks_of
from tts_vision.files import is_file, read_file, replace_file
from tts_vision.ledger import Budget
from tts_vision.parameters import parameters
from tts_vision.progress import clock
from tts_vision.registry import entries, known_names, lookup
from tts_vision.runs.engine import Progress, Run, run_tasks
from tts_vision.runs.executors import Done, Executor
from tts_vision.runs.grid import grid
from tts_vision.runs.manifest import Manifest
from tts_vision.runs.task import Record, Task

REFERENCE = "best_of_n"
COMPUTE, SECONDS = "compute", "seconds"
VARIANTS: dict[str, tuple[str, ...]] = {"tts_var": ("clustering=false",)}
"""Parameters of further arms of an algorithm: TTS-VAR without its clusters is plain resampling."""
OF_CLIPS = {
    "tree_of_frames": (
        "rewriter=stages",
        "backtrack=true",
        "backtrack=true,rewriter=stages",
        "backtrack=true,prune=threshold,threshold=0.5",
    )
}
"""Those on models of clips alone: prompts of stages; backtracking of finished or of all clips."""
PLAN = "plan.json"
CALIBRATED = 5
"""Prompts on which the reference is timed."""


@dataclass(frozen=True)
class Contender:
    """A search on a model.

    Attributes:
        model: The model.
        algorithm: With parameters as ``name:key=value``.
        preview: The mode of its previews, as in `SamplerOptions.preview`; empty for the sampler's own.
    """

    model: str
    algorithm: str
    preview: str = ""

    @property
    def name(self) -> str:
        """The search, by its algorithm and its previews."""
        return f"{self.algorithm} with {self.preview} previews" if self.preview else self.algorithm


@dataclass(frozen=True)
class Level:
    """A budget that searches are compared at.

    Attributes:
        times: In plain samples, such as ``4x``.
        timed: Whether searches get the seconds of the reference at `times`, instead of its compute.
    """

    times: str
    timed: bool = False

    @property
    def samples(self) -> float:
        """The budget in plain samples."""
        return samples_of(self.times)


@dataclass(frozen=True)
class Cell:
    """Where a search belongs: a row of one of the tables."""

    track: WorldTrack
    contender: Contender
    level: Level


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Attributes:
        tracks: Of the playground's prompts.
        models: Their names.
        algorithms: With parameters; all that are registered if there is none.
        previews: Modes of previews that algorithms which choose by previews have as further arms.
        budgets: In plain samples, such as ``4x``.
        verifier: What guides; that of each track, of `GUIDES`, if empty.
        seeds: Root seeds.
        dtype: Precision of the models; their own by default.
        device: Where they run.
        limit: Most prompts of a track.
        workers: Searches that are carried out at once, which decides how long each takes.
        levels: What searches have in common at a budget: ``compute``, ``seconds`` or both.

    Raises:
        ConfigError: If a budget is written in another unit, or a model is made for none of the tracks.
    """

    tracks: tuple[WorldTrack, ...]
    models: tuple[str, ...]
    algorithms: tuple[str, ...]
    previews: tuple[str, ...]
    budgets: tuple[str, ...]
    verifier: str
    seeds: tuple[int, ...]
    dtype: Any = None
    device: str | None = None
    limit: int = 100
    workers: int = 1
    levels: tuple[str, ...] = (COMPUTE, SECONDS)

    def __post_init__(self) -> None:
        _ = self.yardstick
        for model in self.models:
            if not self.tracks_of(model):
                raise ConfigError(
                    f"A model is compared on prompts that it is made for but {model!r} is for "
                    f"{' and '.join(tracks_of(model))}, and the tracks are {', '.join(self.tracks)}; add one "
                    "by --track, or leave the model out."
                )

    def tracks_of(self, model: str) -> tuple[WorldTrack, ...]:
        """The tracks that a model takes part in."""
        return tuple(track for track in self.tracks if track in tracks_of(model))

    def guide(self, track: WorldTrack) -> str:
        """The verifier that guides on a track."""
        return self.verifier or GUIDES[track]

    @property
    def yardstick(self) -> Level:
        """Four times the largest budget, for the reference alone."""
        return Level(f"{4 * max(map(samples_of, self.budgets)):g}x")

    def levels_of(self, contender: Contender) -> list[Level]:
        """The budgets of a contender; the reference has one sample and the yardstick besides."""
        kinds = [timed for name, timed in ((COMPUTE, False), (SECONDS, True)) if name in self.levels]
        own = [Level(times, timed) for times in self.budgets for timed in kinds]
        alone = contender == Contender(contender.model, REFERENCE)
        return list(dict.fromkeys([Level("1x"), *own, self.yardstick] if alone else own))


@dataclass(frozen=True)
class Plan:
    """What a run has found out before its main part; kept, so that it goes on with the same.

    Attributes:
        settings: The last ones.
        limits: The seconds of a budget, by model and budget: what the reference took.
        refused: Why a contender takes no part, by model and name.
        overhead: Seconds of a search beside its own: files, judging, diversity.
    """

    settings: Settings
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    overhead: float = 0.0

    def save(self, root: Path) -> None:
        """Writes ``plan.json``."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        root.mkdir(parents=True, exist_ok=True)
        replace_file(root / PLAN, lambda part: part.write_text(text), "The plan")

    @classmethod
    def load(cls, root: Path) -> Plan | None:
        """The plan of a folder; None without one.

        Raises:
            StorageError: If it cannot be read.
        """
        if not is_file(root / PLAN):
            return None
        try:
            values = json.loads(read_file(root / PLAN))
            own: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("settings").items()
            }
            return cls(settings=Settings(**own), **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(
                f"{str(root / PLAN)!r} must be what the benchmark wrote but cannot be read ({error}); choose "
                "another --output."
            ) from error

    def refusal(self, contender: Contender) -> str | None:
        """Why a contender takes no part; None if it does, or it is not known yet."""
        return self.refused.get(contender.model, {}).get(contender.name)

    def takes_part(self, contender: Contender) -> bool:
        """Whether nothing is known against a contender."""
        return self.refusal(contender) is None

    def refuse(self, contender: Contender, reason: str) -> None:
        """Notes why a contender takes no part."""
        self.refused.setdefault(contender.model, {})[contender.name] = reason


def samples_of(times: str) -> float:
    """A budget in plain samples.

    Raises:
        ConfigError: If it is written in another unit.
    """
    budget = Budget.parse(times)
    if budget.times is None or budget != Budget(times=budget.times):
        raise ConfigError(
            f"--budgets are in plain samples, such as 4x, but got {times!r}; each is also given in the "
            "seconds that best_of_n takes for it."
        )
    return budget.times


def bundled_models(tracks: Sequence[WorldTrack] = ()) -> list[str]:
    """The models that come with the toolkit and draw the playground's world.

    Args:
        tracks: Those made for none of these are left out; none by default.
    """
    own = [name for name in known_names("model") if name.partition("-")[0] == "playground"]
    return [name for name in own if not tracks or set(tracks) & set(tracks_of(name))]


def contenders(settings: Settings) -> list[Contender]:
    """All searches on all models, the reference first."""
    return [
        Contender(model, algorithm, preview)
        for model in dict.fromkeys(settings.models)
        for algorithm in _algorithms(settings, model)
        for preview in ("", *(settings.previews if _chooses_by_previews(algorithm) else ()))
    ]


def _algorithms(settings: Settings, model: str) -> list[str]:
    """All algorithms on a model, with parameters, the reference first."""
    variants = {**VARIANTS, **(OF_CLIPS if "motion" in settings.tracks_of(model) else {})}
    every = settings.algorithms or tuple(
        text
        for entry in entries("algorithm")
        if entry.target.__module__.startswith("tts_vision.")
        for text in (entry.name, *(f"{entry.name}:{own}" for own in variants.get(entry.name, ())))
    )
    return list(dict.fromkeys([REFERENCE, *every]))


def _chooses_by_previews(algorithm: str) -> bool:
    needs = lookup("algorithm", Spec.parse(algorithm).name).needs
    # those by gradient differentiate the x0 estimate, whatever the mode of previews
    return "preview" in needs and "differentiable" not in needs


def unsized(algorithm: str) -> str | None:
    """Why an algorithm cannot be given a budget and nothing else; None if it can."""
    spec = Spec.parse(algorithm)
    entry = lookup("algorithm", spec.name)
    needed = [
        p.name
        for p in parameters(entry.target).values()
        if p.default is Parameter.empty and p.name not in spec.params
    ]
    if needed:
        return f"it needs {', '.join(needed)}, which no budget gives"
    return None if entry.size else "it has no size that a budget decides: a person takes part"


class Tasks:
    """The searches of a plan, by where they belong.

    Args:
        plan: The plan.
        items: The prompts of each track, in the order in which they are taken.
    """

    def __init__(self, plan: Plan, items: Mapping[WorldTrack, Sequence[Item]]) -> None:
        self.plan, self.items = plan, items
        self.cells: dict[str, Cell] = {}

    def of(
        self, cell: Cell, prompts: Sequence[Item] | None = None, seeds: Sequence[int] | None = None
    ) -> list[Task]:
        """The searches of a cell, by prompt and seed.

        Raises:
            ConfigError: If its settings cannot be used as given.
        """
        settings, contender, level = self.plan.settings, cell.contender, cell.level
        chosen = self.items[cell.track][: settings.limit] if prompts is None else prompts
        budget, folder = level.times, level.times
        if level.timed:
            limit = self.plan.limits[contender.model][level.times]
            budget, folder = f"seconds={limit!r}", f"{level.times} in {limit:g} s"
        base = RunConfig(
            prompt="-",
            model=contender.model,
            model_options=ModelOptions(dtype=settings.dtype, device=settings.device),
            sampler_options=SamplerOptions(preview=contender.preview)
            if contender.preview
            else SamplerOptions(),
            verifier=settings.guide(cell.track),
            budget=budget,
        )
        found = grid(
            base,
            [item.prompt for item in chosen],
            arms={contender.name: contender.algorithm},
            verifiers=[settings.guide(cell.track)],
            seeds=settings.seeds if seeds is None else seeds,
            ids=[item.id for item in chosen],
            folder=[cell.track, contender.model, folder],
        )
        self.cells |= dict.fromkeys((task.name for task in found), cell)
        return found

    def cells_of(self, track: WorldTrack) -> Iterator[Cell]:
        """The cells of a track, those of its contenders that take part."""
        for contender in filter(self.plan.takes_part, contenders(self.plan.settings)):
            if track not in self.plan.settings.tracks_of(contender.model):
                continue
            for level in self.plan.settings.levels_of(contender):
                yield Cell(track, contender, level)

    def all(self) -> list[Task]:
        """All searches. Those of one prompt follow each other, so that a part of a run is a smaller run."""
        parts = [self.of(cell) for track in self.plan.settings.tracks for cell in self.cells_of(track)]
        places = {(item.id, track): i for track, items in self.items.items() for i, item in enumerate(items)}

        def order(task: Task) -> tuple[int, int, str, str]:
            cell = self.cells[task.name]
            seed = self.plan.settings.seeds.index(task.config.seed)
            return seed, places[task.prompt_id, cell.track], cell.track, task.config.model

        return sorted((task for part in parts for task in part), key=order)


@dataclass(frozen=True)
class Stage:
    """Where and how the searches of a run are carried out.

    Attributes:
        root: The folder of the run.
        items: The prompts of each track, in the order in which they are taken.
        executor: As in `run_tasks`.
        note: Told what goes on.
    """

    root: Path
    items: Mapping[WorldTrack, Sequence[Item]]
    executor: Executor | None = None
    note: Callable[[str], None] = lambda line: None

    def run(self, tasks: Sequence[Task], progress: Progress | None = None) -> Run:
        """Carries out searches, as `run_tasks` does."""
        return run_tasks(tasks, self.root, executor=self.executor, progress=progress)


def prepared(
    settings: Settings, stage: Stage, measure: Callable[[WorldTrack, Sequence[Record]], None]
) -> Plan:
    """The plan of a run: times the reference, and tries each other contender once.

    The searches are those of the run itself, so nothing of this is computed twice.

    Args:
        settings: What is compared.
        stage: Where.
        measure: Does with finished searches of a track what is done with those of the run, to be timed.

    Raises:
        ConfigError: If the folder holds a run of other settings.
    """
    old = Plan.load(stage.root)
    if old is not None:
        _check_same(old.settings, settings, stage.root)
    # a refusal may be gone since, so it is asked for again
    plan = Plan(settings) if old is None else replace(old, settings=settings, refused={})
    for contender in contenders(settings):
        if reason := unsized(contender.algorithm):
            plan.refuse(contender, reason)
    known = [task for model in settings.models for task in _timed(plan, model, stage)]
    plan = _tried(plan, stage, known, measure)
    plan.save(stage.root)
    return plan


def _timed(plan: Plan, model: str, stage: Stage) -> list[Task]:
    """Takes the seconds of each budget from a few searches of the reference; these searches."""
    settings, limits = plan.settings, plan.limits.setdefault(model, {})
    first = settings.tracks_of(model)[0]
    prompts = stage.items[first][: min(CALIBRATED, settings.limit)]
    tasks, reference = Tasks(plan, stage.items), Contender(model, REFERENCE)
    by_times = {
        times: tasks.of(Cell(first, reference, Level(times)), prompts, settings.seeds[:1])
        for times in settings.budgets
    }
    every = [task for each in by_times.values() for task in each]
    if not set(by_times) <= set(limits):
        stage.note(f"timing {REFERENCE} on {model}")
        # before them others, because the first searches of a process are slow
        warm = tasks.of(Cell(first, reference, Level("1x")), prompts, settings.seeds[:1])
        run = stage.run([*warm, *every])
        if run.failed:
            raise run.failed[0].error
        took = {record.name: record.elapsed for record in run.records}
        for times, each in by_times.items():
            # two digits are what a machine keeps to
            limits.setdefault(times, float(f"{median(took[task.name] for task in each):.2g}"))
        plan.save(stage.root)
    return every


def _tried(
    plan: Plan, stage: Stage, known: Sequence[Task], measure: Callable[[WorldTrack, Sequence[Record]], None]
) -> Plan:
    """Runs each contender once at each budget; those that are refused, or fail, take no part."""
    settings, tasks = plan.settings, Tasks(plan, stage.items)
    new: list[Task] = []  # to this run, or finished
    for contender in filter(plan.takes_part, contenders(settings)):
        first = settings.tracks_of(contender.model)[0]
        try:
            computed = [level for level in settings.levels_of(contender) if not level.timed]
            for level in computed or [Level(settings.budgets[0])]:
                cell = Cell(first, contender, level)
                new += tasks.of(cell, stage.items[first][:1], settings.seeds[:1])
        except ConfigError as error:
            plan.refuse(contender, str(error))
    finished = Manifest(stage.root).read()
    if finished.keys() >= {task.name for task in new}:
        return plan
    stage.note(f"trying {len({tasks.cells[task.name].contender for task in new})} searches on one prompt")
    ends: list[tuple[float, Done]] = []
    # with those that have succeeded, so that a refusal is not taken for the failure of all
    run = stage.run(
        list({task.name: task for task in (*known, *new)}.values()),
        lambda done, total, search: ends.append((time.monotonic(), search)),
    )
    for failed in run.failed:
        contender = tasks.cells[failed.task.name].contender
        if contender == Contender(contender.model, REFERENCE):
            raise failed.error
        if not isinstance(failed.error, (CapabilityError, ConfigError)):
            stage.note(f"{contender.name} failed on {contender.model} and takes no part: {failed.error}")
        plan.refuse(contender, str(failed.error))
    records = [search for _, search in ends if isinstance(search, Record)]
    if len(records) < 2:
        return plan
    began = time.monotonic()
    tracks = {task.name: settings.tracks_of(task.config.model)[0] for task in (*known, *new)}
    for track in settings.tracks:
        measure(track, [record for record in records if tracks[record.name] == track])
    judged = (time.monotonic() - began) / len(records)
    # from the first end on: a worker starts once
    between = settings.workers * (ends[-1][0] - ends[0][0]) - sum(r.elapsed for r in records[1:])
    return replace(plan, overhead=settings.workers * judged + max(0.0, between / (len(records) - 1)))


def _check_same(old: Settings, new: Settings, root: Path) -> None:
    for name in ("verifier", "dtype", "device", "workers"):
        if getattr(old, name) != getattr(new, name):
            raise ConfigError(
                f"All searches of a run must have the same {name} but {str(root)!r} was begun with "
                f"{getattr(old, name)} and {getattr(new, name)} was given; give the same, or choose another "
                "--output."
            )


@dataclass(frozen=True)
class Estimate:
    """How long a run takes, from one search of each cell.

    Attributes:
        seconds: Of one prompt with all seeds and contenders, by model; on one worker.
        prompts: By track.
        searches: All of them.
        workers: Searches at once.
        tracks: Those that a model takes part in, by model; all if it is not there.
    """

    seconds: dict[str, float]
    prompts: dict[WorldTrack, int]
    searches: int
    workers: int
    tracks: dict[str, tuple[WorldTrack, ...]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of the run."""
        return sum(map(self._of, self.seconds))

    def fitting(self, hours: float) -> int:
        """The most prompts of a track that fit the hours; at least one."""
        each = sum(len(self._tracks(model)) * seconds for model, seconds in self.seconds.items())
        return max(1, math.floor(3600 * hours / (each / self.workers)))

    def _tracks(self, model: str) -> tuple[WorldTrack, ...]:
        return self.tracks.get(model, tuple(self.prompts))

    def _of(self, model: str) -> float:
        """Seconds of all searches on a model."""
        prompts = sum(self.prompts[track] for track in self._tracks(model))
        return prompts * self.seconds[model] / self.workers

    def __str__(self) -> str:
        prompts = ", ".join(f"{n} {track}" for track, n in self.prompts.items())
        parts = [f"{model} {clock(self._of(model))}" for model in self.seconds]
        return (
            f"{self.searches} searches for {prompts} prompts: about {clock(self.total)} ({', '.join(parts)})"
        )


def estimated(plan: Plan, stage: Stage) -> Estimate:
    """How long the run of a plan takes, finished searches included.

    Args:
        plan: After `prepared`.
        stage: Where it is carried out.
    """
    settings, finished = plan.settings, Manifest(stage.root).read()
    tasks, searches = Tasks(plan, stage.items), 0
    seconds = dict.fromkeys(settings.models, 0.0)
    prompts = {track: min(settings.limit, len(stage.items[track])) for track in settings.tracks}
    tracks = {model: settings.tracks_of(model) for model in settings.models}
    for track in settings.tracks:
        for cell in tasks.cells_of(track):
            model = cell.contender.model
            searches += len(settings.seeds) * prompts[track]
            if track != tracks[model][0]:
                continue  # those of the first track are timed
            if cell.level.timed:
                took = plan.limits[model][cell.level.times]
            else:
                (task,) = tasks.of(cell, stage.items[track][:1], settings.seeds[:1])
                took = finished[task.name].elapsed
            seconds[model] += (took + plan.overhead) * len(settings.seeds)
    return Estimate(seconds, prompts, searches, settings.workers, tracks)
