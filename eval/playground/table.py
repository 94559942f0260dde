"""The figures of the fair table: accuracy, differences to best of n, rejected winners, diversity, seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tts_vision.eval.evaluator import Item, Verdict
from tts_vision.eval.playground import WorldTrack
from tts_vision.eval.playground.measures import Measures
from tts_vision.eval.playground.plan import REFERENCE, Cell, Contender, Level, Plan, Tasks
from tts_vision.eval.statistics import curve_of, longest, mean
from tts_vision.intervals import Figure, mean_of
from tts_vision.runs.manifest import Manifest
from tts_vision.runs.task import Record

Unit = tuple[str, int]
"""A prompt and a seed: what searches are paired by."""


@dataclass(frozen=True)
class Row:
    """A search at a budget on the prompts of a track, averaged over prompts and seeds.

    Intervals are 95 % bootstrap intervals that resample prompts.

    Attributes:
        track: The track.
        model: The model.
        search: The algorithm, and its mode of previews.
        budget: In plain samples.
        limit: Seconds of a search, those of the reference; None at equal compute.
        prompts: Prompts that all searches of this budget are finished for.
        searches: Searches.
        right: Share of winners that the checker calls right.
        difference: That, less the share of the reference at this budget, paired by prompt and seed.
        yardstick: That, less the share of the reference at four times the largest budget; where the
            seconds are a quarter of its seconds.
        area: Mean of the share that is right over the seconds from none to the mean end of the slowest
            search of this budget.
        missed: Share of the rejected winners beside which the population holds a right sample: mistakes of
            the guide.
        diversity: Mean distance within the population of the algorithm, without samples for the rest of the
            budget.
        own: Share of the compute that the algorithm itself spent.
        nfe: Network evaluations.
        macs: Multiply-accumulates, where they are counted.
        verifier_calls: Samples and previews scored.
        seconds: Wall-clock seconds.
    """

    track: WorldTrack
    model: str
    search: str
    budget: str
    limit: float | None
    prompts: int
    searches: int
    right: Figure
    difference: Figure
    yardstick: Figure | None
    area: float
    missed: float
    diversity: float
    own: float
    nfe: float
    macs: float
    verifier_calls: float
    seconds: float

    @property
    def rejected(self) -> float:
        """Share of the winners, the guide's favourites, that the checker refuses."""
        return 1 - self.right.value


@dataclass(frozen=True)
class Yardstick:
    """The reference at four times the largest budget.

    Attributes:
        track: The track.
        model: The model.
        budget: Its budget.
        seconds: Its mean seconds.
        right: Share of right winners.
        in_a_quarter: The same of the best samples in a quarter of the seconds of each search.
    """

    track: WorldTrack
    model: str
    budget: str
    seconds: float
    right: Figure
    in_a_quarter: Figure


@dataclass(frozen=True)
class FairTable:
    """All figures of a run.

    Attributes:
        plan: Of the run.
        rows: By track, model, budget and search.
        yardsticks: One for each track and model.
        left: Searches that are missing.
    """

    plan: Plan
    rows: list[Row]
    yardsticks: list[Yardstick]
    left: int

    @classmethod
    def of(cls, plan: Plan, items: Mapping[WorldTrack, Sequence[Item]], measures: Measures) -> FairTable:
        """The figures of the finished searches of a plan.

        Of each budget, the prompts and seeds count for which all its searches are finished.
        """
        tasks = Tasks(plan, items)
        finished = Manifest(measures.root).read()
        every = tasks.all()
        groups: dict[Cell, dict[Unit, Record]] = {tasks.cells[task.name]: {} for task in every}
        for task in every:
            record = finished.get(task.name)
            if record is not None and record.hash == task.config.hash:
                groups[tasks.cells[task.name]][task.prompt_id, task.config.seed] = record
        rows: list[Row] = []
        yardsticks: list[Yardstick] = []
        for track in plan.settings.tracks:
            for model in plan.settings.models:
                if track not in plan.settings.tracks_of(model):
                    continue
                own = {
                    cell: found
                    for cell, found in groups.items()
                    if (cell.track, cell.contender.model) == (track, model)
                }
                part = _Part(plan, track, model, own, measures)
                rows += part.rows()
                yardsticks += part.yardstick()
        return cls(plan, rows, yardsticks, len(every) - sum(map(len, groups.values())))


