"""The fair table of the bundled world, by one command that goes on where it was stopped.

Every registered search on every bundled model and both tracks of prompts, guided by a fallible verifier and
judged by the exact checker: at equal compute, and in as many seconds as best_of_n takes for it, which is
measured first, so the machine should have nothing else to do. best_of_n alone is run at four times the
largest budget as well. A search that a model cannot run is listed with the reason. As many prompts are taken
as fit the hours.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from tts_vision.config import Spec
from tts_vision.errors import ConfigError, SearchWarning, TTSVisionError
from tts_vision.eval.evaluator import Evaluator
from tts_vision.eval.playground import EVALUATORS, WorldTrack, tracks_of
from tts_vision.eval.playground.measures import Measures
from tts_vision.eval.playground.plan import (
    COMPUTE,
    SECONDS,
    Plan,
    Settings,
    Stage,
    Tasks,
    bundled_models,
    estimated,
    prepared,
)
from tts_vision.eval.playground.report import markdown, write
from tts_vision.eval.playground.table import FairTable
from tts_vision.hub import asked_once
from tts_vision.registry import lookup
from tts_vision.runs.executors import Executor
from tts_vision.runs.progress import RunReport

MOST_PROMPTS = 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the table, or with ``--tables`` prints that of a folder."""
    options = _parser().parse_args(arguments)
    try:
        with asked_once(), warnings.catch_warnings():
            warnings.simplefilter("ignore", SearchWarning)  # of single searches
            _show(options) if options.tables else _make(options)
    except TTSVisionError as error:
        raise SystemExit(f"Error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(
            f"Interrupted. The same command goes on; with --tables it shows what {options.output} holds."
        ) from None


def _make(options: argparse.Namespace) -> None:
    if options.hours <= 0 or (options.limit is not None and options.limit < 1):
        raise ConfigError(
            f"--hours must be positive and --limit at least 1 but got {options.hours:g} and {options.limit}; "
            "raise it."
        )
    models = tuple(dict.fromkeys(options.model or bundled_models(options.track or ())))
    checkers = {track: _checker(track) for track in _tracks(options.track, models)}
    items = {track: each.items() for track, each in checkers.items()}
    executor, workers = _executor(options)
    measures = Measures(options.output, checkers, _note)
    settings = Settings(
        tracks=tuple(checkers),
        models=models,
        algorithms=tuple(options.algorithms),
        previews=tuple(options.previews),
        budgets=tuple(dict.fromkeys(options.budgets)),
        verifier=options.verifier,
        seeds=tuple(dict.fromkeys(options.seeds)),
        dtype=options.dtype,
        device=options.device,
        limit=options.limit or MOST_PROMPTS,
        workers=workers,
        levels=tuple(dict.fromkeys(options.levels)),
    )
    stage = Stage(options.output, items, executor, note=_note)
    plan = prepared(settings, stage, lambda track, records: measures.look_at(records, track))
    estimate = estimated(plan, stage)
    if options.limit is None:
        limit = min(MOST_PROMPTS, estimate.fitting(options.hours))
        plan = replace(plan, settings=replace(settings, limit=limit))
        plan.save(options.output)
        estimate = estimated(plan, stage)
    if options.stop_after == "plan":
        _note(str(estimate))
        return
    _note(f"{estimate}; seconds are comparable if the machine has nothing else to do")
    tasks = Tasks(plan, items)
    with RunReport(sys.stderr) as report:
        run = stage.run(tasks.all(), report)
    if options.stop_after == "searches":
        return
    _note("judging samples")
    table = FairTable.of(plan, items, measures)
    print(markdown(table))
    print("  ".join(map(str, write(table, options.results))))
    if run.failed:
        raise run.failed[0].error


def _show(options: argparse.Namespace) -> None:
    plan = Plan.load(options.output)
    if plan is None:
        raise ConfigError(
            f"--tables prints the table of a run but {str(options.output)!r} holds none; leave it out to "
            "make one, or give the folder by --output."
        )
    checkers = {track: _checker(track) for track in plan.settings.tracks}
    items = {track: each.items() for track, each in checkers.items()}
    table = FairTable.of(plan, items, Measures(options.output, checkers, _note))
    print(markdown(table))


def _checker(track: WorldTrack) -> Evaluator:
    spec = Spec.parse(EVALUATORS[track])
    made: Any = lookup("evaluator", spec.name).target(**spec.params)
    checker: Evaluator = made
    return checker


def _tracks(chosen: Sequence[WorldTrack] | None, models: Sequence[str]) -> list[WorldTrack]:
    """The tracks that are asked for; by default those of the bundled models among these, or of images."""
    if chosen:
        return list(dict.fromkeys(chosen))
    own = {track for model in models if model in bundled_models() for track in tracks_of(model)}
    return [track for track in get_args(WorldTrack) if track in (own or {"easy", "hard"})]


def _executor(options: argparse.Namespace) -> tuple[Executor | None, int]:
    if options.executor == "local":
        if options.workers or options.threads:
            raise ConfigError(
                "--workers and --threads are of Ray but --executor is local; add --executor ray."
            )
        return None, 1
    from tts_vision.runs.ray_executor import RayExecutor

    executor = RayExecutor(workers=options.workers or 2, threads=options.threads or 1)
    return executor, executor.workers


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tts_vision.eval.playground", description=__doc__)
    parser.add_argument(
        "--track",
        nargs="+",
        choices=get_args(WorldTrack),
        help="(default: those that the models are made for)",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="NAME",
        help="(default: those bundled ones that are made for the tracks)",
    )
    parser.add_argument(
        "--algorithms",
        nargs="+",
        default=[],
        metavar="NAME",
        help="with parameters as name:key=value (default: all that are registered)",
    )
    parser.add_argument(
        "--previews",
        nargs="*",
        default=[],
        metavar="MODE",
        help="further arms of searches that choose by previews, such as expected, complete, rollout:2",
    )
    parser.add_argument("--budgets", nargs="+", default=["4x", "16x"], metavar="TIMES")
    parser.add_argument(
        "--levels",
        nargs="+",
        choices=(COMPUTE, SECONDS),
        default=[COMPUTE, SECONDS],
        help="what searches have in common at a budget (default: both, one table each)",
    )
    parser.add_argument(
        "--verifier",
        default="",
        help="what guides (default: playground_judge; playground_motion_judge on the track motion)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--hours", type=float, default=3.0, help="that the run may take (default: 3)")
    parser.add_argument("--limit", type=int, help="prompts of each track, whatever time they take")
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, help="processes of Ray (default: 2)")
    parser.add_argument("--threads", type=int, help="of each of them (default: 1)")
    parser.add_argument("--dtype", help="precision of the models, such as bfloat16")
    parser.add_argument("--device")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/playground"),
        help="keeps all searches (default: %(default)s)",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("eval/results"), help="of the tables (default: %(default)s)"
    )
    parser.add_argument(
        "--stop-after",
        choices=("plan", "searches"),
        help="plan: after the reference is timed and every search is tried; then any number of processes of "
        "the same command may run at once, those with 'searches' without the table",
    )
    parser.add_argument("--tables", action="store_true", help="print those of --output and run nothing")
    return parser


if __name__ == "__main__":
    main()