class _Part:
    """The figures of one model on one track."""

    def __init__(
        self,
        plan: Plan,
        track: WorldTrack,
        model: str,
        groups: Mapping[Cell, Mapping[Unit, Record]],
        measures: Measures,
    ) -> None:
        self.plan, self.track, self.model, self.measures = plan, track, model, measures
        self.by_level: dict[Level, dict[Contender, Mapping[Unit, Record]]] = {}
        for cell, found in groups.items():
            self.by_level.setdefault(cell.level, {})[cell.contender] = found
        self.reference = Contender(model, REFERENCE)

    def rows(self) -> list[Row]:
        """The rows of each budget: at equal compute, then in equal seconds."""
        levels = sorted(self.by_level, key=lambda level: (level.samples, level.timed))
        return [row for level in levels for row in self._rows(level)]

    def yardstick(self) -> list[Yardstick]:
        """The reference at its largest budget; none without a finished search."""
        level = self.plan.settings.yardstick
        records = list(self.by_level[level][self.reference].values())
        if not records:
            return []
        trail = self.measures.trail(self.track, records)
        early = {
            (r.prompt_id, r.seed): float(right_by(trail.get(r.name, []), r.elapsed / 4)) for r in records
        }
        return [
            Yardstick(
                track=self.track,
                model=self.model,
                budget=level.times,
                seconds=mean([record.elapsed for record in records]),
                right=by_prompt(self._right(records)),
                in_a_quarter=by_prompt(early),
            )
        ]

    def _rows(self, level: Level) -> Iterator[Row]:
        contenders = self.by_level[level]
        common = set.intersection(*(set(found) for found in contenders.values()))
        if not common:
            return
        chosen = {
            who: [record for unit, record in found.items() if unit in common]
            for who, found in contenders.items()
        }
        base = self._right(chosen[self.reference])
        highest = self.plan.settings.yardstick
        mark: dict[Unit, float] = {}
        if level.timed and 4 * level.samples == highest.samples:
            mark = self._right(list(self.by_level[highest][self.reference].values()))
        _, end = longest(chosen.values())
        for who, records in chosen.items():
            yield self._row(level, who, records, base, mark, end)

    def _row(
        self,
        level: Level,
        who: Contender,
        records: Sequence[Record],
        base: Mapping[Unit, float],
        mark: Mapping[Unit, float],
        end: float,
    ) -> Row:
        measures, track = self.measures, self.track
        right = self._right(records)
        populations = [measures.population(track, record) for record in records]
        wrong = [
            float(population.right > 0)
            for record, population in zip(records, populations)
            if not right[record.prompt_id, record.seed]
        ]
        metric = measures.evaluators[track].metric
        curve = curve_of(records, measures.trail(track, records), metric, 1, end)
        return Row(
            track=track,
            model=self.model,
            search=who.name,
            budget=level.times,
            limit=self.plan.limits[self.model][level.times] if level.timed else None,
            prompts=len({record.prompt_id for record in records}),
            searches=len(records),
            right=by_prompt(right),
            difference=Figure(math.nan) if who == self.reference else paired(right, base),
            yardstick=paired(right, mark) if mark else None,
            area=math.nan if curve is None else curve.area,
            missed=mean(wrong),
            diversity=mean([population.diversity for population in populations]),
            own=1 - mean([record.topped_up for record in records]),
            nfe=mean([record.nfe for record in records]),
            macs=mean([record.macs for record in records]),
            verifier_calls=mean([float(record.verifier_calls) for record in records]),
            seconds=mean([record.elapsed for record in records]),
        )

    def _right(self, records: Sequence[Record]) -> dict[Unit, float]:
        """Whether each winner is right."""
        return {(r.prompt_id, r.seed): float(self.measures.right(self.track, r)) for r in records}


def by_prompt(values: Mapping[Unit, float]) -> Figure:
    """The mean over prompts and seeds, with its interval."""
    groups: dict[str, list[float]] = {}
    for (prompt, _), value in values.items():
        groups.setdefault(prompt, []).append(value)
    return mean_of(groups.values())


def paired(values: Mapping[Unit, float], others: Mapping[Unit, float]) -> Figure:
    """The mean difference over the prompts and seeds that both have, with its interval."""
    return by_prompt({unit: value - others[unit] for unit, value in values.items() if unit in others})


def right_by(points: Sequence[tuple[float, float, Verdict]], seconds: float) -> bool:
    """Whether the best sample that was known after so many seconds is right."""
    known = [verdict for _, at, verdict in points if at <= seconds]
    return bool(known and known[-1].correct)
